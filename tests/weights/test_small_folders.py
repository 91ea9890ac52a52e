"""Folders of small models: config.json of any content is one line, found before weights are read."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gem_jax import pretrained
from input_pipeline.errors import UserError
from pin_jax import vlm
from tests.fixtures.golden_files import ROOT

LOADERS = {"tiny_flamingo": vlm.load, "tiny_blip2": vlm.load, "tiny_clip": pretrained.load}


@pytest.fixture(scope="module", params=LOADERS)
def small(request, tmp_path_factory):
    """A copy without weights, and what reads it."""
    folder = tmp_path_factory.mktemp("small") / request.param
    shutil.copytree(ROOT / "assets" / request.param, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder, LOADERS[request.param]


def refused(folder, load, data: bytes, words: str = ".") -> str:
    path = folder / "config.json"
    before = path.read_bytes()
    path.write_bytes(data)
    try:
        with pytest.raises(UserError, match=words) as caught:
            load(folder)
    finally:
        path.write_bytes(before)
    assert "\n" not in str(caught.value) and "no such file; give" not in str(caught.value), data[:80]
    return str(caught.value)


def test_what_is_no_config(small):
    for data in (b"", b"[]", b"null", b"5", b'"x"', b"{}", b"[" * 100_000, b"\xff", b'{"model": 5}', b'{"model": {}}'):
        refused(*small, data)


def test_any_entry_that_cannot_be_is_named(small):
    """Every size of every part, replaced by what it cannot be: 0, negative, a text, a fraction, null."""
    folder, load = small
    meta = json.loads((folder / "config.json").read_text())
    tried = 0
    for part, held in meta["model"].items():
        entries = held if isinstance(held, dict) else {part: held}
        for name, value in entries.items():
            if isinstance(value, bool):
                bad = ("x", 3)
            elif isinstance(value, int):
                bad = (-5, "x", 1.5, None, 10**12)
            elif isinstance(value, float):
                bad = (0.0, "x", float("nan"))
            else:
                continue
            for each in bad:
                odd = json.loads(json.dumps(meta))
                (odd["model"][part] if isinstance(held, dict) else odd["model"])[name] = each
                if name in ("unroll", "remat"):
                    continue  # choices of the run
                refused(folder, load, json.dumps(odd).encode(), name)
                tried += 1
    assert tried > 40


@pytest.mark.parametrize(("change", "words"), [
    ({"image_std": [0.5, 0.0, 0.5]}, "std of the pixels"), ({"image_mean": [0.5, 0.5]}, "mean of the pixels"),
    ({"image_mean": "x"}, "mean of the pixels"), ({"names": 5}, "names is 5"), ({"names": [1]}, "names is"),
])  # fmt: skip
def test_the_other_entries(small, change, words):
    folder, load = small
    meta = json.loads((folder / "config.json").read_text())
    refused(folder, load, json.dumps(meta | change).encode(), words)


def test_parts_that_do_not_fit_each_other(small):
    folder, load = small
    meta = json.loads((folder / "config.json").read_text())
    cases = (("vision", "heads", 5), ("vision", "act", "foo"), ("vision", "surprise", 1), ("vision", "depth", 100_000))
    for part, name, value in cases:  # as many layers as no model has would be laid out for hours
        odd = json.loads(json.dumps(meta))
        odd["model"][part][name] = value
        refused(folder, load, json.dumps(odd).encode(), name)
    if "grid" in meta:
        refused(folder, load, json.dumps(meta | {"grid": 7}).encode(), "grid is 7")
        refused(folder, load, json.dumps(meta | {"kind": ["flamingo"]}).encode(), "kind is")
        odd = json.loads(json.dumps(meta))
        odd["model"]["image_token"] = 3
        refused(folder, load, json.dumps(odd).encode(), "image_token is 3 in its config.json, but its tokenizer has")
        odd["model"]["image_token"] = 378
        refused(folder, load, json.dumps(odd).encode(), "image_token is 378, beyond the 378 rows")


def test_weights_that_hold_nan_are_named(tmp_path):
    folder = shutil.copytree(ROOT / "assets" / "tiny_clip", tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    name = sorted(tensors)[5]
    tensors[name] = np.full_like(tensors[name], np.nan)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=f"{name} holds NaN or infinity"):
        pretrained.load(folder)


def test_the_hidden_layer_of_a_smolvlm(tmp_path):
    """Named before the decoder, which is installed apart, is looked for."""
    folder = tmp_path / "smolvlm"
    shutil.copytree(ROOT / "assets" / "tiny_smolvlm", folder, ignore=shutil.ignore_patterns("*.safetensors"))
    meta = json.loads((folder / "config.json").read_text())
    for value in (None, -1, "x", 1.5):
        model = {**meta["model"], "hidden": value}
        refused(
            folder, vlm.load, json.dumps(meta | {"model": model}).encode(), f"hidden is {value!r}, expected a whole"
        )
    renamed = {"hiden" if name == "hidden" else name: value for name, value in meta["model"].items()}
    refused(folder, vlm.load, json.dumps(meta | {"model": renamed}).encode(), "model: has 'hiden'; expected vision")
