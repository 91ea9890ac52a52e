"""How the small BLIP-2 starts: queries that gather alike patches, and a decoder whose texts look into its prefix.

A Q-Former that starts from small random weights has to find by chance that a query can stand for an object, and a
decoder that a prefix can be searched by a name and that what was found belongs to the words that follow. All of it is
given at the start instead, as the small Flamingo's cross-attention is (`pretrain_language.match_init`), whose decoder
has ALiBi besides; everything is then trained.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pin_jax.models.opt import OFFSET
from pin_jax.pretrain_language import EMBEDDING_SCALE
from pin_jax.pretrain_vision import unit

GATHER = 3.0  # weight of what a query reads, beside the query itself
REST = 0.1  # what is left of a layer's random start
MATCH, OUT = 1.5, 0.1  # sharpness of matchers, and weight of what the decoder's read
MARK, LEAN = 0.5, 2.0  # of the prefix: size of its mark beside its content, and how far every text leans to it
PLACE, NEAR = 0.5, 1.0  # size of a position beside the content, and how much layers that look back heed it
PERIODS = (4.0, 256.0)  # shortest and longest of the positions' waves, in tokens


def _matchers(layers: Any, look: jax.Array, which: np.ndarray, out: float) -> Any:
    """Attention layers of which some start as matchers: W_q = W_k = `look`, W_v and W_o near identities.

    Args:
      layers: q, k, v and out, kernels float[layers, D, D] and biases. look: float[D, D]. which: bool[layers].
    """
    width = layers["q"]["kernel"].shape[-1]
    starts = {"q": look, "k": look, "v": jnp.eye(width), "out": out * jnp.eye(width)}
    on = jnp.asarray(which, jnp.float32)[:, None, None]
    return {
        **layers,
        **{
            name: {**layers[name], "kernel": layers[name]["kernel"] * (1 - (1 - REST) * on) + on * start}
            for name, start in starts.items()
        },
    }


def gather_init(qformer: Any, rng: jax.Array) -> Any:
    """Starts a Q-Former whose queries gather the patches that are alike, layer by layer (a mean shift).

    The queries stay in the space of the vision tokens, of the same width, so that names find them there.

    Args:
      qformer: parameters of a `QFormer` as wide as the vision encoder.
    """
    depth = len(qformer["cross"]["q"]["kernel"])
    queries = jax.random.normal(jax.random.fold_in(rng, 1), qformer["queries"].shape)
    look = MATCH * jax.random.orthogonal(rng, queries.shape[-1])
    return {**qformer, "queries": queries, "cross": _matchers(qformer["cross"], look, np.ones(depth, bool), GATHER)}


def waves(length: int, width: int) -> jax.Array:
    """Positions float[length, width] of unit variance: pairs of sine and cosine, from short periods to long ones.

    Their product depends on the distance alone and falls with it; a head's share of the width is one band of periods.
    """
    period = np.geomspace(*PERIODS, width // 2)
    angle = 2 * np.pi * np.arange(length)[:, None] / period
    return jnp.asarray(np.sqrt(2) * np.stack([np.sin(angle), np.cos(angle)], -1).reshape(length, width), jnp.float32)


def search_init(lm: Any, rng: jax.Array, name_ids: np.ndarray, names: jax.Array, queries: int) -> Any:
    """Starts an OPT that looks back by turns at the words just read and, by content, at the queries in its prefix.

    Name embeddings are those of stage 1. Positions are waves: layers 0, 2, ... begin by reading what is near. In layers
    1, 3, ... each word finds what is like it. The first places, where the image's queries stand, bear a mark to which
    every word leans there, or a name would find itself first.

    Args:
      lm: parameters of an `OPT`. name_ids: int[names], token id of each name. names: float[names, D].
      queries: places of the prefix.
    """
    depth, width = lm["blocks"]["q"]["kernel"].shape[:2]
    keys = jax.random.split(rng, 4)
    embedding = (jax.random.normal(keys[0], lm["embedding"].shape) * EMBEDDING_SCALE).at[name_ids].set(
        unit(names) * EMBEDDING_SCALE
    )  # fmt: skip
    mark = unit(jax.random.normal(keys[1], (width,)))
    turn = jax.random.orthogonal(keys[3], width)  # positions lie anywhere among the content's directions
    positions = PLACE * EMBEDDING_SCALE * waves(len(lm["positions"]), width) @ turn
    positions = positions.at[OFFSET : OFFSET + queries].add(MARK * EMBEDDING_SCALE * mark)
    searches, look = np.arange(depth) % 2 == 1, MATCH * jax.random.orthogonal(keys[2], width)
    blocks = _matchers(lm["blocks"], look, searches, OUT)
    blocks = _matchers(blocks, NEAR * turn.T, ~searches, OUT)
    bias = blocks["q"]["bias"] + jnp.asarray(searches, jnp.float32)[:, None] * (LEAN * mark @ look)
    return {
        **lm,
        "embedding": embedding,
        "positions": positions,
        "blocks": {**blocks, "q": {**blocks["q"], "bias": bias}},
    }


def start(params: Any, rng: jax.Array, qformer: Any, name_ids: np.ndarray, names: jax.Array) -> Any:
    """Starts stage 2 of a small BLIP-2: the Q-Former of stage 1, and a decoder that searches what it says.

    Args:
      params: the BLIP-2's parameters. qformer: those of the trained Q-Former. name_ids, names: see `search_init`.
    """
    projection = params["projection"]
    kernel = REST * projection["kernel"] + EMBEDDING_SCALE * jnp.eye(*projection["kernel"].shape)
    lm = search_init(params["lm"], rng, name_ids, names, len(qformer["queries"]))
    return {**params, "qformer": qformer, "projection": {**projection, "kernel": kernel}, "lm": lm}
