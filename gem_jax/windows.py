"""Pictures as the tower takes them, whole or in sliding windows, and their small maps put together again."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from gem_jax.regions import resized as resized_regions
from gem_jax.tower import Beside
from input_pipeline.errors import UserError
from input_pipeline.images import MAX_PIXELS


@dataclasses.dataclass(frozen=True)
class Windows:
    """Pictures cut up.

    Attributes:
      pixels: uint8[n, H, W, 3], the windows of all pictures one after the other.
      owners: the picture of each. places: where each begins in its picture's grid of patches, row and column.
      grids: each picture's patches (rows, columns). sizes: each picture's own (height, width) in pixels.
      whole: every picture is one window.
      photos: the pictures themselves. regions: each picture's, int32[H, W] of its own size; empty where none are asked
        for.
      shared: the windows of a picture share the last block's attention.
    """

    pixels: np.ndarray
    owners: np.ndarray
    places: list[tuple[int, int]]
    grids: list[tuple[int, int]]
    sizes: list[tuple[int, int]]
    whole: bool
    photos: Sequence[Image.Image] = ()
    regions: Sequence[np.ndarray] = ()
    shared: bool = False

    def groups(self, batch: int) -> list[np.ndarray]:
        """Which windows go through the tower together: the next `batch`, or all of a picture where they share."""
        if self.shared:
            return [np.flatnonzero(self.owners == owner) for owner in range(len(self.sizes))]
        return np.split(np.arange(len(self.pixels)), range(batch, len(self.pixels), batch))

    def beside(self, chosen: np.ndarray, patch: int, cell: int, scoped: bool) -> Beside:
        """What stands beside the pixels of some windows.

        Args:
          patch, cell: pixels along a side of a patch, and of a place of the maps. scoped: their regions too.
        """
        rows, columns = (side // cell for side in self.pixels.shape[1:3])
        found: dict[str, Any] = {}
        if scoped:
            at_cells = {k: np.unique(resized_regions(self.regions[k], self.grids[k]), return_inverse=True)[1]
                        .reshape(self.grids[k]) for k in set(self.owners[chosen].tolist())}  # fmt: skip
            own = []
            for k in chosen:
                y, x = self.places[k]
                own.append(at_cells[int(self.owners[k])][y : y + rows, x : x + columns].reshape(-1))
            most = max(int(of.max()) + 1 for of in at_cells.values())
            found |= {"regions": np.stack(own).astype(np.int32), "count": max(64, 1 << (most - 1).bit_length())}
        if self.shared:
            grid = self.grids[int(self.owners[chosen[0]])]
            patches = (grid[0] * cell // patch, grid[1] * cell // patch)
            corners = np.array([self.places[k] for k in chosen])
            form = (self.pixels.shape[1] // patch, self.pixels.shape[2] // patch)
            found |= {
                "places": _places(corners * cell // patch, form, patches), "grid": patches,
                "cells": _places(corners, (rows, columns), grid), "cell_grid": grid,
            }  # fmt: skip
        return Beside(**found)


def _places(corners: np.ndarray, form: tuple[int, int], grid: tuple[int, int]) -> np.ndarray:
    """int32[n, N]: each window's places in its picture's grid, row by row; corners int[n, 2] are row and column."""
    rows = corners[:, 0, None, None] + np.arange(form[0])[:, None]
    columns = corners[:, 1, None, None] + np.arange(form[1])
    return (rows * grid[1] + columns).reshape(len(corners), -1).astype(np.int32)


def resized(photo: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """uint8[H, W, 3] of a size, bicubic; the aspect is not kept."""
    return np.asarray(photo.resize((size[1], size[0]), Image.Resampling.BICUBIC))


def cut(
    photos: Sequence[Image.Image],
    size: tuple[int, int],
    patch: int,
    window: int = 0,
    stride: int = 0,
    shorter: int = 0,
    cell: int = 0,
    shared: bool = False,
) -> Windows:
    """Pictures squashed to `size`, or with a `window` cut into squares; see `GEM.large_maps`.

    Args:
      patch: what sides must be multiples of. cell: pixels along a side of a place of the maps, a divisor of it; the
        patch by default. shared: see `Windows`.

    Raises:
      UserError: windows that are no multiples of the patch, or of more than 100 million pixels together.
    """
    cell = cell or patch
    sizes = [(photo.height, photo.width) for photo in photos]
    if not window:
        pixels = np.stack([resized(photo, size) for photo in photos])
        grid = (size[0] // cell, size[1] // cell)
        places, grids = [(0, 0)] * len(photos), [grid] * len(photos)
        return Windows(pixels, np.arange(len(photos)), places, grids, sizes, whole=True, photos=photos)
    stride, shorter = stride or max(patch, window // 2 // patch * patch), max(shorter, window)
    if window % patch or stride % patch or window < 0 or stride < 0:
        raise UserError(f"window {window}, stride {stride}: expected multiples of the model's patch, {patch}")
    crops, owners, places, grids = [], [], [], []
    for owner, photo in enumerate(photos):
        scale = shorter / min(photo.size)
        height, width = (max(window, round(n * scale / patch) * patch) for n in (photo.height, photo.width))
        if height * width > MAX_PIXELS:
            raise UserError(
                f"shorter {shorter}: the picture would have {width} x {height} pixels; choose a smaller one"
            )
        whole = resized(photo, (height, width))
        grids.append((height // cell, width // cell))
        for y in starts(height, window, stride):
            for x in starts(width, window, stride):
                crops.append(whole[y : y + window, x : x + window])
                owners.append(owner)
                places.append((y // cell, x // cell))
    return Windows(np.stack(crops), np.array(owners), places, grids, sizes, whole=False, photos=photos, shared=shared)


def starts(length: int, window: int, stride: int) -> list[int]:
    """Where windows start so that they cover a side; the last one ends with it."""
    return sorted({*range(0, length - window, stride), length - window})


def joined(windows: Windows, maps: np.ndarray) -> list[np.ndarray]:
    """Maps float32[n, C, h, w] of the windows -> each picture's float32[C, rows, columns]; overlaps are averaged."""
    totals = [np.zeros((maps.shape[1], *grid), np.float32) for grid in windows.grids]
    counts = [np.zeros(grid, np.float32) for grid in windows.grids]
    for owner, (y, x), own in zip(windows.owners, windows.places, maps, strict=True):
        at = np.s_[y : y + own.shape[1], x : x + own.shape[2]]
        totals[owner][(slice(None), *at)] += own
        counts[owner][at] += 1
    return [total / count for total, count in zip(totals, counts, strict=True)]
