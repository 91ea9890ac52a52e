"""Point-wise evaluation in the OpenImages V7 protocol: p-mIoU over positive and negative points."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gem_jax import heatmaps
from gem_jax.evaluation import on_device
from pin_jax.runtime import sharding


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
        self.threshold, self.number = threshold, 0
        self.counts: dict[str, np.ndarray] = {}

    def prompts(self, record: dict[str, Any]) -> list[str]:
        """The names that have points."""
        return list(dict.fromkeys(row["name"] for row in record["points"]))

    def add(self, record: dict[str, Any], maps: np.ndarray | heatmaps.Enlarged) -> None:
        """Takes these names' cosines float[C, H, W]."""
        places = np.array([(row["y"], row["x"]) for row in record["points"]])
        heat = [heatmaps.minmax(maps[k])[places[:, 0], places[:, 1]] for k in range(len(self.prompts(record)))]
        self._tally(record, np.stack(heat))

    def count(self, record: dict[str, Any], maps: jax.Array | np.ndarray) -> None:
        """The same from small maps float[C, h, w], enlarged on the device; only the points' values come back."""
        places = np.array([(row["y"], row["x"]) for row in record["points"]])
        size = record["size"]
        maps, *matrices = on_device.with_room(maps, size)
        rooms = [(1 << (n - 1).bit_length()) - n for n in (len(maps), len(places))]  # sizes that were compiled before
        heat = on_device.heat_at(
            jnp.pad(jnp.asarray(maps), [(0, rooms[0]), (0, 0), (0, 0)]), *matrices, np.array(size),
            np.pad(places, [(0, rooms[1]), (0, 0)]),
        )  # fmt: skip
        self._tally(record, np.asarray(heat)[:, : len(places)])

    def _tally(self, record: dict[str, Any], heat: np.ndarray) -> None:
        """heat: float[C, K] of every class at every point."""
        names = {name: k for k, name in enumerate(self.prompts(record))}
        for place, row in enumerate(record["points"]):
            count = self.counts.setdefault(row["name"], np.zeros(3, np.int64))  # true positive, false positive, miss
            hit, yes = heat[names[row["name"]], place] > self.threshold, row["positive"]
            count += (hit and yes, hit and not yes, not hit and yes)
            self.number += 1

    def scores(self) -> dict[str, Any]:
        """p-mIoU, the mean over classes of TP / (TP + FP + FN), points of all images counted together; their number."""
        counts: dict[str, np.ndarray] = {}
        parts = sharding.gather_parts([(self.number, self.counts)], jax.process_index())
        for _, own in parts:
            for name, count in own.items():
                counts[name] = counts.get(name, 0) + count
        scores = [tp / (tp + fp + miss) for tp, fp, miss in counts.values() if tp + fp + miss]
        return {"p-mIoU": float(np.mean(scores)) if scores else None, "points": sum(number for number, _ in parts)}
