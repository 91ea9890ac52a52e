"""RefCOCO, RefCOCO+ and RefCOCOg: phrases about single objects of train2014, as UNC, Google or UMD split them."""

from __future__ import annotations

import pathlib
from typing import Any

from input_pipeline.errors import UserError
from input_pipeline.sets import coco
from input_pipeline.sets.bad_records import BadRecordLog, good_box
from input_pipeline.sets.reading import pickles
from input_pipeline.sets.reading.annotated import Annotated, entry, good_name, not_empty
from input_pipeline.sets.reading.layout import Pictures, find

SETS = {"refcoco": "unc", "refcoco+": "unc", "refcocog": "umd"}  # and the split file that is read by default


def expressions(
    root: str | pathlib.Path, bad_records: BadRecordLog, which: str = "refcoco", split: str = "testA", by: str = ""
) -> Annotated:
    """One record an image; every sentence about one of its objects is a query.

    Args:
      root: the folder `data` of the published API: WHICH/refs(BY).p, WHICH/instances.json, and COCO's train2014
        pictures in images/mscoco/images/train2014, images/train2014, train2014 or images.
      split: `testA`, `testB`, `val`, `train`; `test` for RefCOCOg.
      by: `unc`, `google` or `umd`.

    Raises:
      UserError: not in that layout, a pickle that holds anything but plain values, or a split that it has not.
    """
    by = by or SETS[which]
    name = f"{which} {split} ({by})"
    refs_path = find(root, name, f"{which}/refs({by}).p", f"refs({by}).p", f"data/{which}/refs({by}).p")
    top = refs_path.parent
    refs = pickles.load(refs_path)
    if not isinstance(refs, list):
        raise UserError(f"{refs_path}: a {type(refs).__name__}; expected a list of references")
    images, annotations, categories = coco.lists(top / "instances.json", "images", "annotations", "categories")
    size_of: dict[Any, tuple[int, int]] = {}
    box_of: dict[Any, list[float]] = {}
    file_of: dict[Any, str] = {}
    for k, image in enumerate(images):
        with bad_records.guard(f"instances.json, image {k}"):
            size_of[image["id"]] = coco.size_of(image)
            file_of[image["id"]] = image["file_name"]
    for k, annotation in enumerate(annotations):
        with bad_records.guard(f"instances.json, annotation {k}"):
            x, y, w, h = annotation["bbox"]
            box_of[annotation["id"]] = [x, y, x + w, y + h]
    known: dict[Any, str] = {}
    for k, category in enumerate(categories):
        with bad_records.guard(f"instances.json, category {k}"):
            known[category["id"]] = category["name"]
    rows: dict[Any, dict[str, list]] = {}
    splits = set()
    for k, ref in enumerate(refs):
        at = f"{refs_path.name}, reference {k}"
        with bad_records.guard(at):
            splits.add(ref["split"])
            if ref["split"] != split:
                continue
            if ref["ann_id"] not in box_of or ref["image_id"] not in size_of:
                raise UserError(f"{at}: ann_id {ref['ann_id']} is not in instances.json", "unknown annotation")
            box = good_box(box_of[ref["ann_id"]], *size_of[ref["image_id"]], at)
            category = str(known.get(ref.get("category_id"), ""))
            added = []
            for sentence in ref["sentences"]:
                with bad_records.guard(at):  # one bad sentence leaves the others
                    about = {"sent_id": sentence["sent_id"], "ref_id": ref["ref_id"], "ann_id": ref["ann_id"]}
                    said = good_name(sentence["sent"], f"{at}, sentence {sentence['sent_id']}")
                    added.append((box, category, said, ref["ann_id"], about))
            if not added:
                continue
            own = rows.setdefault(
                ref["image_id"], {key: [] for key in ("boxes", "names", "query_text", "ids", "sentences")}
            )
            for row in added:
                for key, value in zip(own, row, strict=True):
                    own[key].append(value)
    if split not in splits:
        raise UserError(f"{name}: no such split; {refs_path.name} has {', '.join(sorted(map(str, splits)))}")
    data = pathlib.Path(root)
    pictures = Pictures(
        above / folder
        for above in (data, top.parent, top)
        for folder in ("images/mscoco/images/train2014", "images/train2014", "train2014", "images", "")
    )
    entries = []
    for image_id, own in rows.items():
        with bad_records.guard(f"{name}, image {image_id}"):
            entries.append(entry(pictures.path(file_of[image_id]), image_id, size_of[image_id], **own))
    return Annotated(name, not_empty(name, entries, top))
