"""Vision features computed once: the insert sits behind the frozen encoder, so cached features are exact."""

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
from input_pipeline.scenes import Scenes


class OnlyImage(grain.transforms.Map):
    """A scene's record -> its picture uint8[H, W, 3]."""

    def map(self, record: dict[str, Any]) -> np.ndarray:
        return record["image"]


class FeatureBank:
    """Random-access source of scene records with `vision` float32[N, D] in place of the picture.

    Features stand in one memory-mapped file below `folder`, named after what they were computed from; a file that is
    complete is used again.
    """

    def __init__(self, scenes: Scenes, path: pathlib.Path):
        self.scenes, self.path = scenes, path
        self._features: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.scenes)

    def __repr__(self) -> str:
        return f"FeatureBank({self.scenes!r}, {self.path.name})"

    def __getstate__(self):
        return {**self.__dict__, "_features": None}

    def __getitem__(self, index: int) -> dict[str, Any]:
        if self._features is None:
            self._features = np.load(self.path, mmap_mode="r")
        return self.scenes.describe(index) | {"vision": np.array(self._features[index])}


def build(
    scenes: Scenes,
    encode: Callable[[np.ndarray], Any],
    folder: pathlib.Path,
    identity: str,
    batch_size: int = 32,
    progress: Callable[[int], None] = lambda done: None,
) -> FeatureBank:
    """Computes the features of all scenes, or finds them computed.

    Args:
      scenes: where pictures come from.
      encode: images uint8[B, H, W, 3] -> float32[B, N, D].
      folder: where the file goes.
      identity: of the frozen weights (a hash), part of the file's name.
      progress: called with the number of scenes done.

    Raises:
      UserError: the disk is full.
    """
    from pin_jax.sharding import everywhere  # not above: workers that prepare data import this module, not JAX

    key = hashlib.sha256(f"{identity} {scenes!r}".encode()).hexdigest()[:16]
    path = folder / f"features-{key}.npy"
    if everywhere(path.exists()):
        return FeatureBank(scenes, path)
    folder.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.npy")  # processes may share the folder
    out = None
    try:
        start = 0
        for images in batches(scenes, [OnlyImage()], batch_size, shuffle=False, epochs=1):
            short = batch_size - len(images)  # one batch shape, one compilation
            vision = np.asarray(encode(np.pad(images, [(0, short), (0, 0), (0, 0), (0, 0)])))[: len(images)]
            if out is None:
                out = np.lib.format.open_memmap(partial, "w+", np.float32, (len(scenes), *vision.shape[1:]))
            out[start : start + len(vision)] = vision
            start += len(vision)
            progress(start)
        out.flush()
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise UserError(
            f"feature cache {path}: {error.strerror}; free disk space or set config.cache_images=0"
        ) from error
    partial.rename(path)
    return FeatureBank(scenes, path)
