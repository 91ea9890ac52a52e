"""Opening pictures and label images that users hand in: any mode, any orientation; a bad file is one clear line."""

from __future__ import annotations

import pathlib
import warnings
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps

from input_pipeline.errors import UserError

MAX_PIXELS = 100_000_000
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
MISSING, BROKEN, LARGE, MISFIT = "missing image", "unreadable image", "too large image", "image of another size"


def _opened(path: pathlib.Path) -> Image.Image:
    """The file, its pixels not yet decoded."""
    if not path.is_file():
        raise UserError(f"image {path}: no such file; give the path of a PNG or JPEG", MISSING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is ours
        image = Image.open(path)
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise UserError(
            f"image {path}: {image.width} x {image.height} pixels; at most {MAX_PIXELS:,} are read: shrink it", LARGE
        )
    return image


def _clear(path: pathlib.Path, error: Exception) -> UserError:
    """One line for whatever PIL raises."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, Image.DecompressionBombError):
        return UserError(f"image {path}: too large ({error}); shrink it", LARGE)
    return UserError(f"image {path}: cannot be read as a picture ({error}); give an intact PNG or JPEG", BROKEN)


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey as 8 bits: PIL's convert would clip it to white."""
    if not image.mode.startswith("I"):
        return image
    grey = np.asarray(image).clip(0, 65535).astype(np.int64)
    return Image.fromarray(((grey + 128) // 257).astype(np.uint8))


def open_image(path: str | pathlib.Path, mode: str = "RGB", size: Sequence[int] | None = None) -> Image.Image:
    """Opens a picture upright (EXIF), as `mode`.

    Args:
      size: (width, height) that annotations were made at. They decide the orientation: a picture that has this size
        only as it is stored is not turned.

    Raises:
      UserError: the file is missing, is not a picture, is truncated, has over 100 million pixels, or another size.
    """
    path = pathlib.Path(path)
    try:
        with _opened(path) as image:
            upright = ImageOps.exif_transpose(image)
            if size is not None and upright.size != tuple(size):
                if image.size != tuple(size):
                    raise UserError(
                        f"image {path}: {image.width} x {image.height} pixels, annotated at {size[0]} x {size[1]};"
                        " give the picture that the annotations belong to",
                        MISFIT,
                    )
                upright = image
            return _eight_bits(upright).convert(mode)
    except Exception as error:  # PIL raises many kinds for a broken file
        raise _clear(path, error) from error


def open_labels(path: str | pathlib.Path) -> np.ndarray:
    """Opens a label image: int32[H, W], the values as they are stored (indices of a palette, 8 or 16 bits of grey).

    Raises:
      UserError: as `open_image`; or a picture in colours, whose labels cannot be told.
    """
    path = pathlib.Path(path)
    try:
        with _opened(path) as image:
            if image.mode not in ("P", "L", "1") and not image.mode.startswith("I"):
                raise UserError(
                    f"labels {path}: a picture of mode {image.mode}; expected a palette or grey PNG of label numbers",
                    "label image in colours",
                )
            return np.asarray(image).astype(np.int32)
    except Exception as error:
        raise _clear(path, error) from error
