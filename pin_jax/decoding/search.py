"""Decoding with a cache: greedy and beam search, over any VLM that has `prefill` and `step`."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from pin_jax.decoding.beams import cache_rows, calls, take
from pin_jax.models.attention import NEGATIVE
from pin_jax.models.interface import Inserts, VisionLanguageModel


def _suppress(logits: Float[Array, "R V"], tokens: tuple[int, ...]) -> Float[Array, "R V"]:
    return logits.at[:, jnp.array(tokens, int)].set(NEGATIVE) if tokens else logits


@functools.partial(jax.jit, static_argnames=("vlm", "steps", "suppress"))
def greedy(
    vlm: VisionLanguageModel,
    params: Any,
    vision: Float[Array, "B I N D"],
    ids: Int[Array, "R T"],
    mask: Bool[Array, "R T"],
    inserts: Inserts,
    steps: int = 12,
    suppress: tuple[int, ...] = (),
) -> Int[Array, "R steps"]:
    """The likeliest next token, `steps` times.

    Args:
      vision: from `encode`.
      ids: left-padded; R a multiple of B.
      inserts: what a method puts in.
      suppress: tokens that are never written (`<image>`, for one).

    Returns:
      Tokens; pads after the end token.
    """
    prefill, step = calls(vlm, params, inserts)
    end, pad = vlm.config.end_token, vlm.config.pad_token
    logits, cache = prefill(vision, ids, mask, steps)
    out = jnp.full((ids.shape[0], steps), pad, ids.dtype)

    def body(state):
        i, logits, cache, out, done = state
        token = jnp.where(done, pad, _suppress(logits, suppress).argmax(-1)).astype(ids.dtype)
        out = jax.lax.dynamic_update_slice_in_dim(out, token[:, None], i, 1)
        logits, cache = step(cache, token)
        return i + 1, logits, cache, out, done | (token == end)

    def going(state):
        return (state[0] < steps) & ~state[4].all()

    return jax.lax.while_loop(going, body, (0, logits, cache, out, jnp.zeros(ids.shape[0], bool)))[3]


@functools.partial(jax.jit, static_argnames=("vlm", "steps", "suppress", "beams", "length_penalty"))
def beam(
    vlm: VisionLanguageModel,
    params: Any,
    vision: Float[Array, "B I N D"],
    ids: Int[Array, "R T"],
    mask: Bool[Array, "R T"],
    inserts: Inserts,
    steps: int = 12,
    suppress: tuple[int, ...] = (),
    beams: int = 3,
    length_penalty: float = 1.0,
) -> Int[Array, "R steps"]:
    """Beam search by transformers' rules (early_stopping False).

    Each step keeps the best 2 x beams continuations; those among the first `beams` that end are finished, with score
    sum(log p) / length^length_penalty; the best that go on run further, until no running beam can beat the worst
    finished one.

    Returns:
      The best text of each row; pads after the end token. Other arguments as in `greedy`.
    """
    prefill, step = calls(vlm, params, inserts)
    end, pad = vlm.config.end_token, vlm.config.pad_token
    rows = ids.shape[0]
    logits, cache = prefill(vision, ids, mask, steps)
    every = jnp.repeat(jnp.arange(rows), beams)
    logits, cache = logits[every], cache.reorder(every)
    start = {
        "i": jnp.zeros((), jnp.int32),
        "logits": logits,
        "cache": cache,
        "running": jnp.full((rows, beams, steps), pad, ids.dtype),
        "scores": jnp.where(jnp.arange(beams) == 0, 0.0, NEGATIVE) * jnp.ones((rows, 1)),
        "finished": jnp.full((rows, beams, steps), pad, ids.dtype),
        "finished_scores": jnp.full((rows, beams), NEGATIVE),
        "is_finished": jnp.zeros((rows, beams), bool),
        "open": jnp.ones((rows, 1), bool),  # a running beam may still beat the worst finished one
    }

    def body(s):
        log_probs = jax.nn.log_softmax(_suppress(s["logits"], suppress)).reshape(rows, beams, -1)
        vocab = log_probs.shape[-1]
        totals = (log_probs + s["scores"][..., None]).reshape(rows, -1)
        best, flat = jax.lax.top_k(totals, 2 * beams)
        parent, token = flat // vocab, (flat % vocab).astype(ids.dtype)
        texts = take(s["running"], parent)
        texts = jax.lax.dynamic_update_slice_in_dim(texts, token[..., None], s["i"], 2)
        length = s["i"] + 1
        ends = (token == end) | (length == steps)
        # Those that go on.
        scores, pick = jax.lax.top_k(best + jnp.where(ends, NEGATIVE, 0.0), beams)
        # Those that end; only the first `beams` candidates may.
        done = ends & (jnp.arange(2 * beams) < beams)
        ended = best / length.astype(jnp.float32) ** length_penalty
        ended = ended + jnp.where(done & s["open"], 0.0, NEGATIVE)
        all_scores = jnp.concatenate([s["finished_scores"], ended], 1)
        finished_scores, keep = jax.lax.top_k(all_scores, beams)
        finished = take(jnp.concatenate([s["finished"], texts], 1), keep)
        is_finished = take(jnp.concatenate([s["is_finished"], done & s["open"]], 1), keep)
        worst = jnp.where(is_finished, finished_scores.min(1, keepdims=True), NEGATIVE)
        possible = scores[:, :1] / length.astype(jnp.float32) ** length_penalty
        still_open = s["open"] & (possible > worst).any(1, keepdims=True)
        source = cache_rows(take(parent, pick), beams)
        logits, cache = step(s["cache"].reorder(source), take(token, pick).reshape(-1))
        return {
            "i": length,
            "logits": logits,
            "cache": cache,
            "running": take(texts, pick),
            "scores": scores,
            "finished": finished,
            "finished_scores": finished_scores,
            "is_finished": is_finished,
            "open": still_open,
        }

    s = jax.lax.while_loop(lambda s: (s["i"] < steps) & s["open"].any(), body, start)
    found = s["is_finished"].any(1)[:, None]
    return jnp.where(found, s["finished"][:, 0], s["running"][:, 0])
