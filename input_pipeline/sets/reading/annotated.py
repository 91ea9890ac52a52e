"""Photographs with named boxes as one random-access source, whatever set they come from."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from input_pipeline.errors import UserError
from input_pipeline.files import shortened
from input_pipeline.images import open_image

OBJECTS = (
    "boxes",
    "names",
    "query_text",
    "ids",
    "crowd",
    "difficult",
    "shapes",
    "sentences",
    "category_ids",
)  # an entry a box


@dataclasses.dataclass
class Annotated:
    """Random access to photographs and their boxes.

    Each record is a dict: image uint8[H, W, 3]; boxes float32[n, 4] (x1, y1, x2, y2 in its pixels); names, said: lists
    of n categories, and of what the objects are asked for by; ids: list of n annotation ids; crowd, difficult: bool[n];
    image_id; path; size (width, height); masks bool[n, H, W] with `with_masks`, where the set has them;
    sentences: list of n dicts (RefCOCO); category_ids: list of n numbers, where the set has them (COCO's JSON).

    Attributes:
      name: of the set. entries: the records without their pictures. with_masks: also return masks.
      counts: what selection kept, a row a step: name, images, objects.
    """

    name: str
    entries: list[dict[str, Any]]
    with_masks: bool = False
    counts: list[tuple[str, int, int]] = dataclasses.field(default_factory=list)

    def __len__(self) -> int:
        return len(self.entries)

    def __repr__(self) -> str:  # grain compares this when it restores an iterator
        return f"Annotated({self.name}, {len(self)} images, {self.counts})"

    def objects(self) -> int:
        """Number of boxes."""
        return sum(len(entry["names"]) for entry in self.entries)

    def describe(self, index: int) -> dict[str, Any]:
        """The record without its picture."""
        return {key: value for key, value in self.entries[index].items() if key != "shapes"}

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Reads the picture too.

        Raises:
          UserError: it is missing, broken, too large, or not of the size that was annotated.
        """
        entry = self.entries[index]
        image = self._image(entry)
        height, width = image.shape[:2]
        record = self.describe(index) | {"image": image, "size": (width, height)}
        if self.with_masks and entry.get("shapes") is not None:
            from input_pipeline.sets.reading.masks import decode

            shapes = [decode(shape, width, height, str(entry["path"])) for shape in entry["shapes"]]
            record["masks"] = np.array(shapes, bool).reshape(-1, height, width)
        return record

    def _image(self, entry: dict[str, Any]) -> np.ndarray:
        return np.asarray(open_image(entry["path"], "RGB", entry["size"]))


LONGEST = 500  # letters of a name or a sentence
_SPECIAL = re.compile(r"</?[^<>\s/]{1,40}>")


def good_name(name: Any, where: str) -> str:
    """A name or sentence that can be asked for, without spaces around it.

    Raises:
      UserError: no text, an empty one, one of over 500 letters, or with what a model reads as a special token
        (`<image>`, `</s>`): it would stand for a picture, or end the question.
    """
    if not isinstance(name, str):
        raise UserError(f"{where}: name {shortened(repr(name))}; expected a text", "wrong type")
    if not name.strip():
        raise UserError(f"{where}: its name is empty", "empty name")
    if len(name) > LONGEST:
        raise UserError(f"{where}: a name of {len(name):,} letters; expected {LONGEST} at most", "too long name")
    if found := _SPECIAL.search(name):
        raise UserError(f"{where}: its name has {found[0]!r} in it, a special token of models", "special token")
    return name.strip()


def entry(
    path: str | pathlib.Path,
    image_id: Any,
    size: tuple[int, int] | None,
    boxes: Sequence[np.ndarray] = (),
    names: Sequence[str] = (),
    ids: Sequence[Any] = (),
    crowd: Sequence[bool] = (),
    difficult: Sequence[bool] = (),
    shapes: Sequence[Any] | None = None,
    said: Sequence[str] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """A record without its picture; see `Annotated`."""
    count = len(names)
    return {
        "path": path, "image_id": image_id, "size": size,
        "boxes": np.array(boxes, np.float32).reshape(-1, 4), "names": list(names),
        "query_text": list(names if said is None else said), "ids": list(ids) or list(range(count)),
        "crowd": np.array(crowd, bool) if len(crowd) else np.zeros(count, bool),
        "difficult": np.array(difficult, bool) if len(difficult) else np.zeros(count, bool),
        "shapes": None if shapes is None else list(shapes), **more,
    }  # fmt: skip


def keep(given: dict[str, Any], kept: Sequence[bool] | np.ndarray) -> dict[str, Any]:
    """An entry with some of its objects.

    Raises:
      ValueError: the mask does not fit.
    """
    kept = np.asarray(kept, bool)
    if len(kept) != len(given["names"]):
        raise ValueError(f"{len(kept)} choices for {len(given['names'])} objects")
    out = dict(given)
    for key in OBJECTS:
        value = given.get(key)
        if isinstance(value, np.ndarray):
            out[key] = value[kept]
        elif value is not None:
            out[key] = [item for item, is_kept in zip(value, kept, strict=True) if is_kept]
    return out


def not_empty(name: str, entries: list[dict[str, Any]], where: Any) -> list[dict[str, Any]]:
    """The entries.

    Raises:
      UserError: there are none.
    """
    if not entries:
        raise UserError(f"{name}: no image in {where}; expected its published form (docs/data.md)")
    return entries
