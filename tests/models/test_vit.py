"""The vision towers against transformers' CLIP and EVA, and their published sizes."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pin_jax.models.vit import CLIP_L14, EVA_G14, ViT, ViTConfig, resize_positions
from pin_jax.weights import clip
from pin_jax.weights.convert import convert
from tests.fixtures.golden_files import split_weights
from tests.fixtures.tiny import random_params, skeleton

TINY = ViTConfig(image_size=28, patch=7, width=32, depth=3, heads=4, mlp=64)
FORMS = {
    "clip_quick_gelu": (TINY, clip.clip_vision),
    "clip_gelu": (dataclasses.replace(TINY, act="gelu"), clip.clip_vision),
    "eva": (
        dataclasses.replace(TINY, act="gelu", eps=1e-6, patch_bias=True, pre_norm=False),
        clip.eva_vision,
    ),
}


def compare(name, weights, arrays, prefix=""):
    """Runs our tower on a reference's weights and compares every output."""
    config, table = FORMS[name]
    pixels = jnp.asarray(arrays["in/pixels"].transpose(0, 2, 3, 1))
    weights = {prefix + key: value for key, value in weights.items()}
    params = convert(weights, table(), skeleton(ViT(config), pixels))
    normed = np.asarray(ViT(config).apply({"params": params}, pixels).tokens)
    if name == "eva":
        np.testing.assert_allclose(normed, arrays["out/hidden"], rtol=1e-5, atol=1e-5)
        return
    np.testing.assert_allclose(normed[:, 0], arrays["out/pooled"], rtol=1e-5, atol=1e-5)
    config = dataclasses.replace(config, post_norm=False)
    params = convert(weights, table(post_norm=False), skeleton(ViT(config), pixels))
    hidden = np.asarray(ViT(config).apply({"params": params}, pixels).tokens)
    np.testing.assert_allclose(hidden, arrays["out/hidden"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", FORMS)
def test_golden(golden, name):
    compare(name, *golden(name))


def test_golden_with_prefix(golden):
    compare("clip_gelu", *golden("clip_gelu"), prefix="vision_model.")


@pytest.mark.torch
@pytest.mark.parametrize("name", FORMS)
def test_live_torch(name):
    from tests.fixtures.golden.make_golden import reference

    compare(name, *split_weights(reference(name, seed=7)))


def test_unroll_and_remat_change_nothing(golden):
    config, table = FORMS["clip_gelu"]
    weights, arrays = golden("clip_gelu")
    pixels = jnp.asarray(arrays["in/pixels"].transpose(0, 2, 3, 1))
    params = convert(weights, table(), skeleton(ViT(config), pixels))
    plain = ViT(config).apply({"params": params}, pixels).tokens
    other = ViT(dataclasses.replace(config, unroll=True, remat=True)).apply({"params": params}, pixels).tokens
    np.testing.assert_allclose(plain, other, rtol=1e-5, atol=1e-5)


def test_extra_tokens_stand_after_the_class_token():
    config = dataclasses.replace(TINY, depth=0, post_norm=False)
    model, pixels = ViT(config), jax.random.normal(jax.random.key(0), (1, 28, 28, 3))
    params = {"params": random_params(skeleton(model, pixels))}
    extra = jax.random.normal(jax.random.key(2), (2, 32))
    without, out = (model.apply(params, pixels, extra_tokens=more).tokens for more in (None, extra))
    np.testing.assert_array_equal(out[0, 1:3], extra)
    np.testing.assert_array_equal(jnp.delete(out, jnp.array([1, 2]), 1), without)


def test_image_off_the_patch_grid_is_refused():
    with pytest.raises(ValueError, match="multiple of the patch 7"):
        ViT(TINY).init(jax.random.key(0), jnp.zeros((1, 30, 28, 3)))


def test_positions_are_resized_as_torch_does(golden):
    _, arrays = golden("positions")
    table = jnp.asarray(arrays["in/table"])
    np.testing.assert_array_equal(resize_positions(table, (4, 4), True), table)
    for grid in ((6, 7), (3, 2)):
        out = resize_positions(table, grid, True)
        np.testing.assert_allclose(out, arrays[f"out/{grid[0]}x{grid[1]}"], rtol=1e-5, atol=1e-5)


def by_hand(width, depth, mlp, tokens, patch_bias, pre_norm):
    """Parameters of a vision transformer of patch 14, class token and last norm counted."""
    block = 2 * 2 * width + 4 * (width * width + width) + 2 * width * mlp + mlp + width
    embeddings = 3 * 14 * 14 * width + patch_bias * width + width + tokens * width
    return embeddings + depth * block + (1 + pre_norm) * 2 * width


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (CLIP_L14, 303_179_776),  # both counts as transformers reports them
        (EVA_G14, 985_952_256),
    ],
)
def test_full_size(config, expected):
    by_config = (config.width, config.depth, config.mlp, config.tokens, config.patch_bias, config.pre_norm)
    assert by_hand(*by_config) == expected
    shapes = skeleton(ViT(config), jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == expected
    assert shapes["blocks"]["qkv"]["kernel"].shape == (config.depth, config.width, 3 * config.width)
