"""The vision transformer that the whole project uses: CLIP's, EVA's and DINO's forms, attention passed in."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Int, UInt8

from pin_jax.models import attention, layers

# of the pixels in [0, 1], as OpenAI trained CLIP
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

AttentionFn = Callable[..., Array]


@dataclasses.dataclass(frozen=True)
class AttentionContext:
    """What an attention function may want to know of the block it runs in.

    Attributes:
      inputs: the block's input after its first LayerNorm: what q, k and v are made of.
      grid: patches (rows, columns) of the image.
      first: tokens in front of the patches (class token, extra tokens).
      last: the block is the last one.
    """

    inputs: Float[Array, "B N D"]
    grid: tuple[int, int]
    first: int
    last: bool = False


@dataclasses.dataclass(frozen=True)
class SecondStream:
    """An attention function with a stream z of its own through the last blocks, beside the original stream x.

    z starts as the input x of the first of these blocks. In each of them, with q, k, v and the weights of x's block:

        z <- [z +] out(attend(q, k, v)),        then, where `mlp`, z <- z + mlp(LN2(z)).

    Given to a `ViT` as its attention_fn; x runs on plain attention.

    Attributes:
      attend: called as attend(q, k, v, context=AttentionContext); float[B, N, H, d] each, and so its result.
      blocks: how many of the last blocks carry z; 0 makes z the original stream.
      residual: z is added to the attention's output; without, the attention's output is all that z is.
      mlp: the block's MLP follows.
    """

    attend: AttentionFn
    blocks: int
    residual: bool = True
    mlp: bool = False


@flax.struct.dataclass
class Streams:
    """What a vision transformer makes of its tokens.

    Attributes:
      tokens: x, the class token first.
      second: z of a `SecondStream`, where there is one.
    """

    tokens: Float[Array, "B N D"]
    second: Float[Array, "B N D"] | None = None


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Shape and form of a vision transformer.

    Attributes:
      image_size, patch, width, depth, heads, mlp: the usual.
      act: key of `layers.ACTIVATIONS`.
      eps: of every LayerNorm.
      class_token: a learned token stands in front (CLIP, EVA; not SigLIP).
      patch_bias: the patch embedding has a bias (EVA, SigLIP; not CLIP).
      pre_norm: LayerNorm between the embeddings and the first block (CLIP).
      post_norm: LayerNorm on all output tokens (BLIP-2); OpenFlamingo takes them without it.
      antialias: how positions are resized to another image size, see `resize_positions`.
      registers: learned tokens behind the class token, which have no position (Darcet et al., DINOv2 with registers).
      layer_scale: what attention and MLP add is multiplied by a learned vector each (DINOv2).
      gated: the MLP is silu(a) * b of two halves a, b of fc1, which is twice as wide (SwiGLU, DINOv2's giant).
      stem_width: 0 for one linear patch embedding; else the patch is embedded in two steps, 2 x 2 sub-patches of
        this width first (used by the small models only).
      dtype: of the computation; parameters keep their own.
      attention: key of `attention.ATTENTION`, where the caller passes no function of its own.
      unroll, remat: see `layers.scan`.
    """

    image_size: int = 224
    patch: int = 14
    width: int = 1024
    depth: int = 24
    heads: int = 16
    mlp: int = 4096
    act: str = "quick_gelu"
    eps: float = 1e-5
    class_token: bool = True
    patch_bias: bool = False
    pre_norm: bool = True
    post_norm: bool = True
    antialias: bool = True
    registers: int = 0
    layer_scale: bool = False
    gated: bool = False
    stem_width: int = 0
    dtype: Any = None
    attention: str = "xla"
    unroll: bool = False
    remat: bool | str = False

    @property
    def grid(self) -> int:
        """Patches along a side at the native size."""
        return self.image_size // self.patch

    @property
    def tokens(self) -> int:
        """Output tokens at the native size, class token and registers counted."""
        return self.grid**2 + int(self.class_token) + self.registers


CLIP_L14 = ViTConfig()
EVA_G14 = ViTConfig(
    width=1408, depth=39, heads=16, mlp=6144, act="gelu", eps=1e-6, patch_bias=True, pre_norm=False, antialias=False
)


def normalise(
    images: UInt8[Array, "*images 3"], mean: Sequence[float], std: Sequence[float]
) -> Float[Array, "*images 3"]:
    """Pictures -> float32, the pixels that a ViT takes, given their mean and standard deviation."""
    return (images.astype(jnp.float32) / 255 - jnp.array(mean)) / jnp.array(std)


def resize_positions(
    table: Float[Array, "N D"], grid: tuple[int, int], class_token: bool, antialias: bool = True
) -> Float[Array, "N_new D"]:
    """Resizes a learned position table to another grid; CLS stays.

    Bicubic with half-pixel centres: antialiased, as open_clip and GEM do, or without antialiasing and by torch's other
    cubic, a = -0.75, as transformers does.
    """
    head, body = table[: int(class_token)], table[int(class_token) :]
    side = int(round(body.shape[0] ** 0.5))
    if grid == (side, side):
        return table
    square = body.reshape(side, side, -1)
    if antialias:
        body = jax.image.resize(square, (*grid, body.shape[-1]), "bicubic", antialias=True)
    else:
        rows, columns = (jnp.asarray(_cubic(side, new)) for new in grid)
        body = jnp.einsum("hi,wj,ijd->hwd", rows, columns, square.astype(jnp.float32), precision="highest")
    return jnp.concatenate([head, body.reshape(-1, body.shape[-1]).astype(head.dtype)])


def _cubic(old: int, new: int, a: float = -0.75) -> np.ndarray:
    """Weights float32[new, old] of cubic interpolation with half-pixel centres and a repeated border (Keys 1981)."""
    centre = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(centre).astype(int) - 1
    weights = np.zeros((new, old), np.float32)
    for tap in range(4):
        t = np.abs(centre - (first + tap))
        near = (a + 2) * t**3 - (a + 3) * t**2 + 1
        far = a * (t**3 - 5 * t**2 + 8 * t - 4)
        np.add.at(weights, (np.arange(new), (first + tap).clip(0, old - 1)), np.where(t <= 1, near, far))
    return weights


class ViTBlock(nn.Module):
    """Pre-norm block: x + attn(LN(x)), then x + mlp(LN(x)), on both streams where there is a second one."""

    config: ViTConfig

    @nn.compact
    def __call__(
        self,
        streams: Streams,
        attention_fn: AttentionFn | SecondStream,
        grid: tuple[int, int] = (0, 0),
        first: int = 0,
        last: bool = False,
    ) -> Streams:
        config, x, z = self.config, streams.tokens, streams.second
        norm = functools.partial(nn.LayerNorm, epsilon=config.eps, dtype=config.dtype)
        dense = functools.partial(layers.dense, dtype=config.dtype)
        y = norm(name="norm_1")(x)
        q, k, v = rearrange(dense(3 * config.width, name="qkv")(y), "b n (t h d) -> t b n h d", t=3, h=config.heads)
        out, norm_2 = dense(config.width, name="out"), norm(name="norm_2")
        fc1, fc2 = dense(config.mlp * (2 if config.gated else 1), name="fc1"), dense(config.width, name="fc2")
        context = AttentionContext(y, grid, first, last)
        scale_1, scale_2 = (
            self.param(name, nn.initializers.ones, (config.width,)).astype(y.dtype) if config.layer_scale else 1
            for name in ("scale_1", "scale_2")
        )

        def attended(attention_fn: AttentionFn) -> Array:
            return scale_1 * out(rearrange(attention_fn(q, k, v, context=context), "b n h d -> b n (h d)"))

        def add_mlp(x: Array) -> Array:
            hidden = fc1(norm_2(x))
            if config.gated:
                gate, hidden = jnp.split(hidden, 2, axis=-1)
                hidden = jax.nn.silu(gate) * hidden
            else:
                hidden = layers.ACTIVATIONS[config.act](hidden)
            return x + scale_2 * fc2(hidden)

        if z is None:
            assert not isinstance(attention_fn, SecondStream)
            return Streams(add_mlp(x + attended(attention_fn)))
        assert isinstance(attention_fn, SecondStream)
        seen = attended(attention_fn.attend)
        z = z + seen if attention_fn.residual else seen
        return Streams(add_mlp(x + attended(attention.vision)), add_mlp(z) if attention_fn.mlp else z)


class ViT(nn.Module):
    """Vision transformer: normalised pixels -> `Streams` of tokens."""

    config: ViTConfig

    @nn.compact
    def __call__(
        self,
        pixels: Float[Array, "B H W 3"],
        attention_fn: AttentionFn | SecondStream | None = None,
        extra_tokens: Float[Array, "*B P D"] | None = None,
        keep: Int[Array, " K"] | None = None,
    ) -> Streams:
        """See the class.

        Args:
          pixels: H and W multiples of the patch. Positions are resized to fit.
          attention_fn: called as attention_fn(q, k, v, context=AttentionContext), float[B, N, H, d] each; or a
            `SecondStream`; the config's by default.
          keep: the patches (row by row) that are processed at all, for cheaper training; all by default.
          extra_tokens: the same for all images, or each image's own, put after the class token and the first norm (VPT
            on phi_V).
        """
        config = self.config
        attention_fn = attention_fn or attention.ATTENTION[config.attention]
        if pixels.shape[1] % config.patch or pixels.shape[2] % config.patch:
            raise ValueError(f"image {pixels.shape[1:3]} is not a multiple of the patch {config.patch}; resize it")
        dense = functools.partial(layers.dense, dtype=config.dtype)
        grid = (pixels.shape[1] // config.patch, pixels.shape[2] // config.patch)
        if config.stem_width:
            half = config.patch // 2
            x = rearrange(pixels, "b (h i p) (w j q) c -> b (h w) i j (p q c)", i=2, j=2, p=half, q=half)
            x = x if keep is None else x[:, keep]
            x = nn.LayerNorm(epsilon=config.eps, name="stem_norm")(dense(config.stem_width, name="stem")(x))
            x = rearrange(layers.ACTIVATIONS[config.act](x), "b n i j c -> b n (i j c)")
        else:
            x = rearrange(pixels, "b (h p) (w q) c -> b (h w) (p q c)", p=config.patch, q=config.patch)
            x = x if keep is None else x[:, keep]
        x = dense(config.width, config.patch_bias or bool(config.stem_width), name="patch")(x)
        table = self.param("positions", nn.initializers.normal(0.02), (config.tokens - config.registers, config.width))
        positions = resize_positions(table, grid, config.class_token, config.antialias).astype(x.dtype)
        if config.class_token:
            cls = self.param("class_token", nn.initializers.normal(0.02), (config.width,))
            x = jnp.concatenate([jnp.broadcast_to(cls.astype(x.dtype), (x.shape[0], 1, config.width)), x], 1)
            keep = None if keep is None else jnp.concatenate([jnp.zeros(1, keep.dtype), keep + 1])
        x = x + (positions if keep is None else positions[keep])
        if config.registers:
            table = self.param("registers", nn.initializers.normal(0.02), (config.registers, config.width))
            registers = jnp.broadcast_to(table.astype(x.dtype), (x.shape[0], *table.shape))
            x = jnp.concatenate([x[:, :1], registers, x[:, 1:]], 1)
        if config.pre_norm:
            x = nn.LayerNorm(epsilon=config.eps, dtype=config.dtype, name="pre_norm")(x)
        if extra_tokens is not None:
            extra = jnp.broadcast_to(extra_tokens.astype(x.dtype), (x.shape[0], *extra_tokens.shape[-2:]))
            first = int(config.class_token)
            x = jnp.concatenate([x[:, :first], extra, x[:, first:]], 1)
        block, init = layers.stacked(functools.partial(ViTBlock, config), config.depth)
        blocks = layers.stack(self, "blocks", lambda rng: init(rng, Streams(x), attention.vision))

        first = x.shape[1] - (grid[0] * grid[1] if keep is None else len(keep) - int(config.class_token))
        apply: Callable[..., Any] = functools.partial(block.apply, attention_fn=attention_fn, grid=grid, first=first)
        post_norm = (
            nn.LayerNorm(epsilon=config.eps, dtype=config.dtype, name="post_norm") if config.post_norm else lambda x: x
        )
        scan = functools.partial(layers.scan, unroll=config.unroll, remat=config.remat)
        if not isinstance(attention_fn, SecondStream):
            found, _ = scan(lambda streams, own: (apply(own, streams), None), Streams(x), blocks)
            return Streams(post_norm(found.tokens))
        if not 0 <= attention_fn.blocks <= config.depth:
            raise ValueError(f"a second stream over {attention_fn.blocks} blocks; this ViT has {config.depth}")

        def layer(i: Array | int) -> dict[str, Any]:  # indexed, not sliced: slices of the stack would be copies
            return jax.tree.map(lambda leaf: jax.lax.dynamic_index_in_dim(leaf, i, keepdims=False), blocks)

        def run(streams: Streams, start: int, stop: int, **other: Any) -> Any:
            if start == stop:  # a scan of no layers would still ask that z keeps its shape
                return streams
            places = jnp.arange(start, stop)
            return scan(lambda streams, i: (apply(layer(i), streams, **other), None), streams, places)[0]

        split = config.depth - attention_fn.blocks
        before = run(Streams(x), 0, split, attention_fn=attention.vision)
        streams: Any = Streams(before.tokens, before.tokens)
        if attention_fn.blocks:
            # The last block stands alone: where only z is used, the compiler drops x's half of it.
            streams = apply(layer(config.depth - 1), run(streams, split, config.depth - 1), last=True)
        return Streams(post_norm(streams.tokens), post_norm(streams.second))


def visible_patches(
    images: UInt8[Array, "B S S 3"], rng: Array, vision: ViTConfig, keep: float
) -> tuple[UInt8[Array, "B H W 3"], Int[Array, " K"] | None]:
    """Which patches the encoder sees in training: cheaper than all, and every part of an object must carry its name.

    Args:
      images: pictures smaller than the encoder's own size fill a random window of its grid, and only
        the window is processed.
      keep: for pictures of full size, the share of patches that are processed, drawn anew for each batch.

    Returns:
      Images of full size and the kept patches int[K] (None: all of them).
    """
    grid, side = vision.grid, images.shape[1] // vision.patch
    if side < grid:
        row, col = jax.random.randint(rng, (2,), 0, grid - side + 1)
        canvas = jnp.zeros((images.shape[0], vision.image_size, vision.image_size, 3), images.dtype)
        canvas = jax.lax.dynamic_update_slice(canvas, images, (0, row * vision.patch, col * vision.patch, 0))
        return canvas, ((row + jnp.arange(side))[:, None] * grid + col + jnp.arange(side)).reshape(-1)
    return images, jax.random.permutation(rng, grid**2)[: round(grid**2 * keep)] if keep < 1 else None
