"""CoOp: learned embeddings in front of the text, one context for all names (Zhou et al. 2022; PIN, section 5)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from pin_jax.models.interface import Inserts


@dataclasses.dataclass(frozen=True)
class CoOp:
    """CoOp: learned embeddings in front of the text, drawn at first from a normal distribution of deviation 0.02.

    Attributes:
      config: of the VLM they go into.
      tokens: how many.
    """

    config: Any
    tokens: int = 20

    def init(self, rng: jax.Array, frozen: Any = None) -> Any:
        """Parameters, float32[P, D] of the language model's width."""
        return {"tokens": 0.02 * jax.random.normal(rng, (self.tokens, self.config.lm.width), jnp.float32)}

    def inserts(self, params: Any, rng: jax.Array | None = None, images: int = 1) -> Inserts:
        """Parameters -> the text's first embeddings float[P, D]."""
        return Inserts(text=params["tokens"])
