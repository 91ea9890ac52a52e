"""Cut-out sizes cached on disk, so that scenes can be laid out again without decoding pictures."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import zipfile
from collections.abc import Iterator

import numpy as np

from input_pipeline.pasted.cutouts import Cutouts


@contextlib.contextmanager
def kept(source: object, folder: os.PathLike[str]) -> Iterator[None]:
    """Takes the sizes that an earlier run has left in a folder, and leaves those that are known at the end.

    They belong to these files as they are: another size or time of one is another table. A broken file (its checksum
    is wrong) is measured anew. Packed sources know their sizes and leave nothing.

    Args:
      source: of cut-outs. folder: of cached features.
    """
    if not isinstance(source, Cutouts):
        yield
        return
    path = pathlib.Path(folder) / f"sizes-{_identity(source)}.npz"
    known = _read(path, len(source))
    source.sizes.update(known)
    yield
    if source.sizes != known:
        _write(path, source.sizes)


def _identity(source: Cutouts) -> str:
    digest = hashlib.sha256(str(source.max_side).encode())
    for name, path in source.entries:
        try:
            about = os.stat(path)
            digest.update(f"{name}\0{path}\0{about.st_size}\0{about.st_mtime_ns}\n".encode())
        except OSError:
            digest.update(f"{name}\0{path}\n".encode())
    return digest.hexdigest()[:16]


def _read(path: pathlib.Path, count: int) -> dict[int, tuple[int, int]]:
    try:
        with np.load(path) as held:  # a zip: read with its checksums
            numbers, sizes = held["numbers"], held["sizes"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return {}
    if numbers.ndim != 1 or sizes.shape != (len(numbers), 2) or not ((numbers >= 0) & (numbers < count)).all():
        return {}
    return {int(number): (int(w), int(h)) for number, (w, h) in zip(numbers, sizes, strict=True) if w > 0 and h > 0}


def _write(path: pathlib.Path, sizes: dict[int, tuple[int, int]]) -> None:
    """Writes in one go; where it cannot be written, cut-outs are measured again."""
    numbers = np.array(sorted(sizes), np.int64)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            np.savez(file, numbers=numbers, sizes=np.array([sizes[int(k)] for k in numbers], np.int64).reshape(-1, 2))
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
