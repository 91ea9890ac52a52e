"""Identities of weights: hashed once, known as long as the files stay as they were."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from safetensors.numpy import save_file

from pin_jax.weights import digests
from pin_jax.weights.digests import Digest
from pin_jax.weights.files import Tensors


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "m").mkdir()
    write(tmp_path / "m", 0)
    return tmp_path / "m"


def write(folder, seed):
    rng = np.random.default_rng(seed)
    save_file({name: rng.normal(size=(3, 4)) for name in "abc"}, folder / "model.safetensors")


def identity(folder, monkeypatch) -> tuple[str, int]:
    """The identity, and how many tensors were hashed for it."""
    hashed = []
    with monkeypatch.context() as patch:
        patch.setattr(digests, "_hash", lambda array, real=digests._hash: hashed.append(1) or real(array))
        tensors = Tensors(folder)
        digest = Digest(tensors.files)
        for name in sorted(tensors, reverse=True):
            digest(name, tensors[name])
        digest.keep()
    return digest.identity, len(hashed)


def test_tensors_are_hashed_once(folder, monkeypatch):
    first, hashed = identity(folder, monkeypatch)
    assert hashed == 3 and identity(folder, monkeypatch) == (first, 0)
    digest = Digest()  # of no files: nothing is kept
    for name in Tensors(folder):
        digest(name, Tensors(folder)[name])
    digest.keep()
    assert digest.identity == first


def test_files_that_change_are_hashed_again(folder, monkeypatch):
    first, _ = identity(folder, monkeypatch)
    about = (folder / "model.safetensors").stat()
    write(folder, 1)  # of the same size
    os.utime(folder / "model.safetensors", ns=(about.st_atime_ns, about.st_mtime_ns + 1))
    other, hashed = identity(folder, monkeypatch)
    assert hashed == 3 and other != first
    write(folder, 0)
    os.utime(folder / "model.safetensors", ns=(about.st_atime_ns, about.st_mtime_ns + 2))
    assert identity(folder, monkeypatch) == (first, 3)


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b'{"tensors": {"a": 5}}', b"[" * 100_000, b"null"])
def test_kept_hashes_that_are_broken_are_made_anew(folder, monkeypatch, data):
    first, _ = identity(folder, monkeypatch)
    (kept,) = folder.glob(".pin_jax-*.json")
    good = kept.read_bytes()
    kept.write_bytes(data)
    assert identity(folder, monkeypatch) == (first, 3)
    assert json.loads(kept.read_bytes()) == json.loads(good)


def test_a_folder_that_is_only_read_uses_the_users_cache(folder, monkeypatch, tmp_path):
    first, _ = identity(folder, monkeypatch)
    (kept,) = folder.glob(".pin_jax-*.json")
    kept.unlink()
    kept.mkdir()  # nothing can be written there, not even by root
    assert identity(folder, monkeypatch) == (first, 3)
    assert len(list((tmp_path / "cache" / "pin_jax").iterdir())) == 1 and not list(folder.glob("*.[0-9]*"))
    assert identity(folder, monkeypatch) == (first, 0)
