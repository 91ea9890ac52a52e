"""OPT: the decoder-only language model of BLIP-2 (pre-norm, learned positions, tied head)."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from pin_jax.models import attention, layers
from pin_jax.models.interface import KeysValues
from pin_jax.models.language.decoder import Decoder

OFFSET = 2  # the position table's first rows belong to padding


@dataclasses.dataclass(frozen=True)
class OPTConfig:
    """Shape of the decoder.

    Attributes:
      vocab, width, depth, heads, mlp: the usual.
      positions: longest text; the table has two rows more.
      act: key of `layers.ACTIVATIONS`. eps: of every LayerNorm.
      dtype: of the computation; parameters keep their own.
      unroll, remat: see `layers.scan`.
    """

    vocab: int = 50304
    width: int = 2560
    depth: int = 32
    heads: int = 32
    mlp: int = 10240
    positions: int = 2048
    act: str = "relu"
    eps: float = 1e-5
    dtype: Any = None
    unroll: bool = False
    remat: bool | str = False


OPT_2_7B = OPTConfig()
OPT_6_7B = OPTConfig(width=4096, mlp=16384)


class OPTBlock(nn.Module):
    """Pre-norm decoder block; the arguments of every decoder's block."""

    config: OPTConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "R T D"],
        bias: attention.Bias,
        prompt: attention.Segment | None = None,
        text: KeysValues | None = None,
        index: Int[Array, "*R"] | int = 0,
    ) -> tuple[Float[Array, "R T D"], KeysValues]:
        """One block.

        Args:
          bias: over this text's own keys; without `text` these are the T of x.
          prompt: earlier keys, values and their bias, shared by rows; see `attention.over_segments`.
          text: own keys and values float[R, S, H, d], into which those of x are written from `index` on.

        Returns:
          x, and its own keys and values.
        """
        config = self.config
        norm = functools.partial(nn.LayerNorm, epsilon=config.eps, dtype=config.dtype)
        dense = functools.partial(layers.dense, dtype=config.dtype)
        y = norm(name="norm_1")(x)
        q, k, v = (rearrange(dense(config.width, name=n)(y), "r t (h d) -> r t h d", h=config.heads) for n in "qkv")
        if text is not None:
            k, v = attention.write(text, (k, v), index)
        out = attention.over_segments(q, ([prompt] if prompt else []) + [(k, v, bias)])
        x = x + dense(config.width, name="out")(rearrange(out, "r t h d -> r t (h d)"))
        y = dense(config.mlp, name="fc1")(norm(name="norm_2")(x))
        return x + dense(config.width, name="fc2")(layers.ACTIVATIONS[config.act](y)), (k, v)


class OPT(Decoder):
    """The language model, reading embeddings."""

    config: OPTConfig

    def setup(self):
        config = self.config
        small = nn.initializers.normal(0.02)
        self.embedding = self.param("embedding", small, (config.vocab, config.width))
        self.positions = self.param("positions", small, (config.positions + OFFSET, config.width))
        self.norm = nn.LayerNorm(epsilon=config.eps, dtype=config.dtype)
        x, bias = jnp.zeros((1, 1, config.width)), jnp.zeros((1, 1, 1, 1))
        self.blocks = layers.stack(self, "blocks", lambda rng: self._block()[1](rng, x, bias))

    def _block(self):
        return layers.stacked(functools.partial(OPTBlock, self.config), self.config.depth)

    def _cast(self, table: Array) -> Array:
        return table if self.config.dtype is None else table.astype(self.config.dtype)

    def embed(self, ids: Int[Array, "R T"]) -> Float[Array, "R T D"]:
        """Embeddings of tokens, without positions."""
        return self._cast(self.embedding[ids])

    def logits(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows V"]:
        """Through the tied head; float32."""
        return layers.tied_head(self.norm(x), self.embedding)

    def place(self, x: Float[Array, "R T D"], places: Int[Array, "R T"]) -> Float[Array, "R T D"]:
        """Adds learned positions: places count from 0 over what is seen; -1 at pads."""
        return x + self._cast(self.positions[places + OFFSET]).astype(x.dtype)

    def run(self, x, columns, bias, media=None, prompt=None, text=None, index=0):
        """All blocks; see `Decoder.run`."""
        del columns, media
        block = self._block()[0]

        def body(x, inputs):
            variables, shared, own = inputs
            segment = None if prompt is None else (*shared, prompt[1])
            return block.apply(variables, x, bias, segment, own, index)

        xs = (self.blocks, None if prompt is None else prompt[0], text)
        return layers.scan(body, x, xs, unroll=self.config.unroll, remat=self.config.remat)

    def states(self, x: Float[Array, "R T D"], mask: Bool[Array, "R T"]) -> Float[Array, "K R T D"]:
        """Whole texts -> what comes out of each of the K layers."""
        columns, block = jnp.arange(x.shape[1])[None], self._block()[0]
        bias = self.bias(columns, columns[0], mask)

        def body(x, variables):
            x, _ = block.apply(variables, x, bias)
            return x, x

        x = self.place(x, jnp.cumsum(mask, 1) * mask - 1)
        return layers.scan(body, x, self.blocks, unroll=self.config.unroll, remat=self.config.remat)[1]
