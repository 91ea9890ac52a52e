"""MPT: the decoder blocks of most of OpenFlamingo's language models (no biases, ALiBi, exact gelu, tied head)."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from pin_jax.models import attention, layers
from pin_jax.models.interface import KeysValues


@dataclasses.dataclass(frozen=True)
class MPTConfig:
    """Shape of the decoder, and what a Flamingo asks of any language model.

    That is: vocab, width, depth, heads, eps and dtype; `block`, called as `opt.OPTBlock` is but with the context behind
    the bias; `context`, what its blocks know of their tokens' places; `bias`, as `decoder.Decoder.bias`; norm_bias,
    whether the last LayerNorm has a bias; tied, whether the embedding is the head.

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

    def context(self, columns: Int[Array, "#R T"]) -> None:
        """Places are told by the bias alone."""
        del columns

    def bias(self, queries: Int[Array, "#R T"], keys: Int[Array, " S"], mask: Bool[Array, "#R S"]) -> attention.Bias:
        """ALiBi, causality and padding in one."""
        distance = (keys - queries[..., None]).astype(jnp.float32)[:, None]  # <= 0 where seen
        slopes = alibi_slopes(self.heads, self.alibi_max)[:, None, None]
        return jnp.where(attention.causal(queries, keys, mask), slopes * distance, attention.NEGATIVE)


MPT_1B = MPTConfig(vocab=50432, width=2048, depth=24, heads=16, qk_norm=True)
MPT_7B = MPTConfig()


def alibi_slopes(heads: int, alibi_max: int = 8) -> Float[Array, " heads"]:
    """ALiBi's slopes; for a head count that is no power of two, the published interleaving."""
    full = 2 ** (heads - 1).bit_length()
    slopes = 2.0 ** -(jnp.arange(1, full + 1) * alibi_max / full)
    return slopes if full == heads else jnp.concatenate([slopes[1::2], slopes[::2]])[:heads]


class MPTBlock(nn.Module):
    """Pre-norm decoder block."""

    config: MPTConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "R T D"],
        bias: attention.Bias,
        context: None = None,
        prompt: attention.Segment | None = None,
        text: KeysValues | None = None,
        index: Int[Array, "*R"] | int = 0,
    ) -> tuple[Float[Array, "R T D"], KeysValues]:
        """One block; bias of `MPTConfig.bias`, the rest as in `opt.OPTBlock`."""
        del context
        config = self.config
        norm = functools.partial(nn.LayerNorm, epsilon=config.eps, use_bias=False, dtype=config.dtype)
        dense = functools.partial(layers.dense, use_bias=False, dtype=config.dtype)
        q, k, v = jnp.split(dense(3 * config.width, name="qkv")(norm(name="norm_1")(x)), 3, -1)
        if config.qk_norm:
            q, k = norm(name="q_norm")(q), norm(name="k_norm")(k)
        q, k, v = (rearrange(t, "r t (h d) -> r t h d", h=config.heads) for t in (q, k, v))
        if text is not None:
            k, v = attention.write(text, (k, v), index)
        out = attention.over_segments(q, ([prompt] if prompt else []) + [(k, v, bias)])
        x = x + dense(config.width, name="out")(rearrange(out, "r t h d -> r t (h d)"))
        y = dense(config.width * config.mlp_ratio, name="up")(norm(name="norm_2")(x))
        return x + dense(config.width, name="down")(jax.nn.gelu(y, approximate=False)), (k, v)
