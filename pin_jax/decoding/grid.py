"""Grid decoding: the answer is a box on a known grid, so only tokens that can follow are ever chosen.

The next token's probability is taken over the tokens that can stand there, so that the boxes' probabilities sum to
one; brackets, commas and whatever else is forced are read together with the choice before them and cost no step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pin_jax.decoding.automaton import FINAL, BoxAutomaton
from pin_jax.decoding.beams import cache_rows, calls, take
from pin_jax.models.attention import NEGATIVE
from pin_jax.models.interface import Inserts, VisionLanguageModel

DECODERS = ("grid_greedy", "grid_beam", "expected_iou")
KEPT = 4  # boxes kept for each beam, to stand for the distribution
IMPOSSIBLE = NEGATIVE / 2  # log probabilities below it stand for nothing at all


def most_likely(log_w: Float[Array, "R m"], n: int) -> tuple[Float[Array, "R n"], Int[Array, "R n"]]:
    """The n largest of m, and their indices; `NEGATIVE` where there are fewer."""
    m = log_w.shape[1]
    best, pick = jax.lax.top_k(jnp.pad(log_w, [(0, 0), (0, max(n - m, 0))], constant_values=NEGATIVE), n)
    return best, pick.clip(0, m - 1)


def resample(log_w: Float[Array, "R m"], n: int) -> tuple[Float[Array, "R n"], Int[Array, "R n"]]:
    """Picks n of m weighted things that stand for all of them.

    Fearnhead and Clifford's optimal resampling (2003): weights above some c are kept as they are; each stretch of total
    weight c among the others is stood for by one thing in it, with weight c. The sum of the weights stays what it was.
    The stretches begin at a fixed place, so that the same question has the same answer again.

    Args:
      log_w: log weights; below `IMPOSSIBLE` for nothing.

    Returns:
      New log weights, and indices; `NEGATIVE` where there are fewer.
    """
    m = log_w.shape[1]
    log_w = jnp.pad(log_w, [(0, 0), (0, max(n - m, 0))], constant_values=NEGATIVE)
    weights = jnp.where(log_w > IMPOSSIBLE, jnp.exp(log_w), 0)
    order = jnp.argsort(-weights, 1)
    ordered = jnp.take_along_axis(weights, order, 1)
    rest = jnp.cumsum(ordered[:, ::-1], 1)[:, ::-1]  # of each and all smaller ones
    slot = jnp.arange(n)
    limits = rest[:, :n] / (n - slot)  # c, were the first j kept
    whole = (ordered[:, :n] <= limits * (1 + 1e-5)).argmax(1)[:, None]  # the smallest j that is no contradiction
    limit = jnp.take_along_axis(limits, whole, 1)
    others = jnp.where(jnp.argsort(order, 1) < whole, 0, weights)
    share = jnp.cumsum(others, 1) / limit.clip(1e-37)
    place = jax.vmap(functools.partial(jnp.searchsorted, side="right"))(share, slot - whole + 0.5)
    pick = jnp.where(slot < whole, order[:, :n], place).clip(0, m - 1)
    new = jnp.where(slot < whole, ordered[:, :n], jnp.where(place < m, limit, 0))
    return jnp.where(new > 0, jnp.log(new.clip(1e-37)), NEGATIVE), pick


@functools.partial(jax.jit, static_argnames=("vlm", "beams", "kept", "select"))
def search(
    vlm: VisionLanguageModel,
    params: Any,
    vision: Float[Array, "B I N D"],
    ids: Int[Array, "R T"],
    mask: Bool[Array, "R T"],
    inserts: Inserts,
    automaton: BoxAutomaton,
    beams: int = 1,
    kept: int = 1,
    select: Callable = most_likely,
) -> tuple[Int[Array, "R kept"], Float[Array, "R kept"]]:
    """The likeliest boxes that beams on the grid find; one beam is greedy.

    A choice that completes a box ends its beam, and the box's probability is the beam's. With one box `kept`, such a
    choice must be among the best `beams` of its step; otherwise every completed box is a candidate. There is no length
    penalty: no box is likelier for having more digits.

    Args:
      automaton: of the VLM's tokenizer.
      vision, ids, mask, inserts: as in `pin_jax.decoding.search.greedy`.
      beams: the answers that are followed at a time. kept: how many boxes are returned.

    Returns:
      Boxes as indices into `automaton.boxes`, the likeliest first, and their log probabilities
      float32; below `IMPOSSIBLE` where fewer were found. As many beams as there are prefixes find every box.
    """
    prefill, step = calls(vlm, params, inserts)
    rows, width = ids.shape[0], automaton.chain.shape[1]

    def choose(s, logits):
        """From logits float[R, b, V] of the running beams to the best beams after one more choice."""
        places = s["state"]
        scores = jnp.take_along_axis(logits, automaton.chain[places, :, 0], 2)
        allowed = automaton.allowed[places]
        scores = jax.nn.log_softmax(jnp.where(allowed, scores, NEGATIVE)) + s["scores"][..., None]
        scores = jnp.where(allowed, scores, NEGATIVE).reshape(rows, -1)
        box = (s["box"][..., None] + automaton.offset[places]).reshape(rows, -1)
        target = automaton.target[places].reshape(rows, -1)
        complete = target == FINAL
        if kept == 1:
            complete &= scores >= jax.lax.top_k(scores, min(beams, scores.shape[1]))[0][:, -1:]
        found = jnp.concatenate([s["found"], jnp.where(complete, scores, NEGATIVE)], 1)
        found, best = select(found, kept)
        scores, pick = select(jnp.where(target == FINAL, NEGATIVE, scores), beams)
        parent, choice = pick // width, pick % width
        before = take(places, parent)
        source = cache_rows(parent, places.shape[1])
        return {
            "cache": s["cache"] if beams == 1 else s["cache"].reorder(source),
            "tokens": automaton.chain[before, choice].reshape(rows * beams, -1).astype(ids.dtype),
            "lengths": jnp.where(scores > IMPOSSIBLE, automaton.length[before, choice], 0).reshape(-1),
            "state": take(target, pick).clip(0),
            "box": take(box, pick),
            "scores": scores,
            "found": found,
            "boxes": take(jnp.concatenate([s["boxes"], box], 1), best),
        }

    def body(s):
        lengths = s["lengths"] if automaton.ragged else None
        logits, cache = step(s["cache"], s["tokens"], lengths)
        return choose({**s, "cache": cache}, logits.reshape(rows, beams, -1))

    def going(s):
        alive = s["scores"] > IMPOSSIBLE
        if kept == 1:  # probabilities only fall
            alive &= s["scores"] > s["found"]
        return alive.any()

    logits, cache = prefill(vision, ids, mask, automaton.room, start=automaton.start, ragged=automaton.ragged)
    start = {
        "cache": cache,
        "state": jnp.full((rows, 1), automaton.initial),
        "box": jnp.zeros((rows, 1), automaton.offset.dtype),
        "scores": jnp.zeros((rows, 1)),
        "found": jnp.full((rows, kept), NEGATIVE),
        "boxes": jnp.zeros((rows, kept), automaton.offset.dtype),
    }
    s = jax.lax.while_loop(going, body, choose(start, logits[:, None]))
    return s["boxes"], s["found"]


@jax.jit
def best_expected(
    spans: Float[Array, "I 2"], boxes: Float[Array, "R M 4"], log_p: Float[Array, "R M"]
) -> tuple[Float[Array, "R 4"], Float[Array, " R"]]:
    """The box of highest expected IoU, among all boxes of the grid.

    Args:
      spans: every interval of one axis. boxes: that may be true.
      log_p: their log probabilities up to a constant; below `IMPOSSIBLE` for nothing.

    Returns:
      The box, and its expected IoU.
    """

    def overlap(low, high):
        return (jnp.minimum(spans[:, 1], high) - jnp.maximum(spans[:, 0], low)).clip(0)

    side = spans[:, 1] - spans[:, 0]
    areas = side[:, None] * side

    def row(row):
        def add(total, candidate):
            (x1, y1, x2, y2), weight = candidate
            inter = overlap(x1, x2)[:, None] * overlap(y1, y2)
            return total + weight * inter / (areas + (x2 - x1) * (y2 - y1) - inter), None

        total = jax.lax.scan(add, jnp.zeros_like(areas), row)[0]
        x, y = jnp.unravel_index(total.argmax(), total.shape)
        return jnp.stack([spans[x], spans[y]], 1).reshape(-1), total.max()

    return jax.lax.map(row, (boxes, jax.nn.softmax(jnp.where(log_p > IMPOSSIBLE, log_p, -jnp.inf))))


@functools.partial(jax.jit, static_argnames=("vlm", "decoder", "beams"))
def answer(
    vlm: VisionLanguageModel,
    params: Any,
    vision: Float[Array, "B I N D"],
    ids: Int[Array, "R T"],
    mask: Bool[Array, "R T"],
    inserts: Inserts,
    automaton: BoxAutomaton,
    decoder: str,
    beams: int,
) -> tuple[Float[Array, "R 4"], Float[Array, " R"]]:
    """One box for each question, by one of `DECODERS`; arguments as in `search`.

    Returns:
      Boxes x1, y1, x2, y2 in pixels, and the box's probability, or with `expected_iou` its expected IoU.
    """
    ask = functools.partial(search, vlm, params, vision, ids, mask, inserts, automaton)
    if decoder == "expected_iou":
        found, log_p = ask(beams, KEPT * beams, resample)
        return best_expected(automaton.spans, automaton.boxes[found], log_p)
    found, log_p = ask(beams)
    return automaton.boxes[found[:, 0]], jnp.exp(log_p[:, 0])
