"""Selection of images and objects to ask for: the paper's rule, and others, as small grain transforms.

The paper (PIN, section 5): images with at most 3 annotations in all; no crowd or difficult filter; every annotation is
one query by its category name. Transforms take a record with or without its picture.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import grain
import numpy as np

from input_pipeline.errors import UserError
from input_pipeline.sets import lvis
from input_pipeline.sets.reading.annotated import Annotated, keep


@dataclasses.dataclass(frozen=True)
class MaxAnnotations(grain.transforms.Filter):
    """Images with at most so many annotations, of any kind."""

    max_annotations: int

    def filter(self, record: dict[str, Any]) -> bool:
        return len(record["names"]) <= self.max_annotations


class WithObjects(grain.transforms.Filter):
    """Images in which something is left to ask for."""

    def filter(self, record: dict[str, Any]) -> bool:
        return len(record["names"]) > 0


class DropDifficult(grain.transforms.Map):
    """Leaves out objects marked difficult (VOC)."""

    def map(self, record: dict[str, Any]) -> dict[str, Any]:
        return keep(record, ~record["difficult"])


class DropCrowd(grain.transforms.Map):
    """Leaves out crowd annotations (COCO)."""

    def map(self, record: dict[str, Any]) -> dict[str, Any]:
        return keep(record, ~record["crowd"])


class OnePerClass(grain.transforms.Map):
    """One query a class and image: the largest object of each."""

    def map(self, record: dict[str, Any]) -> dict[str, Any]:
        size = np.prod(record["boxes"][:, 2:] - record["boxes"][:, :2], axis=1)
        best = {name: max(np.flatnonzero([n == name for n in record["names"]]), key=lambda i: size[i])
                for name in record["names"]}  # fmt: skip
        return keep(record, [best[name] == i for i, name in enumerate(record["names"])])


@dataclasses.dataclass(frozen=True)
class Renamed(grain.transforms.Map):
    """Asks for objects by another name.

    Attributes:
      others: name -> what is said.
    """

    others: Mapping[str, str]

    def map(self, record: dict[str, Any]) -> dict[str, Any]:
        return record | {"query_text": [self.others.get(said, said) for said in record["query_text"]]}


@dataclasses.dataclass(frozen=True)
class Synonyms(grain.transforms.Map):
    """Asks for objects by one of their LVIS synonyms, the same one for the same annotation."""

    seed: int = 0

    def map(self, record: dict[str, Any]) -> dict[str, Any]:
        said = []
        for name, key in zip(record["query_text"], record["ids"], strict=True):
            options = (name, *lvis.synonyms().get(name, ()))
            number = key if isinstance(key, int) else sum(map(ord, str(key)))
            said.append(options[int(np.random.default_rng([self.seed, number]).integers(len(options)))])
        return record | {"query_text": said}


@dataclasses.dataclass(frozen=True)
class Known(grain.transforms.Map):
    """Leaves out objects that a small model has no word for."""

    names: Collection[str]

    def map(self, record: dict[str, Any]) -> dict[str, Any]:
        return keep(record, [said in self.names for said in record["query_text"]])


@dataclasses.dataclass(frozen=True)
class Rules:
    """What is asked for. The defaults are the paper's.

    Attributes:
      max_annotations: images with at most so many annotations; 0 takes all.
      difficult, crowd: whether such objects stay.
      one_per_class: ask once for each class of an image, for its largest object. synonyms: ask by an LVIS synonym.
      names: `published` spells a class as its set does, `readable` as the table of `input_pipeline/sets/names`.
    """

    max_annotations: int = 3
    difficult: bool = True
    crowd: bool = True
    one_per_class: bool = False
    synonyms: bool = False
    names: str = "published"

    def steps(self, readable: Mapping[str, str] | None = None, known: Collection[str] = ()) -> list[Any]:
        """The transforms, in order.

        Args:
          readable: published name -> readable one. known: names that the model knows; empty for all.
        """
        if self.names not in ("published", "readable"):
            raise UserError(f"config.eval.select.names {self.names!r}: expected published or readable")
        out: list[Any] = [MaxAnnotations(self.max_annotations)] if self.max_annotations else []
        out += [] if self.difficult else [DropDifficult()]
        out += [] if self.crowd else [DropCrowd()]
        out += [OnePerClass()] if self.one_per_class else []
        out += [Renamed(readable)] if self.names == "readable" and readable else []
        out += [Synonyms()] if self.synonyms else []
        out += [Known(frozenset(known))] if known else []
        return [*out, WithObjects()]


FORMER = {"most": "max_annotations"}  # names of rules in programs written before


def rules(options: Mapping[str, Any]) -> Rules:
    """From a config.

    Raises:
      UserError: an option that does not exist.
    """
    known = {field.name for field in dataclasses.fields(Rules)}
    given = {FORMER.get(name, name): value for name, value in options.items()}
    for name in set(given) - known:
        raise UserError(f"selection rule {name!r}: expected one of {', '.join(sorted(known))}")
    return Rules(**given)


def select(source: Annotated, steps: Sequence[Any]) -> Annotated:
    """The source after the steps, with what each has kept in `counts`; no picture is read.

    Raises:
      UserError: nothing is left.
    """
    entries, counts = source.entries, [("in the set", len(source), source.objects())]
    for step in steps:
        if isinstance(step, grain.transforms.Filter):
            entries = [entry for entry in entries if step.filter(entry)]
        else:
            entries = [step.map(entry) for entry in entries]
        counts.append((type(step).__name__, len(entries), sum(len(entry["names"]) for entry in entries)))
    if not entries:
        row = ", ".join(f"{name} {objects}" for name, _, objects in counts)
        raise UserError(f"{source.name}: no query is left by the selection rules ({row}); loosen config.eval.select")
    return dataclasses.replace(source, entries=entries, counts=counts)
