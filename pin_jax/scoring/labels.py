"""Names beside boxes: colours that the colour-blind tell apart, and places where no name hides another."""

from __future__ import annotations

import numpy as np

# Okabe and Ito's palette; and what is legible on each.
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
INKS = ("white", "white", "white", "black", "black", "black")


def place_labels(anchors: np.ndarray, sizes: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
    """Places rectangles near their anchors, inside a picture and beside each other as far as there is room.

    Args:
      anchors: float[n, 2], where the upper left corners would be. sizes: float[n, 2], widths and heights.
      bounds: width and height of the picture.

    Returns:
      float[n, 2], the upper left corners.
    """
    placed: list[np.ndarray] = []
    room = np.maximum(np.array(bounds, float) - sizes, 0)

    def free(corner: np.ndarray, size: np.ndarray) -> bool:
        apart = [((corner + size <= at) | (at + other <= corner)).any() for at, other in zip(placed, sizes)]  # noqa: B905
        return all(apart)

    for anchor, size, most in zip(anchors, sizes, room, strict=True):
        anchor = np.clip(anchor, 0, most)
        edges = [[anchor[axis], 0.0, most[axis]] for axis in (0, 1)]
        for at, other in zip(placed, sizes):  # noqa: B905 (those placed so far)
            for axis in (0, 1):
                edges[axis] += [at[axis] - size[axis], at[axis] + other[axis]]
        corners = np.array([(x, y) for x in edges[0] for y in edges[1]])
        corners = corners[((corners >= 0) & (corners <= most)).all(1)]
        corners = corners[np.argsort(np.abs(corners - anchor).sum(1), kind="stable")]
        placed.append(next((corner for corner in corners if free(corner, size)), anchor))
    return np.array(placed).reshape(-1, 2)
