"""What an insert learned (`config.run=inspect`): psi(S) as a map over the image, and where the errors lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from input_pipeline.text.box_codec import area, iou
from pin_jax.scoring.queries import Query

SIDES = (0, 32, 64, 96, 128, 160, 192, 225)  # of a square of the object's area, in pixels of a 224 px image
THIRDS = 3  # the image is split into 3 x 3 places
CLEAR = 0.1  # by so much the IoU with one object must exceed that with another to count as meant


def components(psi: np.ndarray, count: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Principal components of psi(S) over the tokens.

    Args:
      psi: float[N, D]; tokens in front of a square of patches (the class token) are left out.

    Returns:
      Scores float[count, side, side], each with its largest value positive; and the share of the variance of each.
    """
    side = int(len(psi) ** 0.5)
    patches = np.asarray(psi, np.float64)[len(psi) - side**2 :]
    u, s, _ = np.linalg.svd(patches - patches.mean(0), full_matrices=False)
    scores = (u * s)[:, :count].T.reshape(-1, side, side)
    flat = scores.reshape(len(scores), -1)
    largest = np.take_along_axis(flat, np.abs(flat).argmax(1)[:, None], 1)
    return scores * np.sign(largest)[..., None], s[:count] ** 2 / max((s**2).sum(), 1e-12)


def _mean(values: np.ndarray) -> dict[str, Any]:
    return {"mIoU": float(values.mean()) if len(values) else None, "queries": len(values)}


def errors(queries: Sequence[Query], boxes: np.ndarray, size: int) -> dict[str, Any]:
    """Where answers are right and wrong.

    Args:
      queries: what was asked. boxes: float[n, 4], the answers, in pixels. size: side of the image.

    Returns:
      size: mIoU and number of queries by the side of a square of the object's area (at 224 px); objects: by their
      number in the image; position: by the place of the object's centre, rows of 3 x 3; confusion: of the queries with
      other objects, the shares whose answer lies on the asked object, on another one, on both alike, or on none (IoU of
      at most 0.1 with each).
    """
    true = np.stack([query.box for query in queries])
    scores = iou(boxes, true)
    side = np.sqrt(area(true)) * 224 / size
    centre = (true[:, :2] + true[:, 2:]) / 2
    place = np.minimum((centre * THIRDS / size).astype(int), THIRDS - 1)
    objects = np.array([1 + len(query.others) for query in queries])
    crowded = objects > 1
    other = np.array([iou(box, q.others).max() if len(q.others) else 0 for box, q in zip(boxes, queries, strict=True)])
    ahead, none = (scores - other)[crowded], np.maximum(scores, other)[crowded] <= CLEAR
    kinds = {"asked": ~none & (ahead > CLEAR), "other": ~none & (ahead < -CLEAR)}
    kinds |= {"both alike": ~none & (abs(ahead) <= CLEAR), "none": none}
    return {
        "size": {
            f"{low}-{high - (high == SIDES[-1])}": _mean(scores[(side >= low) & (side < high)])
            for low, high in zip(SIDES, SIDES[1:], strict=False)
        },
        "objects": {str(n): _mean(scores[objects == n]) for n in sorted(set(objects.tolist()))},
        "position": [
            [_mean(scores[(place == (column, row)).all(1)]) for column in range(THIRDS)] for row in range(THIRDS)
        ],
        "confusion": {name: float(rows.mean()) if len(rows) else None for name, rows in kinds.items()},
    }
