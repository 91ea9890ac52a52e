"""Attention: the fastest form for the platform, keys shared between rows, and keys in a decoding cache."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from pin_jax.models.interface import KeysValues

NEGATIVE = -1e9  # finite: a row of hidden keys stays a number
# Logits of one head, from which on a CPU computes the heads one by one, so that each map stays in its cache.
LARGE_MAP = 2**16
Bias = Float[Array, "#rows #heads #T S"]
Segment = tuple[Float[Array, "_ _ H d"], Float[Array, "_ _ H d"], Float[Array, "_ _ _ _"]]  # keys, values, bias


_WATCHED: contextvars.ContextVar[list[Array] | None] = contextvars.ContextVar("watched attention", default=None)


@contextlib.contextmanager
def watching() -> Iterator[list[Array]]:
    """Collects the weights float[B, H, T, S] of every `plain` attention that runs inside, layer by layer, in order.

    For looking into a model; inside of a function that is traced (`jax.jit`), the weights are among what it returns.
    """
    weights: list[Array] = []
    token = _WATCHED.set(weights)
    try:
        yield weights
    finally:
        _WATCHED.reset(token)


def is_watched() -> bool:
    """Whether `watching` is on: layers are then run one by one, as what a scan computes inside cannot leave it."""
    return _WATCHED.get() is not None


def plain(
    q: Float[Array, "B T H d"],
    k: Float[Array, "B S H d"],
    v: Float[Array, "B S H d"],
    bias: Bias | None = None,
    context: Any = None,
    scale: float | None = None,
) -> Float[Array, "B T H d"]:
    """softmax(scale q k^T + bias) v.

    Args:
      bias: added to the logits; use `NEGATIVE` to hide a key.
      context: what an attention function may want to know of the block it runs in; not used here.
      scale: 1 / sqrt(d) by default.
    """
    del context
    if (watched := _WATCHED.get()) is not None:
        logits = jnp.einsum("bthd,bshd->bhts", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
        watched.append(jax.nn.softmax(logits if bias is None else logits + bias))
    if q.dtype == jnp.float64:  # jax.nn takes its softmax in float32
        logits = jnp.einsum("bthd,bshd->bhts", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
        weights = jax.nn.softmax(logits if bias is None else logits + bias)
        return jnp.einsum("bhts,bshd->bthd", weights, v)
    return jax.nn.dot_product_attention(q, k, v, bias=bias, scale=scale)


def by_head(
    q: Float[Array, "B T H d"], k: Float[Array, "B S H d"], v: Float[Array, "B S H d"], scale: float | None = None
) -> Float[Array, "B T H d"]:
    """softmax(scale q k^T) v for a CPU: heads in front, so that each has its own product, and the sum divided out last.

    Where the map of a head is large, one head after the other: two to three times faster than all at once.
    """
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    wide = jnp.promote_types(q.dtype, jnp.float32)

    def attend(qkv):
        q, k, v = qkv
        logits = factor * jnp.matmul(q, k.swapaxes(-1, -2), preferred_element_type=wide)
        weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
        out = jnp.matmul(weights.astype(v.dtype), v, preferred_element_type=wide)
        return (out / weights.sum(-1, keepdims=True)).astype(v.dtype)

    heads = tuple(rearrange(x, "b n h d -> (b h) n d") for x in (q, k, v))
    out = each_head(attend, heads, q.shape[1] * k.shape[1])
    return rearrange(out, "(b h) n d -> b n h d", b=q.shape[0])


def each_head(function: Callable[[Any], Array], heads: Any, logits: int) -> Array:
    """A function of one head over the leading axis of arrays: one by one if maps of `logits` cells are large."""
    return jax.lax.map(function, heads) if logits >= LARGE_MAP else jax.vmap(function)(heads)


def vision(
    q: Float[Array, "B N H d"], k: Float[Array, "B N H d"], v: Float[Array, "B N H d"], context: Any = None
) -> Float[Array, "B N H d"]:
    """softmax(q k^T / sqrt(d)) v: `by_head` where it is compiled for a CPU, `plain` elsewhere."""
    del context
    return jax.lax.platform_dependent(q, k, v, cpu=by_head, default=plain)


def fused(
    q: Float[Array, "B N H d"], k: Float[Array, "B N H d"], v: Float[Array, "B N H d"], context: Any = None
) -> Float[Array, "B N H d"]:
    """The same in cuDNN's fused kernel, which writes no logits; for half precision on NVIDIA GPUs."""
    del context
    return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")


ATTENTION = {"xla": vision, "cudnn": fused}


def over_segments(
    q: Float[Array, "R T H d"], segments: list[Segment], scale: float | None = None
) -> Float[Array, "R T H d"]:
    """One softmax over keys that lie in several arrays, of which some may be shared by several rows of queries.

    A decoded text is such a case: its beams share the keys of their prompt, which then need no copies and no
    reordering.

    Args:
      segments: keys, values and bias each, the bias of B or of R rows; R a multiple of B, and row r reads sample
        r // (R / B).
      scale: 1 / sqrt(d) by default.
    """
    if len(segments) == 1 and segments[0][0].shape[0] == q.shape[0]:
        return plain(q, *segments[0], scale=scale)
    factor = q.shape[-1] ** -0.5 if scale is None else scale

    def logits(k, bias):
        shared = rearrange(q, "(b r) t h d -> b r t h d", b=len(k))
        found = jnp.einsum("brthd,bshd->brhts", shared, k, preferred_element_type=jnp.float32) * factor
        own = len(bias) == len(q)
        found = found + (rearrange(bias, "(b r) h t s -> b r h t s", b=len(k)) if own else bias[:, None])
        return rearrange(found, "b r h t s -> (b r) h t s")

    weights = jax.nn.softmax(jnp.concatenate([logits(k, bias) for k, _, bias in segments], -1), -1).astype(q.dtype)
    out, start = jnp.zeros((), q.dtype), 0
    for k, v, _ in segments:
        part = rearrange(weights[..., start : start + k.shape[1]], "(b r) h t s -> b r h t s", b=k.shape[0])
        out = out + rearrange(jnp.einsum("brhts,bshd->brthd", part, v), "b r t h d -> (b r) t h d")
        start += k.shape[1]
    return out


def grouped(
    q: Float[Array, "R T H d"], segments: list[tuple[Array, Array, Array]], scale: float | None = None
) -> Float[Array, "R T H d"]:
    """`over_segments` where keys and values have K heads, each read by H / K heads of queries (Ainslie et al. 2023).

    The queries of a group stand one behind the other as if they were more tokens, so no key is copied.
    """
    heads = segments[0][0].shape[2]
    group = q.shape[2] // heads
    if group == 1:
        return over_segments(q, segments, scale)
    watched = _WATCHED.get()
    before = 0 if watched is None else len(watched)
    longer = [(k, v, bias if bias.shape[2] == 1 else jnp.tile(bias, (1, 1, group, 1))) for k, v, bias in segments]
    out = over_segments(rearrange(q, "r t (k g) d -> r (g t) k d", k=heads), longer, scale)
    if watched is not None and len(watched) > before:
        watched[-1] = rearrange(watched[-1], "r k (g t) s -> r (k g) t s", g=group)
    return rearrange(out, "r (g t) k d -> r t (k g) d", g=group)


def visible(mask: Bool[Array, " ..."]) -> Float[Array, " ..."]:
    """Mask -> logit bias float32: 0 where seen, `NEGATIVE` elsewhere."""
    return jnp.where(mask, 0.0, NEGATIVE)


def causal(queries: Int[Array, "#R T"], keys: Int[Array, " S"], mask: Bool[Array, "#R S"]) -> Bool[Array, "#R 1 T S"]:
    """Which keys, at their places, are seen by queries at theirs: none behind it, and no pads (False in the mask)."""
    return ((keys <= queries[..., None]) & mask[:, None, :])[:, None]


def write(cache: KeysValues, new: KeysValues, index: Int[Array, "*R"] | int) -> KeysValues:
    """Writes keys and values float[R, T, H, d] into a cache float[R, S, H, d]; `index` as in `extend`."""
    return extend(cache[0], new[0], index), extend(cache[1], new[1], index)


def extend(
    cache: Float[Array, "R S H d"], new: Float[Array, "R T H d"], index: Int[Array, "*R"] | int
) -> Float[Array, "R S H d"]:
    """Writes keys or values into a decoding cache.

    Args:
      index: where the first of them goes: int[], or int[R] for rows that have come to different places. What would
        lie beyond S is dropped in the second case, and must not happen in the first.
    """
    new = new.astype(cache.dtype)
    if isinstance(index, int) or index.ndim == 0:
        return jax.lax.dynamic_update_slice_in_dim(cache, new, index, 1)
    place = jnp.arange(cache.shape[1]) - index[:, None]  # of each slot among the new ones
    moved = jnp.take_along_axis(new, place.clip(0, new.shape[1] - 1)[..., None, None], 1)
    return jnp.where(((place >= 0) & (place < new.shape[1]))[..., None, None], moved, cache)
