"""Point-wise evaluation in the OpenImages V7 protocol: p-mIoU over positive and negative points."""

from __future__ import annotations

from typing import Any

import numpy as np

from gem_jax import heatmaps


def from_masks(rng: np.random.Generator, names: list[str], masks: np.ndarray, each: int = 5) -> list[dict[str, Any]]:
    """Points drawn from masks bool[n, H, W]: for each name `each` inside its masks and `each` outside, where there are.

    Returns:
      Rows name, x, y (pixels), positive: what a record's `points` holds.
    """
    rows = []
    for name in dict.fromkeys(names):
        own = np.any([mask for other, mask in zip(names, masks, strict=True) if other == name], axis=0)
        for positive, region in ((True, own), (False, ~own)):
            places = np.argwhere(region)
            for y, x in places[rng.permutation(len(places))[:each]]:
                rows.append({"name": name, "x": int(x), "y": int(y), "positive": positive})
    return rows


class Points:
    """p-mIoU: the classes present in an image are asked for; a point is predicted where the min-max map exceeds 0.5.

    Records hold `points`: rows name, x, y (pixels of the image), positive. The classes of an image are those that have
    points in it.
    """

    def __init__(self, threshold: float = 0.5):
        self.threshold, self.count = threshold, 0
        self.counts: dict[str, np.ndarray] = {}

    def prompts(self, record: dict[str, Any]) -> list[str]:
        """The names that have points."""
        return list(dict.fromkeys(row["name"] for row in record["points"]))

    def add(self, record: dict[str, Any], maps: np.ndarray | heatmaps.Enlarged) -> None:
        """Takes these names' cosines float[C, H, W]."""
        for k, name in enumerate(self.prompts(record)):
            heat = heatmaps.minmax(maps[k])
            count = self.counts.setdefault(name, np.zeros(3, np.int64))  # true positive, false positive, miss
            for row in record["points"]:
                if row["name"] == name:
                    hit, yes = heat[row["y"], row["x"]] > self.threshold, row["positive"]
                    count += (hit and yes, hit and not yes, not hit and yes)
                    self.count += 1

    def scores(self) -> dict[str, Any]:
        """p-mIoU, the mean over classes of TP / (TP + FP + FN), points of all images counted together; their number."""
        scores = [tp / (tp + fp + miss) for tp, fp, miss in self.counts.values() if tp + fp + miss]
        return {"p-mIoU": float(np.mean(scores)) if scores else None, "points": self.count}
