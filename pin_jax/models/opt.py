"""OPT: the decoder-only language model of BLIP-2 (pre-norm, learned positions, tied head)."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from pin_jax.models import layers
from pin_jax.models.interface import at_places, target_tokens

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
    """Pre-norm decoder block."""

    config: OPTConfig

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        bias: jax.Array,
        prompt: layers.Segment | None = None,
        cache: tuple[jax.Array, jax.Array] | None = None,
        index: jax.Array | int = 0,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """One block.

        Args:
          x: float[R, T, D].
          bias: float[R or 1, 1, T, S] over this text's own keys; without a cache S = T.
          prompt: earlier keys, values and their bias, shared by rows; see `layers.attend`.
          cache: own keys and values float[R, S, H, d] each, into which those of x are written from `index` on.

        Returns:
          x float[R, T, D] and its own keys and values.
        """
        config = self.config
        norm = functools.partial(nn.LayerNorm, epsilon=config.eps, dtype=config.dtype)
        dense = functools.partial(layers.dense, dtype=config.dtype)
        y = norm(name="norm_1")(x)
        q, k, v = (rearrange(dense(config.width, name=n)(y), "r t (h d) -> r t h d", h=config.heads) for n in "qkv")
        if cache is not None:
            k, v = layers.write(cache, (k, v), index)
        out = layers.attend(q, ([prompt] if prompt else []) + [(k, v, bias)])
        x = x + dense(config.width, name="out")(rearrange(out, "r t h d -> r t (h d)"))
        y = dense(config.mlp, name="fc1")(norm(name="norm_2")(x))
        return x + dense(config.width, name="fc2")(layers.ACTIVATIONS[config.act](y)), (k, v)


class OPT(nn.Module):
    """The language model, reading embeddings; what `Blip2` asks of a language model.

    `embed`, `__call__` and `predict` for whole texts, `prefill`, `step` and `reorder` for decoding.
    """

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

    def _cast(self, table: jax.Array) -> jax.Array:
        return table if self.config.dtype is None else table.astype(self.config.dtype)

    def embed(self, ids: jax.Array) -> jax.Array:
        """ids int[R, T] -> float[R, T, D], without positions."""
        return self._cast(self.embedding[ids])

    def logits(self, x: jax.Array) -> jax.Array:
        """float[..., D] -> float32[..., V] through the tied head."""
        x = self.norm(x)
        return jnp.einsum(
            "...d,vd->...v", x, self.embedding.astype(x.dtype), preferred_element_type=jnp.float32
        )  # fmt: skip

    def _place(self, x: jax.Array, places: jax.Array) -> jax.Array:
        """Adds positions: places int[R, T] counts from 0 over what is seen; -1 at pads."""
        return x + self._cast(self.positions[places + OFFSET]).astype(x.dtype)

    def _run(self, x, bias, prompt=None, cache=None, index=0):
        """All blocks. prompt: (keys and values [L, ...], bias), cache: keys and values [L, ...]."""
        block = self._block()[0]

        def body(x, inputs):
            params, shared, own = inputs
            segment = None if prompt is None else (*shared, prompt[1])
            return block.apply({"params": params}, x, bias, segment, own, index)

        xs = (self.blocks, None if prompt is None else prompt[0], cache)
        return layers.scan(body, x, xs, unroll=self.config.unroll, remat=self.config.remat)

    def _read(self, x: jax.Array, mask: jax.Array):
        """Embeddings float[R, T, D] under mask bool[R, T] -> hidden float[R, T, D], keys and values [L, R, T, H, d]."""
        causal = jnp.tril(jnp.ones((x.shape[1],) * 2, bool))
        bias = layers.visible(causal & mask[:, None, None, :])
        return self._run(self._place(x, jnp.cumsum(mask, 1) * mask - 1), bias)

    def __call__(self, x: jax.Array, mask: jax.Array, labels: jax.Array | None = None) -> jax.Array:
        """Embeddings float[R, T, D] under mask bool[R, T] (pads and holes anywhere) -> logits float32[R, T, V]."""
        if labels is not None:
            raise ValueError("labels: a decoder-only language model takes them as part of input_ids")
        return self.logits(self._read(x, mask)[0])

    def predict(
        self, x: jax.Array, mask: jax.Array, texts: dict[str, jax.Array], skip: int
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Teacher forcing; see `pin_jax.models.interface`.

        Args:
          x, mask: of all tokens of `texts`, and of a prefix in front of them.
          skip: no token before this place counts in the loss, so none before it is predicted.
        """
        prefix = x.shape[1] - texts["ids"].shape[1]
        hidden, _ = self._read(x[:, :-1], mask[:, :-1])  # the last token is only predicted
        if "places" in texts:  # a token is predicted at the one before it
            hidden = at_places(hidden, prefix + texts["places"] - 1)
        else:
            hidden = hidden[:, prefix + skip - 1 :]
        return self.logits(hidden), *target_tokens(texts, start=skip)

    def prefill(
        self, x: jax.Array, mask: jax.Array, steps: int, start: tuple[int, ...] = (), ragged: bool = False
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Reads left-padded prompts, makes room for `steps` tokens; logits float32[R, V] of the next, and a cache."""
        config = self.config
        if start:
            first = self.embed(jnp.broadcast_to(jnp.array(start), (x.shape[0], len(start)))).astype(x.dtype)
            x = jnp.concatenate([x, first], 1)
            mask = jnp.pad(mask, [(0, 0), (0, len(start))], constant_values=True)
        hidden, keys = self._read(x, mask)
        room = (config.depth, x.shape[0], steps, config.heads, config.width // config.heads)
        cache = {
            "prompt": keys,
            "mask": mask,
            "text": jax.tree.map(lambda a: jnp.zeros(room, a.dtype), keys),
            "index": jnp.zeros(x.shape[:1] if ragged else (), jnp.int32),
        }
        return self.logits(hidden[:, -1]), cache

    def step(
        self, cache: dict[str, Any], tokens: jax.Array, lengths: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Some tokens more: int[R] or int[R, T] -> logits float32[R, V] of the next, and the cache."""
        tokens = tokens[:, None] if tokens.ndim == 1 else tokens
        rows, count = tokens.shape
        index, mask = cache["index"], cache["mask"]
        own = index.reshape(-1, 1) + jnp.arange(count)
        x = self._place(self.embed(tokens), jnp.repeat(mask.sum(1), rows // mask.shape[0])[:, None] + own)
        bias = layers.visible(jnp.arange(cache["text"][0].shape[2]) <= own[..., None])[:, None]
        prompt = cache["prompt"], layers.visible(mask)[:, None, None]
        x, text = self._run(x, bias, prompt, cache["text"], index)
        index = index + (count if lengths is None else lengths)
        return self.logits(layers.after(x, lengths)), {**cache, "text": text, "index": index}

    @nn.nowrap
    def reorder(self, cache: dict[str, Any], rows: jax.Array) -> dict[str, Any]:
        """Picks rows of a cache; prompts stay where they are, as rows stay with their prompt."""
        return {
            **cache,
            "text": jax.tree.map(lambda a: a[:, rows], cache["text"]),
            "index": layers.pick(cache["index"], rows),
        }
