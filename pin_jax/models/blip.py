"""BLIP's image-text retrieval: the ViT, BERT as text encoder, and one projection each (Li et al., ICML 2022)."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
from einops import rearrange
from jaxtyping import Array, Float, Int

from pin_jax.models import attention, layers
from pin_jax.models.vit import SecondStream, Streams, ViT, ViTConfig


@dataclasses.dataclass(frozen=True)
class BERTConfig:
    """Shape of a BERT text encoder; its blocks have their LayerNorms behind (post-norm)."""

    vocab: int = 30524
    context: int = 512
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp: int = 3072
    act: str = "gelu"
    eps: float = 1e-12
    pad: int = 0
    dtype: Any = None


@dataclasses.dataclass(frozen=True)
class BLIPConfig:
    """BLIP: `embed` is the width of the shared space (256 as published)."""

    vision: ViTConfig
    text: BERTConfig
    embed: int = 256


class BERTBlock(nn.Module):
    """LN(x + attn(x)), then LN(x + mlp(x)); a token that is padding is not seen."""

    config: BERTConfig

    @nn.compact
    def __call__(self, x: Float[Array, "C T D"], bias: attention.Bias) -> Float[Array, "C T D"]:
        config = self.config
        dense = functools.partial(layers.dense, dtype=config.dtype)
        norm = functools.partial(nn.LayerNorm, epsilon=config.eps, dtype=config.dtype)
        q, k, v = rearrange(dense(3 * config.width, name="qkv")(x), "b n (t h d) -> t b n h d", t=3, h=config.heads)
        out = rearrange(attention.plain(q, k, v, bias), "b n h d -> b n (h d)")
        x = norm(name="norm_1")(x + dense(config.width, name="out")(out))
        y = layers.ACTIVATIONS[config.act](dense(config.mlp, name="fc1")(x))
        return norm(name="norm_2")(x + dense(config.width, name="fc2")(y))


class BERT(nn.Module):
    """Ids of texts (padded with `config.pad`) -> hidden states."""

    config: BERTConfig

    @nn.compact
    def __call__(self, ids: Int[Array, "C T"]) -> Float[Array, "C T D"]:
        config = self.config
        init = nn.initializers.normal(0.02)
        table = self.param("embedding", init, (config.vocab, config.width))
        positions = self.param("positions", init, (config.context, config.width))
        x = (table[ids] + positions[: ids.shape[1]]).astype(config.dtype or table.dtype)
        x = nn.LayerNorm(epsilon=config.eps, dtype=config.dtype, name="norm")(x)
        bias = attention.visible(ids != config.pad)[:, None, None].astype(x.dtype)
        block, init_blocks = layers.stacked(functools.partial(BERTBlock, config), config.depth)
        blocks = layers.stack(self, "blocks", lambda rng: init_blocks(rng, x, bias))
        return layers.scan(lambda x, own: (block.apply(own, x, bias), None), x, blocks, unroll=False)[0]


class BLIP(nn.Module):
    """Both encoders and their projections, with the methods of `clip.CLIP`. The matching head is no part of it."""

    config: BLIPConfig

    def setup(self):
        self.vision = ViT(self.config.vision)
        self.bert = BERT(self.config.text, name="text")
        dense = functools.partial(layers.dense, dtype=self.config.vision.dtype)
        self.projection, self.text_projection = dense(self.config.embed), dense(self.config.embed)

    def __call__(
        self, pixels: Float[Array, "B H W 3"], ids: Int[Array, "C T"]
    ) -> tuple[Float[Array, "B E"], Float[Array, "C E"]]:
        return self.image(pixels), self.text(ids)

    def image(self, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B E"]:
        """Images in the shared space."""
        return self.projection(self.vision(pixels).tokens[:, 0])

    def text(self, ids: Int[Array, "C T"]) -> Float[Array, "C E"]:
        """Texts, padded, in the shared space, from the first token."""
        return self.text_projection(self.bert(ids)[:, 0])

    def image_tokens(self, pixels: Float[Array, "B H W 3"], second: SecondStream) -> Streams:
        """Every token of both streams in the shared space."""
        return jax.tree.map(self.projection, self.vision(pixels, second))
