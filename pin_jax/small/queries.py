"""How the small BLIP-2 starts: queries that gather alike patches, and a decoder in whose space they stand.

A Q-Former that starts from small random weights has to find by chance that a query can stand for an object. That is
given at the start instead, as the small Flamingo's cross-attention is (`small.language.match_init`); everything is
then trained.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np

from pin_jax.models.layers import standardise
from pin_jax.small.language import EMBEDDING_SCALE

GATHER = 3.0  # weight of what a query reads, beside the query itself
REST = 0.1  # what is left of a layer's random start
MATCH = 1.5  # sharpness of a query's attention to what is like it


def gather_init(qformer: Any, rng: jax.Array) -> Any:
    """Starts a Q-Former whose queries gather the patches that are alike, layer by layer (a mean shift).

    W_q = W_k = one random rotation, W_v and W_o near identities: the queries stay in the space of the vision tokens,
    of the same width, so that names find them there.

    Args:
      qformer: parameters of a `QFormer` as wide as the vision encoder.
    """
    cross, queries = qformer["cross"], jax.random.normal(jax.random.fold_in(rng, 1), qformer["queries"].shape)
    width = queries.shape[-1]
    look = MATCH * jax.random.orthogonal(rng, width)
    starts = {"q": look, "k": look, "v": jnp.eye(width), "out": GATHER * jnp.eye(width)}
    cross = {**cross, **{n: {**cross[n], "kernel": REST * cross[n]["kernel"] + s} for n, s in starts.items()}}
    return {**qformer, "queries": queries, "cross": cross}


def start(params: Any, rng: jax.Array, qformer: Any, name_ids: np.ndarray, names: jax.Array) -> Any:
    """Starts stage 2 of a small BLIP-2: the Q-Former of stage 1, and a decoder in whose space its queries stand.

    Args:
      params: the BLIP-2's parameters. qformer: those of the trained Q-Former.
      name_ids: int[names], token id of each name. names: float[names, D], their embeddings in stage 1.
    """
    projection, lm = params["projection"], params["lm"]
    kernel = REST * projection["kernel"] + EMBEDDING_SCALE * jnp.eye(*projection["kernel"].shape)
    embedding = jax.random.normal(rng, lm["embedding"].shape) * EMBEDDING_SCALE
    lm = {**lm, "embedding": embedding.at[name_ids].set(standardise(names) * EMBEDDING_SCALE)}
    return {**params, "qformer": qformer, "projection": {**projection, "kernel": kernel}, "lm": lm}


class QueryBank(grain.sources.RandomAccessDataSource):
    """Drawn scenes as the decoder meets them: `names`, `looks` and `vision` float32[Q, D], and no word of any place.

    Attributes:
      bank: scene records with vision tokens. read: tokens float[B, N, E] -> queries float[B, Q, D]; each is read once.
    """

    def __init__(self, bank: Any, read: Callable[[np.ndarray], jax.Array], batch: int = 250):
        self.bank, self._records = bank, []
        for start in range(0, len(bank), batch):
            rows = [bank[i] for i in range(start, min(start + batch, len(bank)))]
            found = np.asarray(read(np.stack([row["vision"] for row in rows])), np.float32)
            self._records += [
                {"names": row["names"], "looks": row["looks"], "vision": queries}
                for row, queries in zip(rows, found, strict=True)
            ]

    def __len__(self) -> int:
        return len(self._records)

    def __repr__(self) -> str:
        return f"QueryBank({self.bank!r})"

    def __getitem__(self, index: int) -> dict[str, Any]:
        return dict(self._records[index])
