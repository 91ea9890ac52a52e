"""Every answer that the box codec can write, as an automaton over a tokenizer's tokens.

Each box is tokenised by the tokenizer itself, so that nothing is assumed about where it cuts: digits, brackets and
commas may stand alone or be merged. The token texts are put into a trie whose equal branches are shared; stretches in
which no choice is left are folded into the choice in front of them. At 16 x 16 cells and a token per number, 18,496
boxes become 272 states.
"""

from __future__ import annotations

import bisect
import functools
from typing import Any

import flax.struct
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from input_pipeline.errors import UserError
from input_pipeline.text.box_codec import BoxCodec, all_boxes

FINAL = -1  # the state in which a box is complete


@flax.struct.dataclass
class BoxAutomaton:
    """States are the places where an answer can go on in more than one way: S of them, with up to K choices.

    Attributes:
      chain: the token of each choice, followed by those that it forces.
      length: how many of the T there are; unused after a choice that completes a box.
      allowed: whether there is such a choice.
      target: the state that it leads to, or FINAL.
      offset: their sum over the choices of an answer is the index of its box.
      boxes: x1, y1, x2, y2 in pixels. spans: the intervals that they have on an axis.
      start: tokens that every answer starts with. initial: the state after them.
      ragged: whether choices force different numbers of tokens.
      room: tokens that are fed after `start`, at most, with the pads behind them.
    """

    chain: Int[Array, "S K T"]
    length: Int[Array, "S K"]
    allowed: Bool[Array, "S K"]
    target: Int[Array, "S K"]
    offset: Int[Array, "S K"]
    boxes: Float[Array, "N 4"]
    spans: Float[Array, "I 2"]
    start: tuple[int, ...] = flax.struct.field(pytree_node=False)
    initial: int = flax.struct.field(pytree_node=False)
    ragged: bool = flax.struct.field(pytree_node=False)
    room: int = flax.struct.field(pytree_node=False)


@functools.lru_cache(maxsize=4)
def build(tokenizer: Any, codec: BoxCodec, tail: str) -> BoxAutomaton:
    """The automaton of a tokenizer's own tokens of every box; about half a second for 16 x 16 cells.

    Args:
      tokenizer: a transformers tokenizer.
      codec: how boxes are written.
      tail: the text behind a box: it may be merged with the closing bracket.

    Raises:
      UserError: the tokenizer cannot write them, or there is but one box.
    """
    boxes = all_boxes(codec)
    texts = [codec.encode(cells) + tail for cells in codec.to_cells(boxes)]
    rows = tokenizer(texts, add_special_tokens=False)["input_ids"]
    order = sorted(range(len(rows)), key=rows.__getitem__)
    rows = [rows[i] for i in order]
    if any(a == b for a, b in zip(rows, rows[1:], strict=False)):
        raise UserError(
            "tokenizer: different boxes become the same tokens; grid decoding needs one that writes all digits"
        )
    if len(rows) == 1:
        raise UserError("a grid of one cell has but one box; grid decoding needs a finer grid")
    states: dict[tuple, int] = {}

    def state(low: int, high: int, depth: int) -> tuple[int, tuple[int, ...]]:
        """The state of rows low to high, which share `depth` tokens, and the tokens forced before it."""
        if high - low == 1:
            return FINAL, ()
        first, last = rows[low], rows[high - 1]  # sorted: what these two share, all share
        place = depth
        while first[place] == last[place]:
            place += 1
        choices, begin = [], low
        while begin < high:
            token = rows[begin][place]
            end = bisect.bisect_right(rows, token, begin, high, key=lambda row: row[place])
            target, forced = state(begin, end, place + 1)
            choices.append(((token, *forced), target, begin - low))
            begin = end
        return states.setdefault(tuple(choices), len(states)), tuple(first[depth:place])

    start = state(0, len(rows), 0)[1]
    widest = max(len(chain) for choices in states for chain, _, _ in choices)
    folded = [_split(list(states), width) for width in range(1, widest + 1)]
    steps = [_longest(states, lambda chain: 1)[-1] for states in folded]
    return _arrays(folded[steps.index(steps[-1])], start, boxes[order])  # no wider than saves a step


def _split(states: list[tuple], width: int) -> list[tuple]:
    """The same automaton with at most `width` tokens fed at a time: longer stretches get states of a single choice."""
    out: dict[tuple, int] = {}
    known: list[int] = []

    def shorten(chain: tuple[int, ...], target: int, offset: int) -> tuple:
        if len(chain) > width:
            return chain[:width], out.setdefault((shorten(chain[width:], target, 0),), len(out)), offset
        return chain, target if target == FINAL else known[target], offset

    for choices in states:
        known.append(out.setdefault(tuple(shorten(*choice) for choice in choices), len(out)))
    return list(out)


def _longest(states: list[tuple], weight: Any) -> list[int]:
    """The largest sum of weight(chain) from each state on; the choice that completes a box is not fed and weighs 0."""
    out: list[int] = []
    for choices in states:  # targets come before the states that lead to them
        out.append(max(0 if target == FINAL else weight(chain) + out[target] for chain, target, _ in choices))
    return out


def _arrays(states: list[tuple], start: tuple[int, ...], boxes: Any) -> BoxAutomaton:
    """States as lists of (tokens, target, offset) -> arrays."""
    lengths = {len(chain) for choices in states for chain, target, _ in choices if target != FINAL} or {1}
    ragged, width, most = len(lengths) > 1, max(lengths), max(map(len, states))

    def table(value: Any, nothing: Any, dtype: Any = np.int32) -> Any:
        return np.array([[value(c) for c in choices] + [nothing] * (most - len(choices)) for choices in states], dtype)

    return BoxAutomaton(
        chain=table(lambda c: (*c[0], *[0] * (width - len(c[0]))), (0,) * width),
        length=table(lambda c: len(c[0]), 0),
        allowed=table(lambda c: True, False, bool),
        target=table(lambda c: c[1], FINAL),
        offset=table(lambda c: c[2], 0),
        boxes=boxes,
        spans=np.unique(boxes[:, [0, 2]], axis=0),  # pyright: ignore[reportArgumentType]
        start=start,
        initial=len(states) - 1,
        ragged=ragged,
        room=_longest(states, len)[-1] + width * ragged,
    )
