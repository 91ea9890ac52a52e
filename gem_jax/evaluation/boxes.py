"""Box evaluation: boxes from heat maps, scored in the same way as those of PIN."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from gem_jax import heatmaps
from pin_jax.runtime import sharding
from pin_jax.scoring import coco_files, metrics
from pin_jax.scoring.queries import Answer

SIDE = 224  # of the square that sizes are measured in


class Boxes:
    """Every object is asked for by its name; its box goes around the largest component of its min-max map.

    Records hold `image`, `said` (what each object is called) and `boxes` float[n, 4] in its pixels. Sizes are those of
    the picture squashed to a square, as PIN's are.
    """

    def __init__(self, threshold: float = 0.5):
        self.threshold = threshold
        self.found: list[np.ndarray] = []
        self.records: list[dict[str, Any]] = []
        self.true: list[np.ndarray] = []
        self.others: list[np.ndarray] = []

    def prompts(self, record: dict[str, Any]) -> Sequence[str]:
        """What the objects are called."""
        return record["query_text"]

    def add(self, record: dict[str, Any], maps: np.ndarray | heatmaps.Enlarged) -> None:
        """Takes the objects' cosines float[n, H, W]."""
        squash = SIDE / np.array([maps.shape[-1], maps.shape[-2]] * 2)
        boxes = np.asarray(record["boxes"]) * squash
        ids = record.get("ids", range(len(boxes)))
        self.found += [heatmaps.box(heatmaps.minmax(maps[k]), self.threshold) * squash for k in range(len(maps))]
        self.true += list(boxes)
        self.records.append({key: value for key, value in record.items() if key != "image"} | {"boxes": boxes})
        self.others += [boxes[[other != own for other in ids]] for own in ids]

    def write(self, workdir: pathlib.Path, ending: str) -> None:
        """Writes the boxes as PIN's are written, after `scores`; see `coco_files.write`."""
        coco_files.write(workdir, self.records, [Answer("", box, True) for box in self.found], SIDE, ending)

    def scores(self) -> dict[str, Any]:
        """`box mIoU`, and as `box` all that `metrics.summary` has."""
        rows = list(zip(self.found, self.true, self.others, strict=True))
        rows = sharding.gather_parts(rows, jax.process_index())  # of all processes
        self.records = sharding.gather_parts(self.records, jax.process_index())
        self.found, self.true, self.others = map(list, zip(*rows, strict=True))
        found, true = np.stack(self.found), np.stack(self.true)
        scores = metrics.summary(found, true, self.others, np.ones(len(true), bool), SIDE)
        return {"box mIoU": scores["mIoU"], "box": scores}
