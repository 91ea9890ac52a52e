"""The persistent compilation cache: compiled programs are kept between runs."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import platform

import filelock
import jax

# bytes; the entries used longest ago go first. With a limit JAX also locks the folder for each access.
MOST = 4 * 2**30
ENTRY, USED = "-cache", "-atime"  # how JAX calls a program, and when it was last used


def keep() -> pathlib.Path | None:
    """Turns on JAX's persistent compilation cache in the user's cache folder, and returns where.

    Nothing is changed, and None returned, where JAX_COMPILATION_CACHE_DIR or JAX_ENABLE_COMPILATION_CACHE is set (JAX
    reads them itself), or where the folder cannot be written. Code for CPUs is of one kind of CPU, so each kind has its
    own folder: homes may be shared.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or "JAX_ENABLE_COMPILATION_CACHE" in os.environ:
        return None
    try:
        top = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        folder = pathlib.Path(top) / "pin_jax" / "compiled" / _processor()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no home, for one
        return None
    if not os.access(folder, os.W_OK | os.X_OK):
        return None
    _mend(folder)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", MOST)
    return folder


def _mend(folder: pathlib.Path) -> None:
    """Removes entries that a full disk or a death cut short: one without its `USED` keeps JAX from writing others."""
    with contextlib.suppress(OSError, filelock.Timeout):
        with filelock.FileLock(folder / ".lockfile", timeout=5):  # JAX's own
            for entry in folder.glob(f"*{ENTRY}"):
                if not entry.with_name(entry.name.removesuffix(ENTRY) + USED).exists():
                    entry.unlink()


def _processor() -> str:
    """A short name of this kind of CPU: the machine and a hash of its features."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
        features = next((line for line in lines if line.lower().startswith(("flags", "features"))), "")
    except OSError:
        features = platform.processor()
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:8]}"
