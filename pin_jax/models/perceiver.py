"""Flamingo's Perceiver resampler: 64 learned latents read the vision tokens (OpenFlamingo's form)."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from pin_jax.models import attention, layers


@dataclasses.dataclass(frozen=True)
class PerceiverConfig:
    """Shape of the resampler; its width is that of the vision tokens."""

    width: int = 1024
    latents: int = 64
    depth: int = 6
    heads: int = 8
    head_dim: int = 64
    mlp_ratio: int = 4
    dtype: Any = None
    unroll: bool = False


class PerceiverLayer(nn.Module):
    """latents + attention(latents; keys and values from media and latents), then latents + feed-forward."""

    config: PerceiverConfig

    @nn.compact
    def __call__(self, latents: Float[Array, "B L D"], media: Float[Array, "B N D"]) -> Float[Array, "B L D"]:
        config = self.config
        norm = functools.partial(nn.LayerNorm, epsilon=1e-5, dtype=config.dtype)
        dense = functools.partial(layers.dense, use_bias=False, dtype=config.dtype)
        inner = config.heads * config.head_dim
        media = norm(name="norm_media")(media)
        queries = norm(name="norm_latents")(latents)
        q = rearrange(dense(inner, name="q")(queries), "b n (h d) -> b n h d", h=config.heads)
        kv = dense(2 * inner, name="kv")(jnp.concatenate([media, queries], 1))
        k, v = rearrange(kv, "b n (t h d) -> t b n h d", t=2, h=config.heads)
        out = rearrange(attention.plain(q, k, v), "b n h d -> b n (h d)")
        latents = latents + dense(config.width, name="out")(out)
        y = dense(config.width * config.mlp_ratio, name="fc1")(norm(name="norm_mlp")(latents))
        return latents + dense(config.width, name="fc2")(jax.nn.gelu(y, approximate=False))


class Perceiver(nn.Module):
    """Vision tokens -> latents."""

    config: PerceiverConfig

    @nn.compact
    def __call__(self, media: Float[Array, "B N D"]) -> Float[Array, "B L D"]:
        config = self.config
        latents = self.param("latents", nn.initializers.normal(1.0), (config.latents, config.width))
        x = jnp.broadcast_to(latents.astype(media.dtype), (media.shape[0], *latents.shape))
        layer, init = layers.stacked(functools.partial(PerceiverLayer, config), config.depth)
        stack = layers.stack(self, "layers", lambda rng: init(rng, x, media))
        x, _ = layers.scan(lambda x, own: (layer.apply(own, x, media), None), x, stack, unroll=config.unroll)
        return nn.LayerNorm(epsilon=1e-5, dtype=config.dtype, name="norm")(x)
