"""Any picture that users hand in as uint8 RGB, by one function: any mode, depth and orientation, a bad one is one line.

Depth: 16 bits are scaled to 8. Floating point is taken where it runs from 0 to 1 (scaled) or from 0 to 255 (rounded),
and refused where it does not. Orientation: EXIF's, for files and PIL images alike, unless the size of what was
annotated says that the picture is meant as it is stored.
"""

from __future__ import annotations

import pathlib
import re
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from input_pipeline.errors import UserError
from input_pipeline.files import regular, shortened

MAX_PIXELS = 100_000_000
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
MISSING, BROKEN, LARGE, MISFIT = "missing image", "unreadable image", "too large image", "image of another size"

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/?/|data:")
Picture = Any  # a path, a PIL image, or an array uint8 or uint16 [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]


def open_image(
    picture: Picture, mode: str = "RGB", size: Sequence[int] | None = None, stored: bool = False
) -> Image.Image:
    """A picture upright (EXIF), as `mode`, 8 bits a channel.

    Args:
      size: (width, height) that annotations were made at. They decide the orientation: a picture that has this size
        only as it is stored is not turned.
      stored: nor is one that has this size either way (upside down, or square).

    Raises:
      UserError: a URL; the file is missing, no file, no picture or truncated; the picture has over 100 million pixels,
        another size, or values that are no picture's; or an array of another type or shape.
    """
    if isinstance(picture, Image.Image):
        return _converted(picture, "image", mode, size, stored)
    if isinstance(picture, str | pathlib.Path):
        what = f"image {shortened(picture)}"
        if _URL.match(str(picture)):
            raise UserError(f"{what}: a URL, and nothing is fetched; save it and give the file's path")
        try:
            with _opened(picture, "image", "give the path of a PNG or JPEG") as image:
                return _converted(image, what, mode, size, stored)
        except Exception as error:  # PIL raises many kinds for a broken file
            raise _clear(what, error) from error
    return _converted(_from_array(np.asarray(picture)), "image", mode, size, stored)


def listed(images: Any) -> list[Picture]:
    """One `Picture`, or several, as a list.

    Raises:
      UserError: there is none.
    """
    if isinstance(images, str | pathlib.Path | Image.Image) or getattr(images, "ndim", 4) < 4:
        return [images]
    several = list(images)
    if not several:
        raise UserError("images: none given; give paths, PIL images or uint8[H, W, 3] arrays")
    return several


def open_labels(path: str | pathlib.Path) -> np.ndarray:
    """Opens a label image: int32[H, W], the values as they are stored (indices of a palette, 8 or 16 bits of grey).

    Raises:
      UserError: as `open_image`; or a picture in colours, whose labels cannot be told.
    """
    what = f"labels {shortened(path)}"
    try:
        with _opened(path, "labels", "give a PNG of label numbers") as image:
            if image.mode not in ("P", "L", "1") and not image.mode.startswith("I"):
                raise UserError(
                    f"{what}: a picture of mode {image.mode}; expected a palette or grey PNG of label numbers",
                    "label image in colours",
                )
            return np.asarray(image).astype(np.int32)
    except Exception as error:
        raise _clear(what, error) from error


def _opened(path: str | pathlib.Path, what: str, give: str) -> Image.Image:
    """The file, its pixels not yet decoded."""
    path = regular(path, what, give, MISSING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is ours
        image = Image.open(path)
    try:
        _check_size(f"{what} {shortened(path)}", image.width, image.height)
    except UserError:
        image.close()
        raise
    return image


def _check_size(what: str, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise UserError(f"{what}: {width} x {height} pixels; at most {MAX_PIXELS:,} are read: shrink it", LARGE)
    if not width * height:
        raise UserError(f"{what}: {width} x {height} pixels; give a picture", BROKEN)


def _clear(what: str, error: Exception) -> UserError:
    """One line for whatever PIL raises."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, Image.DecompressionBombError):
        return UserError(f"{what}: too large ({error}); shrink it", LARGE)
    return UserError(f"{what}: cannot be read as a picture ({error}); give an intact PNG or JPEG", BROKEN)


def _from_array(array: np.ndarray) -> Image.Image:
    """An array as a PIL image of 8 bits."""
    channels = 1 if array.ndim == 2 else array.shape[-1] if array.ndim == 3 else 0
    if array.dtype not in (np.uint8, np.uint16) or channels not in (1, 3, 4) or not array.size:
        raise UserError(
            f"image array {array.dtype}{list(array.shape)}: expected uint8[H, W, 3] (or uint16, or grey, or RGBA);"
            " scale floating point to 0 to 255 and round it"
        )
    array = array[..., 0] if array.ndim == 3 and channels == 1 else array
    return Image.fromarray(_from_sixteen(array) if array.dtype == np.uint16 else array)


def _converted(image: Image.Image, what: str, mode: str, size: Sequence[int] | None, stored: bool) -> Image.Image:
    """A PIL image upright, of 8 bits, as `mode`."""
    try:
        _check_size(what, image.width, image.height)
        upright = ImageOps.exif_transpose(image)
        if size is not None and tuple(size) not in (upright.size, image.size):
            raise UserError(
                f"{what}: {image.width} x {image.height} pixels, annotated at {size[0]} x {size[1]};"
                " give the picture that the annotations belong to",
                MISFIT,
            )
        if size is not None and image.size == tuple(size) and (stored or upright.size != tuple(size)):
            upright = image
        return _eight_bits(upright, what).convert(mode)
    except Exception as error:  # pixels may be decoded only now
        raise _clear(what, error) from error


def _from_sixteen(values: np.ndarray) -> np.ndarray:
    """0 to 65,535 as uint8: PIL's own conversion would clip to white."""
    return ((values.astype(np.int64) + 128) // 257).astype(np.uint8)


def _eight_bits(image: Image.Image, what: str) -> Image.Image:
    """A picture of more bits (modes I;16, I, F) as one of 8."""
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    low, high = (float(values.min()), float(values.max())) if np.isfinite(values).all() else (np.nan, np.nan)
    if image.mode.startswith("F") and low >= 0 and high <= 1:
        return Image.fromarray((values * 255).round().astype(np.uint8))
    if image.mode in ("F", "I") and low >= 0 and high <= 255:
        return Image.fromarray(values.round().astype(np.uint8))
    if image.mode.startswith("I") and low >= 0 and high <= 65_535:
        return Image.fromarray(_from_sixteen(values))
    raise UserError(
        f"{what}: values from {low:g} to {high:g} (PIL's mode {image.mode}); expected 0 to 1 or 0 to 255, or 16 bits:"
        " scale it to 8 bits",
        BROKEN,
    )
