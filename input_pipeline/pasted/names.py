"""Which names of a source of cut-outs are trained on, which are held out, and what is left out (PIN, section 4)."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from importlib import resources

from input_pipeline.errors import UserError
from input_pipeline.sets import lvis
from input_pipeline.sets.names import normalise

SPLITS = ("train", "held_out", "all")
HELD_OUT_EVERY = 6  # of the sorted names of a source that has no split of its own
NEVER = ("projectile",)  # X-Paste's recipe uses it for nothing


@functools.cache
def twemoji_table() -> dict[str, tuple[str, str]]:
    """name -> (code point, split) of the 291 twemoji that the small models know (`names/twemoji.tsv`)."""
    text = resources.files("input_pipeline").joinpath("sets/names/twemoji.tsv").read_text("utf-8")
    rows = (line.split("\t") for line in text.splitlines() if line and not line.startswith("#"))
    return {name: (code, split) for name, code, split in rows}


def split_of(kind: str, names: Iterable[str]) -> dict[str, str]:
    """Name -> `train` or `held_out`; a name that is in neither is not in it.

    Twemoji's split stands in its table; X-Paste's is the paper's, which holds out COCO's and VOC's names; any other
    source holds out every sixth of its sorted names.

    Args:
      kind: of the source, as its spec begins. names: all that it has.
    """
    ordered = sorted(set(names))
    if kind == "twemoji":
        return {name: twemoji_table()[name][1] for name in ordered}
    if kind == "xpaste":
        held = members(lvis.GROUPS)
        return {name: "held_out" if name in held else "train" for name in ordered if name not in NEVER}
    last = HELD_OUT_EVERY - 1
    return {name: "held_out" if i % HELD_OUT_EVERY == last else "train" for i, name in enumerate(ordered)}


def members(exclude: Iterable[str]) -> set[str]:
    """Names, with the groups among them (`@coco`, `@voc`) as their names.

    Raises:
      UserError: no text, or a group that does not exist.
    """
    out: set[str] = set()
    for name in exclude:
        if not isinstance(name, str):
            raise UserError(f"exclude {name!r}: expected a name, or a group: {', '.join(lvis.GROUPS)}")
        out |= lvis.group(name) if name.startswith("@") else {normalise(name)}
    return out


def choose(
    kind: str,
    names: Iterable[str],
    split: str,
    exclude: Iterable[str] = (),
    own: Mapping[str, str] | None = None,
) -> set[str]:
    """The names of a split of a source, without those that are left out.

    What `exclude` names is in no split; but for groups that the source itself holds out: left out of training, they
    are its validation (X-Paste).

    Args:
      kind: of the source, or of the one that it was packed from. names: all that it has.
      split: one of `SPLITS`. exclude: names and groups. own: name -> split, where the source brings its own.

    Raises:
      UserError: another split or group.
    """
    if split not in SPLITS:
        raise UserError(f"split {split!r}: expected one of {', '.join(SPLITS)}")
    splits = split_of(kind, names) if own is None else own
    chosen = {name for name in names if name in splits and split in ("all", splits[name])}
    if kind == "xpaste" and split == "held_out":
        exclude = [name for name in exclude if name not in lvis.GROUPS]
    return chosen - members(exclude)
