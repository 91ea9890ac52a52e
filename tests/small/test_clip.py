"""The small CLIP: its captions, losses, what is kept out; and the runs of a GEM config on one with random weights."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import gem_clip, tiny_clip
from gem_jax import GEM, contrastive, pretrained, programs
from gem_jax import small as program
from input_pipeline.errors import UserError
from input_pipeline.pasted import looks
from input_pipeline.pasted.names import twemoji_table
from input_pipeline.pasted.scenes import Scenes, scene_config
from input_pipeline.text.box_codec import BoxCodec
from pin_jax.models.vit import CLIP_MEAN, CLIP_STD
from tests.fixtures.gem_models import photo
from tests.fixtures.golden_files import ROOT
from tests.fixtures.small import write_vlm
from tests.fixtures.tiny import random_params


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """A small CLIP's folder with random weights, cut to one layer and 32 px."""
    config = tiny_clip.get_config()
    config.vision.update(
        {"depth": 2, "image_size": 32, "patch": 8, "width": 16, "heads": 2, "mlp": 32, "stem_width": 0}
    )
    config.text.update({"depth": 1, "width": 16, "mlp": 32})
    config.embed, config.grid = 16, 8
    module, tokenizer, names, _ = program.build(config)
    where = tmp_path_factory.mktemp("clip")
    pretrained.save(where, module, random_params(pretrained.skeleton(module)), tokenizer, CLIP_MEAN, CLIP_STD, names)
    return where


def test_a_model_s_files_can_be_read_by_whoever_reads_the_others(folder, tmp_path):
    """safetensors writes its own files for their owner alone; on a shared disk the next user is refused."""
    plain = tmp_path / "plain"
    plain.touch()
    for path in (*folder.iterdir(), *write_vlm(tmp_path / "vlm").iterdir()):
        assert path.stat().st_mode == plain.stat().st_mode, path


def test_captions_name_what_is_there_and_no_more():
    look = looks.Look("big", "red", "striped", "blue")
    assert contrastive.called("cat", look) == "red striped cat"
    assert contrastive.called("cat", looks.Look("big")) == contrastive.called("cat", None) == "cat"
    assert contrastive.caption(["cat"]) == "A photo of a cat."
    assert contrastive.caption(["cat", "owl", "red egg"]) == "A photo of a cat, an owl and a red egg."


def test_the_training_data_never_shows_what_evaluation_asks():
    config = tiny_clip.get_config()
    held = gem_clip.get_config("tiny").scenes
    for name in twemoji_table():
        train, kept = looks.tints(name, config.scenes.pairs), looks.tints(name, held.pairs)
        assert len(kept) == 2 and not set(train) & set(kept) and set(train) | set(kept) == set(looks.COLOURS)
    codec = BoxCodec(160, 16)
    for phase in config.phases:
        source = Scenes(scene_config({**config.scenes, **phase["scenes"]}, codec), 0, 60)
        seen = [
            (name, look.colour)
            for i in range(60)
            for record in [source.describe(i)]
            for name, look in zip(record["names"], record["looks"], strict=True)
            if look.colour != looks.NONE
        ]
        assert seen and all(looks.pair_split(*pair) == "train" for pair in seen)
    asked = Scenes(scene_config(held, codec), 0, 30)
    for i in range(30):
        record = asked.describe(i)
        for name, look in zip(record["names"], record["looks"], strict=True):
            assert looks.pair_split(name, look.colour) == "held_out" and look.pattern == looks.NONE
    assert not set(asked.backgrounds.paths) & set(source.backgrounds.paths)


def test_losses_by_hand():
    logits = np.array([[2.0, 0.5, 2.0], [0.0, 1.0, 0.0], [2.0, 0.5, 2.0]])
    same = np.array([[1, 0, 1], [0, 1, 0], [1, 0, 1]], bool)  # the first and third captions are equal
    rows = -np.log(np.exp(logits) / np.exp(logits).sum(1, keepdims=True))
    columns = -np.log(np.exp(logits) / np.exp(logits).sum(0, keepdims=True))
    share = same / same.sum(1, keepdims=True)
    expected = ((rows * share).sum(1).mean() + (columns * share).sum(0).mean()) / 2
    out = contrastive.softmax_loss(jnp.asarray(logits), jnp.asarray(same))
    np.testing.assert_allclose(out, expected, rtol=1e-5)
    expected = np.log1p(np.exp(-np.where(same, logits, -logits))).sum(1).mean()
    out = contrastive.sigmoid_loss(jnp.asarray(logits), jnp.asarray(same))
    np.testing.assert_allclose(out, expected, rtol=1e-5)


@pytest.mark.parametrize("loss", contrastive.LOSSES)
def test_every_weight_learns(folder, loss):
    model = pretrained.load(folder)
    rows = contrastive.Captioned(model.tokenizer, 12)
    record = {"names": ["cat"], "looks": None, "image": photo(0, (32, 32))}
    other = {"names": ["dog"], "looks": None, "image": photo(1, (32, 32))}
    made = [rows.random_map(r, np.random.default_rng(0)) for r in (record, other)]
    batch = {key: np.stack([row[key] for row in made]) for key in made[0]}
    assert (batch["ids"] == model.tokenizer.eos_token_id).sum(1).tolist() == [1, 1]
    grad = jax.grad(contrastive.loss_fn, argnums=2, has_aux=True)
    grads, metrics = jax.jit(grad, static_argnums=(0, 1, 5))(
        model.module, loss, model.params, batch, jax.random.key(0), 0.75
    )
    assert np.isfinite(metrics["loss"])
    flat = jax.tree_util.tree_flatten_with_path(grads)[0]
    assert all(np.isfinite(g).all() and np.abs(g).max() > 0 for _, g in flat)


def test_a_folder_comes_back_and_refuses_unknown_words(folder):
    gem = GEM.from_pretrained(folder, depth=3, size=32, templates=("A photo of {article} {}.",))
    assert gem.text_features(["red cat", "airplane"]).shape == (2, 16)
    with pytest.raises(UserError, match="words that this small model does not know"):
        gem.text_features(["xylophone"])


def test_the_card_says_what_was_measured(folder):
    text = program.card(tiny_clip.get_config(), pretrained.load(folder), {"name": 0.5, "tint, kept out": 0.25})
    assert "| name | 0.500 |" in text and "| tint, kept out | 0.250 |" in text and "176,000 scenes" in text
    assert max(map(len, text.splitlines())) <= 120


def _config(folder: pathlib.Path, **changes):
    config = gem_clip.get_config("tiny")
    config.update({"model": str(folder), "depth": 3, "size": 32, "grid": 8} | changes)
    config.scenes.smallest = (3, 3, 3)
    config.eval.update({"images": 2, "nouns": 3, "seeds": (0, 1)})
    return config


def test_evaluation_run(folder, tmp_path, capsys):
    programs.run(_config(folder, methods=("clip", "gem")), tmp_path / "out")
    result = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(result["table"]) == {"clip", "gem", "constant box"}
    for name in ("clip", "gem"):
        row = result["table"][name]
        assert all(0 <= row[key] <= 1 and f"{key}_std" in row for key in ("mIoU", "mIoU_bg", "p-mIoU", "box mIoU"))
        assert len(result["seeds"][name]["0"]["sweep"]) == 20
    with Image.open(tmp_path / "out" / "methods.png") as sheet:
        assert sheet.width > 300
    assert "mIoU" in capsys.readouterr().out


def test_prediction_run_goes_on_past_a_bad_picture(folder, tmp_path, capsys):
    Image.fromarray(photo(0)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"broken")
    images = f"{tmp_path / 'a.png'},{tmp_path / 'b.png'}"
    programs.run(_config(folder, run="predict", image=images, prompts="cat,red dog"), tmp_path / "out")
    assert "left out: image" in capsys.readouterr().out
    boxes = json.loads((tmp_path / "out" / "boxes.json").read_text())["boxes"]
    assert [row["name"] for row in boxes[str(tmp_path / "a.png")]] == ["cat", "red dog"] and len(boxes) == 1
    assert (tmp_path / "out" / "a_heat.png").exists() and (tmp_path / "out" / "a_segmentation.png").exists()


def test_pictures_of_one_stem_keep_their_outputs(folder, tmp_path):
    """Nor does the photograph's size decide what is written: maps of the large one are enlarged bit by bit."""
    paths = [tmp_path / "a.png", tmp_path / "a.jpg", tmp_path / "other" / "A.png"]
    for path, size in zip(paths, ((50, 70), (40, 40), (1100, 1300)), strict=True):
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(photo(0, size)).save(path)
    images = ",".join(map(str, [*paths, paths[0]]))
    config = _config(folder, run="predict", image=images, prompts="cat", size=(32, 48))
    programs.run(config, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "boxes.json",
        *(f"{stem}_{kind}.png" for stem in ("a", "a_2", "A_3") for kind in ("heat", "segmentation")),
    }
    written = json.loads((tmp_path / "out" / "boxes.json").read_text())
    assert written["files"] == dict(zip(map(str, paths), ("a", "a_2", "A_3"), strict=True))
    assert {path: row[0]["name"] for path, row in written["boxes"].items()} == dict.fromkeys(map(str, paths), "cat")
    x1, y1, x2, y2 = written["boxes"][str(paths[2])][0]["box"]
    assert 0 <= x1 < x2 <= 1300 and 0 <= y1 < y2 <= 1100 and max(x2, y2) > 100  # pixels of the photograph


@pytest.mark.parametrize("kind", ["boxes", "labels", "points"])
def test_no_photograph_that_can_be_read_is_one_line(folder, tmp_path, kind):
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    (tmp_path / "images" / "a.jpg").write_text("no picture")
    Image.new("L", (64, 48)).save(tmp_path / "labels" / "a.png")
    (tmp_path / "classes.txt").write_text("cat\n")
    (tmp_path / "points.csv").write_text("ImageId,X,Y,Label,EstimatedYesNo\na,0.5,0.5,cat,yes\n")
    held = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 64, "height": 48}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [4, 4, 30, 30]}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (tmp_path / "set.json").write_text(json.dumps(held))
    source = f"coco:{tmp_path / 'set.json'}" if kind == "boxes" else f"{kind}:{tmp_path}"
    with pytest.raises(UserError, match=r"none of its images can be read \(1 unreadable image\)"):
        programs.run(_config(folder, source=source, methods=("gem",)), tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid": 7}, "config.grid: grid 7 must divide image_size 32"),
        ({"run": "train"}, "config.run 'train': expected one of predict, evaluate"),
        ({"run": "predict"}, "config.image is empty"),
        ({"run": "predict", "image": "x.png"}, "config.prompts is empty"),
        ({"run": "predict", "image": "x.png", "prompts": "cat"}, "image x.png: no such file"),
        ({"model": "no/such/model"}, "no such folder, and not a hub id"),
        ({"dtype": "float16"}, "config.dtype 'float16': expected one of float32, bfloat16"),
        ({"source": "folder:x"}, "config.source 'folder:x': expected scenes, labels:DIR, points:DIR, or a data set"),
        ({"methods": ("clip", "germ")}, "config.methods: 'germ'; expected some of clip"),
        ({"methods": ("gem heat=3",)}, "setting 'heat=3'; expected depth="),
        ({"methods": ("gem depth=deep",)}, "setting 'depth=deep'; expected depth="),
    ],
)
def test_bad_configs_are_one_line(folder, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        programs.run(_config(folder, **changes), tmp_path / "out")


@pytest.mark.heavy
def test_the_recipe_in_minutes(tmp_path):
    command = [sys.executable, "main.py", "--config=configs/tiny_clip.py:smoke", f"--workdir={tmp_path / 'w'}"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    knows = json.loads((tmp_path / "w" / "knows.json").read_text())
    assert 0 <= knows["name"] <= 1 and 0 <= knows["tint, kept out"] <= 1
    first = (tmp_path / "w" / "tiny_clip" / "model.safetensors").read_bytes()
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)  # what is done is not done again
    assert (tmp_path / "w" / "tiny_clip" / "model.safetensors").read_bytes() == first
