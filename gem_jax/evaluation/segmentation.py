"""Semantic segmentation by heat maps: argmax over class names, background under a threshold, mIoU over a data set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from gem_jax.evaluation import on_device
from gem_jax.heatmaps import Enlarged
from input_pipeline.sets.reading.label_maps import BACKGROUND, IGNORE  # noqa: F401 (of a record's labels)

THRESHOLDS = tuple(round(0.05 * i, 2) for i in range(20))


def labels(record: dict[str, Any], classes: Sequence[str], background: int) -> np.ndarray:
    """The truth of a record as int[H, W]: indices of `classes`, `background`, or IGNORE (not scored).

    A record has either `labels` int[H, W], indices of `classes`, BACKGROUND or IGNORE, or `masks`
    bool[n, H, W] and `names`, one of each object; what no mask covers is background.
    """
    if "labels" in record:
        given = np.asarray(record["labels"]).astype(np.int64)
        return np.where(given == BACKGROUND, background, given)
    out = np.full(record["masks"].shape[1:], background)
    for name, mask in zip(record["names"], record["masks"], strict=True):
        out[mask] = classes.index(name)
    return out


def probabilities(maps: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Cosines float[C, H, W] -> the best class int[H, W] and its softmax probability float[H, W] at a logit scale."""
    best = maps.argmax(0)
    top = maps.max(0)
    return best, 1 / np.exp(scale * (maps - top)).sum(0)


class Confusion:
    """Pixels by true and predicted class, int64[n, n], and the IoU that follows."""

    def __init__(self, n: int, counts: np.ndarray | None = None):
        self.n, self.counts = n, np.zeros((n, n), np.int64) if counts is None else counts

    def add(self, true: np.ndarray, predicted: np.ndarray) -> None:
        """Counts the pixels whose truth is one of the n classes."""
        known = (true >= 0) & (true < self.n)
        pairs = true[known].astype(np.int64) * self.n + predicted[known]
        self.counts += np.bincount(pairs, minlength=self.n**2).reshape(self.n, self.n)

    def iou(self) -> np.ndarray:
        """IoU float[n] of each class; NaN for one that is neither true nor predicted anywhere."""
        hit = np.diag(self.counts)
        union = self.counts.sum(0) + self.counts.sum(1) - hit
        return np.where(union > 0, hit / np.maximum(union, 1), np.nan)

    def mean(self) -> float | None:
        """The mean over classes that are true somewhere."""
        present = self.counts.sum(1) > 0
        return float(self.iou()[present].mean()) if present.any() else None


class Segmentation:
    """mIoU at each image's full resolution, every class asked for in every image.

    Records hold a truth as `labels` takes it.

    Attributes:
      classes: names; background is none of them. scale: of the cosines in the softmax whose largest probability is
        compared with the thresholds.
      phrases: what each class is asked for by, the best counts; its name by default. background: phrases of what is
        none of the classes; a pixel whose best phrase is one of them is background.
      smallest: a class that has no larger share of the pixels of all classes in a picture is given up there, and its
        pixels go to the next best or to the background (SCLIP, for Pascal VOC); only where background counts.
    """

    def __init__(
        self,
        classes: Sequence[str],
        scale: float = 100.0,
        thresholds: Sequence[float] = THRESHOLDS,
        phrases: Sequence[Sequence[str]] | None = None,
        background: Sequence[str] = (),
        smallest: float = 0.0,
    ):
        self.classes, self.scale, self.thresholds = list(classes), scale, tuple(thresholds)
        self.smallest = smallest
        own = [[name] for name in self.classes] if phrases is None else [list(said) for said in phrases]
        self.asked = [phrase for said in own for phrase in said] + list(background)
        self.starts = np.cumsum([0, *map(len, own)])[: len(own) + (1 if background else 0)]
        self.without = Confusion(len(self.classes))
        self.swept = [Confusion(len(self.classes) + 1) for _ in self.thresholds]
        self._on_device = on_device.PixelCounts(
            len(self.classes), self.thresholds, float(scale), self.starts, len(self.asked), smallest
        )

    def prompts(self, record: dict[str, Any]) -> Sequence[str]:
        """All phrases of all classes, then background's."""
        return self.asked

    def add(self, record: dict[str, Any], maps: np.ndarray | Enlarged) -> None:
        """Takes the phrases' cosines float[P, H, W], a strip of rows at a time."""
        background = len(self.classes)
        true = labels(record, self.classes, background)

        def strips() -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
            """Rows, the phrases' cosines there, and the classes' and the background's."""
            for rows, strip in maps.strips() if isinstance(maps, Enlarged) else [(slice(None), maps)]:
                whole = len(self.starts) == len(strip)
                yield rows, strip, strip if whole else np.maximum.reduceat(strip, self.starts)

        kept = np.ones(len(self.starts), bool)
        if self.smallest:
            areas = sum(np.bincount(grouped.argmax(0).ravel(), minlength=len(kept)) for *_, grouped in strips())
            kept[:background] = areas[:background] > self.smallest * areas[:background].sum()  # pyright: ignore
        for rows, strip, grouped in strips():
            top = strip.max(0)
            self.without.add(true[rows], grouped[:background].argmax(0))
            own = np.where(kept[:, None, None], grouped, -np.inf)
            probability = np.exp(self.scale * (own.max(0) - top)) / np.exp(self.scale * (strip - top)).sum(0)
            found = np.where(np.isneginf(own.max(0)), background, own.argmax(0))
            for threshold, confusion in zip(self.thresholds, self.swept, strict=True):
                confusion.add(true[rows], np.where(probability < threshold, background, found))

    def count(self, record: dict[str, Any], maps: jax.Array | np.ndarray) -> None:
        """The same from small maps float[P, h, w], enlarged and counted on the device."""
        self._on_device.add(maps, labels(record, self.classes, len(self.classes)))

    def scores(self) -> dict[str, Any]:
        """Means over the classes that are true somewhere, in all processes' records.

        Returns:
          mIoU: without background: only pixels of a class count, and every pixel is given its best class.
          mIoU_bg: with background as one more class, at the best of the thresholds, which is `threshold`; `sweep` has
          the mIoU_bg of every threshold.
        """
        without, swept = self._on_device.read()
        order = sorted(range(len(self.thresholds)), key=lambda k: self.thresholds[k])
        whole = Confusion(len(self.classes), without + on_device.summed(self.without.counts))
        confusions = [
            Confusion(len(self.classes) + 1, swept[order.index(k)] + on_device.summed(own.counts))
            for k, own in enumerate(self.swept)
        ]
        sweep = {str(t): c.mean() for t, c in zip(self.thresholds, confusions, strict=True)}
        chosen = max(sweep, key=lambda t: -1.0 if (score := sweep[t]) is None else score)
        return {"mIoU": whole.mean(), "mIoU_bg": sweep[chosen], "threshold": float(chosen), "sweep": sweep}
