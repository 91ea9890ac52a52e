"""Opening pictures that users hand in: any mode, any orientation; a bad file is one clear line."""

from __future__ import annotations

import pathlib

import numpy as np
from PIL import Image, ImageOps

from input_pipeline.errors import UserError

MAX_PIXELS = 100_000_000


def open_image(path: str | pathlib.Path, mode: str = "RGB") -> Image.Image:
    """Opens a picture upright (EXIF), as `mode`.

    Raises:
      UserError: the file is missing, is not a picture, is truncated, or has over 100 million pixels.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise UserError(f"image {path}: no such file; give the path of a PNG or JPEG")
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(
                    f"image {path}: {image.width} x {image.height} pixels; at most {MAX_PIXELS:,} are read: shrink it"
                )
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):  # 16-bit grey: PIL's convert would clip it to white
                grey = np.asarray(image).clip(0, 65535).astype(np.int64)
                image = Image.fromarray(((grey + 128) // 257).astype(np.uint8))
            return image.convert(mode)
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(f"image {path}: too large ({error}); shrink it") from error
    except Exception as error:  # PIL raises many kinds for a broken file
        raise UserError(f"image {path}: cannot be read as a picture ({error}); give an intact PNG or JPEG") from error
