"""BLIP-2's Q-Former: learned queries that read the vision tokens (BERT's post-norm layers, Li et al. 2023)."""

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
class QFormerConfig:
    """Shape of the Q-Former.

    Attributes:
      queries: learned tokens. width, depth, heads, mlp: the usual.
      cross_every: layer i reads the vision tokens when i % cross_every == 0; must divide depth.
      act: key of `layers.ACTIVATIONS`. eps: of every LayerNorm.
      dtype: of the computation; parameters keep their own.
      unroll, remat: see `layers.scan`.
    """

    queries: int = 32
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp: int = 3072
    cross_every: int = 2
    act: str = "gelu"
    eps: float = 1e-12
    dtype: Any = None
    unroll: bool = False
    remat: bool | str = False


class PostNormAttention(nn.Module):
    """norm(x + attention(x; keys and values from media))."""

    config: QFormerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B Q D"], media: Float[Array, "B N D_media"]) -> Float[Array, "B Q D"]:
        config = self.config
        dense = functools.partial(layers.dense, dtype=config.dtype)
        q, k, v = (
            rearrange(dense(config.width, name=n)(y), "b n (h d) -> b n h d", h=config.heads)
            for n, y in (("q", x), ("k", media), ("v", media))
        )
        out = dense(config.width, name="out")(rearrange(attention.plain(q, k, v), "b n h d -> b n (h d)"))
        return nn.LayerNorm(epsilon=config.eps, dtype=config.dtype, name="norm")(x + out)


class QFormerBlock(nn.Module):
    """Self-attention, then the feed-forward network; both post-norm. The cross-attention comes between them."""

    config: QFormerConfig

    def setup(self):
        config = self.config
        self.attention = PostNormAttention(config)
        self.fc1, self.fc2 = (layers.dense(n, dtype=config.dtype) for n in (config.mlp, config.width))
        self.norm = nn.LayerNorm(epsilon=config.eps, dtype=config.dtype)

    def attend(self, x: Float[Array, "B Q D"]) -> Float[Array, "B Q D"]:
        """The first half."""
        return self.attention(x, x)

    def feed(self, x: Float[Array, "B Q D"]) -> Float[Array, "B Q D"]:
        """The second half."""
        return self.norm(x + self.fc2(layers.ACTIVATIONS[self.config.act](self.fc1(x))))

    def __call__(self, x: Float[Array, "B Q D"]) -> Float[Array, "B Q D"]:
        return self.feed(self.attend(x))


class QFormer(nn.Module):
    """Vision tokens -> query tokens."""

    config: QFormerConfig

    @nn.compact
    def __call__(self, media: Float[Array, "B N D_media"]) -> Float[Array, "B Q D"]:
        config = self.config
        if config.depth % config.cross_every:
            raise ValueError(f"Q-Former depth {config.depth} is not a multiple of cross_every {config.cross_every}")
        queries = self.param("queries", nn.initializers.normal(0.02), (config.queries, config.width))
        x = nn.LayerNorm(epsilon=config.eps, dtype=config.dtype, name="norm")(queries)
        x = jnp.broadcast_to(x, (media.shape[0], *x.shape))
        groups = config.depth // config.cross_every
        block, init = layers.stacked(functools.partial(QFormerBlock, config), config.depth)
        cross, init_cross = layers.stacked(functools.partial(PostNormAttention, config), groups)
        blocks = layers.stack(self, "blocks", lambda rng: init(rng, x))
        crosses = layers.stack(self, "cross", lambda rng: init_cross(rng, x, media))
        blocks = jax.tree.map(lambda a: a.reshape(groups, config.cross_every, *a.shape[1:]), blocks)

        def group(x, inputs):
            """A layer that reads the vision tokens, then those that do not."""
            own, across = inputs
            first = jax.tree.map(lambda a: a[0], own)
            x = cross.apply(across, block.apply(first, x, method="attend"), media)
            x = block.apply(first, x, method="feed")
            for i in range(1, config.cross_every):
                x = block.apply(jax.tree.map(lambda a, i=i: a[i], own), x)
            return x, None

        x, _ = layers.scan(group, x, (blocks, crosses), unroll=config.unroll, remat=config.remat)
        return x
