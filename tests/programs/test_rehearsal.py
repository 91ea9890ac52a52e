"""The rehearsal of a first real run, and the tiny published models that it takes through it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from pin_jax.vlm import load_vlm
from tests.fixtures import published_models
from tests.fixtures.golden_files import ROOT

WRITERS = {
    "opt": published_models.blip2_opt,
    "flan-t5": published_models.blip2_flan_t5,
    "openflamingo": published_models.openflamingo,
}


@pytest.mark.parametrize("name", WRITERS)
def test_published_folders_load_and_write_boxes(name, tmp_path):
    """The special tokens of the originals are no unknown words, and every box can be written and read."""
    pieces = WRITERS[name](tmp_path / name)
    vlm, params = load_vlm(pieces.pop("vlm"), **pieces)
    config = vlm.model.config
    ids, mask = vlm.tokenize([vlm.frame.prompt(f"In the image is a {thing} located at") for thing in ("cat", "sofa")])
    places = config.qformer.queries if name != "openflamingo" else 1
    assert (ids == config.image_token).sum(1).tolist() == [places] * 2
    assert ids.max() < config.lm.vocab and mask[:, -1].all()
    text = vlm.codec.encode(np.array([0, 3, 7, 13]))
    written = vlm.tokenizer(text + vlm.frame.suffix, add_special_tokens=False)["input_ids"]
    assert written[-1] == config.end_token
    box, parsed = vlm.codec.decode(vlm.detokenize(np.array([written]))[0])
    assert parsed and box.tolist() == [0, 12, 32, 56]


@pytest.mark.heavy  # seven processes of main.py, two to eight devices each
@pytest.mark.parametrize("name", WRITERS)
def test_the_rehearsal(name, tmp_path):
    command = [sys.executable, "benchmarks/rehearsal.py", "--models", name, "--workdir", str(tmp_path / "rehearsal")]
    command += ["--patience", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)
