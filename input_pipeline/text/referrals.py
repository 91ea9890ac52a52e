"""Positional referrals: names that say where, for RefCOCO (PIN, section 4; its code).

A name pasted twice carries its position relative to the other one; any other name may carry its absolute place on a
3 x 3 split of the image. LVIS synonyms can stand in for the name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

VERTICAL = (("above", "top"), ("below", "bottom"))
MIDDLE = ("middle", "center")
DEPTH = (("before", "in front"), ("behind",))


SIDES = ("left", "right")


def _forms(place: str, name: str) -> tuple[str, str, str]:
    return f"{place} {name}", f"{name} {place}", f"{name} on {place}"


def phrase(rng: np.random.Generator, place: str, name: str) -> str:
    """`left X`, `X left` or `X on left`, drawn uniformly."""
    return _forms(place, name)[int(rng.integers(3))]


def every_phrase(names: Iterable[str], positional: bool) -> set[str]:
    """The names, and with `positional` all that `referrals` may say of them."""
    out = set(names)
    if positional:
        places = {*SIDES, *MIDDLE, *(word for pair in (*VERTICAL, *DEPTH) for word in pair)}
        out |= {said for name in set(out) for place in places for said in _forms(place, name)}
    return out


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def relative(rng: np.random.Generator, box: np.ndarray, other: np.ndarray, on_top: bool) -> str:
    """Where `box` lies from `other` (both int[4] cells): the axis on which their centres differ more decides.

    Boxes that overlap may instead be told apart by which was pasted later (`before` / `behind`).
    """
    dx, dy = ((box[[0, 1]] + box[[2, 3]]) - (other[[0, 1]] + other[[2, 3]])) / 2
    size = np.minimum(box[2:], other[2:]) - np.maximum(box[:2], other[:2]) + 1
    if (size > 0).all() and rng.random() < 0.5:
        return _pick(rng, DEPTH[0] if on_top else DEPTH[1])
    if abs(dx) >= abs(dy):
        return SIDES[int(dx >= 0)]
    return _pick(rng, VERTICAL[0] if dy < 0 else VERTICAL[1])


def absolute(rng: np.random.Generator, box: np.ndarray, grid: int) -> str:
    """The third of the image in which the centre of `box` (int[4] cells) lies: one word, rows or columns."""
    col, row = np.minimum((box[:2] + box[2:] + 1) * 3 // (2 * grid), 2)
    if col == 1 and row == 1:
        return _pick(rng, MIDDLE)
    words = []
    if col != 1:
        words.append(SIDES[int(col != 0)])
    if row != 1:
        words.append(_pick(rng, VERTICAL[0] if row == 0 else VERTICAL[1]))
    return _pick(rng, words)


def referrals(
    rng: np.random.Generator,
    names: Sequence[str],
    boxes: np.ndarray,
    grid: int,
    absolute_share: float,
    synonyms: Mapping[str, Sequence[str]] | None = None,
) -> list[str]:
    """The phrase that refers to each object.

    Args:
      names: category of each object; at most two share one.
      boxes: int[n, 4] in cells, in paste order.
      absolute_share: probability that a name that stands alone carries its absolute place.
      synonyms: name -> other names for it, one of which may be said instead.
    """
    out = []
    for i, name in enumerate(names):
        said = _pick(rng, (name, *(synonyms or {}).get(name, ())))
        twin = next((j for j, other in enumerate(names) if other == name and j != i), None)
        if twin is not None:
            said = phrase(rng, relative(rng, boxes[i], boxes[twin], i > twin), said)
        elif rng.random() < absolute_share:
            said = phrase(rng, absolute(rng, boxes[i], grid), said)
        out.append(said)
    return out
