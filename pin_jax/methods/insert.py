"""The insert psi(S) of PIN: one learned map over the vision tokens, the same for every image (PIN, section 3)."""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp


def sinusoid(tokens: int, channels: int = 64) -> jax.Array:
    """S float[N, C]: S[p, 2i] = sin(p / 10000^(2i/C)), S[p, 2i + 1] = cos of the same angle, p the flat token index."""
    angle = jnp.arange(tokens)[:, None] / 10000 ** (jnp.arange(0, channels, 2) / channels)
    return jnp.stack([jnp.sin(angle), jnp.cos(angle)], -1).reshape(tokens, channels)


def _torch_linear(rng: jax.Array, shape: tuple[int, ...], dtype=jnp.float32, fan_in: int | None = None) -> jax.Array:
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
    def __call__(self) -> jax.Array:
        """Returns psi(S) float32[N, D]."""
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
                name=f"linear_{i}",
            )(x)
            if i < len(self.hidden):
                x = nn.LayerNorm(epsilon=1e-5, name=f"norm_{i}")(jax.nn.silu(x))
        return x
