"""PASCAL VOC's boxes: one XML an image, as the development kits of 2007 and 2012 have them."""

from __future__ import annotations

import pathlib
from xml.etree import ElementTree

from input_pipeline.errors import UserError
from input_pipeline.files import read_bytes
from input_pipeline.sets.bad_records import BadRecordLog, good_box
from input_pipeline.sets.reading.annotated import Annotated, entry, good_name, not_empty
from input_pipeline.sets.reading.layout import find, listed


def detection(
    root: str | pathlib.Path, bad_records: BadRecordLog, year: str = "2007", split: str = "test"
) -> Annotated:
    """VOC's detection task.

    Args:
      root: the folder VOC2007, VOCdevkit, or one above it: Annotations/, JPEGImages/, ImageSets/Main/SPLIT.txt.

    Raises:
      UserError: not in that layout.
    """
    name = f"VOC{year} {split}"
    lists = f"ImageSets/Main/{split}.txt"
    path = find(root, name, *(f"{above}{lists}" for above in (f"VOC{year}/", f"VOCdevkit/VOC{year}/", "")))
    top = path.parent.parent.parent
    entries = []
    for image_id in listed(path):
        with bad_records.guard(f"Annotations/{image_id}.xml"):
            entries.append(_read(top, image_id, bad_records))
    return Annotated(name, not_empty(name, entries, top))


def _read(top: pathlib.Path, image_id: str, bad_records: BadRecordLog) -> dict:
    path = top / "Annotations" / f"{image_id}.xml"
    raw = read_bytes(path, "annotation", "expected one XML an image", "missing annotation")
    try:
        tree = ElementTree.fromstring(raw)
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # the last two: encodings it has not
        raise UserError(f"annotation {path}: not intact XML ({error}); fetch it again", "broken annotation") from error
    width, height = (int(float(tree.findtext(f"size/{side}", ""))) for side in ("width", "height"))
    boxes, names, ids, difficult = [], [], [], []
    for k, thing in enumerate(tree.findall("object")):
        where = f"{path.name}, object {k + 1}"
        with bad_records.guard(where):
            sides = [float(thing.findtext(f"bndbox/{side}", "")) for side in ("xmin", "ymin", "xmax", "ymax")]
            # VOC counts pixels from 1, both ends inclusive.
            box = good_box([sides[0] - 1, sides[1] - 1, sides[2], sides[3]], width, height, where)
            name = good_name(thing.findtext("name") or "", where)
            hard = (thing.findtext("difficult") or "0").strip() == "1"
            boxes.append(box)
            names.append(name)
            ids.append(f"{image_id}_{k}")
            difficult.append(hard)
    picture = top / "JPEGImages" / f"{image_id}.jpg"  # what stands in the XML may have another suffix
    return entry(picture, image_id, (width, height), boxes, names, ids, difficult=difficult)
