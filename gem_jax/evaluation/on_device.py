"""What evaluators read from maps, computed where the maps lie: pixels by class, and points; only counts come back.

Pictures have many sizes and a program has one: sizes are rounded up to a multiple of `STEP` pixels, and what is added
is not counted.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gem_jax import heatmaps
from pin_jax.runtime import sharding

STEP = 64  # pixels
STRIP = 2**23  # bytes of the enlarged maps that are there at a time: what a core's cache holds, nearly
UNKNOWN = -9  # a place beyond the picture; IGNORE is inside of it


def rounded(size: tuple[int, int]) -> tuple[int, int]:
    """A size in pixels that is computed for this one."""
    return -(-size[0] // STEP) * STEP, -(-size[1] // STEP) * STEP


@functools.lru_cache(64)
def interpolation(small: int, large: int) -> np.ndarray:
    """The matrix float32[large rounded up, small] of bilinear enlargement; rows beyond `large` are zero."""
    matrix = heatmaps.bilinear(small, large).astype(np.float32)
    return np.pad(matrix, [(0, -large % STEP), (0, 0)])


def with_room(maps: jax.Array | np.ndarray, size: tuple[int, int]) -> tuple[Any, np.ndarray, np.ndarray]:
    """Maps float[P, h, w] and the matrices that enlarge them to a size, for few programs.

    Refined maps are as large as their picture, and pictures have many sizes: such maps are filled up with zeros to a
    multiple of `STEP`, which no row of a matrix reads.
    """
    rows, columns = (interpolation(n, m) for n, m in zip(maps.shape[1:], size, strict=True))
    if min(maps.shape[1:]) >= STEP:
        room = [-n % STEP for n in maps.shape[1:]]
        maps = jnp.pad(jnp.asarray(maps), [(0, 0), (0, room[0]), (0, room[1])])
        rows, columns = np.pad(rows, [(0, 0), (0, room[0])]), np.pad(columns, [(0, 0), (0, room[1])])
    return maps, rows, columns


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision="highest")


@functools.partial(jax.jit, static_argnames=("classes", "thresholds", "scale", "smallest"), donate_argnums=0)
def count_pixels(
    counts: tuple[Int[Array, " without"], Int[Array, " swept"]],
    maps: Float[Array, "P h w"],
    rows: Float[Array, "H h"],
    columns: Float[Array, "W w"],
    true: Int[Array, "H W"],
    phrases: Int[Array, "G most"] | None,
    *,
    classes: int,
    thresholds: tuple[float, ...],
    scale: float,
    smallest: float = 0.0,
) -> tuple[Array, Array]:
    """Adds a picture's pixels to the counts, a strip of rows at a time.

    Args:
      counts: int32[n * n] of true and best class, and int32[(n + 1) * (n + 1) * (thresholds + 1)] of true class, best
        class or background, and how many of the thresholds the best phrase's probability reaches; n `classes`, index n
        the background.
      maps: cosines, of which the first P have a phrase each. rows, columns: see `interpolation`.
      true: 0 to n; others are not counted.
      phrases: those of each class, and of the background where it has some, each repeated until all are as many; None:
        one phrase a class.
      thresholds: increasing. scale: of the cosines in the softmax. smallest: see `Segmentation`.
    """
    height, width = true.shape
    step = 1
    while step < STEP and 2 * step * len(maps) * width * 4 <= STRIP:
        step *= 2
    bounds = jnp.asarray(thresholds, jnp.float32)

    def seen(rows: Array) -> tuple[Array, Array]:
        """The phrases' cosines [P, step, W], and the classes' and the background's."""
        large = _product(_product(rows, maps), columns.T)
        return large, large if phrases is None else large[phrases].max(1)

    def areas(total: Array, own: tuple[Array, Array]) -> tuple[Array, None]:
        rows, true = own
        best = jnp.where(true == UNKNOWN, len(total), seen(rows)[1].argmax(0))  # beyond the picture is nothing
        return total.at[best.reshape(-1)].add(1, mode="drop"), None

    def strip(counts: tuple[Array, Array], own: tuple[Array, Array]) -> tuple[tuple[Array, Array], None]:
        rows, true = own
        large, grouped = seen(rows)
        best = grouped[:classes].argmax(0)
        top = large.max(0)
        own_classes = grouped if kept is None else jnp.where(kept[:, None, None], grouped, -jnp.inf)
        highest, anything = own_classes.max(0), own_classes.argmax(0)
        anything = jnp.where(jnp.isneginf(highest), classes, anything)
        probability = jnp.exp(scale * (highest - top)) / jnp.exp(scale * (large - top)).sum(0)
        reached = (probability[..., None] >= bounds).sum(-1)
        without, swept = counts
        known = (true >= 0) & (true <= classes)
        at = jnp.where(known & (true < classes), true * classes + best, len(without))
        without = without.at[at.reshape(-1)].add(1, mode="drop")
        at = (true * (classes + 1) + anything) * (len(thresholds) + 1) + reached
        swept = swept.at[jnp.where(known, at, len(swept)).reshape(-1)].add(1, mode="drop")
        return (without, swept), None

    strips = rows.reshape(height // step, step, -1), true.reshape(height // step, step, width)
    kept = None
    if smallest:
        found = len(maps) if phrases is None else len(phrases)
        total = jax.lax.scan(areas, jnp.zeros(found, jnp.int32), strips)[0]
        kept = (total > smallest * total[:classes].sum()) | (jnp.arange(found) >= classes)
    return jax.lax.scan(strip, counts, strips)[0]


@jax.jit
def heat_at(
    maps: Float[Array, "P h w"],
    rows: Float[Array, "H h"],
    columns: Float[Array, "W w"],
    size: Int[Array, " 2"],
    places: Int[Array, "K 2"],
) -> Float[Array, "P K"]:
    """The min-max maps of a picture of a size, at places y, x in its pixels; one map is enlarged at a time."""
    inside = (jnp.arange(len(rows)) < size[0])[:, None] & (jnp.arange(len(columns)) < size[1])

    def one(small: Array) -> Array:
        large = _product(_product(rows, small), columns.T)
        low = jnp.where(inside, large, jnp.inf).min()
        high = jnp.where(inside, large, -jnp.inf).max()
        flat = high - low <= 8 * jnp.finfo(large.dtype).eps * jnp.maximum(abs(high), abs(low))
        return jnp.where(flat, 0, (large[places[:, 0], places[:, 1]] - low) / jnp.where(flat, 1, high - low))

    return jax.lax.map(one, maps)


class PixelCounts:
    """Counts of a whole set, kept on the device.

    Attributes:
      classes: n, the background not counted. thresholds: increasing. scale: of the cosines in the softmax.
    """

    ROOM = 2**30  # pixels that int32 counts surely hold

    def __init__(self, classes: int, thresholds: Sequence[float], scale: float, starts: np.ndarray, asked: int,
                 smallest: float = 0.0):  # fmt: skip
        """`starts`: where each class's phrases begin among the `asked` ones, and the background's."""
        self.classes, self.thresholds, self.scale = classes, tuple(sorted(thresholds)), scale
        self.smallest = smallest
        ends = [*starts[1:], asked]
        most = max(end - start for start, end in zip(starts, ends, strict=True))
        table = [[min(start + k, end - 1) for k in range(most)] for start, end in zip(starts, ends, strict=True)]
        self._phrases = None if len(starts) == asked else np.array(table, np.int32)
        levels = len(self.thresholds) + 1
        self._shapes = (classes, classes), (classes + 1, classes + 1, levels)
        self._total = tuple(np.zeros(shape, np.int64) for shape in self._shapes)
        self._counts: tuple[jax.Array, jax.Array] | None = None
        self._pixels = 0

    def add(self, maps: jax.Array | np.ndarray, true: np.ndarray) -> None:
        """Counts a picture: small maps float32[P, h, w] and the truth int[H, W] of its own size."""
        if self._counts is None:
            self._counts = tuple(jnp.zeros(int(np.prod(shape)), jnp.int32) for shape in self._shapes)  # pyright: ignore
        assert self._counts is not None
        padded = np.full(rounded(true.shape), UNKNOWN, np.int32)  # pyright: ignore[reportArgumentType]
        padded[: true.shape[0], : true.shape[1]] = true
        self._counts = count_pixels(
            self._counts, *with_room(maps, true.shape), padded, self._phrases, classes=self.classes,
            thresholds=self.thresholds, scale=self.scale, smallest=self.smallest,
        )  # fmt: skip
        self._pixels += true.size
        if self._pixels > self.ROOM:
            self._flush()

    def _flush(self) -> None:
        if self._counts is not None:
            for total, counts in zip(self._total, self._counts, strict=True):
                total += np.asarray(counts).reshape(total.shape)
        self._counts, self._pixels = None, 0

    def read(self) -> tuple[np.ndarray, np.ndarray]:
        """`without` and `swept`, of what was added until now; of all processes, which all must call it."""
        self._flush()
        without, levels = (summed(total) for total in self._total)
        background = self.classes
        swept = np.zeros((len(self.thresholds), background + 1, background + 1), np.int64)
        for k in range(len(self.thresholds)):
            swept[k] = levels[..., k + 1 :].sum(-1)
            swept[k, :, background] += levels[..., : k + 1].sum((-1, -2))
        return without, swept


def summed(counts: np.ndarray) -> np.ndarray:
    """int64 counts of all processes together; every process must call it."""
    return np.sum(sharding.gather_parts([counts], jax.process_index()), 0)
