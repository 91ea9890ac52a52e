"""The forms of attention compute the same, and the platform that is compiled for chooses among them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gem_jax.attention import gem_at_once, gem_by_head
from pin_jax.models import attention

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def qkv(batch: int, tokens: int, heads: int, width: int, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(tokens), 3)
    return tuple(2 * jax.random.normal(key, (batch, tokens, heads, width), dtype) for key in keys)


@pytest.mark.parametrize("tokens", [9, 256])  # heads together, and one by one
def test_by_head_is_plain_attention(tokens):
    inputs = qkv(2, tokens, 3, 8)

    def value(form):
        return lambda *inputs: (jnp.sin(form(*inputs)).sum(), form(*inputs))

    found = []
    for form in (attention.plain, attention.by_head):
        found.append(jax.jit(jax.grad(value(form), argnums=(0, 1, 2), has_aux=True))(*inputs))
    for ours, wanted in zip(*map(jax.tree.leaves, found[::-1]), strict=True):
        np.testing.assert_allclose(ours, wanted, **TOLERANCE)
    half = [x.astype(jnp.bfloat16) for x in inputs]
    ours, wanted = (np.asarray(form(*half), np.float32) for form in (attention.by_head, attention.plain))
    np.testing.assert_allclose(ours, wanted, rtol=0.01, atol=0.02)


@pytest.mark.parametrize("iterations", [0, 2])
def test_gem_by_head_is_gem(iterations):
    q, k, v = qkv(2, 9, 3, 8)
    beta = jnp.array([0.5, 3.0])
    ours, wanted = (form((q, k, v), v, beta, iterations) for form in (gem_by_head, gem_at_once))
    np.testing.assert_allclose(ours, wanted, **TOLERANCE)


def test_the_platform_that_is_compiled_for_chooses():
    """Ahead of time for a TPU too, on a machine that has none: heads one by one are a loop, all at once are none."""
    inputs = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in qkv(1, 256, 2, 8)]
    traced = jax.jit(jax.grad(lambda *x: attention.vision(*x).sum())).trace(*inputs)
    loops = {name: "while" in traced.lower(lowering_platforms=(name,)).as_text() for name in ("cpu", "tpu", "cuda")}
    assert loops == {"cpu": True, "tpu": False, "cuda": False}
