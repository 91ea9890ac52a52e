"""Killed at random moments and started again: the final insert is bit-equal to that of an unbroken run."""

from __future__ import annotations

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest
from safetensors.numpy import load_file

from tests.fixtures.golden_files import ROOT
from tests.fixtures.small import write_vlm

STEPS = 200


def command(folder: pathlib.Path, workdir: pathlib.Path) -> list[str]:
    overrides = {
        "vlm": folder, "steps": STEPS, "batch_size": 4, "cache_images": 16, "save_every": 20, "log_every": 5,
        "eval.images": 2, "curriculum": 0.25,
    }  # fmt: skip
    flags = [f"--config.{key}={value}" for key, value in overrides.items()]
    return [sys.executable, "main.py", "--config=configs/pin_flamingo.py:tiny", f"--workdir={workdir}", *flags]


@pytest.mark.parametrize("count", [1, pytest.param(5, marks=pytest.mark.heavy)])
def test_deaths_change_nothing(tmp_path, count):
    folder = write_vlm(tmp_path / "vlm")
    subprocess.run(command(folder, tmp_path / "whole"), cwd=ROOT, check=True, capture_output=True)
    rng = random.Random()  # other moments every time: any of them must do
    log = tmp_path / "log"
    deaths = []
    scalars = tmp_path / "broken" / "scalars.jsonl"
    for death in range(count):
        seen = len(scalars.read_text().splitlines()) if scalars.exists() else 0
        with log.open("ab") as out:
            process = subprocess.Popen(command(folder, tmp_path / "broken"), cwd=ROOT, stdout=out, stderr=out)
        while process.poll() is None:  # until it trains, then a moment more
            if scalars.exists() and len(scalars.read_text().splitlines()) > seen:
                break
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.4))
        kind = signal.SIGTERM if death % 2 == 0 else signal.SIGKILL
        process.send_signal(kind)
        process.wait()
        over = (tmp_path / "broken" / "results.json").exists()
        assert over or process.returncode == (143 if kind is signal.SIGTERM else -signal.SIGKILL)
        deaths.append((kind.name, process.returncode, os.path.exists(tmp_path / "broken" / "results.json")))
    with log.open("ab") as out:
        subprocess.run(command(folder, tmp_path / "broken"), cwd=ROOT, check=True, stdout=out, stderr=out)
    text = log.read_text()
    assert "SIGTERM: state of step" in text and "going on from step" in text, (deaths, text[-2000:])
    whole, broken = (load_file(tmp_path / name / "insert.safetensors") for name in ("whole", "broken"))
    for key, value in whole.items():
        assert value.tobytes() == broken[key].tobytes(), (key, deaths)
