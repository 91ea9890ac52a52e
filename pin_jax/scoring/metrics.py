"""Scores of boxes: mIoU over all queries, by size, and against the objects that were not asked for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from input_pipeline.text.box_codec import BoxCodec, all_boxes, area, iou

MEDIUM, LARGE = 32**2, 96**2  # square pixels, for images of 224 px (PIN, section 5)


def summary(
    predicted: np.ndarray,
    true: np.ndarray,
    others: Sequence[np.ndarray],
    parsed: np.ndarray,
    image_size: int,
) -> dict[str, float | int | None]:
    """Scores of one row of the table.

    Args:
      predicted, true: float[n, 4], x1, y1, x2, y2 in pixels.
      others: for each query the boxes float[k, 4] of the image's other objects; k may be 0.
      parsed: bool[n].
      image_size: side of the image; areas are taken as if it were 224.

    Returns:
      mIoU over all queries; mIoU_M and mIoU_L over those of area [32^2, 96^2) and >= 96^2 at 224 px; P@0.3, P@0.5,
      P@0.7; unparsed, unparsed_M, unparsed_L, the shares; queries, queries_M, queries_L, their counts; asked_iou and
      other_iou, over queries with other objects: IoU with the asked object and with the best other one. A mean over
      nothing is None.
    """
    scores = iou(predicted, true)
    size = area(true) * (224 / image_size) ** 2
    medium, large = (size >= MEDIUM) & (size < LARGE), size >= LARGE
    failed = ~np.asarray(parsed, bool)
    crowded = np.array([len(boxes) > 0 for boxes in others], bool)
    best_other = [iou(p, boxes).max() for p, boxes in zip(predicted, others, strict=True) if len(boxes)]

    def mean(values) -> float | None:
        return float(np.mean(values)) if len(values) else None

    return {
        "mIoU": mean(scores),
        "mIoU_M": mean(scores[medium]),
        "mIoU_L": mean(scores[large]),
        **{f"P@{t}": mean(scores >= t) for t in (0.3, 0.5, 0.7)},
        "unparsed": mean(failed),
        "unparsed_M": mean(failed[medium]),
        "unparsed_L": mean(failed[large]),
        "queries": len(scores),
        "queries_M": int(medium.sum()),
        "queries_L": int(large.sum()),
        "asked_iou": mean(scores[crowded]),
        "other_iou": mean(best_other),
    }


def constant_box(true: np.ndarray, codec: BoxCodec) -> np.ndarray:
    """The one on-grid box float[4] of highest mIoU over the queries float[n, 4] themselves: what no image tells."""
    boxes = all_boxes(codec)
    total = np.zeros(len(boxes))
    for box in true:
        total += iou(boxes, box)
    return boxes[total.argmax()]


def random_boxes(rng: np.random.Generator, n: int, codec: BoxCodec) -> np.ndarray:
    """n boxes drawn uniformly from `all_boxes`, float[n, 4]."""
    boxes = all_boxes(codec)
    return boxes[rng.integers(len(boxes), size=n)]
