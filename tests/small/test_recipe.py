"""The small VLM's recipe, cut to minutes: every stage runs, leaves a VLM that loads, and goes on where it stopped."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

from tests.fixtures.golden_files import ROOT


@pytest.mark.heavy
def test_the_recipe_in_minutes(tmp_path):
    command = [sys.executable, "main.py", "--config=configs/tiny_vlm.py:smoke", f"--workdir={tmp_path / 'w'}"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    knows = json.loads((tmp_path / "w" / "knows.json").read_text())
    assert 0 <= knows["tint"] <= 1 and 0 <= knows["names recalled in captions"] <= 1
    weights = load_file(tmp_path / "w" / "tiny_flamingo" / "model.safetensors")
    assert all(np.isfinite(value).all() for value in weights.values())
    # Done stages are not done again: the second run writes the same weights.
    again = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    after = load_file(tmp_path / "w" / "tiny_flamingo" / "model.safetensors")
    assert all((after[key] == value).all() for key, value in weights.items()), again.stdout
    Image.new("RGB", (50, 40), "green").save(tmp_path / "photo.png")
    asked = subprocess.run(
        [*command, "--config.run=ask", f"--config.image={tmp_path / 'photo.png'}", "--config.prompts=A photo of"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert "A photo of" in asked.stdout


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("second", "own"), [("perceiver", ("perceiver/",)), ("blip2", ("qformer/", "projection/", "lm/"))]
)
def test_another_one_shares_stage_1(tmp_path, second, own):
    for variant in ("smoke", f"{second}_smoke"):
        command = [sys.executable, "main.py", f"--config=configs/tiny_vlm.py:{variant}", f"--workdir={tmp_path}"]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert len(list((tmp_path / "cache").glob("features-*.npy"))) == 1
    first, other = (load_file(tmp_path / name / "model.safetensors") for name in ("tiny_flamingo", f"tiny_{second}"))
    for key, value in other.items():
        assert np.isfinite(value).all()
        if key.startswith("vision/"):
            np.testing.assert_array_equal(value, first[key])
    assert {key for key in other if key not in first} and all(
        key.startswith(own) for key in other.keys() - first.keys()
    )
    # Cut short, both may give the commonest answer to everything: all there is to see is that each has its own file.
    knows = [json.loads((tmp_path / f"{name}.json").read_text()) for name in ("knows", f"knows_{second}")]
    assert knows[0].keys() == knows[1].keys() and 0 < knows[1]["colour"] <= 1
