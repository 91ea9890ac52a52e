"""Class names of published sets, with the renamings that papers use: one table a set, whose head names the sources."""

from __future__ import annotations

import dataclasses
import functools
from importlib import resources

from input_pipeline.errors import UserError


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of names.

    Attributes:
      columns: names of the columns; the first is how the set spells a class.
      rows: text of each cell, in label order.
      background: phrases that stand for background in some renaming; empty for most.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    background: tuple[str, ...] = ()

    def column(self, name: str) -> list[str]:
        """One column.

        Raises:
          UserError: there is none of that name.
        """
        if name not in self.columns:
            known = [column for column in self.columns if column not in ("id", "synset", "synonyms")]
            raise UserError(f"names {name!r}: expected one of {', '.join(known)}")
        return [row[self.columns.index(name)] for row in self.rows]


@functools.cache
def table(name: str) -> Table:
    """`voc`, `context`, `ade20k`, `coco`, `coco_stuff`, `cityscapes` or `lvis`; see names/NAME.tsv."""
    text = resources.files("input_pipeline").joinpath(f"sets/names/{name}.tsv").read_text("utf-8")
    lines = text.splitlines()
    head = [line[2:] for line in lines if line.startswith("# ")]
    background = next((line.split(": ", 1)[1] for line in head if line.startswith("background")), "")
    rows = tuple(tuple(line.split("\t")) for line in lines if line and not line.startswith("#"))
    return Table(tuple(head[-1].split("\t")), rows, tuple(filter(None, background.split("|"))))


def normalise(name: str) -> str:
    """LVIS's `water_bottle_(plastic)` -> `water bottle`: `_` to space, cut at ` (`."""
    return name.replace("_", " ").split(" (")[0].strip()


def phrases(name: str, naming: str) -> tuple[list[list[str]], list[str]]:
    """What each class is asked for by, and what background is: lists of phrases, for a naming that papers use.

    Args:
      name: of a table. naming: a column of it (`published`, `readable`, `sclip`).
    """
    found = table(name)
    return [cell.split("|") for cell in found.column(naming)], list(found.background if naming == "sclip" else ())
