"""MPT: the decoder blocks of most of OpenFlamingo's language models (no biases, ALiBi, exact gelu, tied head)."""

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
class MPTConfig:
    """Shape of the decoder, and what a Flamingo asks of any language model.

    That is: vocab, width, depth, heads, eps and dtype; `block`; `context`, what its blocks know of places and pads;
    norm_bias, whether the last LayerNorm has a bias; tied, whether the embedding is the head.

    Attributes:
      vocab, width, depth, heads: the usual. mlp_ratio: of the feed-forward network.
      qk_norm: LayerNorm on q and on k over the whole width, before the head split (MPT-1B).
      alibi_max: ALiBi's largest exponent.
    """

    vocab: int = 50432
    width: int = 4096
    depth: int = 32
    heads: int = 32
    mlp_ratio: int = 4
    qk_norm: bool = False
    alibi_max: int = 8
    eps: float = 1e-5
    dtype: Any = None

    norm_bias: ClassVar[bool] = False
    tied: ClassVar[bool] = True

    @property
    def head_dim(self) -> int:
        return self.width // self.heads

    def block(self, parent: Any = None) -> nn.Module:
        """One block as a pure function of its parameters."""
        return MPTBlock(self, parent=parent)

    def context(self, query_pos: jax.Array, key_mask: jax.Array) -> jax.Array:
        """What every block is given: see `alibi_bias`."""
        return alibi_bias(query_pos, key_mask, self)


MPT_1B = MPTConfig(vocab=50432, width=2048, depth=24, heads=16, qk_norm=True)
MPT_7B = MPTConfig()


def alibi_slopes(heads: int, alibi_max: int = 8) -> jax.Array:
    """ALiBi's slopes float[H]; for a head count that is no power of two, the published interleaving."""
    full = 2 ** (heads - 1).bit_length()
    slopes = 2.0 ** -(jnp.arange(1, full + 1) * alibi_max / full)
    return slopes if full == heads else jnp.concatenate([slopes[1::2], slopes[::2]])[:heads]


def alibi_bias(query_pos: jax.Array, key_mask: jax.Array, config: MPTConfig) -> jax.Array:
    """Logit bias float[B, H, T, S]: ALiBi, causality and padding in one.

    Args:
      query_pos: int[T] or int[B, T], the place of each query among the S keys.
      key_mask: bool[B, S], False at pads. Places not yet written lie behind every query: causality hides them.
    """
    keys = jnp.arange(key_mask.shape[1])
    distance = (keys - query_pos[..., None]).astype(jnp.float32)[..., None, :, :]  # <= 0 where visible
    bias = alibi_slopes(config.heads, config.alibi_max)[:, None, None] * distance
    return jnp.where((distance <= 0) & key_mask[:, None, None, :], bias, layers.NEGATIVE)


class MPTBlock(nn.Module):
    """Pre-norm decoder block with an optional cache of keys and values."""

    config: MPTConfig

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        bias: jax.Array,
        cache: tuple[jax.Array, jax.Array] | None = None,
        index: jax.Array | int = 0,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """One block.

        Args:
          x: float[B, T, D].
          bias: float[B, H, T, S], see `alibi_bias`.
          cache: keys and values float[B, S, H, d] each, into which those of x are written from `index` on, int[] or
            int[B]; without it S = T.

        Returns:
          x float[B, T, D], and the keys and values that were attended to.
        """
        config = self.config
        norm = functools.partial(nn.LayerNorm, epsilon=config.eps, use_bias=False, dtype=config.dtype)
        dense = functools.partial(layers.dense, use_bias=False, dtype=config.dtype)
        q, k, v = jnp.split(dense(3 * config.width, name="qkv")(norm(name="norm_1")(x)), 3, -1)
        if config.qk_norm:
            q, k = norm(name="q_norm")(q), norm(name="k_norm")(k)
        q, k, v = (rearrange(t, "b n (h d) -> b n h d", h=config.heads) for t in (q, k, v))
        if cache is not None:
            k, v = layers.write(cache, (k, v), index)
        out = layers.attention(q, k, v, bias)
        x = x + dense(config.width, name="out")(rearrange(out, "b n h d -> b n (h d)"))
        y = dense(config.width * config.mlp_ratio, name="up")(norm(name="norm_2")(x))
        return x + dense(config.width, name="down")(jax.nn.gelu(y, approximate=False)), (k, v)
