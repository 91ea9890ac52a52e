"""VPT: learned tokens at the vision encoder's input (phi_V) or before the fusion module (F), in the shallow form.

Jia et al. 2022; baselines of PIN, section 5.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from input_pipeline.errors import UserError
from pin_jax.models.interface import Inserts


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Tokens float32[P, D], the same for every image.

    Attributes:
      config: of the VLM they go into.
      tokens: P.
      dropout: in training, of single values, anew for each image.
      place: the field of `Inserts`.

    Raises:
      UserError: a number of tokens or a dropout that cannot be.
    """

    config: Any
    tokens: int = 20
    dropout: float = 0.0
    place: ClassVar[str] = ""

    def __post_init__(self):
        if self.tokens < 1 or not 0 <= self.dropout < 1:
            raise UserError(
                f"config.method_options: {self.tokens} tokens, dropout {self.dropout}; expected at least one token, and"
                " a dropout from 0 to below 1"
            )

    def init(self, rng: jax.Array, frozen: Any = None) -> Any:
        """VPT's start: uniform in +-sqrt(6 / (3 p p + D)), p the patch size."""
        vision = self.config.vision
        bound = math.sqrt(6 / (3 * vision.patch**2 + vision.width))
        return {"tokens": jax.random.uniform(rng, (self.tokens, vision.width), jnp.float32, -bound, bound)}

    def inserts(self, params: Any, rng: jax.Array | None = None, images: int = 1) -> Inserts:
        """Parameters -> the tokens at their place: float[P, D]; in training with dropout float[images, P, D]."""
        tokens = params["tokens"]
        if rng is not None and self.dropout:
            keep = 1 - self.dropout
            kept = jax.random.bernoulli(rng, keep, (images, *tokens.shape))
            tokens = jnp.where(kept, tokens / keep, 0)
        return dataclasses.replace(Inserts(), **{self.place: tokens})


@dataclasses.dataclass(frozen=True)
class VptVision(Tokens):
    """VPT on phi_V: after the class token at the vision encoder's input; their outputs stay among the visual tokens."""

    dropout: float = 0.1
    place: ClassVar[str] = "vision_input"


@dataclasses.dataclass(frozen=True)
class VptFusion(Tokens):
    """VPT on F: among the visual features that the fusion module reads."""

    place: ClassVar[str] = "fusion_input"
