"""GEM as a user calls it: pictures of any kind, prompts of any shape, windows, bad input, and how often it compiles."""

from __future__ import annotations

import concurrent.futures

import numpy as np
import pytest
from PIL import Image

from gem_jax import GEM, heatmaps
from input_pipeline.errors import UserError
from tests.fixtures import gem_models
from tests.fixtures.gem_models import photo

DATA = gem_models.arrays()


@pytest.fixture(scope="module")
def gem() -> GEM:
    return gem_models.gem(DATA, "gelu", size=(48, 64), batch_size=2)


def test_shapes_range_and_kinds_of_pictures(gem, tmp_path):
    first, second = photo(0), photo(1, (90, 40))
    Image.fromarray(second).save(tmp_path / "b.png")
    heat = np.asarray(gem([Image.fromarray(first), str(tmp_path / "b.png"), first], ["cat", "red apple", "sky"]))
    assert heat.shape == (3, 3, 48, 64) and heat.dtype == np.float32
    np.testing.assert_allclose(heat.min((-2, -1)), 0, atol=1e-6)
    np.testing.assert_allclose(heat.max((-2, -1)), 1, atol=1e-6)
    np.testing.assert_allclose(heat[2], heat[0], rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(gem(second, ["sky"])[0, 0], heat[1, 2], rtol=1e-5, atol=1e-4)
    assert np.abs(heat[0, 0] - heat[0, 1]).max() > 0.1 and np.abs(heat[0] - heat[1]).max() > 0.1


def test_prompts_of_each_image_its_own(gem):
    images = [photo(0), photo(1)]
    heat = np.asarray(gem(images, [["cat"], ["sky", "grass"]], raw=True))
    both = np.asarray(gem(images, ["cat", "sky", "grass"], raw=True))
    assert heat.shape == (2, 2, 48, 64) and not heat[0, 1].any()
    np.testing.assert_allclose(heat[0, 0], both[0, 0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(heat[1], both[1, 1:], rtol=1e-5, atol=1e-5)


def test_the_original_stream_is_another(gem):
    image = photo(0)
    plain = gem_models.gem(DATA, "gelu", size=(48, 64), attention="clip")
    np.testing.assert_allclose(gem(image, ["cat"], original=True), plain(image, ["cat"]), rtol=1e-4, atol=1e-4)
    assert np.abs(np.asarray(gem(image, ["cat"])) - np.asarray(plain(image, ["cat"]))).max() > 0.1


def test_no_new_compilation_for_other_prompts_or_counts(gem):
    images = [photo(i) for i in range(3)]
    gem(images, ["cat", "dog", "sky"])
    gem(images[:1], ["cat"])
    count = gem._one._cache_size(), gem.model._text._cache_size()
    gem(images, ["grass", "red apple", "a red dog", "picture", "photo"])
    gem(images[:2], ["sky"])
    gem(images + images, [["cat"]] * 6)
    assert (gem._one._cache_size(), gem.model._text._cache_size()) == count
    assert count[0] <= 3  # batches of one and of two, and one of the original stream


def test_ensembling_is_the_mean_of_the_templates(gem):
    templates = ("a photo of a {}.", "the {}!")
    ensemble = gem_models.gem(DATA, "gelu", templates=templates).text_features(["cat", "dog"])
    rows = [np.asarray(gem_models.gem(DATA, "gelu", templates=(t,)).text_features(["cat", "dog"])) for t in templates]
    mean = np.mean(rows, 0)
    np.testing.assert_allclose(ensemble, mean / np.linalg.norm(mean, axis=-1, keepdims=True), rtol=1e-5, atol=1e-5)
    assert np.abs(rows[0] - rows[1]).max() > 0.01


def test_articles_in_templates(gem):
    own = gem_models.gem(DATA, "gelu", templates=("{article} {}",)).text_features(["apple", "cat"])
    ids = gem.model.tokenize(["an apple", "a cat"])
    np.testing.assert_allclose(own, gem.text_features(ids), rtol=1e-5, atol=1e-6)


def test_windows_cover_the_image_and_agree_where_there_is_one(gem):
    image = photo(0, (64, 64))
    square = gem_models.gem(DATA, "gelu", size=64)
    whole = square.maps(image, ["cat", "dog"])
    assert whole.shape == (2, 64, 64)
    np.testing.assert_allclose(square.maps(image, ["cat", "dog"], window=64), whole, rtol=1e-4, atol=1e-5)
    wide = square.maps(photo(1, (40, 100)), ["cat"], window=32, stride=16, shorter=40)
    assert wide.shape == (1, 40, 100) and np.isfinite(wide).all()
    with pytest.raises(UserError, match="window 30, stride 8: expected multiples of the model's patch, 8"):
        square.maps(image, ["cat"], window=30, stride=8)


def test_maps_have_the_image_s_own_size_and_boxes_its_pixels(gem):
    image = photo(1, (90, 40))
    maps = gem.maps(image, ["cat", "dog"])
    assert maps.shape == (2, 90, 40)
    found = gem.boxes(image, ["cat", "dog"])
    assert found.shape == (2, 4) and (found[:, 2:] <= (40, 90)).all() and (found[:, :2] < found[:, 2:]).all()
    ((cat, dog), other) = gem.locate([image, photo(0)], ["cat", "dog"])
    np.testing.assert_allclose([cat.box, dog.box], found, rtol=1e-6)
    assert cat.name == "cat" and cat.score == pytest.approx(maps[0].max(), rel=1e-5) and len(other) == 2
    assert gem.draw(image, [cat, dog]).size == (40, 90)


def test_threads_get_the_same_answers(gem):
    asked = [(photo(i), ["cat", "dog", "sky", "grass"][: 1 + i % 4]) for i in range(6)]
    alone = [gem.locate(*each) for each in asked]
    gem._known = {}
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda each: gem.locate(*each), asked * 4)) == alone * 4


def test_enlarging_is_half_pixel_bilinear():
    torch_values = np.array([0.0, 0.25, 0.75, 1.25, 1.75, 2.0])  # F.interpolate([0, 1, 2], size=6, align_corners=False)
    np.testing.assert_allclose(heatmaps.bilinear(3, 6) @ np.arange(3.0), torch_values)
    np.testing.assert_allclose(heatmaps.bilinear(1, 4) @ np.ones(1), 1)


def test_a_constant_map_is_zero_and_said(gem, capsys):
    assert not heatmaps.minmax(np.full((2, 3, 3), 0.3, np.float32)).any()
    flat, which = gem._finish(np.full((1, 2, 6, 8), 0.2, np.float32), np.ones((1, 2), bool), size=(48, 64), raw=False)
    assert not np.asarray(flat).any() and np.asarray(which).all()


def test_box_of_the_largest_component():
    heat = np.zeros((20, 30), np.float32)
    heat[2:5, 3:6] = 0.9
    heat[10:18, 8:22] = 0.6
    np.testing.assert_array_equal(heatmaps.box(heat), [8, 10, 22, 18])
    np.testing.assert_array_equal(heatmaps.box(heat, 0.7), [3, 2, 6, 5])
    np.testing.assert_array_equal(heatmaps.box(heat * 0), [0, 0, 30, 20])


# --- bad input --------------------------------------------------------------------------------------------------------


def test_a_bad_image_leaves_the_others_alone(gem, tmp_path, capsys):
    (tmp_path / "bad.jpg").write_bytes(b"\xff\xd8\xff broken")
    good = np.asarray(gem([photo(0)], ["cat", "dog"]))
    heat = np.asarray(gem([tmp_path / "bad.jpg", photo(0), tmp_path / "none.png"], ["cat", "dog"]))
    np.testing.assert_allclose(heat[1], good[0], rtol=1e-5, atol=1e-4)
    assert not heat[0].any() and not heat[2].any()
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 2 and "bad.jpg: cannot be read as a picture" in said[0] and "none.png: no such file" in said[1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g: g("missing.png", ["cat"]), "image missing.png: no such file"),
        (lambda g: g([], ["cat"]), "images: none given"),
        (lambda g: g(photo(), []), "expected names, none of them empty"),
        (lambda g: g(photo(), ["cat", " "]), "expected names, none of them empty"),
        (lambda g: g(photo(), "cat"), r"prompts 'cat': expected a list of names, such as \['cat'\]"),
        (lambda g: g([photo()] * 2, [["cat"]]), "1 lists for 2 images"),
        (lambda g: g(photo().astype(float), ["cat"]), r"image array float64\[50, 70, 3\]: expected uint8\[H, W, 3\]"),
        (lambda g: g(Image.new("L", (20_000, 6_000)), ["cat"]), "20000 x 6000 pixels; at most 100,000,000"),
        (lambda g: gem_models.gem(DATA, "gelu", size=50), "size 50: expected multiples of the model's patch, 8"),
        (lambda g: gem_models.gem(DATA, "gelu", templates=("a photo",)), "expected one or more texts with {}"),
    ],
)
def test_bad_input_is_one_line(gem, call, message):
    with pytest.raises(UserError, match=message) as caught:
        call(gem)
    assert "\n" not in str(caught.value)
