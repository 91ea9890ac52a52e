"""LoRA against peft on the same weights; merging, taking out, dropout, and which layers a pattern reaches."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from input_pipeline.errors import UserError
from pin_jax.methods.lora import LoraVision, merge, unmerge
from pin_jax.models import layers
from pin_jax.models.interface import Inserts
from pin_jax.models.vit import ViT
from pin_jax.weights.convert import convert
from tests.fixtures import tiny
from tests.fixtures.tiny import random_params, skeleton
from tests.models.test_vit import FORMS

NAMES = {"self_attn.qkv": "qkv", "self_attn.projection": "out", "mlp.fc1": "fc1", "mlp.fc2": "fc2"}


def ours(arrays, prefix: str = ""):
    """peft's a [r, in] and b [out, r] of each layer -> our stacks, below `vision/blocks`."""
    out = {}
    for theirs, name in NAMES.items():
        for part in "ab":
            layers_ = [arrays[f"{prefix}{part}/{i}/{theirs}"].T for i in range(3)]
            out[f"vision/blocks/{name}/{part}"] = jnp.asarray(np.stack(layers_))
    return traverse_util.unflatten_dict(out, sep="/")


def compare(golden, arrays):
    """Output, gradients and merged output of one set of branches."""
    weights, inputs = golden("eva")
    config, table = FORMS["eva"]
    pixels = jnp.asarray(inputs["in/pixels"].transpose(0, 2, 3, 1))
    frozen = {"vision": jax.device_put(convert(weights, table(), skeleton(ViT(config), pixels)))}
    method = LoraVision(None, rank=int(arrays["in/rank"]), alpha=float(arrays["in/alpha"]))
    params = ours(arrays)
    shapes = jax.eval_shape(method.init, jax.random.key(0), frozen)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)

    def total(params):
        branches = method.inserts(params).lora["vision"]
        out = ViT(config).apply({"params": frozen["vision"], "lora": branches}, pixels).tokens
        return (out * arrays["in/weight"]).sum(), out

    (_, hidden), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
    np.testing.assert_allclose(hidden, arrays["out/hidden"], rtol=1e-5, atol=1e-5)
    for (path, found), wanted in zip(
        jax.tree_util.tree_leaves_with_path(gradient), jax.tree.leaves(ours(arrays, "grad_")), strict=True
    ):
        wanted = np.asarray(wanted)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max(), err_msg=str(path))
    merged, rest = merge(frozen, method.inserts(params))
    assert rest.lora is None
    out = jax.jit(ViT(config).apply)({"params": merged["vision"]}, pixels).tokens
    np.testing.assert_allclose(out, arrays["out/merged"], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(out, hidden, rtol=1e-5, atol=1e-5)
    again = unmerge(merged, method.inserts(params))
    for before, after in zip(jax.tree.leaves(frozen), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(after, before, atol=1e-6)
    moved = np.abs(merged["vision"]["blocks"]["qkv"]["kernel"] - frozen["vision"]["blocks"]["qkv"]["kernel"])
    assert moved.max() > 0.1
    plain = jax.jit(ViT(config).apply)({"params": frozen["vision"]}, pixels).tokens
    assert np.abs(plain - hidden).max() > 0.1


def test_peft(golden):
    compare(golden, golden("lora")[1])


@pytest.mark.torch
def test_live_peft(golden):
    from tests.fixtures.golden.make_lora import reference

    weights, inputs = golden("eva")
    compare(golden, reference(weights, inputs["in/pixels"], seed=5))


def test_start_does_nothing_and_is_bounded():
    _, frozen = tiny.flamingo()
    params = LoraVision(None).init(jax.random.key(0), frozen)
    for name, leaf in traverse_util.flatten_dict(params, sep="/").items():
        if name.endswith("/b"):
            assert not leaf.any()
        else:
            assert 0.8 < np.abs(leaf).max() * leaf.shape[-2] ** 0.5 <= 1
    assert set(params) == {"vision"} and set(params["vision"]["blocks"]) == {"qkv", "out", "fc1", "fc2"}


def test_any_dense_layer_by_its_path():
    model, frozen = tiny.flamingo()
    ids = jnp.array([[tiny.IMAGE, 1, 2, 3]])
    vision = jnp.ones((1, 1, 4, 16))
    plain = model.apply({"params": frozen}, None, ids, vision=vision)
    dense = [
        name.removesuffix("/kernel")
        for name in traverse_util.flatten_dict(frozen, sep="/")
        if name.endswith("/kernel") and not name.startswith("vision")
    ]
    assert {"lm/blocks/up", "lm/gates/kv", "perceiver/layers/kv"} <= set(dense)
    method = LoraVision(None, layers="(lm|perceiver)/.*", rank=2)
    params = random_params(jax.eval_shape(method.init, jax.random.key(0), frozen))
    run = jax.jit(lambda p: model.apply(method.inserts(p).variables(frozen), None, ids, vision=vision))
    whole = run(params)
    assert not method.inserts(params).in_vision
    assert np.abs(whole - plain).max() > 1e-2
    flat = traverse_util.flatten_dict(params, sep="/")
    for name in dense:  # every one of them takes part
        less = {k: jnp.zeros_like(v) if k == f"{name}/b" else v for k, v in flat.items()}
        assert np.abs(run(traverse_util.unflatten_dict(less, sep="/")) - whole).max() > 1e-6, name
    with pytest.raises(UserError, match="'lm/qkv': no dense layer has such a path; there are lm/blocks/down"):
        LoraVision(None, layers="lm/qkv").init(jax.random.key(0), frozen)


def test_dropout_is_of_the_branch_alone_and_right_on_average():
    layer = layers.dense(5)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, 8)), jnp.float32)
    params = {"kernel": jnp.zeros((8, 5)), "bias": jnp.zeros(5)}
    branch = {"a": jnp.asarray(rng.standard_normal((8, 3))), "b": jnp.asarray(rng.standard_normal((3, 5)))}
    whole = layer.apply({"params": params, "lora": branch}, x)
    np.testing.assert_allclose(whole, x @ branch["a"] @ branch["b"], rtol=1e-5, atol=1e-5)

    @jax.vmap
    def dropped(key):
        return layer.apply({"params": params, "lora": branch | {"key": key, "rate": jnp.float32(0.25)}}, x)

    drawn = dropped(jax.random.split(jax.random.key(0), 4000))
    assert np.abs(drawn[0] - drawn[1]).max() > 0.1
    np.testing.assert_allclose(drawn.mean(0), whole, atol=0.4)
    assert np.abs(drawn.mean(0)).max() > 1.5
    kept = layers.dropped(jax.random.key(2), jnp.float32(0.1), jnp.ones((100, 1001)))  # a width that is no whole words
    np.testing.assert_allclose(np.unique(kept), [0, 256 / 230], rtol=1e-6)
    assert abs((kept == 0).mean() - 26 / 256) < 0.005
    inserts = LoraVision(None, layers="vision/x").inserts(
        {"vision": {"x": jax.tree.map(lambda a: a[None], branch)}}, jax.random.key(1)
    )
    found = inserts.lora["vision"]["x"]
    assert found["key"].shape == (1,) and float(found["rate"][0]) == np.float32(0.1)
    np.testing.assert_allclose(found["b"][0], 2 * branch["b"], rtol=1e-6)  # alpha / rank
    assert isinstance(inserts, Inserts)
