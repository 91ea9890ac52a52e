"""Figures: heat maps over a photograph, a segmentation with its legend, and methods side by side.

Every function returns a `Sheet`: it shows itself in a notebook cell, and `sheet.save(path)` writes a PNG.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from pin_jax.runtime import files
from pin_jax.scoring import labels
from pin_jax.scoring.pictures import png

# Those that the colour-blind tell apart first; more classes than that need more colours.
COLOURS = (*map(to_rgb, labels.COLOURS), *(tuple(colormaps["tab20"](i)[:3]) for i in range(20)))
HEAT = "viridis"  # as even to the colour-blind as to others


class Sheet(Figure):
    """A figure that needs no display: shown by a notebook, saved by `save`."""

    def __init__(self, rows: int, columns: int, cell: tuple[float, float] = (2.6, 2.8)):
        super().__init__(figsize=(cell[0] * columns, cell[1] * rows), layout="tight")
        FigureCanvasAgg(self)
        self.grid = self.subplots(rows, columns, squeeze=False)
        for axes in self.grid.flat:
            axes.axis("off")

    def _repr_png_(self) -> bytes:
        return png(self)

    def save(self, path: os.PathLike[str]) -> None:
        """Writes a PNG of at most 500 KB.

        Raises:
          UserError: it cannot be written.
        """
        files.write_bytes(path, self._repr_png_())


def _overlay(axes, image: np.ndarray, heat: np.ndarray) -> None:
    """A map in colours over the photograph in grey: what has a colour is the map."""
    axes.imshow(image.mean(-1), cmap="gray", vmin=0, vmax=255)
    axes.imshow(heat, cmap=HEAT, alpha=0.6, vmin=0, vmax=1, extent=(0, image.shape[1], image.shape[0], 0))


def heat_maps(image: np.ndarray, prompts: Sequence[str], heat: np.ndarray, boxes: np.ndarray | None = None) -> Sheet:
    """A photograph uint8[H, W, 3], and one panel a prompt with its map of heat float[C, h, w] in [0, 1] over it.

    Args:
      boxes: float[C, 4], x1, y1, x2, y2 in pixels of the photograph, drawn where given.
    """
    columns = min(4, len(prompts) + 1)
    sheet = Sheet(-(-(len(prompts) + 1) // columns), columns)
    panels = sheet.grid.flat
    next(panels).imshow(image)
    for i, (axes, prompt, one) in enumerate(zip(panels, prompts, heat, strict=False)):
        _overlay(axes, image, one)
        axes.set_title(prompt, fontsize=9)
        if boxes is not None:
            x1, y1, x2, y2 = boxes[i]
            axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor="white", linewidth=2))
    return sheet


def segmentation(image: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> Sheet:
    """A photograph uint8[H, W, 3] under its labels int[H, W], indices of `classes`; anything else is background."""
    colours = np.array([COLOURS[i % len(COLOURS)] for i in range(len(classes))])
    known = (labels >= 0) & (labels < len(classes))
    paint = np.zeros((*labels.shape, 4))
    paint[known] = np.concatenate([colours, np.full((len(classes), 1), 0.6)], 1)[labels[known]]
    sheet = Sheet(1, 2, (3.4, 3.2))
    sheet.grid[0, 0].imshow(image)
    sheet.grid[0, 1].imshow(image)
    sheet.grid[0, 1].imshow(paint)
    shown = [i for i in range(len(classes)) if (labels == i).any()]
    handles = [Patch(color=tuple(colours[i]), label=classes[i]) for i in shown]
    if handles:
        sheet.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8)
    return sheet


def side_by_side(
    images: Sequence[np.ndarray], titles: Sequence[str], heat: Mapping[str, Sequence[np.ndarray]]
) -> Sheet:
    """A row a picture uint8[H, W, 3] (what is asked for as its title), a column a method's map float[h, w] of it."""
    sheet = Sheet(len(images), 1 + len(heat), (1.7, 1.85))
    for row, (image, title) in enumerate(zip(images, titles, strict=True)):
        sheet.grid[row, 0].imshow(image)
        sheet.grid[row, 0].set_title(title, fontsize=7)
        for column, (method, maps) in enumerate(heat.items(), 1):
            _overlay(sheet.grid[row, column], image, maps[row])
            if not row:
                sheet.grid[row, column].set_title(method, fontsize=8)
    return sheet
