"""What every tower is built from: attention, norms, activations, and layers stacked on a leading axis."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


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
    q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None = None, context: Any = None
) -> jax.Array:
    """softmax(q k^T / sqrt(d) + bias) v.

    Args:
      q: float[B, T, H, d]. k, v: float[B, S, H, d].
      bias: float[B or 1, H or 1, T, S] added to the logits; use `NEGATIVE` to hide a key.
      context: what an attention function may want to know of the block it runs in; not used here.

    Returns:
      float[B, T, H, d].
    """
    del context
    return jax.nn.dot_product_attention(q, k, v, bias=bias)


NEGATIVE = -1e9  # finite: a row of hidden keys stays a number


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


def dense(features: int, use_bias: bool = True, name: str | None = None, dtype: Any = None) -> nn.Dense:
    """A linear layer, initialised with the small normal that these architectures share."""
    return nn.Dense(features, use_bias, dtype=dtype, kernel_init=nn.initializers.normal(0.02), name=name)


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


def scan(body: Callable, carry: Any, xs: Any, *, unroll: bool, remat: bool = False) -> tuple[Any, Any]:
    """`jax.lax.scan` over stacked layers.

    Args:
      unroll: lay the layers out one by one: faster for small models on a CPU, slower to compile.
      remat: recompute each layer in the backward pass instead of keeping its activations.
    """
    if remat:
        body = jax.checkpoint(body)
    return jax.lax.scan(body, carry, xs, unroll=True if unroll else 1)
