"""Evaluation sources: pasted scenes with their masks, folders of one's own, and published sets.

A source is iterated over; each record has `image` and a truth, as `segmentation`, `points` and `boxes` take it.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np

from gem_jax.evaluation import points
from input_pipeline.errors import UserError
from input_pipeline.files import read_text, regular
from input_pipeline.images import SUFFIXES
from input_pipeline.pasted.looks import Look, called, tints
from input_pipeline.pasted.scenes import Scenes
from input_pipeline.sets import openimages, registry
from input_pipeline.sets.bad_records import BadRecordLog, walk
from input_pipeline.sets.reading.annotated import good_name
from input_pipeline.sets.reading.label_maps import BACKGROUND, IGNORE, LabelMaps, lookup


class NamedScenes:
    """Pasted scenes whose objects are called by tint and name (`green cat`), with masks, points and boxes.

    Attributes:
      scenes: must be made with_masks. classes: everything that an object of these scenes can be called.
    """

    def __init__(self, scenes: Scenes):
        if not scenes.config.with_masks:
            raise ValueError("scenes are without masks; make them with with_masks=True")
        self.scenes = scenes
        looks = [None] if not scenes.config.look_share else None
        self.classes = [
            called(name, look)
            for name in scenes.names
            for look in looks or [Look("big", tint) for tint in tints(name, scenes.config.pairs)]
        ]

    def __len__(self) -> int:
        return len(self.scenes)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.part(0, 1)

    def part(self, first: int, step: int) -> Iterator[dict[str, Any]]:
        """Every `step`-th from the `first` on."""
        for index in range(first, len(self.scenes), step):
            record = self.scenes[index]
            looks = record["looks"] or [None] * len(record["names"])
            names = [called(name, look) for name, look in zip(record["names"], looks, strict=True)]
            rng = np.random.default_rng([self.scenes.seed, index, 1])
            yield record | {
                "names": names,
                "query_text": names,
                "points": points.from_masks(rng, names, record["masks"]),
            }


def _images(root: pathlib.Path) -> dict[str, pathlib.Path]:
    files = sorted(p for p in (root / "images").glob("*") if p.suffix.lower() in SUFFIXES)
    if not files:
        raise UserError(f"data folder {root}: no picture in {root / 'images'}; put JPEG or PNG files there")
    return {path.stem: path for path in files}


def label_folder(root: str | pathlib.Path, background: bool = True) -> LabelMaps:
    """DIR/images/NAME.jpg with DIR/labels/NAME.png (Pascal VOC's form) and DIR/classes.txt, a class a line.

    A label pixel is 1 + the class; 255 is left out of the score; 0 is background, or left out with `background` False
    (ADE20K, Pascal Context).

    Raises:
      UserError: a folder or file that is missing.
    """
    root = pathlib.Path(root)
    path = root / "classes.txt"
    lines = read_text(path, "classes", "write one class a line, in label order").splitlines()
    classes = [good_name(line, f"{path}, line {k}") for k, line in enumerate(lines, 1) if line.strip()]
    if not classes:
        raise UserError(f"classes {path}: none in it; write one class a line, in label order")
    images = _images(root)
    absent = [name for name in images if not (root / "labels" / f"{name}.png").is_file()]
    if absent:
        raise UserError(f"data folder {root}: {len(absent)} images have no labels/NAME.png, such as {absent[0]}")
    pairs = [(image, root / "labels" / f"{name}.png") for name, image in images.items()]
    table = lookup(range(1, len(classes) + 1), BACKGROUND if background else IGNORE)
    return LabelMaps(str(root), pairs, classes, table, background)


def point_folder(root: str | pathlib.Path, bad_records: BadRecordLog) -> openimages.PointLabels:
    """DIR/images/ID.jpg with DIR/points.csv in OpenImages V7's form: ImageId, X, Y (0 to 1), Label, EstimatedYesNo.

    A column TextLabel, where there is one, holds the names; rows that are neither yes nor no are left out.
    """
    root = pathlib.Path(root)
    path = root / "points.csv"
    regular(path, "points", "expected a CSV with OpenImages V7's columns")
    _images(root)
    return openimages.PointLabels(str(root), openimages.read(path, root / "images", bad_records))


class Published:
    """A set on disk, iterated over by every method in turn; bad records are left out and counted once.

    Attributes:
      name: of the set. records: a random-access source. kind: `boxes`, `labels` or `points`. classes: of labels.
      bad_records: of bad records. phrases, background: what classes are asked for by; see `segmentation.Segmentation`.
    """

    def __init__(self, records: Any, kind: str, bad_records: BadRecordLog, limit: int = 0):
        self.records, self.kind, self.bad_records = records, kind, bad_records
        self.name = getattr(records, "name", kind)
        self.classes = getattr(records, "classes", [])
        self.phrases: Sequence[Sequence[str]] = [[name] for name in self.classes]
        self.background: list[str] = []
        self.limit = min(limit, len(records)) if limit else len(records)

    def __len__(self) -> int:
        return self.limit

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.part(0, 1)

    def part(self, first: int, step: int) -> Iterator[dict[str, Any]]:
        """Every `step`-th from the `first` on."""
        return walk(self.records, self.bad_records, self.limit, first, step)


def open_source(config: Any, say: Callable[[str], None], known: Collection[str] = ()) -> Published:
    """What config.source names: labels:DIR, points:DIR, or a published set below config.data_dir.

    Args:
      known: the names that a small model knows; what is called otherwise is left out. Empty for all.

    Raises:
      UserError: no such source, or not in its layout.
    """
    bad_records = BadRecordLog(config.on_bad_record, say)
    kind, _, where = config.source.partition(":")
    phrases, background = None, []
    records: Any
    if kind == "labels" and where:
        records = label_folder(where, config.background)
    elif kind == "points" and where:
        records = point_folder(where, bad_records)
    else:
        try:
            kind = registry.kind(config.source, config.data_dir)
        except UserError as error:
            raise UserError(
                f"config.source {config.source!r}: expected scenes, labels:DIR, points:DIR, or a {error}"
            ) from error
        if kind == "boxes":
            records = registry.queries(
                config.source, config.data_dir, config.select, bad_records, known, config.split_by
            )
        else:
            records = registry.load(config.source, config.data_dir, bad_records, background=config.background)
        if kind == "labels" and not config.source.startswith("tfds:"):
            phrases, background = registry.phrases(config.source, config.names)
    if kind == "labels":
        phrases = phrases or [[name] for name in records.classes]
        if known:
            phrases = [[phrase for phrase in said if phrase in known] for said in phrases]
            background = [phrase for phrase in background if phrase in known]
            kept = [k for k, said in enumerate(phrases) if said]
            say(f"{config.source}: {len(kept)} of {len(phrases)} classes; the small model has no words for the others")
            records, phrases = records.only(kept), [phrases[k] for k in kept]
    elif kind == "points" and known:
        records = records.only(known)
    if not len(records) or (kind == "labels" and not phrases):
        raise UserError(
            f"config.source {config.source!r}: the small model knows none of its classes; see its model card"
        )
    found = Published(records, kind, bad_records, config.images)
    if phrases:
        found.phrases, found.background = phrases, background
    return found
