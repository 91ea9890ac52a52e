"""Evaluation on photographs: the queries of a published set, and its table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from input_pipeline.errors import UserError
from input_pipeline.loader import records as loaded
from input_pipeline.sets import registry
from input_pipeline.sets.bad_records import BadRecordLog
from input_pipeline.transforms import Squash
from pin_jax.runtime import reporting, sharding

COLUMNS = ("mIoU", "mIoU_M", "mIoU_L", "P@0.3", "P@0.5", "P@0.7", "queries (M, L)", "unparsed (M, L)")


def with_counts(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Scores of `metrics.summary`, a row a method, with the counts that each mean is over: the columns `COLUMNS`."""

    def shown(row: Mapping[str, Any], key: str, form: str) -> str:
        own, *sizes = ("-" if row[k] is None else f"{row[k]:{form}}" for k in (key, f"{key}_M", f"{key}_L"))
        return f"{own} ({', '.join(sizes)})"

    return {
        name: {**row, "queries (M, L)": shown(row, "queries", ","), "unparsed (M, L)": shown(row, "unparsed", ".3f")}
        for name, row in rows.items()
    }


class Photographs(list):
    """This process's records of photographs, squashed to a square, in the order of the set.

    Attributes:
      name: of the set. counts: what the selection rules kept. bad_records: what was wrong with others.
    """

    def __init__(self, records: Sequence[dict[str, Any]], name: str, counts: list, bad_records: BadRecordLog):
        super().__init__(records)
        self.name, self.counts, self.bad_records = name, counts, bad_records

    def about(self, images: int) -> dict[str, Any]:
        """For results.json; `images`: those of all processes."""
        rows = [{"rule": rule, "images": images, "objects": objects} for rule, images, objects in self.counts]
        return {
            "data": {
                "set": self.name,
                "images": images,
                "selection": rows,
                "bad_records": self.bad_records.summary(),
            }
        }


def read(config: ConfigDict, image_size: int, known: Sequence[str], mesh: Mesh | None = None) -> Photographs:
    """Reads this process's share of the set that config.eval.source names, by the rules of config.eval.select.

    Args:
      image_size: of the VLM, in pixels. known: names that it knows; empty for an open vocabulary.
      mesh: whose processes share the set.

    Raises:
      UserError: no such set, or nothing of it can be asked for; a bad record, with config.on_bad_record=refuse.
    """
    bad_records = BadRecordLog(config.on_bad_record, reporting.say)
    options = config.eval
    source = registry.queries(options.source, config.data_dir, options.select, bad_records, known, options.split_by)
    if options.images:
        source.entries = source.entries[: options.images]
        source.counts.append((f"the first {options.images}", len(source), source.objects()))
    rows = {rule: f"{images:,} images, {objects:,} queries" for rule, images, objects in source.counts}
    reporting.plan(f"{source.name}: what the selection rules keep", rows)
    found, total, own = [], len(source), sharding.share(len(source), mesh)
    source.entries = source.entries[own.start : own.stop]
    with reporting.progress(f"reading {source.name}", len(source), "image") as advance:
        squash = Squash(image_size)
        for record in loaded(source, [squash], bad_records, threads=config.threads, progress=advance):
            found.append(record)
    bad_records.take(dict(sharding.gather(list(bad_records.lines.items()), mesh)))
    if not sharding.largest(len(found)):
        raise UserError(f"{source.name}: none of its {total} images can be read ({bad_records.report()})")
    if bad_records.counts:
        reporting.say(f"{source.name}: left out {bad_records.report()}")
    return Photographs(found, source.name, source.counts, bad_records)
