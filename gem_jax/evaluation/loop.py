"""One walk over a source for any evaluators: every image is looked at once, whatever is scored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from gem_jax.gem import GEM


class Evaluator(Protocol):
    """What is scored: `segmentation.Segmentation`, `points.Points`, `boxes.Boxes`, or one of your own."""

    def prompts(self, record: dict[str, Any]) -> Sequence[str]:
        """The names that it wants maps of for a record."""

    def add(self, record: dict[str, Any], maps: np.ndarray) -> None:
        """Takes cosines float[C, H, W] of these names, at the image's own resolution."""

    def scores(self) -> dict[str, Any]:
        """What came out."""


def evaluate(
    gem: GEM,
    source: Iterable[dict[str, Any]],
    evaluators: Sequence[Evaluator],
    progress: Callable[[int], None] = lambda done: None,
    **options: Any,
) -> dict[str, Any]:
    """The scores of all evaluators over a source.

    Args:
      source: records with `image` (anything that `GEM` takes, of any size) and what the evaluators need beside it.
      **options: of `GEM.maps` (sliding windows, the original stream).
    """
    for done, record in enumerate(source, 1):
        asked = [list(evaluator.prompts(record)) for evaluator in evaluators]
        names = list(dict.fromkeys(name for own in asked for name in own))
        maps = gem.maps(record["image"], names, **options) if names else np.zeros((0, 1, 1), np.float32)
        for evaluator, own in zip(evaluators, asked, strict=True):
            if own:
                evaluator.add(record, maps[[names.index(name) for name in own]])
        progress(done)
    return {key: value for evaluator in evaluators for key, value in evaluator.scores().items()}
