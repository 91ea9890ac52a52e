"""The published sets of semantic segmentation, each in the layout that its makers (or mmsegmentation) give it."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np

from input_pipeline.errors import UserError
from input_pipeline.files import read_text, regular
from input_pipeline.sets import coco, names
from input_pipeline.sets.bad_records import BadRecordLog
from input_pipeline.sets.reading.label_maps import BACKGROUND, IGNORE, LabelMaps, lookup
from input_pipeline.sets.reading.layout import find, listed
from input_pipeline.sets.reading.masks import decode


def _classes(table: str) -> list[str]:
    return names.table(table).column("readable")


def voc(root: str | pathlib.Path, bad_records: BadRecordLog, split: str = "val") -> LabelMaps:
    """VOC 2012: JPEGImages/, SegmentationClass/*.png (palette; 0 background, 255 void), ImageSets/Segmentation/."""
    name, lists = f"VOC2012 segmentation {split}", f"ImageSets/Segmentation/{split}.txt"
    path = find(root, name, *(f"{above}{lists}" for above in ("VOC2012/", "VOCdevkit/VOC2012/", "")))
    top = path.parent.parent.parent
    pairs = [(top / "JPEGImages" / f"{i}.jpg", top / "SegmentationClass" / f"{i}.png") for i in listed(path)]
    return LabelMaps(name, pairs, _classes("voc"), lookup(range(1, 21), BACKGROUND))


def context(
    root: str | pathlib.Path, bad_records: BadRecordLog, split: str = "val", background: bool = False
) -> LabelMaps:
    """Pascal Context: 59 classes; with background (its other labels) 60.

    Reads SegmentationClassContext/*.png (0 background, 1 to 59; mmsegmentation's form) with
    ImageSets/SegmentationContext/SPLIT.txt, or the makers' own trainval/*.mat of 459 labels with labels.txt, on the
    images of VOC2010.
    """
    name = f"Pascal Context {60 if background else 59} {split}"
    zero = BACKGROUND if background else IGNORE
    tops = ("VOC2010/", "VOCdevkit/VOC2010/", "")
    where = find(root, name, *(f"{above}SegmentationClassContext" for above in tops),
                 *(f"{above}trainval" for above in tops))  # fmt: skip
    top = where.parent
    ids = _context_ids(root, top, where, split)
    if where.name == "SegmentationClassContext":
        pairs: list[Any] = [(top / "JPEGImages" / f"{i}.jpg", where / f"{i}.png") for i in ids]
        return LabelMaps(name, pairs, _classes("context"), lookup(range(1, 60), zero), background)
    pictures = find(root, name, *(f"{above}JPEGImages" for above in tops))
    table = _context_table(find(top, name, "labels.txt"), zero)
    pairs = [(pictures / f"{i}.jpg", where / f"{i}.mat") for i in ids]
    return LabelMaps(name, pairs, _classes("context"), table, background, _read_mat)


def _context_ids(root: Any, top: pathlib.Path, where: pathlib.Path, split: str) -> list[str]:
    for folder in (top, pathlib.Path(root), *(pathlib.Path(root) / a for a in ("VOC2010", "VOCdevkit/VOC2010"))):
        for lists in ("SegmentationContext", "Segmentation"):
            path = folder / "ImageSets" / lists / f"{split}.txt"
            if path.is_file():
                ids = listed(path)
                # VOC2010's own lists name images that Context has not labelled.
                return ids if lists == "SegmentationContext" else [i for i in ids if any(where.glob(f"{i}.*"))]
    raise UserError(f"Pascal Context: no list of {split}; expected ImageSets/SegmentationContext/{split}.txt in {top}")


def _context_table(path: pathlib.Path, zero: int) -> np.ndarray:
    """labels.txt, lines `1: accordion` -> a table from the 459 labels to the 59."""
    ids = {}
    for line in read_text(path, "labels", "expected lines `1: accordion`").splitlines():
        number, _, label = line.partition(":")
        if label.strip() and number.strip().isdigit():
            ids[label.strip()] = int(number)
    wanted = names.table("context").column("published")
    missing = [label for label in wanted if label not in ids]
    if missing:
        raise UserError(f"labels {path}: {len(missing)} of the 59 classes are not in it, such as {missing[0]}")
    table = lookup([ids[label] for label in wanted], zero, ignore=())
    table[:65536][table[:65536] == -3] = zero
    return table


def _read_mat(path: pathlib.Path) -> np.ndarray:
    from scipy.io import loadmat

    regular(path, "labels", "expected one .mat an image", "missing image")
    try:
        return loadmat(str(path))["LabelMap"].astype(np.int32)
    except Exception as error:  # scipy raises many kinds for a broken file
        raise UserError(f"labels {path}: no intact .mat with a LabelMap ({error})", "unreadable image") from error


def ade20k(root: str | pathlib.Path, bad_records: BadRecordLog, split: str = "validation") -> LabelMaps:
    """ADE20K's 150 classes: ADEChallengeData2016/images/SPLIT/*.jpg, annotations/SPLIT/*.png (0 is left out)."""
    name = f"ADE20K-150 {split}"
    images = find(root, name, f"ADEChallengeData2016/images/{split}", f"images/{split}", f"ade/images/{split}")
    labels = images.parent.parent / "annotations" / split
    pairs = [(p, labels / f"{p.stem}.png") for p in sorted(images.glob("*.jpg"))]
    return LabelMaps(name, pairs, _classes("ade20k"), lookup(range(1, 151), IGNORE), False)


def cityscapes(root: str | pathlib.Path, bad_records: BadRecordLog, split: str = "val") -> LabelMaps:
    """Cityscapes' 19 classes: leftImg8bit/SPLIT/CITY/*, gtFine/SPLIT/CITY/*_labelIds.png or *_labelTrainIds.png."""
    name = f"Cityscapes {split}"
    images = find(root, name, f"leftImg8bit/{split}", f"cityscapes/leftImg8bit/{split}")
    truth = images.parent.parent / "gtFine" / split
    files = sorted(images.glob("*/*_leftImg8bit.png"))
    kind = "labelTrainIds" if any(truth.glob("*/*_gtFine_labelTrainIds.png")) else "labelIds"
    pairs = [(p, truth / p.parent.name / f"{p.name.removesuffix('_leftImg8bit.png')}_gtFine_{kind}.png") for p in files]
    ids = [int(i) for i in names.table("cityscapes").column("id")]
    table = lookup(range(19)) if kind == "labelTrainIds" else lookup(ids, None, [i for i in range(34) if i not in ids])
    return LabelMaps(name, pairs, _classes("cityscapes"), table, False)


def coco_stuff(root: str | pathlib.Path, bad_records: BadRecordLog, split: str = "val2017") -> LabelMaps:
    """COCO-Stuff's 171 classes: SPLIT/*.jpg, and its stuffthingmaps, as published or as *_labelTrainIds.png."""
    name = f"COCO-Stuff {split}"
    labels = find(root, name, *(f"{above}/{split}" for above in
                                ("stuffthingmaps_trainval2017", "stuffthingmaps", "annotations", "annotations/stuff")),
                  f"coco/stuffthingmaps_trainval2017/{split}")  # fmt: skip
    trained = sorted(labels.glob("*_labelTrainIds.png"))
    files = trained or sorted(p for p in labels.glob("*.png") if "_" not in p.stem)
    images = find(root, name, split, f"images/{split}", f"coco/{split}", f"train2017/{split}")
    pairs = [(images / f"{p.stem.removesuffix('_labelTrainIds')}.jpg", p) for p in files]
    ids = range(171) if trained else [int(i) for i in names.table("coco_stuff").column("id")]
    return LabelMaps(name, pairs, _classes("coco_stuff"), lookup(ids), False)


def coco_object(root: str | pathlib.Path, bad_records: BadRecordLog, split: str = "val2017") -> LabelMaps:
    """COCO-Object: the masks of COCO's 80 classes, small ones over large ones; all else is background.

    Reads annotations/SPLIT/*_instanceTrainIds.png (0 background, 1 to 80) where they are, else the masks of
    instances_SPLIT.json.
    """
    name = f"COCO-Object {split}"
    ready = sorted(pathlib.Path(root).glob(f"annotations/{split}/*_instanceTrainIds.png"))
    if ready:
        images = find(root, name, split, f"images/{split}")
        pairs: list[Any] = [(images / f"{p.stem.removesuffix('_instanceTrainIds')}.jpg", p) for p in ready]
        return LabelMaps(name, pairs, _classes("coco"), lookup(range(1, 81), BACKGROUND))
    source = coco.instances(root, bad_records, split, with_masks=True)
    return LabelMaps(
        name, [(entry["path"], _Painted(entry)) for entry in source.entries], _classes("coco"),
        lookup(range(1, 81), BACKGROUND), read=_Painted.paint,
    )  # fmt: skip


class _Painted:
    """The label image that an entry's masks make."""

    def __init__(self, entry: dict[str, Any]):
        self.entry = entry

    def __str__(self) -> str:
        return f"of {self.entry['path'].name}"

    def paint(self) -> np.ndarray:
        """int32[H, W]: 0, or 1 + the class of the smallest mask on it."""
        width, height = self.entry["size"]
        known = {name: k + 1 for k, name in enumerate(names.table("coco").column("published"))}
        masks = [decode(shape, width, height, str(self.entry["path"])) for shape in self.entry["shapes"]]
        out = np.zeros((height, width), np.int32)
        for k in sorted(range(len(masks)), key=lambda k: -masks[k].sum()):
            if self.entry["names"][k] not in known:
                raise UserError(f"{self}: category {self.entry['names'][k]!r} is none of COCO's 80", "unknown category")
            out[masks[k]] = known[self.entry["names"][k]]
        return out
