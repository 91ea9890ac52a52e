"""Cached vision features; or cached pictures, where the method acts inside the vision encoder.

Behind a frozen encoder cached features are exact: they are kept in the encoder's own dtype. A cache is a NumPy file of
one row an image and, beside it, a JSON file that says what the rows are and the CRC-32 of each.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import filelock
import grain
import ml_dtypes
import numpy as np

from input_pipeline.errors import UserError, reason, remedy
from input_pipeline.loader import batches
from input_pipeline.pasted.scenes import Scenes


class OnlyImage(grain.transforms.Map):
    """A scene's record -> its picture uint8[H, W, 3]."""

    def map(self, record: dict[str, Any]) -> np.ndarray:
        return record["image"]


class Broken(Exception):
    """A cache whose files do not say the same."""


class FeatureBank:
    """Random-access source of scene records with `vision` [N, D] in place of the picture, or with the `image`.

    The rows stand in one memory-mapped file, named after what they were computed from. Each is checked when it is read.

    Raises:
      Broken: the files do not agree, and say how. OSError: one is missing.
    """

    def __init__(self, scenes: Scenes, path: os.PathLike[str], key: str = "vision"):
        self.scenes, self.path, self.key = scenes, pathlib.Path(path), key
        # Not at the first record: records are read by several threads, and CPython 3.11's parser, which reads the
        # header of the file, may fail where two run at once (gh-106905).
        try:
            about = json.loads(_card(self.path).read_text())
            self._dtype, shape, self._sums = _dtype(about["dtype"]), tuple(about["shape"]), about["crc32"]
            self._rows = np.load(self.path, mmap_mode="r")
        except (ValueError, TypeError, KeyError, EOFError, AttributeError) as error:
            raise Broken(f"{type(error).__name__}: {error}") from error
        there = self._rows.shape, self._rows.dtype, len(self._sums)
        if there != (shape, _stored(self._dtype), len(scenes)) or shape[:1] != (len(scenes),):
            raise Broken(f"{there[1]}{list(there[0])} of {there[2]} rows, expected {about['dtype']}{list(shape)}")

    def __len__(self) -> int:
        return len(self.scenes)

    def __repr__(self) -> str:
        return f"FeatureBank({self.scenes!r}, {self.path.name})"

    def __reduce__(self):  # a worker maps the file itself
        return FeatureBank, (self.scenes, os.fspath(self.path), self.key)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = np.array(self._rows[index])
        if zlib.crc32(row) != self._sums[index]:  # pyright: ignore[reportArgumentType]
            raise UserError(f"feature cache {self.path}: row {index} is damaged; delete the file, and it is made anew")
        return self.scenes.describe(index) | {self.key: row.view(self._dtype)}


def _card(path: pathlib.Path) -> pathlib.Path:
    return path.with_suffix(".json")


def _dtype(name: str) -> np.dtype:
    return np.dtype(getattr(ml_dtypes, name, None) or name)


def _stored(dtype: np.dtype) -> np.dtype:
    """What a NumPy file keeps of a dtype: those that are not NumPy's own as integers of their size."""
    return dtype if dtype.isbuiltin == 1 else np.dtype(f"u{dtype.itemsize}")


class _Rows:
    """The file in the making: rows and their sums, appended; what a death left of them is taken up again."""

    def __init__(self, path: pathlib.Path, count: int):
        self.path, self.count = path.with_suffix(".partial"), count
        self.sums_path = path.with_suffix(".partial_crc32")
        self.sums: list[int] = []
        self._files: list[Any] = []
        self._shape: tuple[int, ...] | None = None
        with contextlib.suppress(OSError, ValueError):
            self._take_up()

    def _take_up(self) -> None:
        sums = np.fromfile(self.sums_path, np.uint32)
        with open(self.path, "rb") as file:
            np.lib.format.read_magic(file)
            shape, _, self._kept = np.lib.format.read_array_header_1_0(file)
            size = int(np.prod(shape[1:])) * self._kept.itemsize
            begin = file.tell()
            for i in range(min(len(sums), self.count) if shape[0] == self.count else 0):
                row = file.read(size)
                if len(row) < size or zlib.crc32(row) != sums[i]:
                    break
                self.sums.append(int(sums[i]))
        self._shape, self._begin, self._size = shape, begin, size

    def go_on(self, start: int) -> None:
        """Keeps the first rows, and opens the files behind them."""
        del self.sums[start:]
        if not start:
            self._shape = None
            self._files = [open(self.path, "wb"), open(self.sums_path, "wb")]
            return
        self._files = [open(self.path, "r+b"), open(self.sums_path, "r+b")]
        for file, size in zip(self._files, (self._begin + start * self._size, 4 * start), strict=True):
            file.truncate(size)
            file.seek(size)

    def append(self, rows: np.ndarray) -> None:
        rows = np.ascontiguousarray(rows)
        self.dtype, rows = rows.dtype, rows.view(_stored(rows.dtype))
        data, sums = self._files
        if self._shape is None:
            self._shape, self._kept = (self.count, *rows.shape[1:]), rows.dtype
            header = np.lib.format.header_data_from_array_1_0(rows) | {"shape": self._shape}
            np.lib.format.write_array_header_1_0(data, header)
        if (self._shape[1:], self._kept) != (rows.shape[1:], rows.dtype):
            raise Broken(f"{self.path}: begun by another version; delete it")
        found = [zlib.crc32(row) for row in rows]
        data.write(rows.tobytes())
        data.flush()  # before its sums: a sum that is there has its row
        sums.write(np.array(found, np.uint32).tobytes())
        sums.flush()
        self.sums += found

    def finish(self, path: pathlib.Path) -> None:
        for file in self._files:
            os.fsync(file.fileno())
            file.close()
        about = {"dtype": str(self.dtype), "shape": list(self._shape or ()), "crc32": self.sums}
        _card(path).write_text(json.dumps(about))
        os.replace(self.path, path)
        self.sums_path.unlink()

    def remove(self) -> None:
        for file in self._files:
            with contextlib.suppress(OSError):
                file.close()
        for path in (self.path, self.sums_path):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def build(
    scenes: Scenes,
    encode: Callable[[np.ndarray], Any] | None,
    folder: os.PathLike[str],
    identity: str,
    batch_size: int = 32,
    progress: Callable[[int], None] = lambda done: None,
) -> FeatureBank:
    """Computes the features of all scenes, or composes their pictures; or finds it done, whole or in part.

    One process writes to each disk; the others compute with it, and read what it has written.

    Args:
      scenes: where pictures come from.
      encode: images uint8[B, H, W, 3] -> [B, N, D] in any dtype; None keeps the pictures.
      folder: where the file goes, on a local disk.
      identity: of the frozen weights and what they compute in, part of the file's name.
      progress: called with the number of scenes done.

    Raises:
      UserError: the disk is full, the folder is not local, or another run is building the same cache.
    """
    # Not above: workers that prepare data import this module, not JAX.
    from pin_jax.runtime import files, sharding
    from pin_jax.runtime.processes import preemption, workdirs
    from pin_jax.runtime.reporting import say

    if files.is_remote(folder):
        raise UserError(
            f"feature cache {folder}: features are mapped into memory, which a bucket cannot be; give a local folder,"
            " --config.cache_folder=/local/cache, or set config.cache_images=0"
        )
    kind, key = ("images", "image") if encode is None else ("features", "vision")
    made_of = f"{scenes!r}" if encode is None else f"{identity} {scenes!r}"  # any VLM has the same pictures
    path = pathlib.Path(folder) / f"{kind}-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}.npy"
    bank = None
    try:
        bank = FeatureBank(scenes, path, key)
    except FileNotFoundError:
        pass
    except (Broken, OSError) as error:
        say(f"feature cache {path} is damaged ({error}); it is made anew")
    if sharding.on_every_process(bank is not None):
        assert bank is not None
        return bank
    files.make_folder(folder)
    writes = workdirs.owner(folder) == sharding.process_index()
    with _building(path) if writes else contextlib.nullcontext():
        rows = _Rows(path, len(scenes)) if writes else None
        try:
            done = sharding.least(len(rows.sums) if rows else len(scenes)) // batch_size
            if done and rows:
                say(f"feature cache {path.name}: going on from {done * batch_size:,} of {len(scenes):,}")
            if rows:
                rows.go_on(done * batch_size)
            if encode is not None or rows:
                for part in _computed(scenes, encode, batch_size, done):
                    if rows:
                        rows.append(part)
                    done += 1
                    progress(min(done * batch_size, len(scenes)))
                    if encode is not None:  # then all processes come by
                        preemption.check()
            if rows:
                rows.finish(path)
        except (OSError, Broken) as error:
            if rows:
                rows.remove()
            full = "free disk space, or" if "free" in remedy(error) else ""
            raise UserError(
                f"feature cache {path}: cannot be written ({reason(error)}); {full} give another"
                " config.cache_folder or set config.cache_images=0"
            ) from error
        sharding.barrier("features")
    return FeatureBank(scenes, path, key)


def _computed(scenes: Scenes, encode: Callable | None, batch_size: int, start: int) -> Iterator[np.ndarray]:
    for images in batches(scenes, [OnlyImage()], batch_size, shuffle=False, epochs=1, start=start):
        if encode is None:
            yield images
        else:
            short = batch_size - len(images)  # one batch shape, one compilation
            yield np.asarray(encode(np.pad(images, [(0, short), (0, 0), (0, 0), (0, 0)])))[: len(images)]


@contextlib.contextmanager
def _building(path: pathlib.Path) -> Iterator[None]:
    """A context in which no other run builds the same cache; what older versions left behind is removed."""
    lock = filelock.FileLock(os.fspath(path.with_suffix(".lock")), timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise UserError(
            f"feature cache {path}: another run is building it; wait for it, or give another config.cache_folder"
        ) from error
    try:
        for old in path.parent.glob(f"{path.stem}.*.npy"):
            if re.fullmatch(r"\.\d+", old.suffixes[0]):
                old.unlink(missing_ok=True)
        yield
    finally:
        lock.release()
        with contextlib.suppress(OSError):
            os.unlink(path.with_suffix(".lock"))
