"""PIN: x* = x + psi(S) after the frozen vision encoder (PIN, section 3)."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from input_pipeline.errors import UserError
from pin_jax.methods.insert import PositionalInsert
from pin_jax.models.interface import Inserts


@dataclasses.dataclass(frozen=True)
class Pin:
    """The positional insert as a method; see `pin_jax.methods`.

    Attributes:
      config: of the VLM it goes into.
      learned: learned positions instead of the fixed sinusoid.
      hidden: widths of psi's hidden layers.

    Raises:
      UserError: a width that cannot be.
    """

    config: Any
    learned: bool = False
    hidden: tuple[int, ...] = (512, 768)

    def __post_init__(self):
        if any(width < 1 for width in self.hidden):
            raise UserError(f"config.method_options.hidden {self.hidden}: expected widths from 1 on, as (512, 768)")

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
