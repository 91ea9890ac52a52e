"""GPT-NeoX: the decoder blocks of RedPajama-INCITE, OpenFlamingo-4B's language model (rotary, biases, own head)."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from pin_jax.models import layers


@dataclasses.dataclass(frozen=True)
class GPTNeoXConfig:
    """Shape of the decoder; for the members that every language model of a Flamingo has, see `MPTConfig`.

    Attributes:
      vocab, width, depth, heads, mlp: the usual.
      rotary_share: of each head's channels, the first ones, that are rotated. rotary_base: of the angles.
      parallel: attention and feed-forward both read the block's input (GPT-NeoX-20B, Pythia); else one after the other.
      act: key of `layers.ACTIVATIONS`.
    """

    vocab: int = 50432
    width: int = 2560
    depth: int = 32
    heads: int = 32
    mlp: int = 10240
    rotary_share: float = 1.0
    rotary_base: float = 10000.0
    parallel: bool = False
    act: str = "gelu"
    eps: float = 1e-5
    dtype: Any = None

    norm_bias: ClassVar[bool] = True
    tied: ClassVar[bool] = False

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    def block(self, parent: Any = None) -> nn.Module:
        """One block as a pure function of its parameters."""
        return GPTNeoXBlock(self, parent=parent)

    def context(self, query_pos: jax.Array, key_mask: jax.Array) -> tuple[jax.Array, ...]:
        """What every block is given: logit bias float[B, 1, T, S]; cosine and sine of the queries, float[T or B T, R].

        Args:
          query_pos: int[T] or int[B, T], the place of each query among the S keys. Pads count: only differences of
            places are ever seen.
          key_mask: bool[B, S], False at pads.
        """
        earlier = (jnp.arange(key_mask.shape[1]) <= query_pos[..., None])[..., None, :, :]
        bias = jnp.where(earlier & key_mask[:, None, None, :], 0.0, layers.NEGATIVE)
        rotated = int(self.head_dim * self.rotary_share)
        speed = self.rotary_base ** -(jnp.arange(0, rotated, 2) / rotated)
        angle = query_pos[..., None].astype(jnp.float32) * jnp.concatenate([speed, speed])
        return bias, jnp.cos(angle), jnp.sin(angle)


REDPAJAMA_3B = GPTNeoXConfig()


def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotary positions: pairs (i, i + R/2) of the first R channels of x float[B, T, H, d] turn by their angle."""
    turned, rest = jnp.split(x, [cos.shape[-1]], -1)
    first, second = jnp.split(turned.astype(jnp.float32), 2, -1)
    swapped = jnp.concatenate([-second, first], -1)
    turned = turned * cos[..., None, :] + swapped * sin[..., None, :]
    return jnp.concatenate([turned.astype(x.dtype), rest], -1)


class GPTNeoXBlock(nn.Module):
    """Pre-norm decoder block with an optional cache of keys and values; called as `mpt.MPTBlock` is."""

    config: GPTNeoXConfig

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        context: tuple[jax.Array, ...],
        cache: tuple[jax.Array, jax.Array] | None = None,
        index: jax.Array | int = 0,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """One block: x float[B, T, D] and `GPTNeoXConfig.context` -> x, and the keys and values attended to."""
        config = self.config
        bias, cos, sin = context
        norm = functools.partial(nn.LayerNorm, epsilon=config.eps, dtype=config.dtype)
        dense = functools.partial(layers.dense, dtype=config.dtype)
        qkv = dense(3 * config.width, name="qkv")(norm(name="norm_1")(x))
        q, k, v = rearrange(qkv, "b n (t h d) -> t b n h d", t=3, h=config.heads)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if cache is not None:
            k, v = (layers.extend(old, new, index) for old, new in zip(cache, (k, v), strict=True))
        out = rearrange(layers.attention(q, k, v, bias), "b n h d -> b n (h d)")
        attended = x + dense(config.width, name="out")(out)
        y = dense(config.mlp, name="up")(norm(name="norm_2")(x if config.parallel else attended))
        return attended + dense(config.width, name="down")(layers.ACTIVATIONS[config.act](y)), (k, v)
