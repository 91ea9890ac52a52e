"""What every tower is built from: attention, norms, activations, and layers stacked on a leading axis."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange


def quick_gelu(x: jax.Array) -> jax.Array:
    """x * sigmoid(1.702 x): OpenAI CLIP's activation."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "quick_gelu": quick_gelu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
}


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    bias: jax.Array | None = None,
    context: Any = None,
    scale: float | None = None,
) -> jax.Array:
    """softmax(scale q k^T + bias) v.

    Args:
      q: float[B, T, H, d]. k, v: float[B, S, H, d].
      bias: float[B or 1, H or 1, T, S] added to the logits; use `NEGATIVE` to hide a key.
      context: what an attention function may want to know of the block it runs in; not used here.
      scale: 1 / sqrt(d) by default.

    Returns:
      float[B, T, H, d].
    """
    del context
    if q.dtype == jnp.float64:  # jax.nn takes its softmax in float32
        logits = jnp.einsum("bthd,bshd->bhts", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
        weights = jax.nn.softmax(logits if bias is None else logits + bias)
        return jnp.einsum("bhts,bshd->bthd", weights, v)
    return jax.nn.dot_product_attention(q, k, v, bias=bias, scale=scale)


def fused(q: jax.Array, k: jax.Array, v: jax.Array, context: Any = None) -> jax.Array:
    """`attention` in cuDNN's fused kernel, which writes no logits; for half precision on NVIDIA GPUs."""
    del context
    return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")


ATTENTION = {"xla": attention, "cudnn": fused}
NEGATIVE = -1e9  # finite: a row of hidden keys stays a number
Segment = tuple[jax.Array, jax.Array, jax.Array]


def attend(q: jax.Array, segments: list[Segment], scale: float | None = None) -> jax.Array:
    """One softmax over keys that lie in several arrays, of which some may be shared by several rows of queries.

    A decoded text is such a case: its beams share the keys of their prompt, which then need no copies and no
    reordering.

    Args:
      q: float[R, T, H, d].
      segments: k, v float[B, S, H, d] and bias float[B or 1, H or 1, T or 1, S] each; R a multiple of B, and row r
        reads sample r // (R / B).
      scale: 1 / sqrt(d) by default.

    Returns:
      float[R, T, H, d].
    """
    if len(segments) == 1 and segments[0][0].shape[0] == q.shape[0]:
        return attention(q, *segments[0], scale=scale)
    scale = q.shape[-1] ** -0.5 if scale is None else scale

    def shared(k):
        return rearrange(q, "(b r) t h d -> b r t h d", b=k.shape[0])

    logits = [
        rearrange(
            jnp.einsum("brthd,bshd->brhts", shared(k), k, preferred_element_type=jnp.float32) * scale + bias[:, None],
            "b r h t s -> (b r) h t s",
        )
        for k, _, bias in segments
    ]
    weights = jax.nn.softmax(jnp.concatenate(logits, -1), -1).astype(q.dtype)
    out, start = 0, 0
    for k, v, _ in segments:
        part = rearrange(weights[..., start : start + k.shape[1]], "(b r) h t s -> b r h t s", b=k.shape[0])
        out = out + rearrange(jnp.einsum("brhts,bshd->brthd", part, v), "b r t h d -> (b r) t h d")
        start += k.shape[1]
    return out


def write(cache: tuple[jax.Array, ...], new: tuple[jax.Array, ...], index: jax.Array | int) -> tuple[jax.Array, ...]:
    """Writes keys and values float[R, T, H, d] into a cache float[R, S, H, d]; `index` as in `extend`."""
    return tuple(extend(old, x, index) for old, x in zip(cache, new, strict=True))


def visible(mask: jax.Array) -> jax.Array:
    """Mask bool[...] -> logit bias float32[...]: 0 where seen, `NEGATIVE` elsewhere."""
    return jnp.where(mask, 0.0, NEGATIVE)


def extend(cache: jax.Array, new: jax.Array, index: jax.Array | int) -> jax.Array:
    """Writes keys or values into a decoding cache.

    Args:
      cache: float[B, S, H, d]. new: float[B, T, H, d].
      index: where the first of them goes: int[], or int[B] for rows that have come to different places. What would
        lie beyond S is dropped in the second case, and must not happen in the first.
    """
    new = new.astype(cache.dtype)
    if jnp.ndim(index) == 0:
        return jax.lax.dynamic_update_slice_in_dim(cache, new, index, 1)
    place = jnp.arange(cache.shape[1]) - index[:, None]  # of each slot among the new ones
    moved = jnp.take_along_axis(new, place.clip(0, new.shape[1] - 1)[..., None, None], 1)
    return jnp.where(((place >= 0) & (place < new.shape[1]))[..., None, None], moved, cache)


def after(x: jax.Array, lengths: jax.Array | None) -> jax.Array:
    """The last of float[R, T, D] that is a row's own, float[R, D]: all T are without lengths int[R]."""
    if lengths is None:
        return x[:, -1]
    return jnp.take_along_axis(x, (lengths - 1).clip(0)[:, None, None], 1)[:, 0]


def pick(index: jax.Array, rows: jax.Array) -> jax.Array:
    """How far rows int[R'] of a cache have come: its index int[R], or int[] where all are alike."""
    return index[rows] if index.ndim else index


class Dense(nn.Dense):
    """A linear layer that may carry a low-rank branch beside its kernel: y = x W + bias + drop(x) a b.

    The branch is what `Inserts.low_rank` put there: a float[in, r], b float[r, out] and, while training with dropout, a
    random key and the rate. The product a b is never formed, so neither it nor a gradient of its size takes memory.
    """

    def __call__(self, inputs: jax.Array) -> jax.Array:
        y = super().__call__(inputs)
        if not self.has_variable("params", "low_rank"):
            return y
        branch = self.get_variable("params", "low_rank")
        x, a, b = nn.dtypes.promote_dtype(inputs, branch["a"], branch["b"], dtype=self.dtype or y.dtype)
        if "key" in branch:
            x = dropped(branch["key"], branch["rate"], x)
        return y + x @ a @ b


def dropped(key: jax.Array, rate: jax.Array, x: jax.Array) -> jax.Array:
    """Dropout of x float[..., D] whose rate float[] is rounded to 1/256: a byte of randomness an element, not a word.

    On a CPU drawing the words would take longer than the layers that it is for.
    """
    cut = jnp.round(rate * 256)
    words = jax.random.bits(key, (*x.shape[:-1], -(-x.shape[-1] // 4)), jnp.uint32)
    drawn = rearrange(jax.lax.bitcast_convert_type(words, jnp.uint8), "... d b -> ... (d b)")[..., : x.shape[-1]]
    return jnp.where(drawn >= cut, x * (256 / (256 - cut)).astype(x.dtype), 0)


def dense(
    features: int, use_bias: bool = True, name: str | None = None, dtype: Any = None, accumulate: Any = None
) -> Dense:
    """A linear layer, initialised with the small normal that these architectures share.

    Args:
      dtype: of the computation. accumulate: of the result, in which the products are summed up too; dtype by default.
    """
    product = functools.partial(jax.lax.dot_general, preferred_element_type=accumulate) if accumulate else None
    init = nn.initializers.normal(0.02)
    return Dense(features, use_bias, dtype=dtype, kernel_init=init, dot_general=product, name=name)


def stack(module: nn.Module, name: str, init: Callable[[jax.Array], Any]) -> Any:
    """A module's own parameters of stacked layers: made by `init(rng)`, or whatever stands there.

    Not `module.param`, which refuses what a method put beside the kernels; each layer checks its own shapes.
    """
    if module.has_variable("params", name):
        return module.get_variable("params", name)
    return module.param(name, init)


def stacked(make: Callable[..., nn.Module], length: int) -> tuple[nn.Module, Callable]:
    """`length` copies of a layer whose parameters stand on a leading axis, to be scanned.

    Args:
      make: builds the layer; called with `parent=None`, so that the layer is a pure function of its parameters.

    Returns:
      The layer, and an init function (rng, *inputs) -> parameters of shape [length, ...].
    """
    layer = make(parent=None)

    def init(rng: jax.Array, *args: Any, **kwargs: Any) -> Any:
        return jax.vmap(lambda key: layer.init(key, *args, **kwargs)["params"])(jax.random.split(rng, length))

    return layer, init


# What the backward pass keeps of a layer; the rest is computed again.
REMAT = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.checkpoint_dots_with_no_batch_dims,
}


def scan(body: Callable, carry: Any, xs: Any, *, unroll: bool, remat: bool | str = False) -> tuple[Any, Any]:
    """`jax.lax.scan` over stacked layers.

    On a mesh the carried activations stay split by rows, which keeps XLA gathering weights instead.

    Args:
      unroll: lay the layers out one by one: faster for small models on a CPU, slower to compile.
      remat: what the backward pass computes again instead of keeping it: a key of `REMAT`; True is `full`.
    """

    def layer(carry, x):
        return body(jax.tree.map(by_rows, carry), x)

    policy = REMAT[{True: "full", False: "none"}.get(remat, remat)]
    if policy is not None:
        layer = jax.checkpoint(layer, policy=policy, prevent_cse=unroll)
    return jax.lax.scan(layer, carry, xs, unroll=True if unroll else 1)


ROWS = ("data", "fsdp")  # mesh axes that split a batch


def by_rows(x: jax.Array) -> jax.Array:
    """Keeps an activation float[B, ...] split over the mesh by rows, where a mesh is set (`jax.set_mesh`)."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not set(ROWS) <= set(mesh.axis_names):
        return x
    parts = mesh.shape[ROWS[0]] * mesh.shape[ROWS[1]]
    if parts == 1 or x.shape[0] % parts:
        return x
    return jax.lax.with_sharding_constraint(x, jax.sharding.PartitionSpec(ROWS))


def unit_length(x: jax.Array) -> jax.Array:
    """x / |x| over the last axis, at least in float32 inside; zero stays zero."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (wide * jax.lax.rsqrt(jnp.maximum((wide * wide).sum(-1, keepdims=True), 1e-24))).astype(x.dtype)


def standardise(x: jax.Array) -> jax.Array:
    """Zero mean and unit variance over the last axis: what a LayerNorm without parameters makes of an embedding."""
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5)
