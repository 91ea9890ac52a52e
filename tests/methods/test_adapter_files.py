"""Inserts as files from others: they run no code, and say what is wrong with them in one line."""

from __future__ import annotations

import dataclasses
import json
import sys

import jax
import ml_collections
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from input_pipeline.errors import UserError
from pin_jax import adapters, methods
from pin_jax.methods.pin import Pin
from pin_jax.vlm import VLM
from pin_jax.weights import torch_file
from tests.fixtures import tiny

VLM_ = VLM(tiny.flamingo(1)[0], tiny.flamingo(1)[1], None, None, (), (), "weights")
PIN = Pin(VLM_.model.config, hidden=(6, 5))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A good file, its tensors and its header."""
    path = tmp_path_factory.mktemp("adapter") / "insert.safetensors"
    options = {"hidden": (6, 5), "learned": False, "start": 1.0}
    config = ml_collections.ConfigDict({"method": "pin", "method_options": options, "vlm": "here"})
    adapters.save(path, PIN.init(jax.random.key(0)), config, VLM_)
    meta = {"method": "pin", "options": json.dumps(options), "frozen": "weights"}
    return path, load_file(path), meta


def write(path, saved, tensors=None, **meta):
    save_file(saved[1] | (tensors or {}), path, metadata=saved[2] | meta)
    return path


def refused(path, words, **given):
    with pytest.raises(UserError, match=words) as caught:
        adapters.load(path, VLM_, **given)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


def test_prompts_of_another_frame(saved, tmp_path):
    """An insert knows what its prompts stood in; files from before say nothing, and are taken."""
    adapters.load(saved[0], VLM_)
    adapters.load(write(tmp_path / "before.safetensors", saved), VLM_)
    other = dataclasses.replace(VLM_, frame=VLM_.frame.behind("cat", "A cat is at", " [1,2,3,4]"))
    with pytest.raises(UserError, match="trained with prompts in the frame .*these are in .*A cat is .*config.example"):
        adapters.load(saved[0], other)


OWN = """
from pin_jax.methods.pin import Pin
class Mine(Pin):
    pass
"""


def test_a_file_names_no_code(saved, tmp_path, monkeypatch):
    """What it names is imported only where the user has named it."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "mine_of_this_test.py").write_text(OWN)
    for name in ("mine_of_this_test:Mine", "pin+mine_of_this_test:Mine", "this:x", "os:system", "pin_jax.train:train"):
        path = write(tmp_path / "x.safetensors", saved, method=name)
        refused(path, "a file may not name code that is run")
        refused(path, "a file may not name code that is run", method="pin")
    assert "mine_of_this_test" not in sys.modules
    path = write(tmp_path / "x.safetensors", saved, method="mine_of_this_test:Mine")
    method, _ = adapters.load(path, VLM_, "mine_of_this_test:Mine")
    assert methods.describe(method)[0] == "mine_of_this_test:Mine"


@pytest.mark.parametrize("options", [
    "{", "[1]", "null", "5", '{"hidden": "abc"}', '{"hidden": [-5]}', '{"hidden": [1.5]}', '{"hidden": [true]}',
    '{"hidden": 512}', '{"learned": 1}', '{"depth": 3}', "[" * 100_000, '{"hidden": [NaN]}', '{"hidden": []}',
    '{"hidden": [10000000000000]}',
])  # fmt: skip
def test_options_that_cannot_be(saved, tmp_path, options):
    refused(write(tmp_path / "x.safetensors", saved, options=options), "option|hidden|do not fit|no model can be built")


@pytest.mark.parametrize("method", ["", "nothing", "pin+pin", "+", "lora_v", "x" * 5000])
def test_methods_that_it_cannot_be(saved, tmp_path, method):
    refused(write(tmp_path / "x.safetensors", saved, method=method), "method|has no option")


@pytest.mark.parametrize("change", [
    lambda x: x.astype(np.int32), lambda x: x > 0, lambda x: x.astype(np.uint8), lambda x: x * np.float32("nan"),
    lambda x: np.full_like(x, np.inf), lambda x: x[:1], lambda x: np.full(x.shape, np.nan, ml_dtypes.bfloat16),
])  # fmt: skip
def test_tensors_that_are_no_weights(saved, tmp_path, change):
    name = "linear_1/kernel"
    path = write(tmp_path / "x.safetensors", saved, {name: np.ascontiguousarray(change(saved[1][name]))})
    refused(path, f"{name} (is|holds|has)")


def test_cards_that_contradict_the_file_and_broken_ones(saved, tmp_path, capsys):
    path = write(tmp_path / "x.safetensors", saved)
    card = tmp_path / "x.json"
    good = json.loads(saved[0].with_suffix(".json").read_text())
    card.write_text(json.dumps(good))
    assert adapters.load(path, VLM_)[0] == PIN
    for change in ({"method": "lora_v"}, {"options": {}}, {"frozen": "other"}, {"parameters": 7}):
        card.write_text(json.dumps(good | change))
        refused(path, f"its card x.json has {next(iter(change))}")
    for broken in (b'{"method": "pin", ', b"[]", b"", b"\xff"):
        card.write_bytes(broken)
        assert adapters.load(path, VLM_)[0] == PIN  # the file says all that is needed
        adapters.note(path, {"mIoU": 0.5})
        again = json.loads(card.read_text())
        assert again["results"] == {"mIoU": 0.5} and again["method"] == "pin" and again["options"]["hidden"] == [6, 5]
    assert "its card is not used" in capsys.readouterr().out


def test_the_authors_form(tmp_path):
    params = PIN.init(jax.random.key(0))
    adapters.export(tmp_path / "good.pt", PIN, params)
    held = torch_file.load(tmp_path / "good.pt")
    psi, table = {k: np.asarray(v) for k, v in held["mlp"].items()}, np.asarray(held["pos_enc"])
    cases = {
        "2.weight has shape": ({**psi, "2.weight": np.float32(1)}, table),
        "0.weight holds NaN": ({**psi, "0.weight": psi["0.weight"] * np.float32("nan")}, table),
        "pos_enc holds NaN": (psi, table * np.float32("nan")),
        "linear_0.bias is int64": ({**psi, "0.bias": psi["0.bias"].astype(np.int64)}, table),
        "no place for: mlp.\u00b2.weight": ({**psi, "\u00b2.weight": np.zeros(3, np.float32)}, table),
        "no place for: mlp.9{50}": ({**psi, "9" * 5000: np.zeros(3, np.float32)}, table),
    }
    for words, (mlp, positions) in cases.items():
        torch_file.save(tmp_path / "x.pt", {"mlp": mlp, "pos_enc": positions})
        with pytest.raises(UserError, match=words.replace("0.weight holds", "linear_0.weight holds")):
            adapters.load(tmp_path / "x.pt", VLM_)
