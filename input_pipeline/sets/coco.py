"""COCO's JSON with its folder of images: COCO, LVIS v1, and any set of one's own in this form."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable
from typing import Any

from input_pipeline.errors import UserError
from input_pipeline.files import read_json
from input_pipeline.images import MAX_PIXELS
from input_pipeline.sets.bad_records import BadRecordLog, good_box
from input_pipeline.sets.names import normalise
from input_pipeline.sets.reading.annotated import Annotated, entry, good_name, not_empty
from input_pipeline.sets.reading.layout import Pictures, find


def instances(
    root: str | pathlib.Path, bad_records: BadRecordLog, split: str = "val2017", with_masks: bool = False
) -> Annotated:
    """COCO 2017: annotations/instances_SPLIT.json and SPLIT/ (or images/SPLIT/) below `root`."""
    name = f"COCO {split}"
    path = find(root, name, f"annotations/instances_{split}.json", f"coco/annotations/instances_{split}.json",
                f"instances_{split}.json")  # fmt: skip
    return read(path, bad_records, _folders(path.parent.parent, split), name, with_masks)


def lvis(
    root: str | pathlib.Path, bad_records: BadRecordLog, split: str = "val", with_masks: bool = False
) -> Annotated:
    """LVIS v1: lvis_v1_SPLIT.json (or annotations/...) and COCO's train2017/ and val2017/. Names are normalised."""
    name = f"LVIS v1 {split}"
    path = find(root, name, f"lvis_v1_{split}.json", f"annotations/lvis_v1_{split}.json", f"lvis/lvis_v1_{split}.json",
                f"coco/annotations/lvis_v1_{split}.json")  # fmt: skip
    tops = (pathlib.Path(root), pathlib.Path(root) / "coco", path.parent, path.parent.parent)
    folders = [folder for top in tops for folder in _folders(top, "val2017")]
    return read(path, bad_records, folders, name, with_masks, rename=normalise)


def own(
    path: str | pathlib.Path, bad_records: BadRecordLog, images: str | pathlib.Path = "", with_masks: bool = False
) -> Annotated:
    """One's own set.

    Args:
      path: of the JSON. images: folder of the pictures; by default beside the JSON, in `images` or in a folder of the
        JSON's own name there, or the same one level up.
    """
    path = pathlib.Path(path)
    tops = (path.parent, path.parent.parent)
    folders = [pathlib.Path(images)] if str(images) else []
    folders += [folder for top in tops for folder in (top, top / "images", top / path.stem)]
    if str(images) and not pathlib.Path(images).is_dir():
        raise UserError(f"images {images}: no such folder; give the one that {path.name} names its pictures in")
    return read(path, bad_records, folders, path.name, with_masks)


def _folders(top: pathlib.Path, split: str) -> list[pathlib.Path]:
    """Where COCO's pictures may stand; a `file_name` may or may not begin with the split."""
    return [top / split, top / "images" / split, top / "images", top, top / "train2017", top / "images" / "train2017"]


def load_json(path: pathlib.Path) -> Any:
    """A JSON file; errors as in `files.read_json`."""
    return read_json(path, "annotations", "give a JSON in COCO's form")


def lists(path: pathlib.Path, *keys: str) -> list[list[Any]]:
    """The lists of a JSON in COCO's form.

    Raises:
      UserError: it has another form.
    """
    held = load_json(path)
    if not isinstance(held, dict):
        raise UserError(f"annotations {path}: a {type(held).__name__}; expected an object with {', '.join(keys)}")
    for key in keys:
        if not isinstance(held.get(key), list):
            raise UserError(
                f"annotations {path}: {key!r} is a {type(held.get(key)).__name__}; expected a list of objects"
            )
    return [held[key] for key in keys]


def read(
    path: pathlib.Path,
    bad_records: BadRecordLog,
    folders: Iterable[pathlib.Path],
    name: str,
    with_masks: bool = False,
    rename: Any = str,
) -> Annotated:
    """Any JSON of COCO's form.

    Args:
      folders: in which pictures are looked for. name: of the set. rename: of category names.

    Raises:
      UserError: the file is not in COCO's form; bad entries in it go to the bad_records.
    """
    images, annotations, categories = lists(path, "images", "annotations", "categories")
    pictures, where = Pictures(folders), path.name
    called: dict[Any, str] = {}
    for k, category in enumerate(categories):
        with bad_records.guard(f"{where}, category {k}"):
            at = f"{where}, category {k}"
            key, own = whole(category["id"]), rename(good_name(category["name"], at))
            if called.setdefault(key, own) != own:
                raise UserError(f"{at}: id {key} is {called[key]!r} before; {own!r} is left out", "category id twice")
    of: dict[Any, dict[str, Any]] = {}
    found = []
    for k, image in enumerate(images):
        with bad_records.guard(f"{where}, image {k}"):
            width, height = size_of(image)
            rows: dict[str, Any] = {key: [] for key in ("boxes", "names", "ids", "crowd", "shapes", "category_ids")}
            key = whole(image["id"])
            if key in of:
                raise UserError(f"{where}, image {k}: id {key} occurs twice", "image id twice")
            of[key] = rows | {"size": (width, height)}
            found.append((_file(image), key, (width, height), rows))
    for k, annotation in enumerate(annotations):
        at = f"{where}, annotation {k}"
        with bad_records.guard(at):
            its_image = whole(annotation["image_id"])
            if its_image not in of:
                raise UserError(f"{at}: image_id {annotation['image_id']} is no image of the set", "unknown image")
            rows, category = of[its_image], whole(annotation["category_id"])
            if category not in called:
                raise UserError(f"{at}: category_id {category} has no name", "unknown category")
            x, y, w, h = annotation["bbox"]
            if any(isinstance(v, str | bool) for v in (x, y, w, h)):
                raise TypeError(f"bbox {annotation['bbox']!r}")
            box = good_box([x, y, x + w, y + h], *rows["size"], at)
            added = {
                "boxes": box, "names": called[category], "ids": whole(annotation.get("id", k)),
                "crowd": bool(int(annotation.get("iscrowd") or 0)),
                "shapes": annotation.get("segmentation") if with_masks else None,
                "category_ids": category,
            }  # fmt: skip
            for key, value in added.items():
                rows[key].append(value)
    entries = []
    for file, image_id, size, rows in found:
        with bad_records.guard(f"{where}, image {image_id}"):
            entries.append(entry(pictures.path(file), image_id, size, **rows))
    return Annotated(name, not_empty(name, entries, path), with_masks)


def whole(value: Any) -> int | str:
    """An id: a number (some tools write 7.0), or a text.

    Raises:
      TypeError: neither.
    """
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, int | str) or isinstance(value, bool):
        raise TypeError(f"id {value!r}")
    return value


def size_of(image: dict[str, Any]) -> tuple[int, int]:
    """(width, height) of an entry of `images`.

    Raises:
      TypeError: no whole numbers of pixels.
    """
    width, height = whole(image["width"]), whole(image["height"])
    if (
        isinstance(width, str)
        or isinstance(height, str)
        or not 0 < min(width, height) <= max(width, height) <= MAX_PIXELS
    ):
        raise TypeError(f"size {image['width']!r} x {image['height']!r}")
    return width, height


def _file(image: dict[str, Any]) -> str:
    """The file name of a picture; LVIS gives only a URL."""
    given = image.get("file_name") or "/".join(image["coco_url"].split("/")[-2:])
    if not isinstance(given, str):
        raise TypeError(f"file_name {given!r}")
    return given
