"""A run from the outside: what it leaves in its workdir, and what it says when something is wrong."""

from __future__ import annotations

import importlib.util
import json
import resource
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from etils import epath
from PIL import Image
from safetensors.numpy import load_file

from input_pipeline.errors import UserError
from pin_jax import fitting, methods, train, training_data, vlm
from pin_jax.programs import pin
from pin_jax.train import FORMER
from tests.fixtures import buckets
from tests.fixtures.golden_files import ROOT
from tests.fixtures.small import config_for, write_vlm

LOGGED = {"loss", "grad_norm", "learning_rate", "insert_norm", "token_norm", "images_per_second", "data_wait"}
LOGGED |= {"eval_mIoU", "eval_unparsed"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_vlm(tmp_path_factory.mktemp("vlm"))


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "a"
    pin.run(config_for(folder, curriculum=0.25), workdir)
    return workdir


def test_a_run_leaves_everything(trained):
    results = json.loads((trained / "results.json").read_text())
    wanted = {"mIoU", "mIoU_M", "mIoU_L", "unparsed", "queries", "other_iou"}
    for row in ("pin", "raw", "random", "constant"):
        assert wanted <= results[row].keys()
    assert {"config", "versions", "seconds", "command"} <= results.keys()
    assert 0 < results["random"]["mIoU"] < results["constant"]["mIoU"] < 1
    table = (trained / "results.md").read_text().splitlines()
    assert table[2].startswith("| | mIoU |") and f"| {results['pin']['mIoU']:.3f} |" in next(
        line for line in table if line.startswith("| pin |")
    )
    for name in ("predictions.png", "loss.png"):
        assert Image.open(trained / name).width > 100
    assert list((trained / "tensorboard").iterdir()) and list((trained / "checkpoints").iterdir())
    assert load_file(trained / "insert.safetensors")["linear_2/kernel"].shape == (768, 128)


def test_predictions_are_coco_and_score_as_reported(trained):
    from pycocotools.coco import COCO

    coco = COCO(str(trained / "ground_truth.json"))
    found = json.loads((trained / "predictions.json").read_text())
    assert len(coco.loadRes(found).getAnnIds()) == len(found) == len(coco.getAnnIds())
    from pycocotools.mask import iou

    scores = [
        iou(np.array([p["bbox"]]), np.array([t["bbox"]]), [0])[0, 0]
        for p, t in zip(found, coco.dataset["annotations"], strict=True)
    ]
    results = json.loads((trained / "results.json").read_text())
    np.testing.assert_allclose(np.mean(scores), results["pin"]["mIoU"], atol=1e-9)


def test_training_moves_the_insert_and_leaves_the_frozen_weights(folder, trained):
    frozen = vlm.load(folder)
    before = methods.build("pin", frozen.model.config).init(jax.random.key(0))
    after = load_file(trained / "insert.safetensors")
    moved = [np.abs(after[k] - v).max() for k, v in vlm.flatten(before).items()]
    assert min(moved) > 0
    assert json.loads((trained / "config.json").read_text())["frozen"] == vlm.identity(frozen.params)


def test_evaluate_alone_gives_the_same_scores(folder, trained, tmp_path):
    config = config_for(folder, run="evaluate", insert=str(trained / "insert.safetensors"))
    pin.run(config, tmp_path / "b")
    rows = [json.loads((w / "results.json").read_text()) for w in (trained, tmp_path / "b")]
    assert rows[0]["pin"] == rows[1]["pin"] and rows[0]["random"] == rows[1]["random"]


def test_uncached_training_with_the_encoder_inside(folder, tmp_path):
    pin.run(config_for(folder, cache_images=0, steps=3, save_every=3), tmp_path)
    assert (tmp_path / "insert.safetensors").exists()


def test_evaluation_within_training_keeps_the_best_and_every_checkpoint_its_insert(folder, tmp_path):
    config = config_for(folder, eval_every=3, eval_subset=3, ema=0.5, steps=8, save_every=4, keep=1, log_every=100)
    pin.run(config, tmp_path)
    with Image.open(tmp_path / "first_batch.png") as sheet:
        assert sheet.width > 200
    rows = {row["step"]: row for row in map(json.loads, (tmp_path / "scalars.jsonl").read_text().splitlines())}
    assert list(rows) == [3, 6, 8] and all(
        {"loss", "eval_mIoU", "eval_unparsed"} <= row.keys() for row in rows.values()
    )
    best = json.loads((tmp_path / "best.json").read_text())["results"]
    assert best["mIoU"] == max(row["eval_mIoU"] for row in rows.values()) == rows[best["step"]]["eval_mIoU"]
    assert sorted(path.name for path in (tmp_path / "inserts").iterdir()) == ["8.json", "8.safetensors"]
    last, final = (load_file(tmp_path / name) for name in ("inserts/8.safetensors", "insert.safetensors"))
    assert all((last[key] == final[key]).all() for key in final)
    # What is evaluated and exported is the average, which the inserts that train do not have.
    plain = config_for(folder, steps=8, save_every=4)
    pin.run(plain, tmp_path / "plain")
    other = load_file(tmp_path / "plain" / "insert.safetensors")
    assert any((final[key] != other[key]).any() for key in final)


def test_another_seed_draws_other_scenes(folder, tmp_path):
    frozen = vlm.load(folder)

    def pictures(seed):
        source = training_data.training_source(
            config_for(folder, seed=seed, cache_images=0, curriculum=0.25), frozen, tmp_path
        )
        # The scenes themselves: their order depends on the seed too, and would hide that they are the same ones.
        return [scenes[i]["image"].tobytes() for scenes in (source.early, source.late) for i in range(2)]

    assert pictures(0) == pictures(0)
    assert not set(pictures(0)) & set(pictures(1))


def test_predict(folder, trained, tmp_path):
    Image.new("RGB", (300, 150), "teal").save(tmp_path / "photo.jpg")
    config = config_for(folder, run="predict", image=str(tmp_path / "photo.jpg"), prompts="cat, red apple")
    config.insert = str(trained / "insert.safetensors")
    pin.run(config, tmp_path / "out")
    boxes = json.loads((tmp_path / "out" / "boxes.json").read_text())["boxes"]
    assert [row["name"] for row in boxes] == ["cat", "red apple"]
    for row in boxes:
        x1, y1, x2, y2 = row["box"]
        assert 0 <= x1 < x2 <= 300 and 0 <= y1 < y2 <= 150
    assert Image.open(tmp_path / "out" / "boxes.png")


def refused(config, workdir, *words):
    with pytest.raises(UserError) as error:
        pin.run(config, workdir)
    text = str(error.value)
    assert "\n" not in text
    for word in words:
        assert word in text
    return text


@pytest.mark.parametrize("run", ["evaluate", "inspect"])
def test_a_mistyped_workdir_scores_nothing_else_in_silence(folder, trained, tmp_path, run):
    """Found before any weights are read: those of this config are nowhere."""
    for insert, word in (("", "nothing was trained"), ("no.safetensors", "no such file"), ("shipped", "none ships")):
        config = config_for(tmp_path / "no_vlm", run=run, insert=insert)
        refused(config, tmp_path / "mistyped", word, "config.insert", "none")
    (tmp_path / "half").mkdir()
    shutil.copy(trained / "config.json", tmp_path / "half")
    refused(config_for(tmp_path / "no_vlm", run=run), tmp_path / "half", "has not ended")
    shutil.copy(trained / "insert.safetensors", tmp_path)
    refused(config_for(tmp_path, run=run), tmp_path / "mistyped", "nothing was trained", f"or shipped ({tmp_path}")


def test_without_an_insert(folder, trained, tmp_path):
    pin.run(config_for(folder, run="evaluate", insert="none"), tmp_path / "raw")
    rows = [json.loads((w / "results.json").read_text()) for w in (trained, tmp_path / "raw")]
    assert rows[0]["raw"] == rows[1]["raw"] and "pin" not in rows[1]
    Image.new("RGB", (30, 30)).save(tmp_path / "photo.jpg")
    config = config_for(folder, run="predict", image=str(tmp_path / "photo.jpg"), prompts="cat", insert="none")
    pin.run(config, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "boxes.json").read_text())["insert"] == "none"


def test_export_in_the_authors_format(folder, trained, tmp_path):
    config = config_for(folder, run="export", insert=str(trained / "insert.safetensors"))
    pin.run(config, tmp_path / "out")
    pin.run(config_for(folder, run="evaluate", insert=str(tmp_path / "out" / "insert.pt")), tmp_path / "read")
    rows = [json.loads((w / "results.json").read_text())["pin"] for w in (trained, tmp_path / "read")]
    assert rows[0] == rows[1]
    refused(config_for(folder, run="export", insert="none"), tmp_path / "out", "nothing to export")
    assert not list((tmp_path / "out").glob("*.partial"))


def test_an_insert_and_a_workdir_in_a_bucket(folder, trained, tmp_path, monkeypatch):
    bucket = buckets.bucket(tmp_path / "buckets", monkeypatch)
    for ending in ("safetensors", "json"):
        shutil.copy(trained / f"insert.{ending}", bucket)
    config = config_for(folder, run="evaluate", insert="gs://b/insert.safetensors")
    pin.run(config, epath.Path("gs://b/run"))
    wanted = {"ground_truth.json", "predictions.json", "predictions.png", "results.json"}
    assert wanted <= {path.name for path in (bucket / "run").iterdir()}
    rows = [json.loads((w / "results.json").read_text())["pin"] for w in (trained, bucket / "run")]
    assert rows[0] == rows[1]
    config.run = "export"
    pin.run(config, epath.Path("gs://b/run"))
    assert (bucket / "run" / "insert.pt").exists()
    refused(config_for(folder, run="evaluate", insert="gs://b/no.safetensors"), bucket, "gs://b/no.safetensors: no")


def test_prediction_says_that_it_takes_the_shipped_insert(folder, trained, tmp_path, capsys):
    shutil.copytree(folder, tmp_path / "vlm")
    shutil.copy(trained / "insert.safetensors", tmp_path / "vlm")
    Image.new("RGB", (30, 30)).save(tmp_path / "photo.jpg")
    config = config_for(tmp_path / "vlm", run="predict", image=str(tmp_path / "photo.jpg"), prompts="cat")
    pin.run(config, tmp_path / "out")
    said = " ".join(capsys.readouterr().out.split())
    assert "which ships with the VLM: nothing was trained in" in said
    assert json.loads((tmp_path / "out" / "boxes.json").read_text())["insert"] == str(
        tmp_path / "vlm" / "insert.safetensors"
    )


def test_bad_requests_are_one_line(folder, trained, tmp_path):
    refused(config_for(folder, run="trian"), tmp_path, "trian", "train")
    refused(config_for(tmp_path / "nowhere"), tmp_path, "nowhere", "no such folder")
    (tmp_path / "empty").mkdir()
    refused(config_for(tmp_path / "empty"), tmp_path, "empty", "config.json")
    refused(config_for(folder, dtype="int8"), tmp_path, "config.dtype 'int8'", "bfloat16")
    refused(config_for(folder, remat="some"), tmp_path, "config.remat 'some'", "none, full, dots")
    refused(config_for(folder, mesh={"data": 3, "fsdp": 1, "tensor": 1}), tmp_path, "config.mesh", "1 devices")
    refused(config_for(folder, run="predict"), tmp_path, "config.image")
    refused(config_for(folder, run="predict", image="no.png", prompts="cat"), tmp_path, "no.png", "no such file")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    refused(
        config_for(folder, run="predict", image=str(tmp_path / "broken.png"), prompts="cat"), tmp_path, "broken.png"
    )
    Image.new("RGB", (20, 20)).save(tmp_path / "ok.png")
    refused(config_for(folder, run="predict", image=str(tmp_path / "ok.png"), prompts=" ,"), tmp_path, "config.prompts")
    insert = str(trained / "insert.safetensors")
    unknown = config_for(folder, run="predict", image=str(tmp_path / "ok.png"), prompts="tigre", insert=insert)
    refused(unknown, tmp_path, "tigre", "tiger")
    refused(config_for(folder, schedule="linear"), tmp_path / "s", "linear", "cosine")
    refused(config_for(folder, dtype="float16"), tmp_path / "h", "lm in float16", "config.dtype=bfloat16")
    if importlib.util.find_spec("wandb") is None:
        refused(config_for(tmp_path / "nowhere", wandb=True), tmp_path, "wandb is not installed", "pip install wandb")


def test_a_workdir_of_another_config_is_refused(folder, trained):
    text = refused(config_for(folder, curriculum=0.25, lr=0.5), trained, "lr", "0.5", "choose another")
    assert "steps" not in text


def test_a_workdir_from_before_an_entry_existed_is_bound_to_its_default(folder, trained, tmp_path):
    bound = json.loads((trained / "config.json").read_text())
    older = {key: value for key, value in bound.items() if key not in FORMER}
    assert len(older) == len(bound) - len(FORMER)
    (tmp_path / "config.json").write_text(json.dumps(older))
    text = refused(config_for(folder, curriculum=0.25, warmup=2, keep=1), tmp_path, "warmup 0 there, 2 here")
    assert not any(key in text for key in ("ema", "accumulate", "clip_norm", "keep", "placement", "example"))


def test_an_insert_of_other_weights_is_refused(trained, tmp_path):
    other = write_vlm(tmp_path / "other", seed=7)
    config = config_for(other, run="evaluate", insert=str(trained / "insert.safetensors"))
    refused(config, tmp_path / "w", "trained on frozen weights")


def test_truncated_weights_are_one_line(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "cut")
    path = tmp_path / "cut" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    refused(config_for(tmp_path / "cut"), tmp_path / "w", "model.safetensors", "safetensors file")


def test_weights_that_do_not_fit_are_all_listed(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "odd")
    meta = json.loads((tmp_path / "odd" / "config.json").read_text())
    meta["model"]["lm"]["depth"] = 2
    meta["model"]["vision"]["mlp"] = 64
    (tmp_path / "odd" / "config.json").write_text(json.dumps(meta))
    text = refused(config_for(tmp_path / "odd"), tmp_path / "w", "lm/blocks/qkv/kernel", "vision/blocks/fc1/kernel")
    assert text.count("expected") >= 8


def test_nan_loss_stops_and_keeps_the_last_good_state(folder, tmp_path, monkeypatch):
    def at_first(config):
        return optax.sgd(lambda count: jnp.where(count < 4, config.lr, jnp.inf))

    monkeypatch.setattr(train, "optimiser", at_first)
    refused(config_for(folder, steps=12, save_every=4), tmp_path / "w", "loss is nan", "step 4 is kept", "config.lr")
    assert sorted(p.name for p in (tmp_path / "w" / "checkpoints").iterdir() if p.name.isdigit()) == ["4"]


def test_a_corrupt_checkpoint_falls_back_to_the_one_before(folder, tmp_path, capfd):
    config = config_for(folder)
    pin.run(config, tmp_path / "whole")
    pin.run(config, tmp_path / "hurt")
    for path in (tmp_path / "hurt" / "checkpoints" / "12").rglob("*"):
        if path.is_file():
            path.write_bytes(b"x" * 10)
    (tmp_path / "hurt" / "insert.safetensors").unlink()
    capfd.readouterr()
    pin.run(config, tmp_path / "hurt")
    said = capfd.readouterr().out
    assert "checkpoint 12" in said and "broken" in said and "step 8" in said
    whole, mended = (load_file(tmp_path / name / "insert.safetensors") for name in ("whole", "hurt"))
    for key, value in whole.items():
        np.testing.assert_array_equal(value, mended[key])


def test_a_full_disk_is_one_line_and_loses_nothing(folder, tmp_path):
    """A limit on the size of files looks to a program as a full disk does."""
    flags = ["--config.steps=4", "--config.batch_size=4", "--config.cache_images=0", "--config.eval.images=2"]
    command = [sys.executable, "main.py", "--config=configs/pin_flamingo.py:tiny", f"--config.vlm={folder}", *flags]

    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    done = subprocess.run(
        [*command, f"--workdir={tmp_path / 'w'}"], cwd=ROOT, capture_output=True, text=True, preexec_fn=small_files
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and "cannot be written" in last and "free disk space" in last, done.stderr
    assert "Traceback" not in done.stderr
    # With room again the same command goes on.
    subprocess.run([*command, f"--workdir={tmp_path / 'w'}"], cwd=ROOT, check=True, capture_output=True)
    assert (tmp_path / "w" / "results.json").exists()


def test_a_workdir_whose_config_is_lost(folder, trained, tmp_path, capsys):
    """Its checkpoints say what it is bound to; an insert alone does not, and is not written over."""
    frozen, config = vlm.load(folder), config_for(folder, curriculum=0.25)
    shutil.copytree(trained, tmp_path / "w")
    path = tmp_path / "w" / "config.json"
    for damage in (path.unlink, lambda: path.write_text("{"), lambda: path.write_text("[1]")):
        damage()
        with pytest.raises(UserError, match="belongs to another config: seed 0 there, 1 here"):
            fitting.claim(config_for(folder, curriculum=0.25, seed=1), tmp_path / "w", frozen)
        fitting.claim(config, tmp_path / "w", frozen)
        assert "written anew from the checkpoint of step 12" in " ".join(capsys.readouterr().out.split())
        assert json.loads(path.read_text()) == json.loads((trained / "config.json").read_text())
    path.unlink()
    shutil.rmtree(tmp_path / "w" / "checkpoints")
    with pytest.raises(UserError, match=r"config.json: is missing, and .*insert.safetensors is of another run"):
        fitting.claim(config, tmp_path / "w", frozen)
