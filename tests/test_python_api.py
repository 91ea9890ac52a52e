"""`pin_jax.PIN` as a user calls it: both small models by name, pictures of any kind, threads, bad input."""

from __future__ import annotations

import concurrent.futures
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from input_pipeline.errors import UserError
from input_pipeline.pasted.scenes import Scenes, scene_config
from input_pipeline.text.box_codec import iou
from pin_jax import PIN


@pytest.fixture(scope="module")
def pin() -> PIN:
    return PIN.from_pretrained("tiny_flamingo", eval={"decoder": "grid_greedy"})


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
    name, grid = pin.vlm.names[0], pin.vlm.codec.grid
    exact = pin.distribution(photo(0), name, (grid, grid), candidates=4096)  # all beginnings of answers
    assert exact.shape == (grid, grid) and exact.dtype == np.float32 and 0 <= exact.min() and exact.max() <= 1 + 1e-5
    rows, columns = (((np.arange(n) + 0.5) * grid / n).astype(int) for n in (40, 60))
    np.testing.assert_array_equal(pin.distribution(photo(0), name, candidates=4096), exact[rows][:, columns])
    np.testing.assert_allclose(pin.distribution(photo(0), name, (grid, grid), candidates=256), exact, atol=0.05)


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
        (lambda p: PIN.from_pretrained("tiny_flamingo", insert="https://a.org/x.safetensors"), "a URL, and nothing is"),
        (lambda p: PIN.from_pretrained("tiny_flamingo", lr=-1.0), "config.lr -1.0: expected"),
        (lambda p: p.train(dtype="bfloat16"), "config.dtype 'bfloat16' is not what this VLM was read with"),
        (lambda p: PIN.from_pretrained("tiny_flamingo", "none").save_pretrained("x"), "there is no insert to write"),
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


@pytest.mark.parametrize("name", ["tiny_flamingo", pytest.param("tiny_blip2", marks=pytest.mark.heavy)])
def test_the_small_models_from_loading_to_handing_on(name, tmp_path, monkeypatch):
    """Load by name, locate, draw, the distribution, train, hand on: on both small models."""
    monkeypatch.chdir(tmp_path)  # nothing is found by where a program starts
    pin = PIN.from_pretrained(name, eval={"decoder": "grid_greedy"})
    asked = scenes(pin, 16)
    for i, scene in enumerate(asked):
        scene["image"].save(f"{i}.png")
    found = pin.locate([f"{i}.png" for i in range(16)], [scene["names"] for scene in asked])
    assert [[at.name for at in own] for own in found] == [list(scene["names"]) for scene in asked]
    boxes = np.array([at.box for own in found for at in own])
    true = np.concatenate([scene["boxes"] for scene in asked])
    assert iou(boxes, true).mean() > 0.36  # of these scenes; the card's are more
    pin.draw("0.png", found[0]).save("0_boxes.png")
    with Image.open("0_boxes.png") as drawn, Image.open("0.png") as plain:
        assert drawn.size == plain.size and np.abs(np.asarray(drawn) - np.asarray(plain, np.int16)).max() > 60
    heat = pin.distribution("0.png", asked[0]["names"][0])
    assert heat.shape == (120, 240)
    x1, y1, x2, y2 = (int(v) for v in found[0][0].box)
    assert heat[y1:y2, x1:x2].mean() > 2 * heat.mean() > 0
    before = np.array(jax.tree.leaves(pin.params)[0])
    quick = {"steps": 2, "batch_size": 4, "cache_images": 8, "scenes": {"objects": (1, 1)}}
    assert pin.train(quick, lr=1e-3) is pin and pin.config.scenes.backgrounds == "photos"
    assert np.abs(jax.tree.leaves(pin.params)[0] - before).max() > 1e-4, "the trained insert is in use"
    pin.save_pretrained("mine", {"mIoU": 0.25, "queries": 3})
    assert sorted(path.name for path in Path("mine").iterdir()) == [
        "README.md", "config.json", "insert.json", "insert.safetensors",
    ]  # fmt: skip
    again = PIN.from_pretrained("mine", eval={"decoder": "grid_greedy"})
    assert again.config.vlm == f"assets/{name}" and again.locate("0.png", ["cat"]) == pin.locate("0.png", ["cat"])
    card = Path("mine/README.md").read_text()
    assert "| 0.250 | 3 |" in card and f"`assets/{name}`" in card and 'PIN.from_pretrained("mine")' in card


def test_an_adapter_brings_its_prompts(tmp_path, monkeypatch):
    """What stands in front of every prompt is handed on with the insert, and another is refused."""
    monkeypatch.chdir(tmp_path)
    pin = PIN.from_pretrained("tiny_flamingo", example=("cat [10,20]", "In the image is a cat", " [10,20]"))
    assert pin.vlm.frame.prefix == "cat [10,20]In the image is a cat [10,20].<|endofchunk|>\n<image>"
    pin.save_pretrained("mine")
    assert PIN.from_pretrained("mine").vlm.frame == pin.vlm.frame
    with pytest.raises(UserError, match="trained with prompts in the frame .* give the config.placement"):
        PIN.from_pretrained("tiny_flamingo", insert="mine/insert.safetensors")
    with pytest.raises(UserError, match="config.example .*: expected .*three texts without <"):
        PIN.from_pretrained("tiny_flamingo", example=("<image>", "A cat", " [1,2]"))


def test_no_account_is_one_line(pin, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setattr("huggingface_hub.utils._auth.constants.HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(UserError, match="push_to_hub 'me/mine': no account; log in"):
        pin.push_to_hub("me/mine")
    with pytest.raises(UserError, match="expected owner/name"):
        pin.push_to_hub("mine")
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="the hub cannot be reached .*save_pretrained writes the same folder"):
        pin.push_to_hub("me/mine")
