"""T5 (1.1 and Flan): the encoder-decoder language model of BLIP-2 (RMSNorm, relative position bias, gated MLP)."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from pin_jax.models import attention, layers
from pin_jax.models.interface import Cache, KeysValues, Media, at_places, target_tokens
from pin_jax.models.language.decoder import after


@dataclasses.dataclass(frozen=True)
class T5Config:
    """Shape of both stacks.

    Attributes:
      vocab, width, heads, head_dim, mlp: the usual. depth: layers of the encoder, and of the decoder.
      buckets, max_distance: of the relative position bias.
      act: key of `layers.ACTIVATIONS`, in the gated feed-forward network. eps: of every RMSNorm.
      start: token that decoding begins with.
      dtype: of the computation; parameters keep their own.
      unroll, remat: see `layers.scan`.
    """

    vocab: int = 32128
    width: int = 2048
    depth: int = 24
    decoder_depth: int = 24
    heads: int = 32
    head_dim: int = 64
    mlp: int = 5120
    buckets: int = 32
    max_distance: int = 128
    act: str = "gelu"
    eps: float = 1e-6
    start: int = 0
    dtype: Any = None
    unroll: bool = False
    remat: bool | str = False


FLAN_T5_XL = T5Config()


def bucket(distance: Int[Array, " ..."], config: T5Config, two_sided: bool) -> Int[Array, " ..."]:
    """Buckets of key position minus query position: exact when near, logarithmic further off.

    Two-sided buckets tell before from after (encoder); one-sided ones hold what lies before (decoder).
    """
    buckets = config.buckets // 2 if two_sided else config.buckets
    far = jnp.abs(distance) if two_sided else jnp.maximum(-distance, 0)
    exact = buckets // 2
    ratio = jnp.log(jnp.maximum(far, 1).astype(jnp.float32) / exact) / math.log(config.max_distance / exact)
    spread = jnp.minimum(exact + (ratio * (buckets - exact)).astype(jnp.int32), buckets - 1)
    return jnp.where(far < exact, far, spread) + (buckets * (distance > 0) if two_sided else 0)


class T5Attention(nn.Module):
    """Unscaled attention without biases."""

    config: T5Config

    def setup(self):
        config = self.config
        dense = functools.partial(layers.dense, use_bias=False, dtype=config.dtype)
        inner = config.heads * config.head_dim
        self.q, self.k, self.v, self.out = dense(inner), dense(inner), dense(inner), dense(config.width)

    def keys(self, x: Float[Array, "B S D"]) -> KeysValues:
        """Keys and values float[B, S, H, d]."""
        k, v = (rearrange(f(x), "b s (h d) -> b s h d", h=self.config.heads) for f in (self.k, self.v))
        return k, v

    def __call__(self, x: Float[Array, "R T D"], keys: KeysValues, bias: attention.Bias) -> Float[Array, "R T D"]:
        """x over keys and values float[B, S, H, d]; bias as in `attention.over_segments`."""
        q = rearrange(self.q(x), "r t (h d) -> r t h d", h=self.config.heads)
        return self.out(rearrange(attention.over_segments(q, [(*keys, bias)], scale=1.0), "r t h d -> r t (h d)"))


class T5Block(nn.Module):
    """Pre-norm block: self-attention, cross-attention in the decoder, gated feed-forward network."""

    config: T5Config
    cross: bool

    def setup(self):
        config = self.config
        norm = functools.partial(nn.RMSNorm, epsilon=config.eps, dtype=config.dtype)
        dense = functools.partial(layers.dense, use_bias=False, dtype=config.dtype)
        self.norm_1, self.self_attention = norm(), T5Attention(config)
        if self.cross:
            self.norm_cross, self.cross_attention = norm(), T5Attention(config)
        self.norm_2, self.wi_0, self.wi_1 = norm(), dense(config.mlp), dense(config.mlp)
        self.wo = dense(config.width)

    def cross_keys(self, read: Float[Array, "B S D"]) -> KeysValues:
        """The encoder's output -> keys and values float[B, S, H, d]."""
        return self.cross_attention.keys(read)

    def everything(self, x: Float[Array, "R T D"], bias: attention.Bias) -> None:
        """Touches every parameter, for their initialisation."""
        self(x, bias, (*self.cross_keys(x), bias) if self.cross else None)

    def __call__(
        self,
        x: Float[Array, "R T D"],
        bias: attention.Bias,
        read: attention.Segment | None = None,
        text: KeysValues | None = None,
        index: Int[Array, "*R"] | int = 0,
    ) -> tuple[Float[Array, "R T D"], KeysValues]:
        """One block.

        Args:
          bias: over own keys: positions, causality and padding.
          read: keys and values of the encoder's output, and their bias.
          text: own keys and values float[R, S, H, d], into which those of x are written from `index` on.

        Returns:
          x, and its own keys and values.
        """
        y = self.norm_1(x)
        keys = self.self_attention.keys(y)
        if text is not None:
            keys = attention.write(text, keys, index)
        x = x + self.self_attention(y, keys, bias)
        if read is not None:
            x = x + self.cross_attention(self.norm_cross(x), read[:2], read[2])
        y = self.norm_2(x)
        return x + self.wo(layers.ACTIVATIONS[self.config.act](self.wi_0(y)) * self.wi_1(y)), keys


class T5Stack(nn.Module):
    """The encoder, or the decoder: blocks, the relative bias that they share, and the last norm."""

    config: T5Config
    decoder: bool

    def setup(self):
        config = self.config
        self.bias = self.param("bias", nn.initializers.normal(0.02), (config.buckets, config.heads))
        self.norm = nn.RMSNorm(epsilon=config.eps, dtype=config.dtype)
        x, bias = jnp.zeros((1, 1, config.width)), jnp.zeros((1, config.heads, 1, 1))
        self.blocks = layers.stack(self, "blocks", lambda rng: self._block()[1](rng, x, bias, method="everything"))

    def _block(self):
        depth = self.config.decoder_depth if self.decoder else self.config.depth
        return layers.stacked(functools.partial(T5Block, self.config, self.decoder), depth)

    def position_bias(self, queries: Int[Array, "#R T"] | Int[Array, " T"], keys: Int[Array, " S"]) -> attention.Bias:
        """Places -> float32[1 or R, H, T, S]."""
        places = bucket(keys - jnp.atleast_2d(queries)[..., None], self.config, two_sided=not self.decoder)
        return rearrange(self.bias[places].astype(jnp.float32), "r t s h -> r h t s")

    def cross_keys(self, read: Float[Array, "B S D"]) -> KeysValues:
        """The encoder's output -> keys and values of every layer, float[K, B, S, H, d]."""
        block = self._block()[0]
        keys: Any = jax.vmap(lambda own: block.apply(own, read, method="cross_keys"))(self.blocks)
        return keys

    def __call__(self, x: Array, bias: Array, read: Any = None, text: Any = None, index: Any = 0) -> Any:
        """All blocks and the norm; read: (keys and values [K, ...], bias), text: keys and values [K, ...]."""
        block = self._block()[0]

        def body(x, inputs):
            variables, shared, own = inputs
            segment = None if read is None else (*shared, read[1])
            return block.apply(variables, x, bias, segment, own, index)

        xs = (self.blocks, None if read is None else read[0], text)
        x, keys = layers.scan(body, x, xs, unroll=self.config.unroll, remat=self.config.remat)
        return self.norm(x), keys


class T5(nn.Module):
    """The language model, reading embeddings and writing a second text; its interface is `interface.LanguageModel`."""

    config: T5Config

    def setup(self):
        config = self.config
        self.embedding = self.param("embedding", nn.initializers.normal(0.02), (config.vocab, config.width))
        self.encoder, self.decoder = T5Stack(config, decoder=False), T5Stack(config, decoder=True)
        self.head = layers.dense(config.vocab, use_bias=False, dtype=config.dtype, accumulate=jnp.float32)

    def embed(self, ids: Int[Array, "R T"]) -> Float[Array, "R T D"]:
        """Embeddings of tokens."""
        x = self.embedding[ids]
        return x if self.config.dtype is None else x.astype(self.config.dtype)

    def _read(self, x: Float[Array, "R S D"], mask: Bool[Array, "R S"]) -> KeysValues:
        """Runs the encoder; keys and values float[K, R, S, H, d] of what the decoder reads."""
        places = jnp.arange(x.shape[1])
        bias = self.encoder.position_bias(places, places) + attention.visible(mask)[:, None, None]
        x, _ = self.encoder(x, bias)
        return self.decoder.cross_keys(x)

    def _teach(
        self, x: Float[Array, "R S D"], mask: Bool[Array, "R S"], labels: Int[Array, "R T"]
    ) -> Float[Array, "R T D"]:
        """The decoder's output at each label, given those before it."""
        ids = jnp.pad(jnp.maximum(labels, 0)[:, :-1], [(0, 0), (1, 0)], constant_values=self.config.start)
        places = jnp.arange(ids.shape[1])
        causal = attention.visible(places[None, :] <= places[:, None])
        read = self._read(x, mask), attention.visible(mask)[:, None, None]
        return self.decoder(self.embed(ids), self.decoder.position_bias(places, places) + causal, read)[0]

    def __call__(
        self,
        x: Float[Array, "R S D"],
        mask: Bool[Array, "R S"],
        labels: Int[Array, "R T"] | None = None,
        media: Media | None = None,
    ) -> Float[Array, "R T V"]:
        """Logits float32 over the labels; those that do not count may be -100, as in transformers, or padding."""
        del media
        if labels is None:
            raise ValueError("labels: missing; an encoder-decoder language model predicts a second text")
        return self.head(self._teach(x, mask, labels))

    def predict(
        self,
        x: Float[Array, "R S D"],
        mask: Bool[Array, "R S"],
        texts: Mapping[str, Array],
        skip: int,
        media: Media | None = None,
    ) -> tuple[Float[Array, "R P V"], Int[Array, "R P"], Float[Array, "R P"]]:
        """Teacher forcing; see the interface. `texts` holds the second text as labels int[R, T]."""
        del skip, media
        hidden = self._teach(x, mask, texts["labels"])
        hidden = at_places(hidden, texts["places"]) if "places" in texts else hidden
        return self.head(hidden), *target_tokens(texts, "labels")

    def prefill(
        self,
        x: Float[Array, "R S D"],
        mask: Bool[Array, "R S"],
        steps: int,
        start: tuple[int, ...] = (),
        ragged: bool = False,
        media: Media | None = None,
    ) -> tuple[Float[Array, "R V"], Cache]:
        """Reads prompts and makes room for `steps` tokens; see the interface."""
        del media
        config, read = self.config, self._read(x, mask)
        first = jnp.broadcast_to(jnp.array([config.start, *start]), (x.shape[0], 1 + len(start)))
        room = (config.decoder_depth, x.shape[0], steps + first.shape[1], config.heads, config.head_dim)
        cache = Cache(
            prompt=read,
            prompt_mask=mask,
            text=jax.tree.map(lambda a: jnp.zeros(room, a.dtype), read),
            index=jnp.zeros(x.shape[:1] if ragged else (), jnp.int32),
        )
        return self.step(cache, first)

    def step(
        self, cache: Cache, tokens: Int[Array, " R *T"], lengths: Int[Array, " R"] | None = None
    ) -> tuple[Float[Array, "R V"], Cache]:
        """Some tokens more; see the interface."""
        tokens = tokens[:, None] if tokens.ndim == 1 else tokens
        index, count = cache.index, tokens.shape[1]
        places = jnp.arange(cache.lengths[1])
        own = index.reshape(-1, 1) + jnp.arange(count)
        bias = self.decoder.position_bias(own, places) + attention.visible(places <= own[..., None])[:, None]
        read = cache.prompt, attention.visible(cache.prompt_mask)[:, None, None]
        x, text = self.decoder(self.embed(tokens), bias, read, cache.text, index)
        index = index + (count if lengths is None else lengths)
        return self.head(after(x, lengths)), dataclasses.replace(cache, text=text, index=index)
