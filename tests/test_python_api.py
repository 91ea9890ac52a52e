"""`pin_jax.PIN` as a user calls it: both small models by name, pictures of any kind, threads, bad input."""

from __future__ import annotations

import concurrent.futures

import numpy as np
import pytest
from PIL import Image

from input_pipeline.errors import UserError
from input_pipeline.pasted.scenes import Scenes, scene_config
from input_pipeline.text.box_codec import iou
from pin_jax import PIN
from tests.fixtures.small import write_vlm


@pytest.fixture(scope="module")
def pin(tmp_path_factory) -> PIN:
    """A small VLM with random weights: quick to compile; its names are those of twemoji."""
    return PIN.from_pretrained(write_vlm(tmp_path_factory.mktemp("vlm")), eval={"decoder": "grid_greedy"})


def photo(seed: int, size: tuple[int, int] = (60, 40)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), np.uint8)


def test_any_kind_of_picture_in_one_call(pin, tmp_path):
    Image.fromarray(photo(0)).save(tmp_path / "a.png")
    name = pin.vlm.names[0]
    (path,), (image,), (array,), (large,) = pin.locate(
        [str(tmp_path / "a.png"), Image.fromarray(photo(0)), photo(0), photo(1, (400, 90))], [name]
    )
    assert path == image == array and path.name == name and 0 < path.score <= 1 and path.parsed
    ((alone,),) = pin.locate(photo(0), [name])
    assert alone.box == path.box and alone.score == pytest.approx(path.score, rel=1e-4)
    assert large.box[2] <= 400 and large.box[3] <= 90 and large.box[0] % (400 / pin.vlm.codec.grid) < 1e-6
    lists = pin.locate([photo(0), photo(1)], [[name], list(pin.vlm.names[:3])])
    assert [len(found) for found in lists] == [1, 3] and lists[0][0].box == path.box


def test_no_new_compilation_for_other_numbers_of_pictures_and_names(pin):
    names = list(pin.vlm.names[:4])
    pin.locate([photo(i) for i in range(4)], names)
    count = pin.vlm._encode._cache_size()
    pin.locate([photo(i) for i in range(3)], names)
    assert pin.vlm._encode._cache_size() == count


def test_the_distribution_is_that_of_the_pixels(pin):
    heat = pin.distribution(photo(0), pin.vlm.names[0], candidates=4096)
    assert heat.shape == (40, 60) and heat.dtype == np.float32 and 0 <= heat.min() and heat.max() <= 1 + 1e-5
    np.testing.assert_array_equal(heat, pin.distribution(photo(0), pin.vlm.names[0], candidates=4096))
    cells = pin.distribution(photo(0), pin.vlm.names[0], (pin.vlm.codec.grid,) * 2, candidates=4096)
    np.testing.assert_array_equal(heat[0, ::60], cells[0, :1])
    assert len(np.unique(heat)) <= pin.vlm.codec.grid**2


def test_threads_get_the_same_answers(pin):
    names = list(pin.vlm.names)
    asked = [(photo(i), names[i : i + 1 + i % 3]) for i in range(12)]
    alone = [pin.locate(*each) for each in asked]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda each: pin.locate(*each), asked * 3))
    assert together == alone * 3, "threads disturb each other"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: p.locate("https://example.org/cat.jpg", [p.vlm.names[0]]), "a URL, and nothing is fetched"),
        (lambda p: p.locate([], ["x"]), "images: none given"),
        (lambda p: p.locate(photo(0), "cat"), r"names 'cat': expected a list of names"),
        (lambda p: p.locate(photo(0), ["no such thing"]), "the small VLM does not know that name"),
        (lambda p: p.locate([photo(0)] * 2, [[p.vlm.names[0]]]), "1 lists for 2 images"),
        (lambda p: p.locate(photo(0), [p.vlm.names[0]], decodre="beam"), "did you mean config.eval.decoder"),
        (lambda p: PIN.from_pretrained("tiny_flamingo", insert="no.safetensors"), "insert no.safetensors: no such"),
        (lambda p: PIN.from_pretrained("tiny_flamingo", lr=-1.0), "config.lr -1.0: expected"),
        (lambda p: PIN.from_pretrained("tiny_flamnigo"), "no such folder, and not a hub id"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(pin, call, message):
    with pytest.raises(UserError, match=message):
        call(pin)


def scenes(pin: PIN, count: int) -> list[dict]:
    """Scenes of names and backgrounds that the insert never saw, squeezed into another shape."""
    source = Scenes(scene_config(pin.config.scenes, pin.vlm.codec, split="held_out"), 1_000_000, count)
    out = []
    for record in (source[i] for i in range(count)):
        image = Image.fromarray(record["image"]).resize((240, 120))
        scale = np.array([240, 120] * 2) / pin.vlm.codec.image_size
        out.append({"image": image, "names": record["query_text"], "boxes": record["boxes"] * scale})
    return out


@pytest.mark.parametrize("name", ["tiny_flamingo", "tiny_blip2"])
def test_the_small_models_by_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pin = PIN.from_pretrained(name)
    asked = scenes(pin, 16)
    for i, scene in enumerate(asked):
        scene["image"].save(f"{i}.png")
    found = pin.locate([f"{i}.png" for i in range(16)], [scene["names"] for scene in asked])
    assert [[at.name for at in own] for own in found] == [list(scene["names"]) for scene in asked]
    boxes = np.array([at.box for own in found for at in own])
    true = np.concatenate([scene["boxes"] for scene in asked])
    assert iou(boxes, true).mean() > 0.38  # of these scenes; the card's are more
    pin.draw("0.png", found[0]).save("0_boxes.png")
    with Image.open("0_boxes.png") as drawn, Image.open("0.png") as plain:
        assert drawn.size == plain.size and np.abs(np.asarray(drawn) - np.asarray(plain, np.int16)).max() > 60
    heat = pin.distribution("0.png", asked[0]["names"][0])
    assert heat.shape == (120, 240)
    x1, y1, x2, y2 = (int(v) for v in found[0][0].box)
    assert heat[y1:y2, x1:x2].mean() > 2 * heat.mean() > 0
