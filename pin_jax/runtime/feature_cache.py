"""What of an image is computed once: its vision features where the method acts behind the encoder, else the picture.

Behind a frozen encoder cached features are exact.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
from collections.abc import Callable
from typing import Any

import grain
import numpy as np

from input_pipeline.errors import UserError
from input_pipeline.loader import batches
from input_pipeline.pasted.scenes import Scenes


class OnlyImage(grain.transforms.Map):
    """A scene's record -> its picture uint8[H, W, 3]."""

    def map(self, record: dict[str, Any]) -> np.ndarray:
        return record["image"]


class FeatureBank:
    """Random-access source of scene records with `vision` float32[N, D] in place of the picture, or with the `image`.

    They stand in one memory-mapped file below `folder`, named after what they were computed from; a file that is
    complete is used again.
    """

    def __init__(self, scenes: Scenes, path: pathlib.Path, key: str = "vision"):
        self.scenes, self.path, self.key = scenes, path, key
        # Not at the first record: records are read by several threads, and CPython 3.11's parser, which reads the
        # header of the file, may fail where two run at once (gh-106905).
        self._features = np.load(path, mmap_mode="r")

    def __len__(self) -> int:
        return len(self.scenes)

    def __repr__(self) -> str:
        return f"FeatureBank({self.scenes!r}, {self.path.name})"

    def __reduce__(self):  # a worker maps the file itself
        return FeatureBank, (self.scenes, self.path, self.key)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.scenes.describe(index) | {self.key: np.array(self._features[index])}


def build(
    scenes: Scenes,
    encode: Callable[[np.ndarray], Any] | None,
    folder: pathlib.Path,
    identity: str,
    batch_size: int = 32,
    progress: Callable[[int], None] = lambda done: None,
) -> FeatureBank:
    """Computes the features of all scenes, or composes their pictures; or finds it done.

    Args:
      scenes: where pictures come from.
      encode: images uint8[B, H, W, 3] -> float32[B, N, D]; None keeps the pictures.
      folder: where the file goes.
      identity: of the frozen weights (a hash), part of the file's name.
      progress: called with the number of scenes done.

    Raises:
      UserError: the disk is full; a file that cannot be read.
    """
    from pin_jax.runtime.sharding import (
        on_every_process,  # not above: workers that prepare data import this module, not JAX
    )

    kind, key = ("images", "image") if encode is None else ("features", "vision")
    made_of = f"{scenes!r}" if encode is None else f"{identity} {scenes!r}"  # any VLM has the same pictures
    path = folder / f"{kind}-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}.npy"
    if on_every_process(path.exists()):
        try:
            return FeatureBank(scenes, path, key)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(f"feature cache {path} cannot be read ({error}); delete it, and it is made anew") from error
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.npy")  # processes may share the folder
    out = None
    try:
        start = 0
        for images in batches(scenes, [OnlyImage()], batch_size, shuffle=False, epochs=1):
            rows = images
            if encode is not None:
                short = batch_size - len(images)  # one batch shape, one compilation
                rows = np.asarray(encode(np.pad(images, [(0, short), (0, 0), (0, 0), (0, 0)])), np.float32)[
                    : len(images)
                ]
            if out is None:
                out = np.lib.format.open_memmap(partial, "w+", rows.dtype, (len(scenes), *rows.shape[1:]))
            out[start : start + len(rows)] = rows
            start += len(rows)
            progress(start)
        out.flush()
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(
            f"feature cache {path}: {error.strerror}; free disk space or set config.cache_images=0"
        ) from error
    partial.rename(path)
    return FeatureBank(scenes, path, key)
