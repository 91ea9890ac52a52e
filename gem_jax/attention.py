"""GEM and its peers: each is one attention function and a rule for the stream that it feeds.

Notation: q, k, v float[B, N, H, d] of one block of the frozen tower, of the ORIGINAL stream x; s = d^-0.5. A method is
a `pin_jax.models.vit.SecondStream`: z starts as x at the first of the blocks that it works in, and in each of them
z <- [z +] out(attend(q, k, v)), [z <- z + mlp(z)]. `method(name, ...)` builds one by its name.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int

from gem_jax.regions import merged
from input_pipeline.errors import UserError
from pin_jax.models import attention
from pin_jax.models.layers import unit_length
from pin_jax.models.vit import AttentionContext, SecondStream, ViTConfig


def self_attention(
    s: Float[Array, "B N H d"],
    v: Float[Array, "B N H d"],
    beta: float,
    bias: Float[Array, "N N"] | None = None,
) -> Float[Array, "B N H d"]:
    """softmax(beta s s^T + bias) v: attention of one projection to itself."""
    q = jnp.asarray(beta * s.shape[-1] ** 0.5, s.dtype) * s  # attention's own scale is d^-0.5
    return attention.vision(q, s, v) if bias is None else attention.plain(q, s, v, bias[None, None].astype(s.dtype))


def maskclip(q, k, v, context: AttentionContext) -> Float[Array, "B N H d"]:
    """v: every token keeps its own value (Zhou et al., Extract Free Dense Labels from CLIP, ECCV 2022)."""
    del q, k, context
    return v


def clip_surgery(q, k, v, context: AttentionContext) -> Float[Array, "B N H d"]:
    """softmax(s v v^T) v (Li et al., CLIP Surgery, 2023)."""
    del q, k, context
    return self_attention(v, v, v.shape[-1] ** -0.5)


def sclip(q, k, v, context: AttentionContext) -> Float[Array, "B N H d"]:
    """(softmax(s q q^T) + softmax(s k k^T)) v (Wang et al., SCLIP, ECCV 2024)."""
    del context
    scale = v.shape[-1] ** -0.5
    return self_attention(q, v, scale) + self_attention(k, v, scale)


def clearclip(q, k, v, context: AttentionContext) -> Float[Array, "B N H d"]:
    """softmax(s q q^T) v (Lan et al., ClearCLIP, ECCV 2024)."""
    del k, context
    return self_attention(q, v, v.shape[-1] ** -0.5)


def naclip(q, k, v, context: AttentionContext, std: float = 5.0, log: bool = False) -> Float[Array, "B N H d"]:
    """softmax(s k k^T + w) v, w_ij = exp(-|p_i - p_j|^2 / (2 std^2)) over patches (Hajimiri et al., NACLIP, WACV 2025).

    w is added to the logits as it is, as in the authors' released code, or with `log` its logarithm, which multiplies
    the attention by the Gaussian; it is 0 for tokens that are no patches.
    """
    del q
    rows, columns = context.grid
    p = jnp.stack(jnp.meshgrid(jnp.arange(rows), jnp.arange(columns), indexing="ij"), -1).reshape(-1, 2)
    w = -((p[:, None] - p) ** 2).sum(-1) / (2 * std**2)
    w = w if log else jnp.exp(w)
    return self_attention(k, v, v.shape[-1] ** -0.5, jnp.pad(w, (context.first, 0)))


def gem(
    q,
    k,
    v,
    context: AttentionContext,
    iterations: int = 1,
    temperature: float | None = None,
    parts: Sequence[str] = "qkv",
) -> Float[Array, "B N H d"]:
    """Mean over s in {q, k, v} of softmax(beta s^ s^^T) v (Bousselham et al., Grounding Everything, CVPR 2024, sec. 3).

    s^ = s / |s|, after `iterations` times s <- softmax(beta s^ s^^T) s^; beta = d^-0.5 mean_n |y_n|, per image, of the
    block's normalised input y.

    Args:
      temperature: beta itself, a multiplier; None is the adaptive one.
      parts: the projections that take part, any of q, k, v.
    """
    y = context.inputs
    if temperature is None:
        size = jnp.linalg.norm(y.astype(jnp.promote_types(y.dtype, jnp.float32)), axis=-1)
        beta = v.shape[-1] ** -0.5 * size.mean(-1)
    else:
        beta = jnp.full(len(y), temperature, y.dtype)
    chosen = tuple({"q": q, "k": k, "v": v}[part] for part in parts)
    at_once, by_head = (functools.partial(form, iterations=iterations) for form in (gem_at_once, gem_by_head))
    return jax.lax.platform_dependent(chosen, v, beta, cpu=by_head, default=at_once)


def gem_at_once(
    parts: Sequence[Float[Array, "B N H d"]], v: Float[Array, "B N H d"], beta: Float[Array, " B"], iterations: int
) -> Float[Array, "B N H d"]:
    """GEM's sum over the parts, all heads together."""
    wide = jnp.promote_types(v.dtype, jnp.float32)
    beta = beta.astype(wide).reshape(-1, 1, 1, 1)

    def attend(s: Array, v: Array) -> Array:
        """softmax(beta s s^T) v; s has length 1, so s_i s_j <= 1 and no maximum has to be looked for first."""
        weights = jnp.exp(beta * jnp.einsum("bnhd,bmhd->bhnm", s, s, preferred_element_type=wide) - beta)
        out = jnp.einsum("bhnm,bmhd->bnhd", weights.astype(v.dtype), v, preferred_element_type=wide)
        return (out / weights.sum(-1).swapaxes(1, 2)[..., None]).astype(v.dtype)

    total = jnp.zeros((), v.dtype)
    for s in map(unit_length, parts):
        for _ in range(iterations):
            s = unit_length(attend(s, s))
        total = total + attend(s, v)
    return total / len(parts)


def gem_by_head(
    parts: Sequence[Float[Array, "B N H d"]], v: Float[Array, "B N H d"], beta: Float[Array, " B"], iterations: int
) -> Float[Array, "B N H d"]:
    """The same for a CPU: head by head, so that each N x N map stays in its cache, and no sum is divided out of what is
    brought to length 1 anyway."""
    wide = jnp.promote_types(v.dtype, jnp.float32)

    def one(head: tuple[Array, ...]) -> Array:
        beta, v, *parts = head

        def weights(s: Array) -> Array:
            return jnp.exp(beta * jnp.matmul(s, s.T, preferred_element_type=wide) - beta)

        total = jnp.zeros((), v.dtype)
        for s in map(unit_length, parts):
            for _ in range(iterations):
                s = unit_length(jnp.matmul(weights(s).astype(s.dtype), s, preferred_element_type=wide)).astype(v.dtype)
            last = weights(s)
            out = jnp.matmul(last.astype(v.dtype), v, preferred_element_type=wide)
            total = total + (out / last.sum(-1, keepdims=True)).astype(v.dtype)
        return total / len(parts)

    heads = tuple(rearrange(x, "b n h d -> (b h) n d") for x in (v, *parts))
    beta = jnp.repeat(beta.astype(wide), v.shape[2])
    out = attention.each_head(one, (beta, *heads), v.shape[1] ** 2)
    return rearrange(out, "(b h) n d -> b n h d", b=v.shape[0])


def proxyclip(
    q,
    k,
    v,
    context: AttentionContext,
    features: Float[Array, "B M D"] | None = None,
    grid: tuple[int, int] = (0, 0),
    beta: float = 1.2,
    gamma: float = 3.0,
) -> Float[Array, "B M H d"]:
    """softmax(A) v with A of another network's features f (Lan et al., ProxyCLIP, ECCV 2024, sec. 3).

    A = gamma (cosine(f_i, f_j) - beta mean(cosine)), per image; entries below 0 are left out (all of a row: the patch
    keeps its own value). v, of patches alone, is enlarged bilinearly to f's grid, so that the result has f's places and
    no class token.

    Args:
      features: f of the image's patches, row by row of `grid`, in any place of the pipeline that has a proxy.
    """
    del q, k
    cosine = _cosines(features, v)
    logits = (cosine - beta * cosine.mean((1, 2), keepdims=True)) * gamma
    # Features that are all alike leave a patch nothing: it then keeps its own value.
    hidden = (logits < 0) & ~((logits < 0).all(-1, keepdims=True) & jnp.eye(logits.shape[-1], dtype=bool))
    return _at_places(jax.nn.softmax(jnp.where(hidden, -jnp.inf, logits)), v, context, grid)


def corrclip(
    q,
    k,
    v,
    context: AttentionContext,
    features: Float[Array, "B M D"] | None = None,
    grid: tuple[int, int] = (0, 0),
    regions: Int[Array, "B M"] | None = None,
    count: int = 0,
    merge: float = 0.8,
    tau: float = 0.25,
) -> Float[Array, "B M H d"]:
    """ProxyCLIP's attention kept to regions, the scope of CorrCLIP (Zhang et al., ICCV 2025, sec. 3).

    softmax over the patches j of i's own region of cosine(f_i, f_j) / tau; regions that f finds alike are one before
    (`regions.merged`). v and the result are as ProxyCLIP's. CorrCLIP's further branches (of shallow tokens and of mask
    tokens) are not computed.

    Args:
      features: as in `proxyclip`. regions: of the same places, 0 to count - 1. merge: the least cosine of regions that
        become one; above 1 none do.
    """
    del q, k
    if regions is None:
        raise ValueError("corrclip needs regions; GEM(..., regions=...) gives them")
    cosine = _cosines(features, v)
    own = merged(regions, features, count, merge)  # pyright: ignore[reportArgumentType] (told by `_cosines`)
    scope = own[:, :, None] == own[:, None]
    return _at_places(jax.nn.softmax(jnp.where(scope, cosine / tau, -jnp.inf)), v, context, grid)


def _cosines(features: Float[Array, "B M D"] | None, v: Array) -> Float[Array, "B M M"]:
    if features is None:
        raise ValueError("this attention needs the features of a proxy; GEM(..., proxy=...) gives them")
    f = unit_length(features.astype(jnp.promote_types(v.dtype, jnp.float32)))
    return jnp.einsum("bnd,bmd->bnm", f, f, precision="highest")


def _at_places(
    weights: Float[Array, "B M M"], v: Float[Array, "B N H d"], context: AttentionContext, grid: tuple[int, int]
) -> Float[Array, "B M H d"]:
    """weights v, the patches' v enlarged bilinearly to a grid of M places."""
    own = rearrange(v[:, context.first :], "b (r c) h d -> b r c (h d)", r=context.grid[0])
    own = jax.image.resize(own.astype(weights.dtype), (len(own), *grid, own.shape[-1]), "linear", antialias=False)
    out = jnp.einsum("bnm,bmd->bnd", weights, rearrange(own, "b r c d -> b (r c) d"), precision="highest")
    return rearrange(out, "b n (h d) -> b n h d", h=v.shape[2]).astype(v.dtype)


@dataclasses.dataclass(frozen=True)
class Method:
    """A row of the table: the attention, how many of the last blocks it works in (None: as GEM's depth says), and what
    else of these blocks is kept."""

    attend: Callable[..., Array]
    blocks: int | None
    residual: bool
    mlp: bool


ATTENTION_METHODS = {
    "clip": Method(attention.vision, 0, True, True),  # z is x: Radford et al., ICML 2021
    "maskclip": Method(maskclip, 1, False, False),
    "clip_surgery": Method(clip_surgery, None, True, False),
    "sclip": Method(sclip, 1, True, True),
    "clearclip": Method(clearclip, 1, False, False),
    "naclip": Method(naclip, 1, False, False),
    "naclip_log": Method(functools.partial(naclip, log=True), 1, False, False),
    "proxyclip": Method(proxyclip, 1, False, False),
    "corrclip": Method(corrclip, 1, False, False),
    "gem": Method(gem, None, True, False),
}
WITH_PROXY = ("proxyclip", "corrclip")  # those that look at another encoder's features
WITH_REGIONS = ("corrclip",)


def method(
    name: str,
    vision: ViTConfig,
    depth: int = 7,
    iterations: int = 1,
    temperature: float | None = None,
    parts: str = "qkv",
    merge: float = 0.8,
) -> SecondStream:
    """The second stream of a method.

    Args:
      name: key of `ATTENTION_METHODS`.
      vision: the tower that it is for.
      depth: GEM's and CLIP Surgery's: depth - 1 is how many of the last blocks carry the second stream (all of them at
        most), as the authors count.
      iterations, temperature, parts: GEM's; see `gem`. merge: CorrCLIP's; see `corrclip`.

    Raises:
      UserError: an unknown name, or a setting out of range.
    """
    if name not in ATTENTION_METHODS:
        raise UserError(f"attention {name!r}: expected one of {', '.join(ATTENTION_METHODS)}")
    if not 2 <= depth <= vision.depth + 1:
        raise UserError(f"depth {depth}: expected 2 to {vision.depth + 1}; depth - 1 of the tower's blocks carry GEM")
    if iterations < 0:
        raise UserError(f"iterations {iterations}: expected 0 or more")
    if temperature is not None and not temperature > 0:
        raise UserError(f"temperature {temperature}: expected a number over 0, or None for the adaptive one")
    if not parts or set(parts) - set("qkv") or len(set(parts)) < len(parts):
        raise UserError(f"parts {parts!r}: expected one or more of q, k, v, such as qkv")
    if not 0 <= merge <= 2:
        raise UserError(f"merge {merge}: expected a cosine, 0 to 1, or 2 to merge no regions")
    chosen = ATTENTION_METHODS[name]
    attend = chosen.attend
    if attend is gem:
        attend = functools.partial(gem, iterations=iterations, temperature=temperature, parts=parts)
    if attend is corrclip:
        attend = functools.partial(corrclip, merge=merge)
    blocks = depth - 1 if chosen.blocks is None else chosen.blocks
    return SecondStream(attend, blocks, chosen.residual, chosen.mlp)
