"""From tokens to heat maps: similarity to texts, bilinear enlargement, min-max; and boxes from maps."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy import ndimage

from pin_jax.models.layers import unit_length


def similarity(
    tokens: Float[Array, "B N E"], text: Float[Array, "*B C E"], grid: tuple[int, int]
) -> Float[Array, "B C h w"]:
    """Cosine of every patch with every text.

    Args:
      tokens: N the patches, or the class token and the patches.
      text: the same for all images, or each image's own; L2-normalised.
    """
    patches = unit_length(tokens[:, -grid[0] * grid[1] :])
    scores = patches @ text.astype(patches.dtype).swapaxes(-1, -2)
    return scores.swapaxes(1, 2).reshape(len(tokens), -1, *grid)


@functools.cache
def bilinear(small: int, large: int) -> np.ndarray:
    """The matrix float64[large, small] of linear interpolation with half-pixel centres; ends repeat."""
    place = np.clip((np.arange(large) + 0.5) * small / large - 0.5, 0, small - 1)
    low = np.minimum(np.floor(place).astype(int), max(small - 2, 0))
    matrix = np.zeros((large, small))
    matrix[np.arange(large), low] += 1 - (place - low)
    matrix[np.arange(large), np.minimum(low + 1, small - 1)] += place - low
    return matrix


def enlarge(maps, size: tuple[int, int]):
    """Maps float[..., h, w] -> float[..., H, W], bilinear; numpy in, numpy out, JAX in, JAX out."""
    rows, columns = (bilinear(n, m).astype(maps.dtype) for n, m in zip(maps.shape[-2:], size, strict=True))
    return rows @ maps @ columns.T


class Enlarged:
    """Maps at a picture's own size, made a prompt or a strip of rows at a time: all together may not fit in memory.

    As an array (`np.asarray`) it is float32[C, H, W]; `maps[k]` is one map float32[H, W].

    Attributes:
      small: float32[C, h, w]. size: (H, W).
    """

    STRIP = 2**28  # bytes of a strip

    def __init__(self, small: np.ndarray, size: tuple[int, int]):
        self.small, self.size = np.asarray(small), (int(size[0]), int(size[1]))

    @property
    def shape(self) -> tuple[int, int, int]:
        return len(self.small), *self.size

    def __len__(self) -> int:
        return len(self.small)

    def __getitem__(self, k: int) -> np.ndarray:
        return enlarge(self.small[k], self.size)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return enlarge(self.small, self.size).astype(dtype or self.small.dtype, copy=False)

    def only(self, kept: Sequence[int]) -> Enlarged:
        """The maps of some of the prompts."""
        return Enlarged(self.small[list(kept)], self.size)

    def at(self, size: tuple[int, int]) -> Enlarged:
        """The same maps at another size."""
        return Enlarged(self.small, size)

    def strips(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Rows of the picture, and all maps float32[C, rows, W] there; of a small picture all rows at once."""
        height, width = self.size
        rows, columns = (
            bilinear(n, m).astype(self.small.dtype) for n, m in zip(self.small.shape[1:], self.size, strict=True)
        )
        step = max(1, self.STRIP // (4 * max(1, len(self)) * width))
        for start in range(0, height, step):
            yield slice(start, start + step), rows[start : start + step] @ self.small @ columns.T


def constant(maps: Any) -> Any:
    """Which maps float[..., H, W] have no contrast beyond rounding: bool[...]."""
    low, high = maps.min((-2, -1)), maps.max((-2, -1))
    xp = jnp if isinstance(maps, jax.Array) else np
    return high - low <= 8 * xp.finfo(maps.dtype).eps * xp.maximum(abs(high), abs(low))


def minmax(maps: Any) -> Any:
    """Each map float[..., H, W] to [0, 1] over its pixels; a constant map becomes zero."""
    xp = jnp if isinstance(maps, jax.Array) else np
    low, high = maps.min((-2, -1), keepdims=True), maps.max((-2, -1), keepdims=True)
    flat = constant(maps)[..., None, None]
    return xp.where(flat, 0, (maps - low) / xp.where(flat, 1, high - low))


def box(heat: np.ndarray, threshold: float = 0.5) -> np.ndarray:
    """The box around the largest connected component of a map over a threshold.

    Args:
      heat: float[H, W] in [0, 1].

    Returns:
      float32[4], x1, y1, x2, y2 in pixels; the whole image where nothing is over the threshold.
    """
    labelled: Any = ndimage.label(heat > threshold)
    parts, count = labelled
    if not count:
        return np.array([0, 0, heat.shape[1], heat.shape[0]], np.float32)
    largest = 1 + np.bincount(parts.ravel())[1:].argmax()
    rows, columns = ndimage.find_objects(parts)[largest - 1]
    return np.array([columns.start, rows.start, columns.stop, rows.stop], np.float32)
