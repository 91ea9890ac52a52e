"""All methods at once, dropout and cached pictures included: one device and eight fake ones do the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.fixtures.golden_files import ROOT
from tests.fixtures.host_devices import host_devices
from tests.fixtures.small import write_vlm


@pytest.mark.heavy
def test_eight_devices(tmp_path):
    folder = write_vlm(tmp_path / "vlm")
    losses = []
    overrides = {"vlm": folder, "steps": 6, "batch_size": 8, "cache_images": 16, "log_every": 1, "eval.images": 2}
    overrides |= {"lr": 1e-4, "eval.new_tokens": 2}  # a rate at which rounding does not grow
    variant = "tiny,method=pin+vpt_v+vpt_f+coop+lora_v"
    flags = [f"--config=configs/pin_flamingo.py:{variant}", *(f"--config.{k}={v}" for k, v in overrides.items())]
    for devices in (1, 8):
        workdir = tmp_path / f"{devices}"
        env = {**os.environ, "XLA_FLAGS": host_devices(devices)}
        command = [sys.executable, "main.py", *flags, f"--workdir={workdir}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stderr[-2000:]
        losses.append([json.loads(line)["loss"] for line in (workdir / "scalars.jsonl").read_text().splitlines()])
        assert list((workdir / "cache").iterdir())[0].name.startswith("images-")
    assert len(losses[0]) == 6 and max(losses[0]) - min(losses[0]) > 1e-3
    np.testing.assert_allclose(*losses, rtol=1e-5)
