"""The evaluation loop: each image is visited once, for any number of evaluators."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from gem_jax.gem import GEM
from gem_jax.heatmaps import Enlarged
from input_pipeline.errors import UserError


class Evaluator(Protocol):
    """What is scored: `segmentation.Segmentation`, `points.Points`, `boxes.Boxes`, or one of your own."""

    def prompts(self, record: dict[str, Any]) -> Sequence[str]:
        """The names that it wants maps of for a record."""
        ...

    def add(self, record: dict[str, Any], maps: Enlarged) -> None:
        """Takes cosines float[C, H, W] of these names, at the image's own resolution: `maps[k]` is one,
        `np.asarray(maps)` all of them."""

    def scores(self) -> dict[str, Any]:
        """What came out."""
        ...


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
      **options: of `GEM.large_maps` (sliding windows, the original stream).

    Raises:
      UserError: the source has no record, as where none of its images can be read.
    """
    done = 0
    for done, record in enumerate(source, 1):
        asked = [list(evaluator.prompts(record)) for evaluator in evaluators]
        names = list(dict.fromkeys(name for own in asked for name in own))
        maps = gem.large_maps(record["image"], names, **options) if names else None
        for evaluator, own in zip(evaluators, asked, strict=True):
            if maps is not None and own:
                evaluator.add(record, maps.only([names.index(name) for name in own]))
        progress(done)
    if not done:
        bad = getattr(source, "bad_records", None)
        report = f" ({bad.report()})" if bad else ""
        raise UserError(f"{getattr(source, 'name', 'evaluation')}: none of its images can be read{report}")
    return {key: value for evaluator in evaluators for key, value in evaluator.scores().items()}
