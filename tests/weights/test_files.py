"""Folders of published weights: one file, shards, and what is wrong with them in one line each."""

import json

import huggingface_hub
import ml_dtypes
import numpy as np
import pytest
from huggingface_hub import errors
from safetensors.numpy import save_file

from input_pipeline.errors import UserError
from pin_jax.weights.files import Tensors, resolve

RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(2, 3)).astype(ml_dtypes.bfloat16), RNG.normal(size=4).astype(np.float32)


def test_one_file_and_shards_hold_the_same(tmp_path):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    save_file({"a": A, "b": B}, tmp_path / "one" / "model.safetensors")
    save_file({"a": A}, tmp_path / "two" / "model-1.safetensors")
    save_file({"b": B}, tmp_path / "two" / "model-2.safetensors")
    places = {"weight_map": {"b": "model-2.safetensors", "a": "model-1.safetensors"}}
    (tmp_path / "two" / "model.safetensors.index.json").write_text(json.dumps(places))
    for name in ("one", "two"):
        tensors = Tensors(resolve(tmp_path / name))
        assert sorted(tensors) == ["a", "b"] and len(tensors) == 2
        assert tensors["a"].dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(tensors["a"], A)
        np.testing.assert_array_equal(tensors["b"], B)
    (tmp_path / "two" / "model-2.safetensors").unlink()
    with pytest.raises(UserError, match="shards missing: model-2.safetensors"):
        Tensors(tmp_path / "two")


def test_a_truncated_or_absent_file_is_one_line(tmp_path):
    with pytest.raises(UserError, match="neither model.safetensors nor"):
        Tensors(tmp_path)
    save_file({"b": B}, tmp_path / "model.safetensors")
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-4])
    with pytest.raises(UserError, match="not an intact safetensors file"):
        Tensors(tmp_path)


@pytest.mark.parametrize(
    ("failure", "said"),
    [(errors.RepositoryNotFoundError, "the hub has no such repository"), (errors.GatedRepoError, "asks for consent")],
)
def test_what_the_hub_refuses_is_one_line(monkeypatch, failure, said):
    def refuse(*_, **__):
        raise failure.__new__(failure)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(UserError, match=said):
        resolve("nobody/nothing")


def test_no_network_and_a_typing_error_are_one_line(monkeypatch):
    def fail(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(UserError, match="hub cannot be reached"):
        resolve("openai/clip-vit-base-patch16")
    with pytest.raises(UserError, match="not a hub id"):
        resolve("weights/that/are/not/there")


def test_a_hub_id_is_fetched_without_pickles(monkeypatch, tmp_path):
    asked = {}

    def fetch(repo, allow_patterns):
        asked.update(repo=repo, patterns=allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert resolve("hf-hub:laion/CLIP-ViT-B-16-laion2B-s34B-b88K") == tmp_path
    assert asked["repo"] == "laion/CLIP-ViT-B-16-laion2B-s34B-b88K"
    assert "*.safetensors" in asked["patterns"] and not any("bin" in p for p in asked["patterns"])
