"""The paste recipe: how large the cut-outs are, where they go, and the picture they make (PIN's released code)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from input_pipeline.errors import UserError

# Longer side, in cells, less one: {5..15}, {3..15}, {2..15} for 1, 2, 3 objects: round(16 * (0.3, 0.2, 0.1)) up.
PUBLISHED_SMALLEST = (5, 3, 2)
MAX_OVERLAP = 0.5
TRIES = 10


def footprint(aspect: float, s: int) -> tuple[int, int]:
    """Cells (width, height) of a cut-out of width/height `aspect` when its longer side has s + 1 cells."""
    if aspect >= 1:
        return s + 1, max(1, round(s / aspect)) + 1
    return max(1, round(s * aspect)) + 1, s + 1


def overlap(a: Sequence[int], b: Sequence[int]) -> float:
    """max(intersection / area of a, intersection / area of b) of two boxes in cells, both ends inclusive."""
    w = min(a[2], b[2]) - max(a[0], b[0]) + 1
    h = min(a[3], b[3]) - max(a[1], b[1]) + 1
    if w <= 0 or h <= 0:
        return 0.0
    smaller = min((a[2] - a[0] + 1) * (a[3] - a[1] + 1), (b[2] - b[0] + 1) * (b[3] - b[1] + 1))
    return w * h / smaller


def _place(rng: np.random.Generator, aspect: float, s: int, grid: int) -> tuple[int, int, int, int]:
    w, h = footprint(aspect, s)
    c, r = int(rng.integers(0, grid - w + 1)), int(rng.integers(0, grid - h + 1))
    return c, r, c + w - 1, r + h - 1


def check_sizes(objects: Sequence[int], smallest: Sequence[int], largest: int | None = None, grid: int = 16) -> None:
    """Whether scenes of such sizes can be laid out.

    Args:
      objects: smallest and largest number of objects. smallest, largest, grid: as in `layout`.

    Raises:
      UserError: names the one that cannot be.
    """

    def whole(value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool)

    pair = tuple(objects)
    if len(pair) != 2 or not all(map(whole, pair)) or not 1 <= pair[0] <= pair[1]:
        raise UserError(f"objects {pair}: expected two whole numbers from 1, the second not below the first")
    if grid < 2:
        raise UserError(f"grid {grid}: expected 2 cells or more along a side")
    high = grid - 1 if largest is None else largest
    if not whole(high) or not 1 <= high < grid:
        raise UserError(f"largest {largest}: expected a whole number from 1 to {grid - 1}, the grid has {grid} cells")
    if not len(smallest) or not all(whole(s) and 1 <= s <= high for s in smallest):
        raise UserError(f"smallest {tuple(smallest)}: expected one or more whole numbers from 1 to {high}")


def layout(
    rng: np.random.Generator,
    aspects: Sequence[float],
    grid: int = 16,
    smallest: Sequence[int] = PUBLISHED_SMALLEST,
    largest: int | None = None,
) -> np.ndarray:
    """Draws the boxes of one scene.

    For each cut-out in turn a size and a place are proposed up to 10 times; the first whose overlaps with the earlier
    boxes sum to at most 0.5 is taken. After 10 failures the smallest size goes anywhere, unchecked.

    Args:
      aspects: width / height of each cut-out.
      grid: cells along a side of the image.
      smallest: smallest s by number of objects (the last entry serves any larger number).
      largest: largest s; grid - 1 by default, as published.

    Returns:
      int[n, 4]: c1, r1, c2, r2 in cells, both ends inclusive, wholly inside the grid.
    """
    low = smallest[min(len(aspects), len(smallest)) - 1]
    high = grid - 1 if largest is None else largest
    boxes: list[tuple[int, int, int, int]] = []
    for aspect in aspects:
        for _ in range(TRIES):
            box = _place(rng, aspect, int(rng.integers(low, high + 1)), grid)
            if sum(overlap(box, other) for other in boxes) <= MAX_OVERLAP:
                break
        else:
            box = _place(rng, aspect, low, grid)
        boxes.append(box)
    return np.array(boxes, np.int64).reshape(-1, 4)


def compose(background: Image.Image, cutouts: Sequence[Image.Image], boxes: np.ndarray, cell: int) -> np.ndarray:
    """Plain alpha paste, later objects on top; no blending, no augmentation.

    Args:
      background: RGB image, already of the final size.
      cutouts: RGBA images of any size; each is resized to exactly its box.
      boxes: int[n, 4] in cells.
      cell: pixels per cell.

    Returns:
      uint8[H, W, 3].
    """
    canvas = background.copy()
    for cutout, (c1, r1, c2, r2) in zip(cutouts, boxes, strict=True):
        size = (int(c2 - c1 + 1) * cell, int(r2 - r1 + 1) * cell)
        sprite = cutout if cutout.size == size else cutout.resize(size, Image.Resampling.BILINEAR)
        canvas.paste(sprite, (int(c1) * cell, int(r1) * cell), sprite)
    return np.asarray(canvas, np.uint8)


def masks(cutouts: Sequence[Image.Image], boxes: np.ndarray, grid: int, cell: int) -> np.ndarray:
    """bool[n, H, W]: what can be seen of each pasted cut-out, those on top taken away."""
    out = np.zeros((len(cutouts), grid * cell, grid * cell), bool)
    for i, (cutout, (c1, r1, c2, r2)) in enumerate(zip(cutouts, boxes, strict=True)):
        size = (int(c2 - c1 + 1) * cell, int(r2 - r1 + 1) * cell)
        alpha = np.asarray(cutout.resize(size, Image.Resampling.BILINEAR).getchannel("A")) >= 128
        window = (slice(int(r1) * cell, int(r2 + 1) * cell), slice(int(c1) * cell, int(c2 + 1) * cell))
        out[:i, window[0], window[1]] &= ~alpha
        out[i, window[0], window[1]] = alpha
    return out
