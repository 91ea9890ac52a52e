"""What evaluation reads: pasted scenes with their masks, and folders of photographs with label images or points.

A source is iterated over; each record has `image` and a truth, as `segmentation`, `points` and `boxes` take it.
"""

from __future__ import annotations

import csv
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from gem_jax import points
from gem_jax.contrastive import called
from gem_jax.segmentation import BACKGROUND, IGNORE
from input_pipeline.errors import UserError
from input_pipeline.images import open_image
from input_pipeline.looks import Look, tints
from input_pipeline.scenes import Scenes


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
        for index in range(len(self.scenes)):
            record = self.scenes[index]
            looks = record["looks"] or [None] * len(record["names"])
            names = [called(name, look) for name, look in zip(record["names"], looks, strict=True)]
            rng = np.random.default_rng([self.scenes.seed, index, 1])
            yield record | {"names": names, "said": names, "points": points.from_masks(rng, names, record["masks"])}


def _images(root: pathlib.Path) -> dict[str, pathlib.Path]:
    files = sorted(p for p in (root / "images").glob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"))
    if not files:
        raise UserError(f"data folder {root}: no picture in {root / 'images'}; put JPEG or PNG files there")
    return {path.stem: path for path in files}


class LabelFolder:
    """DIR/images/NAME.jpg with DIR/labels/NAME.png (Pascal VOC's form) and DIR/classes.txt, a class a line.

    A label pixel is 1 + the class; 255 is left out of the score; 0 is background, or left out with `background` False
    (ADE20K, Pascal Context).

    Raises:
      UserError: a folder, file or label that is missing or does not fit.
    """

    def __init__(self, root: str | pathlib.Path, background: bool = True):
        self.root, self.background = pathlib.Path(root), background
        path = self.root / "classes.txt"
        if not path.is_file():
            raise UserError(f"data folder {root}: no classes.txt in it; write one class a line, in label order")
        self.classes = [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
        self.images = _images(self.root)
        absent = [name for name in self.images if not (self.root / "labels" / f"{name}.png").is_file()]
        if absent:
            raise UserError(f"data folder {root}: {len(absent)} images have no labels/NAME.png, such as {absent[0]}")

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for name, path in self.images.items():
            with Image.open(self.root / "labels" / f"{name}.png") as file:
                given = np.asarray(file).astype(np.int64)
            photo = open_image(path)
            if given.shape != (photo.height, photo.width):
                raise UserError(f"labels/{name}.png: {given.shape}, its image has {(photo.height, photo.width)}")
            if ((given > len(self.classes)) & (given != 255)).any():
                raise UserError(f"labels/{name}.png: label {given[given != 255].max()}, classes.txt has fewer classes")
            zero = BACKGROUND if self.background else IGNORE
            yield {"image": photo, "labels": np.where(given == 0, zero, np.where(given == 255, IGNORE, given - 1))}


class PointFolder:
    """DIR/images/ID.jpg with DIR/points.csv in OpenImages V7's form: ImageId, X, Y (0 to 1), Label, EstimatedYesNo.

    A column TextLabel, where there is one, holds the names; rows that are neither yes nor no are left out.
    """

    def __init__(self, root: str | pathlib.Path):
        root = pathlib.Path(root)
        path = root / "points.csv"
        if not path.is_file():
            raise UserError(f"data folder {root}: no points.csv in it; expected OpenImages V7's columns")
        self.images = _images(root)
        self.rows: dict[str, list[dict[str, str]]] = {}
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            missing = {"ImageId", "X", "Y", "Label", "EstimatedYesNo"} - set(reader.fieldnames or ())
            if missing:
                raise UserError(f"{path}: columns missing: {', '.join(sorted(missing))}")
            for row in reader:
                if row["ImageId"] in self.images and row["EstimatedYesNo"].lower() in ("yes", "no"):
                    self.rows.setdefault(row["ImageId"], []).append(row)
        if not self.rows:
            raise UserError(f"{path}: no point of any picture in {root / 'images'}")

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for name, rows in self.rows.items():
            photo = open_image(self.images[name])
            given = [
                {
                    "name": (row.get("TextLabel") or row["Label"]).lower(),
                    "x": min(int(float(row["X"]) * photo.width), photo.width - 1),
                    "y": min(int(float(row["Y"]) * photo.height), photo.height - 1),
                    "positive": row["EstimatedYesNo"].lower() == "yes",
                }
                for row in rows
            ]
            positive = {row["name"] for row in given if row["positive"]}  # the classes present in the image
            yield {"image": photo, "points": [row for row in given if row["name"] in positive]}
