"""GPT-NeoX: the decoder blocks of RedPajama-INCITE, OpenFlamingo-4B's language model (rotary, biases, own head)."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from pin_jax.models import attention, layers
from pin_jax.models.interface import KeysValues


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

    def context(self, columns: Int[Array, "#R T"]) -> tuple[Float[Array, "#R T C"], Float[Array, "#R T C"]]:
        """Cosine and sine of the tokens' angles. Pads count: only differences of places are ever seen."""
        rotated = int(self.head_dim * self.rotary_share)
        speed = self.rotary_base ** -(jnp.arange(0, rotated, 2) / rotated)
        angle = columns[..., None].astype(jnp.float32) * jnp.concatenate([speed, speed])
        return jnp.cos(angle), jnp.sin(angle)

    def bias(self, queries: Int[Array, "#R T"], keys: Int[Array, " S"], mask: Bool[Array, "#R S"]) -> attention.Bias:
        """Causality and padding."""
        return attention.visible(attention.causal(queries, keys, mask))


REDPAJAMA_3B = GPTNeoXConfig()


def rotate(
    x: Float[Array, "R T H d"], cos: Float[Array, "#R T C"], sin: Float[Array, "#R T C"]
) -> Float[Array, "R T H d"]:
    """Rotary positions: pairs (i, i + C/2) of the first C channels turn by their angle."""
    turned, rest = jnp.split(x, [cos.shape[-1]], -1)
    first, second = jnp.split(turned.astype(jnp.float32), 2, -1)
    swapped = jnp.concatenate([-second, first], -1)
    turned = turned * cos[..., None, :] + swapped * sin[..., None, :]
    return jnp.concatenate([turned.astype(x.dtype), rest], -1)


class GPTNeoXBlock(nn.Module):
    """Pre-norm decoder block."""

    config: GPTNeoXConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "R T D"],
        bias: attention.Bias,
        context: tuple[Float[Array, "#R T C"], Float[Array, "#R T C"]],
        prompt: attention.Segment | None = None,
        text: KeysValues | None = None,
        index: Int[Array, "*R"] | int = 0,
    ) -> tuple[Float[Array, "R T D"], KeysValues]:
        """One block; bias and context of `GPTNeoXConfig`, the rest as in `opt.OPTBlock`."""
        config = self.config
        norm = functools.partial(nn.LayerNorm, epsilon=config.eps, dtype=config.dtype)
        dense = functools.partial(layers.dense, dtype=config.dtype)
        qkv = dense(3 * config.width, name="qkv")(norm(name="norm_1")(x))
        q, k, v = rearrange(qkv, "r t (n h d) -> n r t h d", n=3, h=config.heads)
        q, k = rotate(q, *context), rotate(k, *context)
        if text is not None:
            k, v = attention.write(text, (k, v), index)
        out = attention.over_segments(q, ([prompt] if prompt else []) + [(k, v, bias)])
        attended = x + dense(config.width, name="out")(rearrange(out, "r t h d -> r t (h d)"))
        y = dense(config.mlp, name="up")(norm(name="norm_2")(x if config.parallel else attended))
        return attended + dense(config.width, name="down")(layers.ACTIVATIONS[config.act](y)), (k, v)
