"""PIN: x* = x + psi(S) behind the frozen vision encoder (PIN, section 3).

x float[N, D] are the vision tokens of an image, S float[N, 64] their positions, fixed or learned, and psi a small MLP.
psi(S) is the same for every image; it is all that is trained.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from input_pipeline.errors import UserError
from pin_jax.models.interface import Inserts


def sinusoid(tokens: int, channels: int = 64) -> Float[Array, "N C"]:
    """S: S[p, 2i] = sin(p / 10000^(2i/C)), S[p, 2i + 1] = cos of the same angle, p the flat token index."""
    angle = jnp.arange(tokens)[:, None] / 10000 ** (jnp.arange(0, channels, 2) / channels)
    return jnp.stack([jnp.sin(angle), jnp.cos(angle)], -1).reshape(tokens, channels)


def _torch_linear(rng: jax.Array, shape: Any, dtype: Any = jnp.float32, fan_in: Any = None) -> jax.Array:
    """torch's Linear default: uniform in +-1/sqrt(fan_in), for weight and bias alike."""
    bound = 1 / math.sqrt(fan_in or shape[0])
    return jax.random.uniform(rng, shape, dtype, -bound, bound)


class PositionalInsert(nn.Module):
    """psi(S): 64 -> 512 -> 768 -> D; each hidden layer is Linear, SiLU, LayerNorm, in that order.

    Attributes:
      tokens: N, the vision tokens it is added to.
      width: D, their width.
      hidden: widths of the hidden layers.
      channels: width of S.
      learned: S is a parameter, uniform in +-sqrt(2 / (N + C)), instead of the fixed sinusoid.
    """

    tokens: int
    width: int
    hidden: tuple[int, ...] = (512, 768)
    channels: int = 64
    learned: bool = False

    @nn.compact
    def __call__(self) -> Float[Array, "N D"]:
        """Returns psi(S), float32."""
        if self.learned:
            bound = math.sqrt(2 / (self.tokens + self.channels))
            x = self.param(
                "positions",
                lambda rng, shape: jax.random.uniform(rng, shape, jnp.float32, -bound, bound),
                (self.tokens, self.channels),
            )
        else:
            x = sinusoid(self.tokens, self.channels)
        for i, features in enumerate((*self.hidden, self.width)):
            fan_in = x.shape[-1]
            x = nn.Dense(
                features,
                kernel_init=_torch_linear,
                bias_init=lambda rng, shape, dtype, fan_in=fan_in: _torch_linear(rng, shape, dtype, fan_in),
                precision="highest",  # a few products of constants: worth more than what they cost
                name=f"linear_{i}",
            )(x)
            if i < len(self.hidden):
                x = nn.LayerNorm(epsilon=1e-5, name=f"norm_{i}")(jax.nn.silu(x))
        return x


@dataclasses.dataclass(frozen=True)
class Pin:
    """The positional insert as a method; see `pin_jax.methods`.

    Attributes:
      config: of the VLM it goes into.
      learned: learned positions instead of the fixed sinusoid.
      hidden: widths of psi's hidden layers.
      start: factor of the last layer's weights before training. At 1, as published, psi starts in the vision tokens'
        own order of size, most of it the same for all of them.

    Raises:
      UserError: a width that cannot be, or a start below 0.
    """

    config: Any
    learned: bool = False
    hidden: tuple[int, ...] = (512, 768)
    start: float = 1.0

    def __post_init__(self):
        if any(width < 1 for width in self.hidden):
            raise UserError(f"config.method_options.hidden {self.hidden}: expected widths from 1 on, as (512, 768)")
        if not self.start >= 0:
            raise UserError(f"config.method_options.start {self.start}: expected a number from 0")

    @property
    def module(self) -> PositionalInsert:
        return PositionalInsert(
            self.config.media_tokens, self.config.vision.width, tuple(self.hidden), learned=self.learned
        )

    def init(self, rng: jax.Array, frozen: Any = None) -> Any:
        """Parameters, float32."""
        params: Any = self.module.init(rng)["params"]
        last = f"linear_{len(self.hidden)}"
        if self.start == 1:
            return params
        return params | {last: jax.tree.map(lambda x: self.start * x, params[last])}

    def inserts(self, params: Any, rng: jax.Array | None = None, images: int = 1) -> Inserts:
        """Parameters -> what goes into the VLM: psi(S) float[N, D] on the vision encoder's output x float[N, D]."""
        psi_of_s: Any = self.module.apply({"params": params})
        return Inserts(vision_output=psi_of_s)  # x* = x + psi(S), by Inserts.after_vision
