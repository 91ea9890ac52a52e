"""The evaluation loop: each image is visited once, for any number of evaluators, batches read ahead of the tower."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence, Sized
from typing import Any, Protocol

import jax
import numpy as np

from gem_jax import windows
from gem_jax.gem import GEM
from gem_jax.heatmaps import Enlarged
from input_pipeline.errors import UserError
from pin_jax.runtime import sharding
from pin_jax.runtime.prefetch import prefetched


class Evaluator(Protocol):
    """What is scored: `segmentation.Segmentation`, `points.Points`, `boxes.Boxes`, or one of your own."""

    def prompts(self, record: dict[str, Any]) -> Sequence[str]:
        """The names that it wants maps of for a record."""
        ...

    def add(self, record: dict[str, Any], maps: Enlarged) -> None:
        """Takes cosines float[C, H, W] of these names, at the image's own resolution: `maps[k]` is one,
        `np.asarray(maps)` all of them."""

    # An evaluator may have `count(record, maps)` too, with maps float32[C, h, w] before enlargement, on the device, and
    # the picture's (height, width) as record["size"]; it is called instead of `add`.

    def scores(self) -> dict[str, Any]:
        """What came out."""
        ...


def evaluate(
    gem: GEM,
    source: Iterable[dict[str, Any]],
    evaluators: Sequence[Evaluator],
    progress: Callable[[int], None] = lambda done: None,
    *,
    window: int = 0,
    stride: int = 0,
    shorter: int = 0,
    stitch: bool = False,
    original: bool = False,
) -> dict[str, Any]:
    """The scores of all evaluators over a source; several processes share its records, and all have the scores.

    Args:
      source: records with `image` (anything that `GEM` takes, of any size) and what the evaluators need beside it; its
        `part(k, n)`, where it has one, yields every n-th from the k-th on without reading the others.
      window, stride, shorter, stitch, original: as in `GEM.large_maps`.

    Raises:
      UserError: the source has no record, as where none of its images can be read.
    """
    part, parts = jax.process_index(), jax.process_count()
    records = source.part(part, parts) if hasattr(source, "part") else itertools.islice(source, part, None, parts)  # pyright: ignore[reportAttributeAccessIssue]

    def read() -> tuple[list[dict[str, Any]], windows.Windows | None]:
        """The next records, and their pictures ready for the tower; none at the end."""
        own = list(itertools.islice(records, gem.batch_size))
        if not own:
            return own, None
        keys = [record.get("path", record["image"]) for record in own]
        return own, gem.cut([record["image"] for record in own], window, stride, shorter, stitch, keys)

    done, total = 0, len(source) if isinstance(source, Sized) else 2**31
    with prefetched(read) as take:
        while True:
            own, cut = take()
            if cut is None:
                break
            _score(gem, own, cut, evaluators, original)
            done += len(own)
            progress(min(done * parts, total))
    if not sharding.largest(done):
        bad = getattr(source, "bad_records", None)
        report = f" ({bad.report()})" if bad else ""
        raise UserError(f"{getattr(source, 'name', 'evaluation')}: none of its images can be read{report}")
    return {key: value for evaluator in evaluators for key, value in evaluator.scores().items()}


def _score(
    gem: GEM, records: list[dict[str, Any]], cut: windows.Windows, evaluators: Sequence[Evaluator], original: bool
) -> None:
    """One batch: every picture goes through the tower once, for all evaluators."""
    asked = [[list(evaluator.prompts(record)) for evaluator in evaluators] for record in records]
    names = [list(dict.fromkeys(name for own in lists for name in own)) for lists in asked]
    anything = next((own for own in names if own), None)
    if anything is None:
        return
    maps = gem.small_maps(cut, [own or anything for own in names], original)
    for record, lists, all_names, small, size in zip(records, asked, names, maps, cut.sizes, strict=True):
        for evaluator, own in zip(evaluators, lists, strict=True):
            if not own:
                continue
            chosen = small if own == all_names else small[np.array([all_names.index(name) for name in own])]
            if hasattr(evaluator, "count"):
                evaluator.count(record | {"size": size}, chosen)  # pyright: ignore[reportAttributeAccessIssue]
            else:
                evaluator.add(record, Enlarged(np.asarray(chosen), size))
