"""The identity of published weights: each tensor is hashed once, and its hash kept beside the files it came from.

An insert belongs to one identity, which therefore depends on the numbers in the files alone, not on how they are cut
into shards, nor on mesh and dtype of a run.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from collections.abc import Iterable

import jax
import numpy as np

VERSION = 1  # of what is hashed; another one makes kept hashes void


class Digest:
    """Hashes tensors as they are read, in any order, but for those whose hashes are known.

    Known hashes hold as long as every file has the size and the time of change that it had.

    Args:
      paths: of the files that the tensors come from.
    """

    def __init__(self, paths: Iterable[pathlib.Path] = ()):
        paths = sorted({pathlib.Path(path).absolute() for path in paths})
        self._about = {"version": VERSION, "files": {str(path): _stamp(path) for path in paths}}
        self._places = _places(paths)
        self._known = next((held for path in self._places if (held := _read(path, self._about)) is not None), {})
        self._parts: dict[str, str] = {}

    def __call__(self, place: str, array: np.ndarray) -> None:
        """Takes a tensor in; see `convert.convert`, whose `record` this is."""
        self._parts[place] = self._known.get(place) or _hash(array)

    @property
    def identity(self) -> str:
        """16 hexadecimal digits."""
        return hashlib.sha256(repr(sorted(self._parts.items())).encode()).hexdigest()[:16]

    def keep(self) -> None:
        """Keeps the hashes for the next run; where nothing can be written, the next run hashes again."""
        if self._parts == self._known or jax.process_index() > 0:
            return
        text = json.dumps(self._about | {"tensors": self._parts})
        for path in self._places:
            partial = path.with_name(f"{path.name}.{os.getpid()}")
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                partial.write_text(text, "utf-8")
                partial.replace(path)
                return
            except OSError:  # a folder that is only read, a full disk
                try:
                    partial.unlink(missing_ok=True)
                except OSError:
                    pass


def _hash(array: np.ndarray) -> str:
    digest = hashlib.sha256(f"{array.dtype}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _stamp(path: pathlib.Path) -> list[int]:
    """Size and time of change of a file, links followed."""
    about = path.stat()
    return [about.st_size, about.st_mtime_ns]


def _places(paths: list[pathlib.Path]) -> list[pathlib.Path]:
    """Where hashes are kept: beside the first file, else in the user's cache."""
    if not paths:
        return []
    name = hashlib.sha256("\n".join(map(str, paths)).encode()).hexdigest()[:12]
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    return [paths[0].parent / f".pin_jax-{name}.json", cache / "pin_jax" / f"{name}.json"]


def _read(path: pathlib.Path, about: dict) -> dict[str, str] | None:
    """Hashes that were kept of the same files; None where there are none, or of files that have changed."""
    try:
        held = json.loads(path.read_text("utf-8"))
        tensors = held.pop("tensors")
        whole = held == about and all(isinstance(x, str) and len(x) == 64 for x in tensors.values())
        return tensors if whole else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
