"""SmolVLM against transformers: vision, connector, logits, greedy text; its published sizes; every method on it."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pin_jax import methods
from pin_jax.decoding.search import beam, greedy
from pin_jax.models import layers
from pin_jax.models.interface import Inserts
from pin_jax.models.smolvlm import SmolVLM
from pin_jax.vlm import skeleton
from pin_jax.weights.convert import convert
from pin_jax.weights.parameters import count_parameters
from pin_jax.weights.published import SMOLVLM
from pin_jax.weights.smolvlm import SHAPES, config_of, table
from tests.fixtures.golden_files import split_weights

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def build(weights, arrays):
    """(model, parameters, arrays) of a golden file."""
    model = SmolVLM(config_of(json.loads(str(arrays["meta"]))["config"]))
    return model, jax.device_put(convert(weights, table(model.config), skeleton(model))), arrays


@pytest.fixture(scope="module")
def reference(golden):
    return build(*golden("smolvlm_tiny"))


def test_golden(reference):
    compare(*reference)


@pytest.mark.torch
@pytest.mark.parametrize(
    "options",
    [{"seed": 1}, {"seed": 2, "tied": True, "shuffle": 2}, {"seed": 3, "num_key_value_heads": 6, "head_dim": 8}],
    ids=["again", "tied", "one key a query"],
)
def test_live_torch(options):
    from tests.fixtures.golden.make_smolvlm import reference

    compare(*build(*split_weights(reference(**options))))


def compare(model, params, arrays):
    """Everything that a golden file has numbers for."""
    ids, mask = (jnp.asarray(arrays[f"in/{name}"]) for name in ("input_ids", "attention_mask"))

    @jax.jit
    def everything(params, pixels):
        apply = lambda *inputs, method: model.apply({"params": params}, *inputs, method=method)  # noqa: E731
        vision = apply(pixels[:, None], method="encode")
        logits = model.apply({"params": params}, None, ids, mask, vision=vision)
        return vision[:, 0], apply(vision, method="fuse")[:, 0], logits

    vision, media, logits = everything(params, jnp.asarray(arrays["in/pixels"]))
    np.testing.assert_allclose(vision, arrays["out/vision"], **TOLERANCE)
    np.testing.assert_allclose(media, arrays["out/connector"], **TOLERANCE)
    seen = np.asarray(mask, bool)
    np.testing.assert_allclose(np.asarray(logits)[seen], arrays["out/logits"][seen], **TOLERANCE)
    vision = jnp.asarray(arrays["out/vision"])[:, None]
    steps = arrays["out/greedy"].shape[1]
    written = greedy(model, params, vision, ids, mask, Inserts(), steps)
    np.testing.assert_array_equal(written, arrays["out/greedy"])
    beams = beam(model, params, vision, ids, mask, Inserts(), steps, beams=1)
    np.testing.assert_array_equal(beams, written)


@pytest.mark.parametrize("name", ["pin", "vpt_f", "vpt_v", "coop", "lora_v"])
def test_methods_change_what_is_written_alike_with_and_without_a_cache(reference, name):
    model, params, arrays = reference
    method = methods.build(name, model.config)
    trainable = method.init(jax.random.key(0), params)
    leaves, tree = jax.tree.flatten(trainable)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    inserts = method.inserts(jax.tree.unflatten(tree, moved))
    ids, mask = (jnp.asarray(arrays[f"in/{key}"]) for key in ("input_ids", "attention_mask"))
    pixels = jnp.asarray(arrays["in/pixels"])[:, None]

    @jax.jit
    def both(inserts, params):
        variables = inserts.variables(params)
        vision = model.apply(variables, pixels, inserts, method="encode")
        whole = model.apply(variables, None, ids, mask, inserts, vision)
        last, cache = model.apply(variables, vision, ids[:, :-1], mask[:, :-1], 1, inserts, method="prefill")
        return whole[:, -2:], last, model.apply(variables, cache, ids[:, -1], method="step")[0]

    whole, last, after = both(inserts, params)
    np.testing.assert_allclose(whole, jnp.stack([last, after], 1), rtol=1e-4, atol=1e-4)
    assert np.abs(whole - arrays["out/logits"][:, -2:]).max() > 1e-3


def test_layers_that_stand_apart_compute_what_a_stack_does(reference):
    """Low-rank branches beside them, gradients through them, and writing with a cache."""
    model, params, arrays = reference
    separate = {
        **params,
        **{at: {**params[at], "blocks": layers.apart(params[at]["blocks"])} for at in ("vision", "lm")},
    }
    assert len(separate["lm"]["blocks"]) == model.config.lm.depth
    method = methods.build("lora_v", model.config)
    branches = jax.tree.map(lambda x: x + 0.1, method.init(jax.random.key(0), params))
    ids, mask = (jnp.asarray(arrays[f"in/{key}"]) for key in ("input_ids", "attention_mask"))
    pixels = jnp.asarray(arrays["in/pixels"])[:, None]

    @jax.jit
    def both(params):
        def loss(branches):
            inserts = method.inserts(branches)
            logits = model.apply(inserts.variables(params), pixels, ids, mask, inserts)
            return (jax.nn.logsumexp(logits, -1) * mask).sum(), logits

        return jax.grad(loss, has_aux=True)(branches)

    (slopes, logits), (expected, whole) = both(separate), both(params)
    np.testing.assert_allclose(logits, whole, **TOLERANCE)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **TOLERANCE), slopes, expected)
    vision, steps = jnp.asarray(arrays["out/vision"])[:, None], arrays["out/greedy"].shape[1]
    written = greedy(model, separate, vision, ids, mask, Inserts(), steps)
    np.testing.assert_array_equal(written, arrays["out/greedy"])


def test_tokens_refined_in_front_of_an_insert(reference):
    """Vision tokens are x + W2 gelu(W1 x + b1) + b2, an insert is added behind that, and nothing else changes."""
    model, params, arrays = reference
    other = SmolVLM(dataclasses.replace(model.config, hidden=24))
    rng, shapes = np.random.default_rng(0), skeleton(other)
    own = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape), shapes["refine"])
    pixels, held = jnp.asarray(arrays["in/pixels"])[:, None], {"params": {**params, "refine": own}}
    with jax.default_matmul_precision("highest"):
        plain = np.asarray(model.apply({"params": params}, pixels, method="encode"), np.float64)
        found = other.apply(held, pixels, method="encode")
        psi = jnp.asarray(rng.standard_normal(found.shape[2:]), jnp.float32)
        moved, still = (other.apply(held, found, Inserts(vision_output=x), method="fuse") for x in (psi, None))
        added = model.apply({"params": params}, psi[None, None], method="fuse")
    x = plain @ own["fc1"]["kernel"] + own["fc1"]["bias"]
    gelu = x * (1 + np.vectorize(math.erf)(x / 2**0.5)) / 2
    np.testing.assert_allclose(found, plain + gelu @ own["fc2"]["kernel"] + own["fc2"]["bias"], rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(moved - still, np.broadcast_to(added, moved.shape), rtol=1e-3, atol=1e-3)
    assert {name: leaf for name, leaf in shapes.items() if name != "refine"} == skeleton(model)


@pytest.mark.parametrize(("name", "insert"), [("256m", 1_020_416), ("500m", 1_020_416), ("2.2b", 1_315_712)])
def test_published_sizes(name, insert):
    config = SHAPES[name]
    assert count_parameters(skeleton(SmolVLM(config))) == SMOLVLM[name].parameters
    assert count_parameters(methods.shapes(methods.build("pin", config))) == insert
