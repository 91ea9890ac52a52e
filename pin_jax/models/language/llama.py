"""Llama: the decoder-only language model of SmolVLM (RMSNorm, rotary positions, grouped-query attention, SwiGLU)."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int

from pin_jax.models import attention, layers
from pin_jax.models.interface import KeysValues
from pin_jax.models.language.decoder import Decoder
from pin_jax.models.language.gpt_neox import rotate


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Shape of the decoder.

    Attributes:
      vocab, width, depth, heads, mlp: the usual. key_heads: of keys and values, each read by heads / key_heads queries.
      head_dim: width of a head. theta: base of the rotary angles.
      tied: the head is the embedding.
      positions: longest text that it was trained on. act: key of `layers.ACTIVATIONS`. eps: of every RMSNorm.
      dtype: of the computation; parameters keep their own.
      unroll, remat: see `layers.scan`.
    """

    vocab: int = 49280
    width: int = 576
    depth: int = 30
    heads: int = 9
    key_heads: int = 3
    head_dim: int = 64
    mlp: int = 1536
    theta: float = 100_000.0
    tied: bool = False
    positions: int = 8192
    act: str = "silu"
    eps: float = 1e-5
    dtype: Any = None
    unroll: bool = False
    remat: bool | str = False


class LlamaBlock(nn.Module):
    """Pre-norm decoder block without biases."""

    config: LlamaConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "R T D"],
        bias: attention.Bias,
        context: tuple[Float[Array, "#R T d"], Float[Array, "#R T d"]],
        prompt: tuple[Array, Array, Array] | None = None,
        text: KeysValues | None = None,
        index: Int[Array, "*R"] | int = 0,
    ) -> tuple[Float[Array, "R T D"], KeysValues]:
        """One block; context: cosine and sine of the tokens' angles, the rest as in `opt.OPTBlock`.

        Returns:
          x, and its own keys, rotated, and values float[R, S, K, d].
        """
        config = self.config
        norm = functools.partial(nn.RMSNorm, epsilon=config.eps, dtype=config.dtype)
        dense = functools.partial(layers.dense, use_bias=False, dtype=config.dtype)
        y = norm(name="norm_1")(x)
        q, k, v = (
            rearrange(dense(heads * config.head_dim, name=name)(y), "r t (h d) -> r t h d", h=heads)
            for name, heads in (("q", config.heads), ("k", config.key_heads), ("v", config.key_heads))
        )
        q, k = rotate(q, *context), rotate(k, *context)
        if text is not None:
            k, v = attention.write(text, (k, v), index)
        out = attention.grouped(q, ([prompt] if prompt else []) + [(k, v, bias)])
        x = x + dense(config.width, name="out")(rearrange(out, "r t h d -> r t (h d)"))
        y = norm(name="norm_2")(x)
        gated = layers.ACTIVATIONS[config.act](dense(config.mlp, name="gate")(y)) * dense(config.mlp, name="up")(y)
        return x + dense(config.width, name="down")(gated), (k, v)


class Llama(Decoder):
    """The language model, reading embeddings."""

    config: LlamaConfig

    def setup(self):
        config = self.config
        self.embedding = self.param("embedding", nn.initializers.normal(0.02), (config.vocab, config.width))
        self.norm = nn.RMSNorm(epsilon=config.eps, dtype=config.dtype)
        self.head = None
        if not config.tied:
            self.head = layers.dense(config.vocab, use_bias=False, dtype=config.dtype, accumulate=jnp.float32)
        x, bias, angles = jnp.zeros((1, 1, config.width)), jnp.zeros((1, 1, 1, 1)), jnp.zeros((1, 1, config.head_dim))
        self.blocks = layers.stack(self, "blocks", lambda rng: self._block()[1](rng, x, bias, (angles, angles)))

    def _block(self):
        return layers.stacked(functools.partial(LlamaBlock, self.config), self.config.depth)

    def embed(self, ids: Int[Array, "R T"]) -> Float[Array, "R T D"]:
        """Embeddings of tokens."""
        found = self.embedding[ids]
        return found if self.config.dtype is None else found.astype(self.config.dtype)

    def logits(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows V"]:
        """Through the head, or the embedding; float32."""
        x = self.norm(x)
        return layers.tied_head(x, self.embedding) if self.head is None else self.head(x)

    def told(self, columns: Int[Array, "#R T"], places: Int[Array, "R T"]) -> Int[Array, "R T"]:
        """Places: what a method puts in front of a padded text is as near to it as in training."""
        del columns
        return places

    def run(self, x, columns, bias, media=None, prompt=None, text=None, index=0):
        """All blocks; see `Decoder.run`."""
        del media
        config, block = self.config, self._block()[0]
        speed = config.theta ** -(jnp.arange(0, config.head_dim, 2) / config.head_dim)
        angle = columns[..., None].astype(jnp.float32) * jnp.concatenate([speed, speed])
        context = jnp.cos(angle), jnp.sin(angle)

        def body(x, inputs):
            variables, shared, own = inputs
            segment = None if prompt is None else (*shared, prompt[1])
            return block.apply(variables, x, bias, context, segment, own, index)

        xs = (self.blocks, None if prompt is None else prompt[0], text)
        return layers.scan(body, x, xs, unroll=config.unroll, remat=config.remat)
