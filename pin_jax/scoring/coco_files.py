"""Answers in standard file formats: COCO annotations and results, and rows for RefCOCO."""

from __future__ import annotations

import itertools
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from input_pipeline.text.box_codec import iou
from input_pipeline.transforms import unsquash
from pin_jax.runtime import files
from pin_jax.runtime.files import AnyPath


def _xywh(box: np.ndarray) -> list[float]:
    return [round(float(v), 3) for v in (box[0], box[1], box[2] - box[0], box[3] - box[1])]


def write(
    workdir: AnyPath, records: Sequence[dict[str, Any]], answers: Sequence[Any], side: int, ending: str = ""
) -> None:
    """Writes what was asked and answered, in pixels of the pictures as they were before they were squashed.

    ground_truth.json: the queries as COCO annotations. predictions.json: COCO results, each with its text and whether
    it parsed. predictions_refcoco.json, for RefCOCO: a row a sentence.

    Args:
      records: image_id, names, query_text and boxes; of photographs also what
        `input_pipeline.sets.reading.annotated.Annotated` has.
      answers: one a query, in order: text, box float[4] in the squashed picture, parsed, score.
      side: of the squashed picture, in pixels. ending: of the names of the predictions' files.
    """
    numbered = {name: k + 1 for k, name in enumerate(sorted({name for record in records for name in record["names"]}))}
    categories: dict[Any, str] = {}
    images, truth, found, sentences = [], [], [], []
    number = itertools.count()
    for record in records:
        size, count = record.get("size", (side, side)), len(record["names"])
        path = pathlib.Path(record.get("path", f"scene_{record['image_id']}"))
        images.append({"id": record["image_id"], "width": size[0], "height": size[1], "file_name": path.name})
        crowd, ids = record.get("crowd", [False] * count), record.get("ids", range(count))
        for k, (name, said, box) in enumerate(zip(record["names"], record["query_text"], record["boxes"], strict=True)):
            n = next(number)
            category = record["category_ids"][k] if "category_ids" in record else numbered[name]  # the set's own
            categories[category] = name
            answer, true = answers[n], unsquash(box, side, size)
            placed = unsquash(answer.box, side, size)
            bbox = _xywh(true)
            truth.append(
                {"id": n + 1, "image_id": record["image_id"], "category_id": category, "bbox": bbox,
                 "area": bbox[2] * bbox[3], "iscrowd": int(crowd[k]), "source_id": ids[k]}
            )  # fmt: skip
            row = {"text": answer.text, "parsed": bool(answer.parsed)}
            found.append(
                {"image_id": record["image_id"], "category_id": category, "bbox": _xywh(placed),
                 "score": answer.score, "query_text": said, **row}
            )  # fmt: skip
            if "sentences" in record:
                sentences.append(
                    {**record["sentences"][k], "image_id": record["image_id"], "sent": said, "box": _xywh(placed),
                     "gt_box": bbox, "iou": float(iou(true, placed)), **row}
                )  # fmt: skip
    named = [{"id": category, "name": name} for category, name in sorted(categories.items())]
    files.write_json(workdir / "ground_truth.json", {"images": images, "annotations": truth, "categories": named})
    files.write_json(workdir / f"predictions{ending}.json", found)
    if sentences:
        files.write_json(workdir / f"predictions_refcoco{ending}.json", sentences)
