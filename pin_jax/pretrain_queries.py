"""How the small BLIP-2 starts: queries that gather alike patches, and a decoder whose texts look into its prefix.

A Q-Former that starts from small random weights has to find by chance that a query can stand for an object, and a
decoder that a prefix can be searched by a name. Both are given at the start instead, as the small Flamingo's
cross-attention is (`pretrain_language.match_init`); everything is then trained.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pin_jax.models.opt import OFFSET
from pin_jax.pretrain_language import EMBEDDING_SCALE, MATCH, OUT
from pin_jax.pretrain_vision import unit

GATHER = 3.0  # weight of what a query reads, beside the query itself
MARK, LEAN = 0.5, 1.0  # of the prefix: size of its mark beside its content, and how far every text leans to it


def _matchers(layers: Any, rng: jax.Array, which: np.ndarray, out: float) -> Any:
    """Attention layers of which some start as matchers: W_q = W_k one random rotation, W_v and W_o near identities.

    Args:
      layers: q, k, v and out, kernels float[layers, D, D] and biases. which: bool[layers].
    """
    width = layers["q"]["kernel"].shape[-1]
    starts = {"v": jnp.eye(width), "out": out * jnp.eye(width)}
    starts["q"] = starts["k"] = MATCH * jax.random.orthogonal(rng, width)
    on = jnp.asarray(which, jnp.float32)[:, None, None]
    return {
        **layers,
        **{
            name: {**layers[name], "kernel": layers[name]["kernel"] * (1 - 0.5 * on) + on * start}
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
    return {**qformer, "queries": queries, "cross": _matchers(qformer["cross"], rng, np.ones(depth, bool), GATHER)}


def search_init(lm: Any, rng: jax.Array, name_ids: np.ndarray, names: jax.Array, queries: int) -> Any:
    """Starts an OPT whose every second layer lets each name find the queries of its own object in the prefix.

    Name embeddings are those of stage 1. The first places of the position table, where the image's queries stand, bear
    a mark to which every text leans, or a name would find itself first.

    Args:
      lm: parameters of an `OPT`. name_ids: int[names], token id of each name. names: float[names, D].
      queries: places of the prefix.
    """
    depth, width = lm["blocks"]["q"]["kernel"].shape[:2]
    keys = jax.random.split(rng, 3)
    embedding = (jax.random.normal(keys[0], lm["embedding"].shape) * EMBEDDING_SCALE).at[name_ids].set(
        unit(names) * EMBEDDING_SCALE
    )  # fmt: skip
    mark = unit(jax.random.normal(keys[1], (width,)))
    positions = lm["positions"].at[OFFSET : OFFSET + queries].add(MARK * EMBEDDING_SCALE * mark)
    which = np.arange(depth) % 2 == 1
    blocks = _matchers(lm["blocks"], keys[2], which, OUT)
    lean = LEAN * mark @ (MATCH * jax.random.orthogonal(keys[2], width))
    bias = blocks["q"]["bias"] + jnp.asarray(which, jnp.float32)[:, None] * lean
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
    kernel = projection["kernel"] * 0.5 + EMBEDDING_SCALE * jnp.eye(*projection["kernel"].shape)
    lm = search_init(params["lm"], rng, name_ids, names, len(qformer["queries"]))
    return {**params, "qformer": qformer, "projection": {**projection, "kernel": kernel}, "lm": lm}
