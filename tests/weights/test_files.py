"""Folders of published weights: one file, shards, and what is wrong with them in one line each."""

import json
import os
import threading
import time

import huggingface_hub
import ml_dtypes
import numpy as np
import pytest
from huggingface_hub import errors
from safetensors.numpy import save_file

from input_pipeline.errors import UserError
from pin_jax.weights.files import PROJECT, Tensors, of_project, resolve

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


def index_of(folder, places):
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors.index.json").write_text(json.dumps(places))
    return folder


def test_an_index_stays_in_its_folder(tmp_path):
    save_file({"a": B}, tmp_path / "outside.safetensors")
    folder = index_of(tmp_path / "m", {})
    os.symlink(tmp_path / "outside.safetensors", folder / "link.safetensors")
    os.symlink(tmp_path, folder / "up")
    for name in ("../outside.safetensors", str(tmp_path / "outside.safetensors"), "link.safetensors",
                 "up/outside.safetensors", "..\\outside.safetensors", "m/../../outside.safetensors"):  # fmt: skip
        with pytest.raises(UserError, match="leads out of its folder, and is not read"):
            Tensors(index_of(folder, {"weight_map": {"a": name}}))
    for places, said in (
        ([], "expected an object"), ({}, "weight_map is None"), ({"weight_map": ["a"]}, "weight_map is"),
        ({"weight_map": {"a": 5}}, "'a' is in 5"), ({"weight_map": {"a": "x" * 5000}}, "expected the name of a file"),
        ({"weight_map": {"a": ""}}, "expected the name of a file"), ({"weight_map": {"a": "b.x"}}, "missing: b.x"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said) as caught:
            Tensors(index_of(folder, places))
        assert len(str(caught.value)) < 500
    (folder / "model.safetensors.index.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match="nested too deep"):
        Tensors(folder)


def test_the_hubs_cache_links_to_its_blobs(tmp_path):
    """A snapshot's files are links out of the snapshot, to the blobs of the same repository."""
    top = tmp_path / "models--a--b"
    (top / "blobs").mkdir(parents=True)
    folder = top / "snapshots" / "1234"
    folder.mkdir(parents=True)
    save_file({"a": B}, top / "blobs" / "abcd")
    os.symlink("../../blobs/abcd", folder / "model-1.safetensors")
    np.testing.assert_array_equal(Tensors(index_of(folder, {"weight_map": {"a": "model-1.safetensors"}}))["a"], B)
    save_file({"a": B}, tmp_path / "other")
    os.symlink("../../../other", folder / "model-2.safetensors")
    with pytest.raises(UserError, match="leads out of its folder"):
        Tensors(index_of(folder, {"weight_map": {"a": "model-2.safetensors"}}))


def test_small_models_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve("assets/tiny_clip") == PROJECT / "assets" / "tiny_clip"
    (tmp_path / "assets" / "tiny_clip").mkdir(parents=True)  # one's own folder goes first
    assert resolve("assets/tiny_clip").absolute() == tmp_path / "assets" / "tiny_clip"
    for name in ("assets/../README.md", "pin_jax/vlm.py", "assets/nothing"):
        assert of_project(name) == of_project(tmp_path / name).relative_to(tmp_path)


def test_offline_and_an_unwritable_cache_are_one_line(monkeypatch):
    def fail(*_, **__):
        raise errors.LocalEntryNotFoundError("not there")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(UserError, match="the hub cannot be reached .*take the variant tiny, which needs no hub"):
        resolve("openai/clip-vit-base-patch16")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set; fetch it before .hf download openai/clip"):
        resolve("openai/clip-vit-base-patch16")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", full)
    with pytest.raises(UserError, match="No space left on device.; choose another by HF_HOME"):
        resolve("openai/clip-vit-base-patch16")


def test_one_process_fetches_and_the_others_wait(monkeypatch, tmp_path):
    """Shown on threads, which take the lock as processes do."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    busy, together = [], []

    def fetch(repo, allow_patterns):
        busy.append(repo)
        together.append(len(busy))
        time.sleep(0.05)
        busy.pop()
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    threads = [threading.Thread(target=resolve, args=("a/b",)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == [1, 1, 1, 1]
