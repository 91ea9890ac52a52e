"""GEM on what users bring: long prompts, panoramas, pictures of one row, many names, and several processes."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from gem_jax import GEM, proxies
from gem_jax.evaluation import loop, segmentation
from input_pipeline.errors import UserError
from input_pipeline.pasted.looks import COLOURS
from pin_jax.runtime.processes import launch
from tests.fixtures import gem_models

ROOT = pathlib.Path(__file__).parents[2]
SAID = ("A photo of {article} {}.",)


@pytest.fixture(scope="module")
def gem():
    return GEM.from_pretrained("assets/tiny_clip", size=160, depth=4, templates=SAID)


def test_a_long_prompt_is_cut_before_its_end_and_said(gem, capsys):
    context, end = gem.model.config.text.context, gem.model.config.text.eos
    ids = gem.model.tokenize(["A photo of a" + " cat" * 100, "A photo of a cat"])
    assert ids.shape == (2, context) and ids[0, -1] == end
    said = capsys.readouterr().out
    assert f"105 tokens; the tower reads {context}, so it is cut" in said and said.count("tokens") == 1
    heat = gem([np.full((40, 40, 3), 90, np.uint8)], [" ".join(["cat"] * 100)], raw=True)
    assert np.isfinite(np.asarray(heat)).all()


@pytest.mark.parametrize("size", [(1, 300), (300, 1), (1, 1), (60, 1200)], ids=str)
def test_any_form_of_picture(gem, size):
    photo = np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)
    assert gem.maps(photo, ["cat", "dog"]).shape == (2, *size)
    truth = {"image": photo, "labels": np.zeros(size, int)}
    scores = loop.evaluate(gem, [truth], [segmentation.Segmentation(["cat", "dog"])])
    assert 0 <= scores["mIoU"] <= 1
    if min(size) > 1:
        assert gem.maps(photo, ["cat"], window=160, stride=80).shape == (1, *size)


def test_1203_names(gem):
    names = [f"{colour} {name}" for name in gem.model.names for colour in COLOURS][:1203]
    rng = np.random.default_rng(0)
    truth = {"image": rng.integers(0, 255, (90, 130, 3), np.uint8), "labels": rng.integers(0, 1203, (90, 130))}
    plain = segmentation.Segmentation(names)
    plain.add(truth, gem.large_maps(truth["image"], names))
    scores = loop.evaluate(gem, [truth], [segmentation.Segmentation(names)])
    assert scores["mIoU"] == pytest.approx(plain.scores()["mIoU"], abs=1e-6)


def test_a_proxy_s_features_decide_where(gem):
    with pytest.raises(UserError, match="attention proxyclip: needs another encoder; give proxy"):
        GEM(gem.model, attention="proxyclip", size=160)
    proxy = GEM(gem.model, attention="proxyclip", size=160, templates=SAID, proxy="assets/tiny_flamingo")
    photo = np.random.default_rng(0).integers(0, 255, (120, 200, 3), np.uint8)
    photo[:, 100:] = photo[:, 100:] // 4 + 180  # two parts, whose features differ
    photo[:, :100, 1:] //= 4
    maps = proxy.maps(photo, ["cat", "dog"])
    assert maps.shape == (2, 120, 200) and np.isfinite(maps).all()
    values = GEM(gem.model, attention="maskclip", size=160, depth=4, templates=SAID)
    assert not np.allclose(maps, values.maps(photo, ["cat", "dog"]))
    np.testing.assert_allclose(  # plain CLIP's own stream is untouched by it
        proxy.maps(photo, ["cat"], original=True), gem.maps(photo, ["cat"], original=True), atol=1e-6
    )
    assert proxy.maps(photo, ["cat"], window=160, stride=80).shape == (1, 120, 200)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_mean": [0.5, 0.5]}, "mean of the pixels is"),
        ({"model": None}, "model is None"),
        ({"model": {"vision": None}}, "vision"),
        ({"model": {"tower": {}}}, "vision"),
        ({"image_mean": None}, ""),  # null is the default of its kind
    ],
)
def test_a_proxy_s_folder_is_read_or_refused_in_a_line(change, words, tmp_path):
    folder = shutil.copytree(ROOT / "assets" / "tiny_blip2", tmp_path / "m")
    meta = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(meta))
    if not words:
        assert tuple(proxies.load(folder).mean) == tuple(proxies.load(ROOT / "assets" / "tiny_flamingo").mean)
        return
    with pytest.raises(UserError, match=words):
        proxies.load(folder)


def run(workdir, **env: str) -> subprocess.Popen:
    few = ["--config.methods=('clip','gem')", "--config.eval.images=5", "--config.eval.seeds=(0,)"]
    command = [sys.executable, "main.py", "--config=configs/gem_clip.py:tiny", *few, "--config.eval.nouns=2"]
    command.append(f"--workdir={workdir}")
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu"} | env, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip


def test_two_processes_share_the_pictures_and_write_once(tmp_path):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    named = [{launch.ADDRESS: address, launch.COUNT: "2", launch.INDEX: str(i)} for i in range(2)]
    ran = [run(tmp_path / "one"), *(run(tmp_path / "two", **env) for env in named)]
    told = [process.communicate(timeout=300) for process in ran]
    assert [process.returncode for process in ran] == [0, 0, 0], told
    alone, shared = (json.loads((tmp_path / name / "results.json").read_text())["table"] for name in ("one", "two"))
    for method in ("clip", "gem"):
        assert shared[method] == pytest.approx(alone[method], abs=1e-5)
    assert "results.json" in told[1][0] and "results" not in told[2][0]  # the second says and writes nothing
    assert (tmp_path / "two" / "methods.png").stat().st_size > 1000
    assert Image.open(tmp_path / "two" / "methods.png").width > 100


def test_upper_case_punctuation_and_unicode(tmp_path):
    # OpenAI's tokenizer puts texts in lower case and knows every byte.
    folder = gem_models.write_open_clip(tmp_path, gem_models.arrays(), quick_gelu=True)
    clip = GEM.from_pretrained(folder, size=64, templates=("a photo of a {}.",))
    same = clip.text_features(["cat", "CAT", "  Cat "])
    np.testing.assert_allclose(same[1:], np.broadcast_to(same[:1], same[1:].shape), atol=1e-6)
    said = ["cat", "cat!", "caf\u00e9", "\u732b", "\U0001f431", "cat's \u201cbowl\u201d"]
    assert len(np.unique(clip.model.tokenize(said), axis=0)) == len(said)  # the small vocabulary has all bytes
    assert np.isfinite(clip.text_features(said)).all()
    maps = clip.maps(np.full((30, 40, 3), 120, np.uint8), ["\u732b", "CAT!"])
    assert maps.shape == (2, 30, 40) and np.isfinite(maps).all()


@pytest.mark.heavy
def test_the_evaluation_benchmark_runs(tmp_path):
    """And its mIoU is that of numpy, one picture at a time."""
    flags = ["--model", "small", "--images", "2", "--rounds", "1", "--same", "2", "--classes", "5"]
    out = tmp_path / "found.json"
    command = [sys.executable, "benchmarks/gem_evaluation.py", *flags, "--out", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    found = json.loads(out.read_text())
    assert found["ratio"] > 0 and found["same"]["mIoU"] == pytest.approx(found["same"]["numpy mIoU"], abs=1e-6)
