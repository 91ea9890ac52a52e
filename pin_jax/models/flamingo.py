"""Flamingo: a frozen language model that reads images through tanh-gated cross-attention (OpenFlamingo's form)."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from pin_jax.models import attention, layers
from pin_jax.models.base import FusedModel
from pin_jax.models.interface import KeysValues, Media
from pin_jax.models.language.decoder import Decoder
from pin_jax.models.language.gpt_neox import GPTNeoXConfig
from pin_jax.models.language.mpt import MPTConfig
from pin_jax.models.perceiver import Perceiver, PerceiverConfig
from pin_jax.models.vit import ViT, ViTConfig


@dataclasses.dataclass(frozen=True)
class FlamingoConfig:
    """A Flamingo.

    Attributes:
      vision, lm: the two towers. perceiver: the resampler between them, or None to attend to the vision tokens.
      cross_every: gated cross-attention stands before language block i when (i + 1) % cross_every == 0.
      cross_heads, cross_head_dim: shape of that attention.
      image_token, end_token, pad_token: ids of `<image>`, `<|endofchunk|>` and padding.
      unroll, remat: see `layers.scan`.
    """

    vision: ViTConfig
    lm: MPTConfig | GPTNeoXConfig
    perceiver: PerceiverConfig | None
    cross_every: int
    image_token: int
    end_token: int
    pad_token: int
    cross_heads: int = 8
    cross_head_dim: int = 64
    unroll: bool = False
    remat: bool | str = False

    @property
    def media_tokens(self) -> int:
        """Vision tokens per image that an insert is added to (class token dropped)."""
        return self.vision.grid**2


class GatedCrossAttention(nn.Module):
    """x + tanh(gate) * attn(x, media), then x + tanh(gate) * ff(x)."""

    config: FlamingoConfig

    def setup(self):
        config, lm = self.config, self.config.lm
        inner = config.cross_heads * config.cross_head_dim
        dense = functools.partial(layers.dense, use_bias=False, dtype=lm.dtype)
        self.norm = nn.LayerNorm(epsilon=1e-5, dtype=lm.dtype)
        self.q, self.kv, self.out = dense(inner), dense(2 * inner), dense(lm.width)
        self.norm_mlp = nn.LayerNorm(epsilon=1e-5, dtype=lm.dtype)
        self.fc1, self.fc2 = dense(lm.width * 4), dense(lm.width)
        self.attn_gate = self.param("attn_gate", nn.initializers.zeros, ())
        self.mlp_gate = self.param("mlp_gate", nn.initializers.zeros, ())

    def keys(self, media: Float[Array, "B M D_media"]) -> KeysValues:
        """Media -> keys and values float[B, M, H, d]."""
        k, v = rearrange(self.kv(media), "b m (t h d) -> t b m h d", t=2, h=self.config.cross_heads)
        return k, v

    def read(self, x: Float[Array, "R T D"], keys: KeysValues, visible: Bool[Array, "R T M"]) -> Float[Array, "R T D"]:
        """One layer, given its keys and values.

        Args:
          x: R a multiple of B.
          keys: from `keys`.
          visible: a text token that sees nothing gets zero attention (its feed-forward still runs).
        """
        images = keys[0].shape[0]
        q = rearrange(self.q(self.norm(x)), "(b r) t (h d) -> b (r t) h d", b=images, h=self.config.cross_heads)
        seen = rearrange(visible, "(b r) t m -> b 1 (r t) m", b=images)
        out = attention.plain(q, *keys, attention.visible(seen))
        out = jnp.where(seen.any(-1)[:, 0, :, None, None], out, 0)
        out = rearrange(out, "b (r t) h d -> (b r) t (h d)", t=x.shape[1])
        x = x + jnp.tanh(self.attn_gate).astype(x.dtype) * self.out(out)
        y = self.fc2(jax.nn.gelu(self.fc1(self.norm_mlp(x)), approximate=False))
        return x + jnp.tanh(self.mlp_gate).astype(x.dtype) * y

    def __call__(
        self, x: Float[Array, "R T D"], media: Float[Array, "B M D_media"], visible: Bool[Array, "R T M"]
    ) -> Float[Array, "R T D"]:
        return self.read(x, self.keys(media), visible)


class GatedDecoder(Decoder):
    """The language model with its gated layers, which attend to media."""

    config: FlamingoConfig

    def setup(self):
        config, lm = self.config, self.config.lm
        self.embedding = self.param("embedding", nn.initializers.normal(0.02), (lm.vocab, lm.width))
        self.norm = nn.LayerNorm(epsilon=lm.eps, use_bias=lm.norm_bias, dtype=lm.dtype)
        self.head = None if lm.tied else layers.dense(lm.vocab, False, dtype=lm.dtype, accumulate=jnp.float32)
        _, init_blocks = self._block()
        _, init_gates = self._gate()
        x, place = jnp.zeros((1, 1, lm.width)), jnp.zeros((1, 1), int)
        bias, context = lm.bias(place, place[0], jnp.ones((1, 1), bool)), lm.context(place)
        media = jnp.zeros((1, 1, config.vision.width))
        self.blocks = layers.stack(self, "blocks", lambda rng: init_blocks(rng, x, bias, context))
        self.gates = layers.stack(self, "gates", lambda rng: init_gates(rng, x, media, jnp.ones((1, 1, 1), bool)))

    def _block(self):
        return layers.stacked(self.config.lm.block, self.config.lm.depth)

    def _gate(self):
        return layers.stacked(
            functools.partial(GatedCrossAttention, self.config), self.config.lm.depth // self.config.cross_every
        )

    def embed(self, ids: Int[Array, "R T"]) -> Float[Array, "R T D"]:
        """Embeddings of tokens."""
        table = self.embedding if self.config.lm.dtype is None else self.embedding.astype(self.config.lm.dtype)
        return table[ids]

    def logits(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows V"]:
        """Through the head, which may be the embedding; float32."""
        x = self.norm(x)
        return layers.tied_head(x, self.embedding) if self.head is None else self.head(x)

    def bias(self, queries: Int[Array, "#R T"], keys: Int[Array, " S"], mask: Bool[Array, "#R S"]) -> attention.Bias:
        """The language model's own."""
        return self.config.lm.bias(queries, keys, mask)

    def media_keys(self, media: Media) -> tuple[KeysValues, Bool[Array, "R T M"]]:
        """Cross-attention keys and values float[G, B, I L, H, d] of every gated layer; a text token attends only to the
        most recent image before it."""
        gate, _ = self._gate()
        tokens = rearrange(media.tokens, "b i l d -> b (i l) d")
        keys: Any = jax.vmap(lambda own: gate.apply(own, tokens, method="keys"))(self.gates)
        owner = jnp.repeat(jnp.arange(1, media.tokens.shape[1] + 1), media.tokens.shape[2])
        return keys, media.index[..., None] == owner

    def recent(
        self, media: Media, keys: KeysValues, seen: Bool[Array, "R T M"]
    ) -> tuple[KeysValues, Bool[Array, "R M"]]:
        """What the text to come can see: the image that the last token sees.

        Where each sample has one row, only the keys of that image are kept: M is L then, and I L otherwise.
        """
        index = media.index[:, -1]
        samples, images, length = media.tokens.shape[:3]
        if images == 1 or samples != len(index):
            return keys, seen[:, -1]
        last = (index - 1).clip(0)[None, :, None, None, None, None]
        key, value = (
            jnp.take_along_axis(rearrange(k, "g b (i l) h d -> g b i l h d", i=images), last, 2)[:, :, 0] for k in keys
        )
        return (key, value), jnp.broadcast_to(index[:, None] > 0, (len(index), length))

    def run(self, x, columns, bias, media=None, prompt=None, text=None, index=0):
        """All blocks, in groups that begin with a gated layer before their last block; see `Decoder.run`."""
        every, depth = self.config.cross_every, self.config.lm.depth
        groups = depth // every
        block_layer, gate_layer = self._block()[0], self._gate()[0]
        assert media is not None  # a Flamingo reads none without
        context, (media_keys, visible) = self.config.lm.context(columns), media

        def layer(x, inputs):
            variables, shared, own = inputs
            segment = None if prompt is None else (*shared, prompt[1])
            return block_layer.apply(variables, x, bias, context, segment, own, index)

        def group(x, inputs):
            gate, keys, blocks = inputs
            x, first = scan(layer, x, jax.tree.map(lambda a: a[:-1], blocks)) if every > 1 else (x, None)
            x = gate_layer.apply(gate, x, keys, visible, method="read")
            x, last = layer(x, jax.tree.map(lambda a: a[-1], blocks))
            last = jax.tree.map(lambda a: a[None], last)
            return x, last if first is None else jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, last)

        scan = functools.partial(layers.scan, unroll=self.config.unroll, remat=self.config.remat)
        xs = (self.blocks, None if prompt is None else prompt[0], text)
        head = jax.tree.map(lambda a: a[: groups * every].reshape(groups, every, *a.shape[1:]), xs)
        x, new = scan(group, x, (self.gates, media_keys, head))
        new = jax.tree.map(lambda a: a.reshape(groups * every, *a.shape[2:]), new)
        if depth % every:
            x, rest = scan(layer, x, jax.tree.map(lambda a: a[groups * every :], xs))
            new = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), new, rest)
        return x, new


class Flamingo(FusedModel):
    """The whole VLM. Its media are the Perceiver's latents, or the vision tokens, to which gated layers attend."""

    config: FlamingoConfig

    def setup(self):
        self.vision = ViT(self.config.vision)
        self.perceiver = Perceiver(self.config.perceiver) if self.config.perceiver else None
        self.lm = GatedDecoder(self.config)

    def fusion(self, vision: Float[Array, "B N D"]) -> Float[Array, "B L D"]:
        """Vision tokens of images, class token dropped -> media tokens."""
        return vision if self.perceiver is None else self.perceiver(vision)

    def read(self, media: Float[Array, "B I L D"], ids: Int[Array, "R T"]) -> tuple[Float[Array, "R T D_lm"], Media]:
        """Embeddings of texts; each `<image>` in them starts the next of their images."""
        return self.lm.embed(ids), Media(media, jnp.cumsum(ids == self.config.image_token, 1))
