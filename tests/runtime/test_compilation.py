"""The compilation cache: in the user's folder, unless the user says otherwise or it cannot be."""

from __future__ import annotations

import os

import jax
import pytest

from pin_jax.runtime import compilation

SETTINGS = ("jax_compilation_cache_dir", "jax_compilation_cache_max_size")


@pytest.fixture
def environment(monkeypatch, tmp_path):
    before = {name: getattr(jax.config, name) for name in SETTINGS}
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    yield monkeypatch
    for name, value in before.items():
        jax.config.update(name, value)


def test_it_is_in_the_users_folder_and_bounded(environment, tmp_path):
    folder = compilation.keep()
    assert folder.is_dir() and tmp_path in folder.parents
    assert jax.config.jax_compilation_cache_dir == str(folder)
    assert 0 < jax.config.jax_compilation_cache_max_size  # which also makes JAX lock it
    assert compilation.keep() == folder


def test_entries_that_a_full_disk_cut_short_are_removed(environment):
    """JAX reads when every entry was last used before it writes one, and fails where one does not say."""
    folder = compilation.keep()
    for name in ("cut-cache", "whole-cache", "whole-atime"):
        (folder / name).write_bytes(bytes(8))
    compilation.keep()
    assert {path.name for path in folder.iterdir()} - {".lockfile"} == {"whole-cache", "whole-atime"}


@pytest.mark.parametrize("name", ["JAX_COMPILATION_CACHE_DIR", "JAX_ENABLE_COMPILATION_CACHE"])
def test_the_user_decides(environment, name):
    before = jax.config.jax_compilation_cache_dir
    environment.setenv(name, "0")
    assert compilation.keep() is None and jax.config.jax_compilation_cache_dir == before


def test_without_a_folder_there_is_none(environment, tmp_path):
    before = jax.config.jax_compilation_cache_dir
    (tmp_path / "file").write_text("")
    environment.setenv("XDG_CACHE_HOME", os.fspath(tmp_path / "file"))
    assert compilation.keep() is None and jax.config.jax_compilation_cache_dir == before
