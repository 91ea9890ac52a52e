"""Photographs with a label for every pixel as one random-access source, whatever set they come from."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from input_pipeline.errors import UserError
from input_pipeline.images import MISFIT, open_image, open_labels

BACKGROUND, IGNORE = -1, -2  # in a record's labels; the others are indices of classes


def lookup(values: Sequence[int], zero: int | None = None, ignore: Sequence[int] = (255,)) -> np.ndarray:
    """A table from stored value to label, for `LabelMaps`; values that it does not know are -3.

    Args:
      values: stored value of each class. zero: what a stored 0 is, where it is no class. ignore: left out of the score.
    """
    table = np.full(max(65536, *values), -3, np.int32)
    table[list(ignore)] = IGNORE
    if zero is not None:
        table[0] = zero
    table[list(values)] = np.arange(len(values))
    return table


@dataclasses.dataclass
class LabelMaps:
    """Random access to photographs and their labels.

    Each record is a dict: image uint8[H, W, 3]; labels int32[H, W], indices of `classes`, BACKGROUND or IGNORE;
    image_id; path.

    Attributes:
      name: of the set. pairs: image and labels, each a path. classes: names, in label order.
      read: path -> labels as stored, int[H, W]. table: from `lookup`.
      background: whether background is scored as a class.
    """

    name: str
    pairs: list[tuple[pathlib.Path, Any]]
    classes: list[str]
    table: np.ndarray
    background: bool = True
    read: Callable[[Any], np.ndarray] = open_labels

    def __post_init__(self):
        if not self.pairs:
            raise UserError(f"{self.name}: no image in it; expected its published form (docs/data.md)")

    def only(self, kept: Sequence[int]) -> LabelMaps:
        """The same with some of the classes; pixels of the others are left out of the score."""
        renumbered = np.full(len(self.classes), IGNORE, np.int32)
        renumbered[list(kept)] = np.arange(len(kept))
        table = np.where(self.table >= 0, renumbered[self.table.clip(0)], self.table)
        return dataclasses.replace(self, classes=[self.classes[k] for k in kept], table=table)

    def __len__(self) -> int:
        return len(self.pairs)

    def __repr__(self) -> str:  # grain compares this when it restores an iterator
        return f"LabelMaps({self.name}, {len(self)} images, {len(self.classes)} classes)"

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Reads a picture and its labels.

        Raises:
          UserError: one of them is missing or broken, sizes differ, or a label is none of the set's.
        """
        path, where = self.pairs[index]
        given = self.read(where)
        try:  # labels are drawn on the pixels as they are stored, or on the upright picture: their size tells which
            image = np.asarray(open_image(path, size=given.shape[::-1], stored=True))
        except UserError as error:
            if error.kind != MISFIT:
                raise
            raise UserError(f"labels {_short(where)}: {given.shape}; {error}", "labels of another size") from error
        return {"image": image, "labels": self.labels(given, where), "image_id": path.stem, "path": path}

    def labels(self, given: np.ndarray, where: Any) -> np.ndarray:
        """Labels as stored, int[H, W], as indices of `classes`, BACKGROUND or IGNORE.

        Raises:
          UserError: one of them is none of the set's.
        """
        labels = self.table[given.clip(0, len(self.table) - 1)]
        if (labels == -3).any() or given.min() < 0:
            value = int(given[(labels == -3) | (given < 0)].max())
            raise UserError(
                f"labels {_short(where)}: label {value} is none of the {len(self.classes)} classes of {self.name}",
                "unknown label",
            )
        return labels


def _short(where: Any) -> str:
    return "/".join(where.parts[-2:]) if isinstance(where, pathlib.Path) else str(where)
