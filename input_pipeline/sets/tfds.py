"""Any detection set of tensorflow-datasets as a source of boxes, by `tfds.data_source`, which needs no TensorFlow."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from input_pipeline.errors import UserError
from input_pipeline.images import open_image
from input_pipeline.sets.bad_records import BadRecordLog, good_box
from input_pipeline.sets.reading.annotated import Annotated, entry, good_name, not_empty


def detection(spec: str, data_dir: str, bad_records: BadRecordLog, split: str = "") -> Annotated:
    """A set whose records have `image` and `objects` with `bbox` and `label` (voc, coco, lvis, open_images_v4, ...).

    Args:
      spec: name of the set, `voc/2007`. data_dir: of tensorflow-datasets; empty for its own default.
      split: `test` by default, else `validation`.

    Raises:
      UserError: the package is missing, the set is not prepared there, or it has no boxes.
    """
    try:
        import tensorflow_datasets  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(
            f"tfds:{spec}: the package tensorflow-datasets is missing; pip install tensorflow-datasets"
        ) from error
    tfds: Any = tensorflow_datasets  # its types know fewer options than it takes
    try:
        builder = tfds.builder(spec, **({"data_dir": data_dir} if data_dir else {}), file_format="array_record")
        if not builder.info.splits:
            raise UserError(
                f"tfds:{spec}: not prepared in {data_dir or 'its default folder'}; run download_and_prepare first"
            )
        objects = builder.info.features["objects"]
        label = next(objects.feature[key] for key in ("label", "category") if key in objects.feature)
        chosen = split or next(s for s in ("test", "validation") if s in builder.info.splits)
        source = builder.as_data_source(split=chosen)
        light = builder.as_data_source(split=chosen, decoders={"image": tfds.decode.SkipDecoding()})
    except UserError:
        raise
    except StopIteration:
        raise UserError(
            f"tfds:{spec}: no test or validation split, or no label; name a split, tfds:{spec}:train"
        ) from None
    except Exception as error:  # it raises many kinds: unknown set, not prepared, no such split or feature
        raise UserError(
            f"tfds:{spec}: {type(error).__name__}: {error}; prepare it first, with file_format='array_record'"
        ) from error
    entries = []
    for index in range(len(light)):
        at = f"tfds:{spec}, record {index}"
        with bad_records.guard(at):
            entries.append(_entry(light[index], index, label, at, bad_records))
    return Tfds(f"tfds:{spec} {chosen}", not_empty(f"tfds:{spec}", entries, data_dir), source=source)


def _entry(record: Any, index: int, label: Any, at: str, bad_records: BadRecordLog) -> dict[str, Any]:
    objects = record["objects"]
    count = len(objects["bbox"])
    labels = objects["label"] if "label" in objects else objects["category"]
    boxes, names, ids, crowd, difficult = [], [], [], [], []
    for k in range(count):
        with bad_records.guard(f"{at}, object {k}"):
            y1, x1, y2, x2 = (float(v) for v in objects["bbox"][k])  # from 0 to 1
            boxes.append(good_box([x1, y1, x2, y2], 1, 1, f"{at}, object {k}"))
            names.append(good_name(label.int2str(int(labels[k])), f"{at}, object {k}"))
            ids.append(int(objects["id"][k]) if "id" in objects else 1000 * index + k)
            crowd.append(bool(objects["is_crowd"][k]) if "is_crowd" in objects else False)
            difficult.append(bool(objects["is_difficult"][k]) if "is_difficult" in objects else False)
    name = record.get("image/filename", b"")
    name = name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name)
    image_id = int(record["image/id"]) if "image/id" in record else name or index
    return entry(name or f"record {index}", image_id, None, boxes, names, ids, crowd, difficult, index=index)


@dataclasses.dataclass(repr=False)
class Tfds(Annotated):
    """`Annotated` whose pictures come from tfds; boxes of `entries` run from 0 to 1 until a picture is read."""

    source: Any = None

    def _image(self, entry: dict[str, Any]) -> np.ndarray:
        return np.asarray(open_image(self.source[entry["index"]]["image"]))

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = super().__getitem__(index)
        return record | {"boxes": record["boxes"] * np.array([*record["size"]] * 2, np.float32)}
