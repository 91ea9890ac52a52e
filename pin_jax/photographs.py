"""Evaluation on photographs: the queries of a published set, and predictions in COCO's and RefCOCO's forms."""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from input_pipeline import datasets
from input_pipeline.boxes import iou
from input_pipeline.errors import UserError
from input_pipeline.loader import records as loaded
from input_pipeline.records import Tally
from input_pipeline.transforms import Squash, unsquash
from pin_jax import reporting
from pin_jax.vlm import VLM

COLUMNS = ("mIoU", "mIoU_M", "mIoU_L", "P@0.3", "P@0.5", "P@0.7", "queries (M, L)", "unparsed (M, L)")


def table(title: str, rows: Mapping[str, Mapping[str, Any]]) -> None:
    """Prints scores of `metrics.summary`, a row a method, with the counts that each mean is over."""

    def shown(row: Mapping[str, Any], key: str, form: str) -> str:
        own, *sizes = ("-" if row[k] is None else f"{row[k]:{form}}" for k in (key, f"{key}_M", f"{key}_L"))
        return f"{own} ({', '.join(sizes)})"

    full = {
        name: {**row, "queries (M, L)": shown(row, "queries", ","), "unparsed (M, L)": shown(row, "unparsed", ".3f")}
        for name, row in rows.items()
    }
    reporting.results_table(title, full, COLUMNS)


class Photographs(list):
    """Records of photographs, squashed to the VLM's size, in the order of the set.

    Attributes:
      name: of the set. counts: what the selection rules kept. tally: what was wrong with others.
    """

    def __init__(self, records: Sequence[dict[str, Any]], name: str, counts: list, tally: Tally):
        super().__init__(records)
        self.name, self.counts, self.tally = name, counts, tally

    def about(self) -> dict[str, Any]:
        """For results.json."""
        rows = [{"rule": rule, "images": images, "objects": objects} for rule, images, objects in self.counts]
        return {"data": {"set": self.name, "images": len(self), "selection": rows, "bad_records": self.tally.summary()}}


def read(config: ConfigDict, vlm: VLM) -> Photographs:
    """Reads the set that config.eval.source names, by the rules of config.eval.select.

    Raises:
      UserError: no such set, or nothing of it can be asked for; a bad record, with config.on_bad_record=refuse.
    """
    tally = Tally(config.on_bad_record, reporting.say)
    options = config.eval
    source = datasets.queries(options.source, config.data_dir, options.select, tally, vlm.names, options.split_by)
    if options.images:
        source.entries = source.entries[: options.images]
        source.counts.append((f"the first {options.images}", len(source), source.objects()))
    rows = {rule: f"{images:,} images, {objects:,} queries" for rule, images, objects in source.counts}
    reporting.plan(f"{source.name}: what the selection rules keep", rows)
    found = []
    with reporting.progress(f"reading {source.name}", len(source), "image") as advance:
        squash = Squash(vlm.codec.image_size)
        for record in loaded(source, [squash], tally, threads=config.threads, progress=advance):
            found.append(record)
    if not found:
        raise UserError(f"{source.name}: none of its {len(source)} images can be read ({tally.report()})")
    if tally.counts:
        reporting.say(f"{source.name}: left out {tally.report()}")
    return Photographs(found, source.name, source.counts, tally)


def _xywh(box: np.ndarray) -> list[float]:
    return [round(float(v), 3) for v in (box[0], box[1], box[2] - box[0], box[3] - box[1])]


def write(
    workdir: pathlib.Path, records: Sequence[dict[str, Any]], answers: Sequence[Any], side: int, ending: str = ""
) -> None:
    """Writes what was asked and answered, in pixels of the photographs.

    ground_truth.json: the queries as COCO annotations. predictions.json: COCO results, each with its text and whether
    it parsed. predictions_refcoco.json, for RefCOCO: a row a sentence.

    Args:
      answers: one a query, in order: text, box float[4] in the squashed picture, parsed, score.
      side: of the squashed picture, in pixels. ending: of the names of the predictions' files.
    """
    numbered = {name: k + 1 for k, name in enumerate(sorted({name for record in records for name in record["names"]}))}
    categories: dict[Any, str] = {}
    images, truth, found, sentences = [], [], [], []
    number = itertools.count()
    for record in records:
        width, height = record["size"]
        images.append(
            {"id": record["image_id"], "width": width, "height": height, "file_name": pathlib.Path(record["path"]).name}
        )
        for k, (name, said, box) in enumerate(zip(record["names"], record["said"], record["boxes"], strict=True)):
            n = next(number)
            category = record["category_ids"][k] if "category_ids" in record else numbered[name]  # the set's own
            categories[category] = name
            answer, true = answers[n], unsquash(box, side, record["size"])
            placed = unsquash(answer.box, side, record["size"])
            bbox = _xywh(true)
            truth.append(
                {"id": n + 1, "image_id": record["image_id"], "category_id": category, "bbox": bbox,
                 "area": bbox[2] * bbox[3], "iscrowd": int(record["crowd"][k]), "source_id": record["ids"][k]}
            )  # fmt: skip
            row = {"text": answer.text, "parsed": bool(answer.parsed)}
            found.append(
                {"image_id": record["image_id"], "category_id": category, "bbox": _xywh(placed),
                 "score": answer.score, "said": said, **row}
            )  # fmt: skip
            if "sentences" in record:
                sentences.append(
                    {**record["sentences"][k], "image_id": record["image_id"], "sent": said, "box": _xywh(placed),
                     "gt_box": bbox, "iou": float(iou(true, placed)), **row}
                )  # fmt: skip
    named = [{"id": category, "name": name} for category, name in sorted(categories.items())]
    reporting.write_json(workdir / "ground_truth.json", {"images": images, "annotations": truth, "categories": named})
    reporting.write_json(workdir / f"predictions{ending}.json", found)
    if sentences:
        reporting.write_json(workdir / f"predictions_refcoco{ending}.json", sentences)
