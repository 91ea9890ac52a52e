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
    if q.dtype == jnp.float64:  # jax.nn takes its softmax in float32
        logits = jnp.einsum("bthd,bshd->bhts", q, k) * q.shape[-1] ** -0.5
        weights = jax.nn.softmax(logits if bias is None else logits + bias)
        return jnp.einsum("bhts,bshd->bthd", weights, v)
    return jax.nn.dot_product_attention(q, k, v, bias=bias)


NEGATIVE = -1e9  # finite: a row of hidden keys stays a number


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
