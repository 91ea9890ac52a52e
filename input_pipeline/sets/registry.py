"""The registry of sets for evaluation: what `config.eval.source` and GEM's `config.source` may name.

A spec is `NAME` or `NAME:SPLIT`, below `config.data_dir`; `coco:FILE.json` is a set of one's own; `tfds:NAME[:SPLIT]`.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

from input_pipeline.errors import UserError
from input_pipeline.sets import coco, names, openimages, refcoco, segmentation, selection, tfds, voc
from input_pipeline.sets.bad_records import BadRecordLog
from input_pipeline.sets.reading.annotated import Annotated

# name -> reader (root, bad_records, split), the split that is read by default, the table of its names
BOXES: dict[str, tuple[Callable[..., Any], str, str]] = {
    "pvoc": (lambda root, bad_records, split: voc.detection(root, bad_records, "2007", split), "test", "voc"),
    "coco": (coco.instances, "val2017", "coco"),
    "lvis": (coco.lvis, "val", ""),
    **{
        which: (
            lambda root, bad_records, split, which=which: refcoco.expressions(root, bad_records, which, split),
            default,
            "",
        )
        for which, default in (("refcoco", "testA"), ("refcoco+", "testA"), ("refcocog", "test"))
    },
}
LABELS: dict[str, tuple[Callable[..., Any], str, str]] = {
    "voc": (segmentation.voc, "val", "voc"),
    "context": (segmentation.context, "val", "context"),
    "context60": (
        lambda root, bad_records, split: segmentation.context(root, bad_records, split, background=True),
        "val",
        "context",
    ),
    "ade20k": (segmentation.ade20k, "validation", "ade20k"),
    "coco_object": (segmentation.coco_object, "val2017", "coco"),
    "coco_stuff": (segmentation.coco_stuff, "val2017", "coco_stuff"),
    "cityscapes": (segmentation.cityscapes, "val", "cityscapes"),
}  # fmt: skip
POINTS: dict[str, tuple[Callable[..., Any], str, str]] = {"openimages": (openimages.points, "validation", "")}
REFERRING = tuple(refcoco.SETS)  # every image and sentence is asked for, whatever the number


def kind(spec: str, data_dir: str | pathlib.Path = "") -> str:
    """`boxes`, `labels` or `points`: what a spec has a truth for.

    Args:
      data_dir: where a set of tensorflow-datasets stands, which is opened for it.

    Raises:
      UserError: a name that is none of the sets.
    """
    name, _, rest = spec.partition(":")
    for found, sets in (("boxes", BOXES), ("labels", LABELS), ("points", POINTS)):
        if name in sets:
            return found
    if name == "tfds" and rest:
        return tfds.kind(rest, str(data_dir))
    raise UserError(
        f"data set {spec!r}: expected one of {', '.join((*BOXES, *LABELS, *POINTS))}, coco:FILE.json, tfds:NAME"
    )


def load(
    spec: str, data_dir: str | pathlib.Path, bad_records: BadRecordLog, by: str = "", background: bool = True
) -> Any:
    """The set that a spec names: `Annotated`, `LabelMaps` or `PointLabels`.

    Args:
      data_dir: where it stands; for `coco:FILE.json` the folder of its pictures, or empty.
      by: whose split file of RefCOCO: unc, google, umd; empty for the usual one.
      background: of labels of tensorflow-datasets, whether their background is scored.

    Raises:
      UserError: no such set, or it is not there in its published layout.
    """
    found = kind(spec, data_dir)
    name, _, rest = spec.partition(":")
    if name == "coco" and rest.endswith(".json"):
        return coco.own(rest, bad_records, data_dir)
    if name == "tfds":
        if found == "labels":
            return tfds.segmentation(rest, str(data_dir), background)
        return tfds.detection(rest, str(data_dir), bad_records)
    if not str(data_dir):
        raise UserError(f"data set {spec!r}: config.data_dir is empty; give its folder, --config.data_dir=FOLDER")
    if name in refcoco.SETS and by:
        return refcoco.expressions(data_dir, bad_records, name, rest or BOXES[name][1], by)
    reader, split, _ = {"boxes": BOXES, "labels": LABELS, "points": POINTS}[found][name]
    return reader(data_dir, bad_records, rest or split)


def queries(
    spec: str, data_dir: str | pathlib.Path, options: Any, bad_records: BadRecordLog, known: Any = (), by: str = ""
) -> Annotated:
    """A set of boxes after the selection rules.

    Args:
      options: of `selection.Rules`. known: the names that a small model knows; empty for all.
    """
    if kind(spec, data_dir) != "boxes":
        raise UserError(
            f"data set {spec!r}: has no boxes; expected one of {', '.join(BOXES)}, coco:FILE.json, tfds:NAME"
        )
    name = spec.partition(":")[0]
    table = BOXES[name][2] if name in BOXES else ""
    readable = (
        dict(zip(*(names.table(table).column(c) for c in ("published", "readable")), strict=True)) if table else {}
    )
    return selection.select(load(spec, data_dir, bad_records, by), selection.rules(options).steps(readable, known))


def phrases(spec: str, naming: str) -> tuple[list[list[str]], list[str]]:
    """What the classes of a labelled set are asked for by, and background; see `names.phrases`."""
    return names.phrases(LABELS[spec.partition(":")[0]][2], naming)
