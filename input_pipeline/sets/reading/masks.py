"""COCO's mask forms, polygons and run lengths, as bool[H, W]."""

from __future__ import annotations

from typing import Any

import numpy as np

from input_pipeline.errors import UserError


def decode(shape: Any, width: int, height: int, where: str) -> np.ndarray:
    """A `segmentation` of COCO's JSON as bool[height, width].

    Args:
      shape: list of polygons [x, y, x, y, ...]; or run lengths {"size": [H, W], "counts": text or list}; or nothing.

    Raises:
      UserError: anything else, or run lengths of another size.
    """
    from pycocotools import mask as mask_lib

    mask: Any = mask_lib  # its types know fewer forms than it takes

    if shape is None or shape == []:
        return np.zeros((height, width), bool)
    try:
        if isinstance(shape, dict):
            if list(shape["size"]) != [height, width]:
                raise ValueError(f"size {shape['size']}, its image has {[height, width]}")
            runs = shape
            if isinstance(shape["counts"], list):
                if sum(shape["counts"]) != width * height or min(shape["counts"]) < 0:
                    raise ValueError("run lengths do not add up to the image")
                runs = mask.frPyObjects(shape, height, width)
            elif not isinstance(shape["counts"], str | bytes):
                raise TypeError("counts are neither text nor a list")
            found = mask.decode(runs)
        else:
            polygons = [[float(v) for v in polygon] for polygon in shape]
            if any(len(polygon) < 6 or len(polygon) % 2 for polygon in polygons):
                raise ValueError("a polygon has fewer than 3 points, or an odd number of coordinates")
            found = mask.decode(mask.merge(mask.frPyObjects(polygons, height, width)))
    except Exception as error:  # pycocotools raises what C gives it
        raise UserError(f"{where}: mask cannot be read ({error}); expected COCO's form", "bad mask") from error
    return found.astype(bool)
