"""Regions of a picture, whatever made them: superpixels, a folder of masks, or a function of one's own."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from PIL import Image

from input_pipeline.errors import UserError
from input_pipeline.files import shortened
from input_pipeline.images import open_labels
from pin_jax.models.layers import unit_length

SLIC = "slic"
PIECES, SIDE = 100, 448  # superpixels of a picture, and the longer side in pixels that it is shrunk to for them
# (the picture's path or whatever it was given as, the picture) -> int[H, W], a number for each region
Source = Callable[[Any, Image.Image], np.ndarray]


def superpixels(key: Any, photo: Image.Image) -> np.ndarray:
    """int32[H, W]: about `PIECES` superpixels, by colour and place (Achanta et al., SLIC, 2012)."""
    from skimage.segmentation import slic

    del key
    shrink = min(1, SIDE / max(photo.size))
    small = photo.resize([max(1, round(side * shrink)) for side in photo.size], Image.Resampling.BOX)
    found = slic(np.asarray(small), n_segments=PIECES, compactness=10, start_label=0)
    return resized(found, (photo.height, photo.width))


class Folder:
    """A folder of masks: NAME.png, whose values number the regions, or NAME.npz with one array, for picture NAME."""

    def __init__(self, folder: str | pathlib.Path):
        """Raises UserError where there is no such folder."""
        self.folder = pathlib.Path(folder)
        if not self.folder.is_dir():
            raise UserError(f"regions {shortened(folder)}: no such folder; expected slic, or a folder of NAME.png or"
                            " NAME.npz, one for each picture")  # fmt: skip

    def __call__(self, key: Any, photo: Image.Image) -> np.ndarray:
        """int[H, W], of any size; masks bool[n, H, W] are numbered, later ones on top."""
        if not isinstance(key, str | pathlib.Path):
            raise UserError("regions from a folder: the picture has no name to look for; give pictures as paths")
        stem = pathlib.Path(key).stem
        path = self.folder / f"{stem}.png"
        if path.is_file():
            return open_labels(path)
        path = self.folder / f"{stem}.npz"
        if not path.is_file():
            raise UserError(f"regions of {stem}: neither {stem}.png nor {stem}.npz is in {self.folder}")
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = [file[name] for name in file.files]
        except Exception as error:  # numpy and zipfile raise many kinds for a broken file
            raise UserError(f"regions {path}: cannot be read ({error}); write it again with np.savez") from error
        if len(arrays) != 1:
            raise UserError(f"regions {path}: {len(arrays)} arrays; expected one, int[H, W] or bool[n, H, W]")
        return arrays[0]


def source(given: str | pathlib.Path | Source) -> Source:
    """`slic`, a folder, or a function as it is."""
    if callable(given):
        return given
    return superpixels if str(given) == SLIC else Folder(given)


def read(source: Source, key: Any, photo: Image.Image) -> np.ndarray:
    """A source's answer as int32[H, W] of the picture's own size, the regions numbered from 0.

    Raises:
      UserError: it is no such array.
    """
    found = np.asarray(source(key, photo))
    if found.ndim == 3 and found.dtype == bool:  # masks, one each; what none covers is a region too
        found = np.where(found, np.arange(1, len(found) + 1)[:, None, None], 0).max(0)
    if found.ndim != 2 or not np.issubdtype(found.dtype, np.integer) or not found.size:
        raise UserError(
            f"regions: {found.dtype}{list(found.shape)} for a picture of {photo.height} x {photo.width} pixels;"
            " expected int[H, W], a number for each region, or bool[n, H, W]"
        )
    found = resized(found, (photo.height, photo.width))
    return np.unique(found, return_inverse=True)[1].reshape(found.shape).astype(np.int32)


def resized(regions: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Regions int[H, W] at another size, the nearest pixel's, by centres."""
    rows, columns = (
        np.minimum(((np.arange(new) + 0.5) * old / new).astype(int), old - 1)
        for old, new in zip(regions.shape, size, strict=True)
    )
    return regions[rows[:, None], columns]


def merged(regions: Int[Array, "B M"], features: Float[Array, "B M D"], count: int, least: float) -> Int[Array, "B M"]:
    """Regions whose mean features have a cosine of `least` or more become one, and so on through chains of them.

    Args:
      regions: 0 to count - 1, of places with these features.
    """

    def one(own: Int[Array, " M"], f: Float[Array, "M D"]) -> Int[Array, " M"]:
        member = jax.nn.one_hot(own, count, dtype=f.dtype)
        total = jnp.einsum("mr,md->rd", member, f, precision="highest")
        mean = unit_length(total)
        there = member.sum(0) > 0
        alike = jnp.einsum("rd,sd->rs", mean, mean, precision="highest") >= least
        joined: Bool[Array, "R R"] = (alike & there & there[:, None]) | jnp.eye(count, dtype=bool)
        for _ in range(max(1, (count - 1).bit_length())):  # reachable in twice as many steps each time
            reach = joined.astype(jnp.float32)
            joined = reach @ reach > 0
        return jnp.argmax(joined, -1)[own]  # the first region of each chain stands for all

    return jax.vmap(one)(regions, unit_length(features))


def means(maps: np.ndarray, regions: np.ndarray, matrices: Sequence[np.ndarray]) -> np.ndarray:
    """Mean of each enlarged map over each region: float32[P, R], without enlarging any.

    The enlargement is linear, so a region's mean is a weighted sum of the small map's places.

    Args:
      maps: float[P, h, w]. regions: int[H, W], 0 to R - 1. matrices: of rows [H, h] and columns [W, w].
    """
    count, (height, width) = int(regions.max()) + 1, maps.shape[1:]
    weights = np.zeros((count, height * width))
    rows, columns = (_two_largest(matrix) for matrix in matrices)
    for row, by_row in rows:
        for column, by_column in columns:  # each pixel leans on two rows and two columns
            place = regions * (height * width) + row[:, None] * width + column
            weights += np.bincount(
                place.ravel(), (by_row[:, None] * by_column).ravel(), weights.size
            ).reshape(weights.shape)  # fmt: skip
    weights /= weights.sum(1, keepdims=True)
    return (maps.reshape(len(maps), -1) @ weights.T).astype(np.float32)


def _two_largest(matrix: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """The (at most) two entries that a row of an interpolation has: their places and values."""
    order = np.argsort(-matrix, axis=1, kind="stable")[:, :2]
    values = np.take_along_axis(matrix, order, 1)
    return [(order[:, k], values[:, k]) for k in range(order.shape[1])]
