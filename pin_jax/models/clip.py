"""CLIP and SigLIP: image and text tower on the project's one ViT, and every published size that GEM lists."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int

from pin_jax.models import attention, layers
from pin_jax.models.layers import unit_length
from pin_jax.models.vit import SecondStream, Streams, ViT, ViTBlock, ViTConfig

POOLS = ("argmax", "eos", "last")


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Shape and form of a text tower.

    Attributes:
      vocab, context, width, depth, heads, mlp: the usual; context is the longest text in tokens.
      act: key of `layers.ACTIVATIONS`. eps: of every LayerNorm.
      causal: a token sees only those before it (CLIP; not SigLIP).
      pool: the token that stands for the text: `argmax` (the highest id: OpenAI's vocabulary, where that is the end
        token), `eos` (the first one of id `eos`) or `last` (SigLIP).
      eos: id of the end token. pad: id that fills a row.
      dtype, unroll: see `ViTConfig`.
    """

    vocab: int = 49408
    context: int = 77
    width: int = 512
    depth: int = 12
    heads: int = 8
    mlp: int = 2048
    act: str = "quick_gelu"
    eps: float = 1e-5
    causal: bool = True
    pool: str = "argmax"
    eos: int = 49407
    pad: int = 0
    dtype: Any = None
    unroll: bool = False

    def __post_init__(self):
        if self.pool not in POOLS:
            raise ValueError(f"pool {self.pool!r}: expected one of {', '.join(POOLS)}")


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """An image-text model.

    Attributes:
      embed: width E of the space that images and texts share.
      head: from image tokens to that space: `projection` (CLIP: one linear map) or `map` (SigLIP: attention pooling by
        a learned probe; E is then the width of the tower).
      text_bias: the text projection has a bias (SigLIP).
      logit_bias: the similarity has a learned bias beside its learned scale (SigLIP, and any model that was trained
        with the sigmoid loss).
    """

    vision: ViTConfig
    text: TextConfig
    embed: int = 512
    head: str = "projection"
    text_bias: bool = False
    logit_bias: bool = False


class TextTower(nn.Module):
    """Ids of texts, T at most the context -> the pooled token after the last LayerNorm."""

    config: TextConfig

    @nn.compact
    def __call__(self, ids: Int[Array, "C T"]) -> Float[Array, "C D"]:
        config = self.config
        if ids.shape[1] > config.context:
            raise ValueError(f"text of {ids.shape[1]} tokens; the tower takes {config.context}: cut it")
        init = nn.initializers.normal(0.02)
        table = self.param("embedding", init, (config.vocab, config.width))
        positions = self.param("positions", init, (config.context, config.width))
        x = (table[ids] + positions[: ids.shape[1]]).astype(config.dtype or table.dtype)
        attend = attention.plain
        if config.causal:
            seen = jnp.tril(jnp.ones((ids.shape[1],) * 2, bool))
            attend = functools.partial(attend, bias=attention.visible(seen)[None, None].astype(x.dtype))
        # A text block is the ViT's block: pre-norm, fused qkv, two-layer MLP.
        form = ViTConfig(
            width=config.width, heads=config.heads, mlp=config.mlp, act=config.act, eps=config.eps, dtype=config.dtype
        )
        block, init_blocks = layers.stacked(functools.partial(ViTBlock, form), config.depth)
        blocks = layers.stack(self, "blocks", lambda rng: init_blocks(rng, Streams(x), attend))
        streams, _ = layers.scan(
            lambda x, own: (block.apply(own, x, attend), None), Streams(x), blocks, unroll=config.unroll
        )
        x = streams.tokens
        if config.pool == "last":
            x = x[:, -1]
        else:
            place = (ids if config.pool == "argmax" else ids == config.eos).argmax(-1)
            x = jnp.take_along_axis(x, place[:, None, None], 1)[:, 0]
        return nn.LayerNorm(epsilon=config.eps, dtype=config.dtype, name="norm")(x)


class MapHead(nn.Module):
    """SigLIP's attention pooling: a learned probe attends to the tokens, then a residual MLP."""

    config: ViTConfig

    def setup(self):
        config = self.config
        dense = functools.partial(layers.dense, dtype=config.dtype)
        self.probe = self.param("probe", nn.initializers.normal(0.02), (config.width,))
        self.qkv = self.param("qkv", nn.initializers.normal(0.02), (config.width, 3 * config.width))
        self.qkv_bias = self.param("qkv_bias", nn.initializers.zeros, (3 * config.width,))
        self.out = dense(config.width)
        self.norm = nn.LayerNorm(epsilon=config.eps, dtype=config.dtype)
        self.fc1, self.fc2 = dense(config.mlp), dense(config.width)

    def _part(self, x: Float[Array, "B N D"], index: int) -> Float[Array, "B N D"]:
        """q (0), k (1) or v (2) of x."""
        columns = slice(index * self.config.width, (index + 1) * self.config.width)
        return x @ self.qkv[:, columns].astype(x.dtype) + self.qkv_bias[columns].astype(x.dtype)

    def _mlp(self, x: Array) -> Array:
        return x + self.fc2(layers.ACTIVATIONS[self.config.act](self.fc1(self.norm(x))))

    def __call__(self, tokens: Float[Array, "B N D"]) -> Float[Array, "B D"]:
        """All tokens of an image -> one."""
        probe = jnp.broadcast_to(self.probe.astype(tokens.dtype), (tokens.shape[0], 1, self.config.width))
        parts = (self._part(x, i) for i, x in enumerate((probe, tokens, tokens)))
        q, k, v = (rearrange(x, "b n (h d) -> b n h d", h=self.config.heads) for x in parts)
        out = attention.plain(q, k, v)
        return self._mlp(self.out(rearrange(out, "b n h d -> b n (h d)")))[:, 0]

    def tokens(self, tokens: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        """Every token pooled as if it were the only one: its softmax is 1, so only v is left."""
        return self._mlp(self.out(self._part(tokens, 2)))


class CLIP(nn.Module):
    """Both towers and their projections: normalised pixels and ids of texts -> embeddings of both, not normalised."""

    config: CLIPConfig

    def setup(self):
        config = self.config
        self.vision = ViT(config.vision)
        self.text_tower = TextTower(config.text, name="text")
        dense = functools.partial(layers.dense, dtype=config.vision.dtype)
        if config.head == "map":
            self.head = MapHead(config.vision)
        else:
            self.projection = dense(config.embed, use_bias=False)
        self.text_projection = dense(config.embed, use_bias=config.text_bias)
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(2.6592), ())  # log(1 / 0.07)
        if config.logit_bias:
            self.logit_bias = self.param("logit_bias", nn.initializers.constant(-10.0), ())

    def __call__(
        self, pixels: Float[Array, "B H W 3"], ids: Int[Array, "C T"]
    ) -> tuple[Float[Array, "B E"], Float[Array, "C E"]]:
        return self.image(pixels), self.text(ids)

    def image(self, pixels: Float[Array, "B H W 3"], keep: Int[Array, " K"] | None = None) -> Float[Array, "B E"]:
        """Images in the shared space; `keep` as in `ViT`."""
        tokens = self.vision(pixels, keep=keep).tokens
        return self.head(tokens) if self.config.head == "map" else self.projection(tokens[:, 0])

    def text(self, ids: Int[Array, "C T"]) -> Float[Array, "C E"]:
        """Texts in the shared space."""
        return self.text_projection(self.text_tower(ids))

    def image_tokens(self, pixels: Float[Array, "B H W 3"], second: SecondStream) -> Streams:
        """Every token of both streams in the shared space, the class token (if there is one) first."""
        project = self.head.tokens if self.config.head == "map" else self.projection
        return jax.tree.map(project, self.vision(pixels, second))

    def similarity(self, images: Float[Array, "B E"], texts: Float[Array, "C E"]) -> Float[Array, "B C"]:
        """Logits of embeddings, with the learned scale (at most 100)."""
        logits = jnp.exp(jnp.minimum(self.logit_scale, jnp.log(100.0))) * (unit_length(images) @ unit_length(texts).T)
        return logits + self.logit_bias if self.config.logit_bias else logits


def published(patch: int, size: int, layers: int, width: int, embed: int, text: tuple[int, int], heads: int, act: str):
    """A published CLIP; `text` is (width, layers) of the text tower, whose heads have 64 channels."""
    vision = ViTConfig(image_size=size, patch=patch, width=width, depth=layers, heads=heads, mlp=4 * width, act=act)
    form = TextConfig(width=text[0], depth=text[1], heads=text[0] // 64, mlp=4 * text[0], act=act)
    return CLIPConfig(vision, form, embed)


# The sizes that GEM lists. OpenAI's and MetaCLIP's weights need quick_gelu, LAION's the exact one.
BACKBONES = {
    "ViT-B/32": published(32, 224, 12, 768, 512, (512, 12), 12, "quick_gelu"),
    "ViT-B/16": published(16, 224, 12, 768, 512, (512, 12), 12, "quick_gelu"),
    "ViT-B/16-plus-240": published(16, 240, 12, 896, 640, (640, 12), 14, "gelu"),
    "ViT-L/14": published(14, 224, 24, 1024, 768, (768, 12), 16, "quick_gelu"),
    "ViT-L/14-336": published(14, 336, 24, 1024, 768, (768, 12), 16, "quick_gelu"),
    "ViT-H/14": published(14, 224, 32, 1280, 1024, (1024, 24), 16, "gelu"),
}
