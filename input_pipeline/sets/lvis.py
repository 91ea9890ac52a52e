"""LVIS's categories: their names, synonyms, and which of them are COCO's or VOC's."""

from __future__ import annotations

import functools

from input_pipeline.errors import UserError
from input_pipeline.sets import names
from input_pipeline.sets.names import normalise

GROUPS = ("@coco", "@voc")


@functools.cache
def categories() -> tuple[str, ...]:
    """The 1203 names, normalised, in the order of their ids less one (X-Paste's index)."""
    return tuple(normalise(name) for name in names.table("lvis").column("name"))


@functools.cache
def synonyms() -> dict[str, tuple[str, ...]]:
    """Name -> its other names, normalised; names of COCO are known as well, through their synsets."""
    table = names.table("lvis")
    by_synset, out = {}, {}
    for name, synset, others in table.rows:
        known = dict.fromkeys(normalise(other) for other in (name, *others.split("|")))
        by_synset[synset] = known
        out.setdefault(normalise(name), tuple(other for other in known if other != normalise(name)))
    coco = names.table("coco")
    for name, synset in zip(coco.column("published"), coco.column("synset"), strict=True):
        out.setdefault(name, tuple(other for other in by_synset.get(synset, ()) if other != name))
    return out


@functools.cache
def group(which: str) -> frozenset[str]:
    """LVIS names that belong to an evaluation set.

    `@coco`: those whose synset is one of the 80 classes'. `@voc`: those of which a synonym is one of the 20 names.

    Raises:
      UserError: another group.
    """
    if which not in GROUPS:
        raise UserError(f"exclude {which!r}: expected a name, or a group: {', '.join(GROUPS)}")
    table = names.table("lvis")
    if which == "@coco":
        synsets = set(names.table("coco").column("synset"))
        return frozenset(normalise(name) for name, synset, _ in table.rows if synset in synsets)
    voc = names.table("voc")
    wanted = {name for column in ("published", "readable") for name in voc.column(column)}
    return frozenset(
        normalise(name) for name, _, others in table.rows if wanted & {normalise(other) for other in others.split("|")}
    )
