"""The box codec: grid cells <-> pixels <-> the text that a language model writes (PIN paper, section 3; its code)."""

from __future__ import annotations

import dataclasses
import re

import numpy as np

_BOX = re.compile(r" \[(\d+),(\d+),(\d+),(\d+)\]")


@dataclasses.dataclass(frozen=True)
class BoxCodec:
    """Boxes on a square grid, written as text.

    A box in cells is `[c1, r1, c2, r2]`, both ends inclusive; its text is ` [x1,y1,x2,y2]` in pixels, with
    `x2 = cell * (c2 + 1)`. The published setting is 224 px and 16 cells, so values run 0, 14, ..., 224.

    Attributes:
      image_size: side of the square image, in pixels.
      grid: number of cells along a side; must divide image_size.
    """

    image_size: int = 224
    grid: int = 16

    def __post_init__(self):
        if self.grid < 1 or self.image_size % self.grid:
            raise ValueError(f"grid {self.grid} must divide image_size {self.image_size}; choose a divisor")

    @property
    def cell(self) -> int:
        """Side of one cell, in pixels."""
        return self.image_size // self.grid

    @property
    def values(self) -> list[int]:
        """Every coordinate that can stand in a box: grid + 1 multiples of the cell."""
        return [self.cell * i for i in range(self.grid + 1)]

    @property
    def fallback(self) -> np.ndarray:
        """float[4]: the first cell, which an unparsable answer counts as."""
        return np.array([0, 0, self.cell, self.cell], np.float32)

    def to_pixels(self, cells: np.ndarray) -> np.ndarray:
        """Cells int[..., 4] (inclusive) -> pixels float[..., 4] as x1, y1, x2, y2."""
        return (np.asarray(cells) + np.array([0, 0, 1, 1])).astype(np.float32) * self.cell

    def to_cells(self, box: np.ndarray) -> np.ndarray:
        """Pixels float[..., 4] -> the smallest cells int[..., 4] around them, at least one cell each way."""
        box = np.clip(np.asarray(box, np.float64), 0, self.image_size) / self.cell
        low = np.minimum(np.floor(box[..., :2]), self.grid - 1)
        high = np.maximum(np.ceil(box[..., 2:]) - 1, low)
        return np.concatenate([low, high], -1).astype(np.int64)

    def encode(self, cells: np.ndarray) -> str:
        """Cells int[4] -> ` [x1,y1,x2,y2]`, with the leading space and no other."""
        c1, r1, c2, r2 = (int(v) for v in cells)
        n = self.cell
        return f" [{n * c1},{n * r1},{n * (c2 + 1)},{n * (r2 + 1)}]"

    def decode(self, text: str) -> tuple[np.ndarray, bool]:
        """Finds the first box in `text`.

        Returns:
          float[4] pixels (x1, y1, x2, y2) and whether the text parsed. Values off the grid, or a box that is empty
          or inverted, do not parse: the box is then the first cell.
        """
        found = _BOX.search(text)
        if found:
            x1, y1, x2, y2 = (int(v) for v in found.groups())
            on_grid = all(v % self.cell == 0 and v <= self.image_size for v in (x1, y1, x2, y2))
            if on_grid and x1 < x2 and y1 < y2:
                return np.array([x1, y1, x2, y2], np.float32), True
        return self.fallback, False


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes float[..., 4] (x1, y1, x2, y2), broadcast against each other."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    size = np.clip(np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]), 0, None)
    inter = size[..., 0] * size[..., 1]
    union = area(a) + area(b) - inter
    return inter / np.maximum(union, 1e-9)


def area(box: np.ndarray) -> np.ndarray:
    """Area of boxes float[..., 4], in square pixels; zero for an inverted box."""
    size = np.clip(box[..., 2:] - box[..., :2], 0, None)
    return size[..., 0] * size[..., 1]


def all_boxes(codec: BoxCodec) -> np.ndarray:
    """Every box on the grid, float[(g (g + 1) / 2)^2, 4] in pixels."""
    low, high = np.triu_indices(codec.grid)
    spans = np.stack([low, high + 1], 1) * codec.cell
    x, y = np.meshgrid(np.arange(len(spans)), np.arange(len(spans)), indexing="ij")
    return np.concatenate(
        [spans[x.ravel()][:, [0]], spans[y.ravel()][:, [0]], spans[x.ravel()][:, [1]], spans[y.ravel()][:, [1]]], 1
    ).astype(np.float32)
