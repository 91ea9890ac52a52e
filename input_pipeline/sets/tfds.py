"""Any set of tensorflow-datasets as a source of boxes or of labels, read without TensorFlow.

`tfds:NAME[:SPLIT]`: a set that is prepared below `config.data_dir` (or where tensorflow-datasets keeps its sets), or a
folder that holds one.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np

from input_pipeline.errors import UserError
from input_pipeline.images import open_image
from input_pipeline.sets import names
from input_pipeline.sets.bad_records import BadRecordLog, good_box
from input_pipeline.sets.reading.annotated import Annotated, entry, good_name, not_empty
from input_pipeline.sets.reading.label_maps import BACKGROUND, IGNORE, LabelMaps, lookup
from input_pipeline.sets.reading.tfds_folder import Records

SPLITS = ("test", "validation", "val")
# Labels whose names the set itself does not carry: feature, table of names, and column of the stored values.
TABLES = {"scene_parse150": ("annotation", "ade20k", ""), "cityscapes": ("segmentation_label", "cityscapes", "id")}
NO_CLASS = ("background", "bg", "unlabeled", "unlabelled", "other")  # names of a label 0 that is no class


def kind(spec: str, data_dir: str) -> str:
    """`boxes` or `labels`: what a set has a truth for.

    Raises:
      UserError: it cannot be opened, or has neither.
    """
    found = Records(spec, data_dir, (*SPLITS, "train"))
    if _has_boxes(found.features):
        return "boxes"
    if found.name.partition("/")[0] in TABLES or _labelled(found.features):
        return "labels"
    raise UserError(
        f"tfds:{spec}: neither objects with bbox and label, nor labels with names (LabeledImage); it has"
        f" {', '.join(found.features)}"
    )


def _has_boxes(features: Any) -> bool:
    objects = features["objects"] if "objects" in features else None
    inner = getattr(objects, "feature", None)
    return inner is not None and "bbox" in inner and any(key in inner for key in ("label", "category"))


def _labelled(features: Any) -> str:
    """The feature of labels that carries the names of its classes; empty if there is none."""
    return next((key for key, feature in features.items() if type(feature).__name__ == "LabeledImage"), "")


def detection(spec: str, data_dir: str, bad_records: BadRecordLog) -> Annotated:
    """A set whose records have `image` and `objects` with `bbox` and `label` (voc, coco, lvis, open_images_v4, ...).

    Args:
      spec: `NAME[:SPLIT]`: `voc/2007`, or a folder. The split is `test` by default, else `validation`.
      data_dir: of tensorflow-datasets; empty for its own default.

    Raises:
      UserError: the set cannot be opened, or it has no boxes.
    """
    light = Records(spec, data_dir, SPLITS, skip=("image",))
    if not _has_boxes(light.features):
        raise UserError(f"tfds:{spec}: no objects with bbox and label; it has {', '.join(light.features)}")
    objects: Any = light.features["objects"]
    label = next(objects.feature[key] for key in ("label", "category") if key in objects.feature)
    entries = []
    for index in range(len(light)):
        at = f"tfds:{spec}, record {index}"
        with bad_records.guard(at):
            entries.append(_entry(light[index], index, label, at, bad_records))
    source = Records(f"{light.name}:{light.split}", data_dir, ())
    return Tfds(f"tfds:{light.name} {light.split}", not_empty(f"tfds:{spec}", entries, data_dir), source=source)


def _entry(record: Any, index: int, label: Any, at: str, bad_records: BadRecordLog) -> dict[str, Any]:
    objects = record["objects"]
    labels = objects["label"] if "label" in objects else objects["category"]
    boxes, given, ids, crowd, difficult = [], [], [], [], []
    for k in range(len(objects["bbox"])):
        with bad_records.guard(f"{at}, object {k}"):
            y1, x1, y2, x2 = (float(v) for v in objects["bbox"][k])  # from 0 to 1
            boxes.append(good_box([x1, y1, x2, y2], 1, 1, f"{at}, object {k}"))
            given.append(good_name(label.int2str(int(labels[k])), f"{at}, object {k}"))
            ids.append(int(objects["id"][k]) if "id" in objects else 1000 * index + k)
            crowd.append(bool(objects["is_crowd"][k]) if "is_crowd" in objects else False)
            difficult.append(bool(objects["is_difficult"][k]) if "is_difficult" in objects else False)
    name = _text(record.get("image/filename", b""))
    image_id = int(record["image/id"]) if "image/id" in record else name or index
    return entry(name or f"record {index}", image_id, None, boxes, given, ids, crowd, difficult, index=index)


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


@dataclasses.dataclass(repr=False)
class Tfds(Annotated):
    """`Annotated` whose pictures come from tfds; boxes of `entries` run from 0 to 1 until a picture is read."""

    source: Any = None

    def _image(self, entry: dict[str, Any]) -> np.ndarray:
        return np.asarray(open_image(self.source[entry["index"]]["image"]))

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = super().__getitem__(index)
        return record | {"boxes": record["boxes"] * np.array([*record["size"]] * 2, np.float32)}


def segmentation(spec: str, data_dir: str, background: bool = True) -> LabelMaps:
    """A set with a label for every pixel: one that carries the names of its classes, or one of `TABLES`.

    Of a `LabeledImage` a value is the index of its name; a first name such as `background` is no class.

    Args:
      spec, data_dir: see `detection`. background: whether that first name is scored as background, or left out.

    Raises:
      UserError: the set cannot be opened, or has no labels whose names are known.
    """
    source = Records(spec, data_dir, SPLITS)
    known = TABLES.get(source.name.partition("/")[0])
    feature = known[0] if known else _labelled(source.features)
    if feature not in source.features:
        raise UserError(f"tfds:{spec}: no labels whose names are known; it has {', '.join(source.features)}")
    if known:
        table = names.table(known[1])
        classes, background = table.column("readable"), False
        values = [int(value) for value in table.column(known[2])] if known[2] else list(range(1, len(classes) + 1))
        others = [value for value in range(256) if value not in values]
        stored = lookup(values, None, others)
    else:
        found: Any = source.features[feature]
        said = [good_name(name, f"tfds:{spec}, {feature}") for name in found.names or ()]
        first = int(bool(said) and said[0].lower() in NO_CLASS)
        classes = said[first:]
        stored = lookup(range(first, len(said)), (BACKGROUND if background else IGNORE) if first else None)
        background = background and bool(first)
    if not classes:
        raise UserError(f"tfds:{spec}: {feature} carries no names of classes")
    image = next(key for key in ("image", "image_left") if key in source.features)
    pairs: list[Any] = [(pathlib.Path(f"record {k}"), k) for k in range(len(source))]
    return TfdsLabels(
        f"tfds:{source.name} {source.split}", pairs, classes, stored, background, source=source, keys=(image, feature)
    )


@dataclasses.dataclass(repr=False)
class TfdsLabels(LabelMaps):
    """`LabelMaps` whose pictures and labels come from tfds. keys: features of picture and labels."""

    source: Any = None
    keys: tuple[str, str] = ("image", "labels")

    def __getitem__(self, index: int) -> dict[str, Any]:
        path, number = self.pairs[index]
        record = self.source[number]
        given = np.asarray(record[self.keys[1]])[..., 0].astype(np.int32)  # of three equal channels the first
        image = np.asarray(open_image(np.asarray(record[self.keys[0]])))
        if image.shape[:2] != given.shape:
            raise UserError(
                f"{self.name}, {path}: labels {given.shape}, image {image.shape[:2]}", "labels of another size"
            )
        return {"image": image, "labels": self.labels(given, path), "image_id": path.stem, "path": path}
