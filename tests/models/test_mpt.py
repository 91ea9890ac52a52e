"""MPT's blocks as a language model against the MPT-1B-style reference (LayerNorm on q and k), left padding included."""

import functools
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pin_jax.models.language.mpt import MPT_1B, MPT_7B, MPTBlock, MPTConfig, alibi_slopes
from pin_jax.models.layers import stacked
from pin_jax.weights.convert import convert
from pin_jax.weights.openflamingo.rules import mpt
from tests.fixtures.tiny import skeleton


class PlainLM(nn.Module):
    """Embedding, blocks, norm and tied head: what GatedDecoder is without its gated layers."""

    config: MPTConfig

    @nn.compact
    def __call__(self, ids, mask):
        config = self.config
        table = self.param("embedding", nn.initializers.zeros, (config.vocab, config.width))
        columns = jnp.arange(ids.shape[1])
        x, bias = table[ids], config.bias(columns[None], columns, mask)
        block, init = stacked(functools.partial(MPTBlock, config), config.depth)
        params = self.param("blocks", init, x, bias)
        x, _ = jax.lax.scan(lambda x, p: block.apply({"params": p}, x, bias), x, params)
        return nn.LayerNorm(epsilon=config.eps, use_bias=False, name="norm")(x) @ table.T


def test_golden(golden):
    weights, arrays = golden("mpt1b_tiny")
    meta = json.loads(str(arrays["meta"]))
    config = MPTConfig(
        vocab=meta["vocab"], width=meta["d_model"], depth=meta["n_layers"], heads=meta["n_heads"],
        qk_norm=meta["qk_ln"], alibi_max=meta["alibi_bias_max"],
    )  # fmt: skip
    ids, mask = jnp.asarray(arrays["in/input_ids"]), jnp.asarray(arrays["in/attention_mask"], bool)
    model = PlainLM(config)
    params = jax.device_put(convert(weights, mpt(), skeleton(model, ids, mask)))
    steps = arrays["out/greedy"].shape[1]
    forward = jax.jit(lambda ids, mask: model.apply({"params": params}, ids, mask))
    full = np.pad(ids, [(0, 0), (0, steps)])
    mask = jnp.pad(mask, [(0, 0), (0, steps)], constant_values=True)  # causal: what is not yet written is not seen
    logits = np.asarray(forward(full, mask))[:, : ids.shape[1]]
    seen = np.asarray(mask)[:, : ids.shape[1]]
    np.testing.assert_allclose(logits[seen], arrays["out/logits"][seen], rtol=1e-5, atol=1e-5)
    for i in range(ids.shape[1], full.shape[1]):
        full[:, i] = np.asarray(forward(full, mask))[:, i - 1].argmax(-1)
    np.testing.assert_array_equal(full[:, ids.shape[1] :], arrays["out/greedy"])


def test_alibi_slopes():
    np.testing.assert_allclose(alibi_slopes(8), 2.0 ** -np.arange(1, 9))
    np.testing.assert_allclose(alibi_slopes(16), 2.0 ** -(np.arange(1, 17) / 2))
    full = 2.0 ** -(np.arange(1, 9))  # six heads: every second slope of eight, then the others
    np.testing.assert_allclose(alibi_slopes(6), [*full[1::2], *full[::2]][:6])


@pytest.mark.parametrize(("config", "width", "depth", "heads"), [(MPT_1B, 2048, 24, 16), (MPT_7B, 4096, 32, 32)])
def test_published_shapes(config, width, depth, heads):
    assert (config.width, config.depth, config.heads) == (width, depth, heads)
    x = jax.ShapeDtypeStruct((1, 2, width), jnp.float32)
    shapes = skeleton(MPTBlock(config), x, jnp.zeros((1, heads, 2, 2)))
    norms = 4 if config.qk_norm else 2
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 12 * width**2 + norms * width
