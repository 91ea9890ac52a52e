"""Photographs with points that say yes or no to a class, in OpenImages V7's form, as one random-access source."""

from __future__ import annotations

import csv
import dataclasses
import pathlib
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np

from input_pipeline.errors import UserError
from input_pipeline.files import regular
from input_pipeline.images import SUFFIXES, open_image
from input_pipeline.sets.bad_records import BadRecordLog
from input_pipeline.sets.reading.annotated import good_name
from input_pipeline.sets.reading.layout import find

COLUMNS = {"ImageId", "X", "Y", "Label", "EstimatedYesNo"}


@dataclasses.dataclass
class PointLabels:
    """Random access to photographs and their points.

    Each record is a dict: image uint8[H, W, 3]; points, rows name, x, y (pixels), positive, of the classes present in
    the image (those with a positive point); image_id; path.

    Attributes:
      name: of the set. rows: image path -> its points (name, x and y from 0 to 1, positive).
    """

    name: str
    rows: list[tuple[pathlib.Path, list[tuple[str, float, float, bool]]]]

    def only(self, names: Collection[str]) -> PointLabels:
        """The same with the points of some of the classes."""
        kept = [(path, [row for row in given if row[0] in names]) for path, given in self.rows]
        return PointLabels(self.name, [row for row in kept if row[1]])

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:  # grain compares this when it restores an iterator
        return f"PointLabels({self.name}, {len(self)} images)"

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> dict[str, Any]:
        path, given = self.rows[index]
        image = np.asarray(open_image(path))
        height, width = image.shape[:2]
        present = {name for name, _, _, positive in given if positive}
        rows = [
            {"name": name, "x": min(int(x * width), width - 1), "y": min(int(y * height), height - 1), "positive": yes}
            for name, x, y, yes in given
            if name in present
        ]
        return {"image": image, "points": rows, "image_id": path.stem, "path": path}


def points(root: str | pathlib.Path, bad_records: BadRecordLog, split: str = "validation") -> PointLabels:
    """OpenImages V7's point labels.

    Args:
      root: with SPLIT/ID.jpg (or images/SPLIT/, images/), the published
        oidv7-(train|val|test)-annotations-point-labels.csv, and oidv7-class-descriptions.csv, which names the labels.
    """
    short = {"validation": "val"}.get(split, split)
    name = f"OpenImages V7 {split}"
    path = find(
        root, name, f"oidv7-{short}-annotations-point-labels.csv", f"*/oidv7-{short}-annotations-point-labels.csv"
    )
    described = [*path.parent.glob("oidv7-class-descriptions.csv"), *pathlib.Path(root).glob("oidv7-class-des*.csv")]
    called = _descriptions(described[0]) if described else {}
    images = find(root, name, split, f"images/{split}", short, "images")
    return PointLabels(name, read(path, images, bad_records, called))


def _rows(path: pathlib.Path) -> Iterator[list[str]]:
    """The rows of a CSV, one by one.

    Raises:
      UserError: no file, or no CSV in UTF-8.
    """
    try:
        with regular(path, "points", "expected a CSV").open(newline="", encoding="utf-8-sig") as file:
            yield from csv.reader(file)
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        raise UserError(f"points {path}: not intact CSV in UTF-8 ({error}); fetch it again") from error


def _descriptions(path: pathlib.Path) -> dict[str, str]:
    return {row[0]: row[1] for row in _rows(path) if len(row) >= 2}


def read(
    path: pathlib.Path, images: pathlib.Path, bad_records: BadRecordLog, called: dict[str, str] | None = None
) -> list[tuple[pathlib.Path, list[tuple[str, float, float, bool]]]]:
    """The points of the pictures in a folder, by picture; rows that are neither yes nor no are left out.

    Args:
      path: of the CSV. called: label -> its name; a column TextLabel goes before it.

    Raises:
      UserError: columns are missing, or no point belongs to a picture; bad rows go to the bad_records.
    """
    files = {p.stem: p for p in sorted(images.glob("*")) if p.suffix.lower() in SUFFIXES}
    found: dict[str, list[tuple[str, float, float, bool]]] = {}
    table = _rows(path)
    columns = next(table, [])
    if missing := COLUMNS - set(columns):
        raise UserError(f"{path}: columns missing: {', '.join(sorted(missing))}")
    for k, cells in enumerate(table):
        row = dict(zip(columns, cells, strict=False))
        if row.get("ImageId") not in files:
            continue
        at = f"{path.name}, row {k + 2}"
        with bad_records.guard(at):
            answer = row["EstimatedYesNo"].lower()
            if answer not in ("yes", "no"):
                continue
            x, y = float(row["X"]), float(row["Y"])
            if not (0 <= x <= 1 and 0 <= y <= 1):
                raise UserError(f"{at}: point {x}, {y}; expected 0 to 1", "point outside")
            name = good_name(row.get("TextLabel") or (called or {}).get(row["Label"]) or row["Label"], at)
            found.setdefault(row["ImageId"], []).append((name.lower(), x, y, answer == "yes"))
    if not found:
        raise UserError(f"{path}: no point of any picture in {images}")
    return [(files[image_id], rows) for image_id, rows in found.items()]
