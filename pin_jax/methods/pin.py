"""PIN: x* = x + psi(S) after the frozen vision encoder (PIN, section 3)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from pin_jax.models.insert import PositionalInsert
from pin_jax.models.interface import Inserts


@dataclasses.dataclass(frozen=True)
class Pin:
    """The positional insert as a method; see `pin_jax.methods`.

    Attributes:
      config: of the VLM it goes into.
      learned: learned positions instead of the fixed sinusoid.
      hidden: widths of psi's hidden layers.
    """

    config: Any
    learned: bool = False
    hidden: tuple[int, ...] = (512, 768)

    @property
    def module(self) -> PositionalInsert:
        return PositionalInsert(
            self.config.media_tokens, self.config.vision.width, tuple(self.hidden), learned=self.learned
        )

    def init(self, rng: jax.Array, frozen: Any = None) -> Any:
        """Parameters, float32."""
        return self.module.init(rng)["params"]

    def inserts(self, params: Any, rng: jax.Array | None = None, images: int = 1) -> Inserts:
        """Parameters -> what goes into the VLM: psi(S) float[N, D] on the vision encoder's output."""
        return Inserts(vision_output=self.module.apply({"params": params}))
