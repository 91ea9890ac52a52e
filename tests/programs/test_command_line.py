"""What main.py says to a typo: one line that names the nearest right thing, and no traceback."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.fixtures.golden_files import ROOT

CONFIG = "--config=configs/pin_flamingo.py:tiny"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([CONFIG, "--workdir=w", "--config.stepz=3"], ["config.stepz", "did you mean --config.steps"]),
        ([CONFIG, "--workdir=w", "--config.eval.image=3"], ["config.eval.image", "did you mean --config.eval.images"]),
        ([CONFIG, "--workdir=w", "--config.lr=fast"], ["config.lr", "fast"]),
        ([CONFIG, "--workdir=w", "--config.steps=0"], ["config.steps 0", "above 0"]),
        (["--config=configs/pin_flamingo.py:tinny", "--workdir=w"], ["tinny", "tiny"]),
        (["--config=configs/pin_flamengo.py:tiny", "--workdir=w"], ["pin_flamengo", "configs/pin_flamingo.py"]),
        ([CONFIG], ["--workdir is missing"]),
        (["--workdir=w"], ["--config is missing"]),
        ([CONFIG, "--workdir=w", "--wordir=w"], ["wordir"]),
        ([CONFIG, "--workdir=w", "train"], ["train", "not a flag"]),
    ],
)
def test_a_typo_is_one_line(flags, words, tmp_path):
    done = subprocess.run([sys.executable, "main.py", *flags], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word in done.stderr, done.stderr
    assert not (ROOT / "w").exists()
