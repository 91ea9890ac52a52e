"""What the web page shows, without the page: the browser's tests are in tests/test_page.py."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from demo import answers
from input_pipeline.errors import UserError

MOST = 50_000_000


@pytest.fixture(scope="module")
def found():
    models = answers.Models(answers.SMALL)
    picture = answers.compose(0, [("cat", 0.3, 0.3, 0.4), ("rocket", 0.7, 0.7, 0.4)])
    return answers.answer(models, "small Flamingo", picture, ["cat", "rocket"])


def test_every_method_answers_for_every_name(found):
    assert [at.name for at in found.pin] == [at.name for at in found.raw] == ["cat", "rocket"]
    assert found.heat.keys() == {"PIN", "GEM", "CLIP"}
    for maps in found.heat.values():
        for heat in maps:
            assert heat.shape == (480, 480) and heat.min() >= 0 and heat.max() <= 1 and heat.std() > 0
    centre = np.array([(at.box[0] + at.box[2]) / 2 for at in found.pin])
    assert centre[0] < centre[1]  # the cat is left of the rocket


def test_downloads(found):
    held = json.loads(answers.coco(found))
    assert held["images"][0]["width"] == 480 and len(held["annotations"]) == 2
    for at, row in zip(found.pin, held["annotations"], strict=True):
        x, y, width, height = row["bbox"]
        np.testing.assert_allclose([x, y, x + width, y + height], at.box, atol=0.02)
    rows = answers.panels(found)
    assert len(rows) == 3 + 3 * 2 and all(picture.size == (480, 480) for picture, _ in rows)
    sheet = Image.open(io.BytesIO(answers.sheet(rows)))
    assert sheet.width == 960 and len(answers.sheet(rows)) < 1_000_000


def saved(folder, name, picture, **options):
    picture.save(folder / name, **options)
    return folder / name


def test_photos_are_upright_and_shrunk(tmp_path):
    wide = Image.fromarray(np.zeros((300, 2000, 3), np.uint8))
    assert answers.photo_of(saved(tmp_path, "a.png", wide), MOST).size == (1024, 154)
    turned = wide.getexif()
    turned[0x0112] = 6
    assert answers.photo_of(saved(tmp_path, "b.jpg", wide, exif=turned), MOST).size == (154, 1024)
    large = Image.new("RGB", (8000, 5000), "red")  # 40 megapixels
    assert max(answers.photo_of(saved(tmp_path, "c.jpg", large), MOST).size) == 1024


def test_hostile_files_are_one_line(tmp_path):
    (tmp_path / "text.png").write_text("<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>")
    (tmp_path / "empty.jpg").write_bytes(b"")
    whole = saved(
        tmp_path, "whole.png", Image.fromarray(np.random.default_rng(0).integers(0, 255, (99, 99, 3), np.uint8))
    )
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:2000])
    saved(tmp_path, "moving.gif", Image.new("RGB", (9, 9))).rename(tmp_path / "gif.png")
    saved(tmp_path, "bomb.png", Image.new("1", (20_000, 20_000)))  # 50 KB on disk
    for name in ("text.png", "empty.jpg", "cut.png", "gif.png", "bomb.png"):
        with pytest.raises(UserError) as caught:
            answers.photo_of(tmp_path / name, MOST)
        assert str(caught.value).startswith(f"{name}: ") and str(tmp_path) not in str(caught.value)


def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    large = saved(tmp_path, "large.png", Image.new("1", (9000, 8000)))
    monkeypatch.setattr(answers, "open_image", lambda path: pytest.fail("it was decoded"))
    with pytest.raises(UserError, match="large.png: 9000 x 8000 pixels; at most 50,000,000 are taken"):
        answers.photo_of(large, MOST)


@pytest.mark.parametrize(
    ("text", "said"), [(" , ", "no name"), ("a,b,c,d", "4 names: at most 3"), ("x" * 100, "has 100 letters")]
)
def test_names_that_cannot_be_asked_for(text, said):
    with pytest.raises(UserError, match=said):
        answers.names_of(text, 3)


def test_unknown_names_and_models_are_explained():
    models = answers.Models(answers.SMALL)
    with pytest.raises(UserError, match="does not know that name; near it: .*cat"):
        answers.answer(models, "small Flamingo", answers.compose(0, ()), ["catt"])
    with pytest.raises(UserError, match="model 'huge': expected one of small Flamingo, small BLIP-2"):
        models["huge"]
    with pytest.raises(UserError, match="sticker 'nothing'"):
        answers.compose(0, [("nothing", 0.5, 0.5, 0.5)])
