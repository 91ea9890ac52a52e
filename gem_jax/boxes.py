"""Boxes from heat maps, scored as PIN's are, so that GEM can stand in the same table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gem_jax import heatmaps
from pin_jax import metrics


class Boxes:
    """Every object is asked for by its name; its box goes around the largest component of its min-max map.

    Records hold `image` (square), `said` (what each object is called) and `boxes` float[n, 4] in pixels.
    """

    def __init__(self, threshold: float = 0.5):
        self.threshold, self.size = threshold, 224
        self.found: list[np.ndarray] = []
        self.true: list[np.ndarray] = []
        self.others: list[np.ndarray] = []

    def prompts(self, record: dict[str, Any]) -> Sequence[str]:
        """What the objects are called."""
        return record["said"]

    def add(self, record: dict[str, Any], maps: np.ndarray) -> None:
        """Takes the objects' cosines float[n, H, W]."""
        boxes = np.asarray(record["boxes"])
        self.found += [heatmaps.box(heat, self.threshold) for heat in heatmaps.minmax(maps)]
        self.true += list(boxes)
        self.others += [np.delete(boxes, i, 0) for i in range(len(boxes))]
        self.size = maps.shape[-1]

    def scores(self) -> dict[str, Any]:
        """`box mIoU`, and as `box` all that `metrics.summary` has."""
        found, true = np.stack(self.found), np.stack(self.true)
        scores = metrics.summary(found, true, self.others, np.ones(len(true), bool), self.size)
        return {"box mIoU": scores["mIoU"], "box": scores}
