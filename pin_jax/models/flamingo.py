"""Flamingo: a frozen language model that reads images through tanh-gated cross-attention (OpenFlamingo's form).

Its interface is that of `pin_jax.models.interface`.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from pin_jax.models import layers
from pin_jax.models.gpt_neox import GPTNeoXConfig
from pin_jax.models.interface import Inserts, at_places, target_tokens
from pin_jax.models.mpt import MPTConfig
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

    def keys(self, media: jax.Array) -> tuple[jax.Array, jax.Array]:
        """media float[B, S, D] -> keys and values float[B, S, H, d]."""
        return tuple(rearrange(self.kv(media), "b s (t h d) -> t b s h d", t=2, h=self.config.cross_heads))

    def read(self, x: jax.Array, keys: tuple[jax.Array, jax.Array], visible: jax.Array) -> jax.Array:
        """One layer, given its keys and values.

        Args:
          x: float[R, T, D], R a multiple of B.
          keys: from `keys`.
          visible: bool[R, T, S]; a text token that sees nothing gets zero attention (its feed-forward still runs).
        """
        images = keys[0].shape[0]
        q = rearrange(self.q(self.norm(x)), "(b r) t (h d) -> b (r t) h d", b=images, h=self.config.cross_heads)
        seen = rearrange(visible, "(b r) t s -> b 1 (r t) s", b=images)
        out = layers.attention(q, *keys, jnp.where(seen, 0.0, layers.NEGATIVE))
        out = jnp.where(seen.any(-1)[:, 0, :, None, None], out, 0)
        out = rearrange(out, "b (r t) h d -> (b r) t (h d)", t=x.shape[1])
        x = x + jnp.tanh(self.attn_gate).astype(x.dtype) * self.out(out)
        y = self.fc2(jax.nn.gelu(self.fc1(self.norm_mlp(x)), approximate=False))
        return x + jnp.tanh(self.mlp_gate).astype(x.dtype) * y

    def __call__(self, x: jax.Array, media: jax.Array, visible: jax.Array) -> jax.Array:
        return self.read(x, self.keys(media), visible)


class GatedDecoder(nn.Module):
    """The language model with its gated layers: text tokens and media to logits."""

    config: FlamingoConfig

    def setup(self):
        config, lm = self.config, self.config.lm
        self.embedding = self.param("embedding", nn.initializers.normal(0.02), (lm.vocab, lm.width))
        self.norm = nn.LayerNorm(epsilon=lm.eps, use_bias=lm.norm_bias, dtype=lm.dtype)
        self.head = None if lm.tied else layers.dense(lm.vocab, False, dtype=lm.dtype, accumulate=jnp.float32)
        _, init_blocks = self._block()
        _, init_gates = self._gate()
        x, context = jnp.zeros((1, 1, lm.width)), lm.context(jnp.arange(1), jnp.ones((1, 1), bool))
        media = jnp.zeros((1, 1, config.vision.width))
        self.blocks = layers.stack(self, "blocks", lambda rng: init_blocks(rng, x, context))
        self.gates = layers.stack(self, "gates", lambda rng: init_gates(rng, x, media, jnp.ones((1, 1, 1), bool)))

    def _block(self):
        return layers.stacked(self.config.lm.block, self.config.lm.depth)

    def _gate(self):
        return layers.stacked(
            functools.partial(GatedCrossAttention, self.config), self.config.lm.depth // self.config.cross_every
        )

    def embed(self, ids: jax.Array) -> jax.Array:
        """ids int[R, T] -> float[R, T, D]."""
        table = self.embedding if self.config.lm.dtype is None else self.embedding.astype(self.config.lm.dtype)
        return table[ids]

    def logits(self, x: jax.Array) -> jax.Array:
        """float[..., D] -> float32[..., V] through the head, which may be the embedding."""
        x = self.norm(x)
        if self.head is not None:
            return self.head(x)
        table = self.embedding.astype(x.dtype)
        return jnp.einsum("...d,vd->...v", x, table, preferred_element_type=jnp.float32)

    def media_keys(self, media: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Cross-attention keys and values of every gated layer, float[G, B, S, H, d] each."""
        gate, _ = self._gate()
        return jax.vmap(lambda p: gate.apply({"params": p}, media, method="keys"))(self.gates)

    def run(
        self,
        x: jax.Array,
        media_keys: tuple[jax.Array, jax.Array],
        visible: jax.Array,
        context: Any,
        cache: tuple[jax.Array, jax.Array] | None = None,
        index: jax.Array | int = 0,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """All blocks, given `config.lm.context`; returns x float[R, T, D] and keys and values float[L, R, S, H, d]."""
        every, depth = self.config.cross_every, self.config.lm.depth
        groups = depth // every
        block_layer, gate_layer = self._block()[0], self._gate()[0]

        def layer(x, p_cache):
            params, cache = p_cache
            return block_layer.apply({"params": params}, x, context, cache, index)

        def group(x, inputs):
            gate, keys, blocks = inputs
            x, first = scan(layer, x, jax.tree.map(lambda a: a[:-1], blocks)) if every > 1 else (x, None)
            x = gate_layer.apply({"params": gate}, x, keys, visible, method="read")
            x, last = layer(x, jax.tree.map(lambda a: a[-1], blocks))
            last = jax.tree.map(lambda a: a[None], last)
            return x, last if first is None else jax.tree.map(lambda a, b: jnp.concatenate([a, b]), first, last)

        scan = functools.partial(layers.scan, unroll=self.config.unroll, remat=self.config.remat)
        xs = (self.blocks, cache)
        head = jax.tree.map(lambda a: a[: groups * every].reshape(groups, every, *a.shape[1:]), xs)
        x, new = scan(group, x, (self.gates, media_keys, head))
        new = jax.tree.map(lambda a: a.reshape(groups * every, *a.shape[2:]), new)
        if depth % every:
            x, rest = scan(layer, x, jax.tree.map(lambda a: a[groups * every :], xs))
            new = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), new, rest)
        return x, new


class Flamingo(nn.Module):
    """The whole VLM; see `pin_jax.models.interface`."""

    config: FlamingoConfig

    def setup(self):
        self.vision = ViT(self.config.vision)
        self.perceiver = Perceiver(self.config.perceiver) if self.config.perceiver else None
        self.lm = GatedDecoder(self.config)

    def encode(self, pixels: jax.Array, inserts: Inserts = Inserts()) -> jax.Array:
        """Pixels float[B, I, H, W, 3] -> vision tokens float[B, I, N, D], class token dropped."""
        images = pixels.shape[1]
        tokens = self.vision(rearrange(pixels, "b i h w c -> (b i) h w c"), extra_tokens=inserts.vision_input)
        tokens = tokens[:, int(self.config.vision.class_token) :]
        return rearrange(tokens, "(b i) n d -> b i n d", i=images)

    def fuse(self, vision: jax.Array, inserts: Inserts = Inserts()) -> jax.Array:
        """Vision tokens float[B, I, N, D] -> media float[B, I, L, D], with x* = x + psi(S) in between."""
        vision = inserts.after_vision(vision)
        if self.perceiver is None:
            return vision
        return rearrange(
            self.perceiver(rearrange(vision, "b i n d -> (b i) n d")), "(b i) n d -> b i n d", i=vision.shape[1]
        )

    def __call__(
        self,
        pixels: jax.Array | None,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        inserts: Inserts = Inserts(),
        vision: jax.Array | None = None,
        labels: jax.Array | None = None,
    ) -> jax.Array:
        """Logits float32[R, T, V] of text rows about images.

        Args:
          pixels: float[B, I, H, W, 3]; not needed when `vision` is given.
          input_ids: int[R, T], R a multiple of B. Each `<image>` starts the next of the row's images.
          attention_mask: bool or int[R, T]; 0 at pads, on either side. Logits there mean nothing.
          inserts: what a method puts in.
          vision: float[B, I, N, D], cached output of `encode`.
          labels: of VLMs that read and write two texts; not of this one.
        """
        if labels is not None:
            raise ValueError("labels: a decoder-only language model takes them as part of input_ids")
        if vision is None:
            vision = self.encode(pixels, inserts)
        return self.lm.logits(self._read(vision, input_ids, attention_mask, inserts))

    def _read(self, vision, input_ids, attention_mask, inserts):
        """The last hidden states float[R, T, D] of whole texts."""
        x, prefix, mask = self._embed(input_ids, attention_mask, inserts)
        media = self.fuse(vision, inserts)
        visible = self._visible(self._media_index(input_ids, prefix), media)
        context = self.config.lm.context(jnp.arange(x.shape[1]), mask)
        x, _ = self.lm.run(x, self._media_keys(media), visible, context)
        return x[:, prefix:]

    def predict(
        self, vision: jax.Array, texts: dict[str, jax.Array], inserts: Inserts = Inserts()
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Teacher forcing.

        Args:
          texts: ids int[R, T] (pads on either side) and target float[R, T], the weight of each token in the loss; with
            places int[R, P], of those that count, only they are predicted. See the interface.

        Returns:
          Logits float32[R, P, V], labels int[R, P], weights float[R, P]; P = T - 1 without places.
        """
        ids = texts["ids"][:, :-1]  # the last token is only predicted
        hidden = self._read(vision, ids, ids != self.config.pad_token, inserts)
        if "places" in texts:  # a token is predicted at the one before it
            hidden = at_places(hidden, texts["places"] - 1)
        return self.lm.logits(hidden), *target_tokens(texts, start=1)

    def prefill(
        self,
        vision: jax.Array,
        input_ids: jax.Array,
        attention_mask: jax.Array,
        steps: int,
        inserts: Inserts = Inserts(),
        start: tuple[int, ...] = (),
        ragged: bool = False,
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Reads a left-padded prompt and makes room for `steps` more tokens.

        Args:
          start: tokens that the answer of every row starts with; they are read with the prompt.
          ragged: rows will be given different numbers of tokens (the `lengths` of `step`).

        Returns:
          Logits float32[R, V] of the next token, and the cache for `step`.
        """
        first = jnp.broadcast_to(jnp.array(start, input_ids.dtype), (input_ids.shape[0], len(start)))
        input_ids = jnp.concatenate([input_ids, first], 1)
        attention_mask = jnp.pad(attention_mask, [(0, 0), (0, len(start))], constant_values=1)
        x, prefix, mask = self._embed(input_ids, attention_mask, inserts)
        media = self.fuse(vision, inserts)
        keys = self._media_keys(media)
        index = self._media_index(input_ids, prefix)
        context = self.config.lm.context(jnp.arange(x.shape[1]), mask)
        x, written = self.lm.run(x, keys, self._visible(index, media), context)
        room = [(0, 0), (0, 0), (0, steps), (0, 0), (0, 0)]
        keys, visible = self._recent(keys, index[:, -1:], media)
        cache = {
            "text": jax.tree.map(lambda a: jnp.pad(a, room), written),
            "media": keys,
            "visible": visible,
            "mask": jnp.pad(mask, [(0, 0), (0, steps)], constant_values=True),
            "index": jnp.full(x.shape[:1] if ragged else (), x.shape[1], jnp.int32),
        }
        return self.lm.logits(x[:, -1]), cache

    def step(
        self, cache: dict[str, Any], tokens: jax.Array, lengths: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Some tokens more.

        Args:
          cache: from `prefill` or the step before.
          tokens: int[R], or int[R, T] for several at once.
          lengths: int[R], how many of the T are a row's own, the others being pads behind them; only for a cache that
            is `ragged`. Later tokens overwrite the pads. A row that gets none has logits that mean nothing.

        Returns:
          Logits float32[R, V] of the token after each row's last one, and the cache.
        """
        tokens = tokens[:, None] if tokens.ndim == 1 else tokens
        rows, count = tokens.shape
        index = cache["index"]
        context = self.config.lm.context(index[..., None] + jnp.arange(count), cache["mask"])
        visible = jnp.broadcast_to(cache["visible"], (rows, count, cache["visible"].shape[2]))
        x, text = self.lm.run(self.lm.embed(tokens), cache["media"], visible, context, cache["text"], index)
        index = index + (count if lengths is None else lengths)
        return self.lm.logits(layers.after(x, lengths)), {**cache, "text": text, "index": index}

    def _embed(self, ids, mask, inserts):
        """Embeddings, the number of learned ones in front, and the mask bool[R, P + T]."""
        mask = jnp.ones(ids.shape, bool) if mask is None else mask.astype(bool)
        x, mask, prefix = inserts.before_text(self.lm.embed(ids), mask)
        return x, prefix, mask

    def _media_index(self, ids: jax.Array, prefix: int) -> jax.Array:
        """int[R, P + T]: which image (1-based) each text token attends to; 0 before the first."""
        index = jnp.cumsum(ids == self.config.image_token, 1)
        return jnp.pad(index, [(0, 0), (prefix, 0)])

    def _visible(self, index: jax.Array, media: jax.Array) -> jax.Array:
        """bool[R, T, I * L]: a text token attends only to the most recent image before it."""
        owner = jnp.repeat(jnp.arange(1, media.shape[1] + 1), media.shape[2])
        return index[..., None] == owner

    def _recent(
        self, keys: tuple[jax.Array, jax.Array], index: jax.Array, media: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        """What the text to come can see: keys float[G, B, S, H, d], and bool[R, 1, S] from the last token's `index`.

        Where each sample has one row, only the keys of its last image are kept: S is L then, and I * L otherwise.
        """
        visible = self._visible(index, media)
        images, length = media.shape[1:3]
        if images == 1 or media.shape[0] != index.shape[0]:
            return keys, visible
        last = (index - 1).clip(0)[None, ..., None, None, None]
        keys = tuple(
            jnp.take_along_axis(rearrange(k, "g b (i l) h d -> g b i l h d", i=images), last, 2)[:, :, 0] for k in keys
        )
        return keys, jnp.broadcast_to(index[..., None] > 0, (*index.shape, length))

    def _media_keys(self, media: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self.lm.media_keys(rearrange(media, "b i l d -> b (i l) d"))

    @nn.nowrap
    def reorder(self, cache: dict[str, Any], rows: jax.Array) -> dict[str, Any]:
        """Picks rows of a decoding cache; see the interface."""
        return {
            **cache,
            "text": jax.tree.map(lambda a: a[:, rows], cache["text"]),
            "visible": cache["visible"][rows],
            "mask": cache["mask"][rows],
            "index": layers.pick(cache["index"], rows),
        }
