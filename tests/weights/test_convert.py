"""The converter: what it fills, and the one error that lists all that does not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline.errors import UserError
from pin_jax.models.flamingo import Flamingo
from pin_jax.weights.clip import clip_vision
from pin_jax.weights.convert import Rule, convert, linear, patch
from pin_jax.weights.openflamingo.rules import openflamingo
from tests.fixtures import tiny
from tests.fixtures.tiny import skeleton

F32 = jnp.float32
SKELETON = {
    "stack": {"qkv": {"kernel": jax.ShapeDtypeStruct((2, 3, 12), F32)}, "gate": jax.ShapeDtypeStruct((2,), F32)},
    "norm": {"scale": jax.ShapeDtypeStruct((3,), F32)},
}
TABLE = [
    Rule(r"h\.(?P<layer>\d+)\.(?P<part>q|k|v)\.w", "stack/qkv/kernel", linear, parts=("q", "k", "v")),
    Rule(r"h\.(?P<layer>\d+)\.gate", "stack/gate", np.squeeze),
    Rule(r"(?:old|new)\.norm", "norm/scale"),
    Rule(r"buffer", None),
]


def tensors():
    """A complete set for SKELETON, every number different."""
    rng = np.random.default_rng(0)
    out = {f"h.{i}.{p}.w": rng.standard_normal((4, 3)) for i in range(2) for p in "qkv"}
    out |= {f"h.{i}.gate": rng.standard_normal(1) for i in range(2)}
    return out | {"new.norm": rng.standard_normal(3), "buffer": np.arange(9)}


def test_every_tensor_lands_in_its_place():
    given = tensors()
    params = convert(given, TABLE, SKELETON)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), params) == jax.tree.map(lambda a: (a.shape, a.dtype), SKELETON)
    for i in range(2):
        np.testing.assert_allclose(params["stack"]["gate"][i], given[f"h.{i}.gate"][0], rtol=1e-6)
        for j, p in enumerate("qkv"):
            kernel = params["stack"]["qkv"]["kernel"][i, :, 4 * j : 4 * j + 4]
            np.testing.assert_allclose(kernel, given[f"h.{i}.{p}.w"].T, rtol=1e-6)


def test_one_error_lists_everything():
    given = tensors()
    del given["h.1.k.w"], given["new.norm"]
    given |= {"h.0.q.w": np.zeros((5, 3)), "h.2.gate": np.zeros(1), "stray": np.zeros(1), "head.bias": np.zeros(1)}
    with pytest.raises(UserError) as caught:
        convert(given, TABLE, SKELETON, "file.pt")
    message = str(caught.value)
    assert message.startswith("file.pt does not fit the model")
    assert "2 keys that the model has no place for: stray, head.bias" in message
    assert "2 parameters that no key fills: norm/scale, stack/qkv/kernel (layers 0.q, 1.k)" in message
    assert "2 tensors that do not fit" in message
    assert "h.0.q.w -> stack/qkv/kernel: shape (3, 5), expected (3, 4)" in message
    assert "h.2.gate -> stack/gate: layer 2 of 2" in message


def test_tensors_that_claim_one_place_must_agree():
    given = tensors()
    convert(given | {"old.norm": given["new.norm"]}, TABLE, SKELETON)
    with pytest.raises(UserError, match="old.norm -> norm/scale: differs from another tensor"):
        convert(given | {"old.norm": given["new.norm"] + 1}, TABLE, SKELETON)


def test_patch_kernel_is_the_convolution():
    rng = np.random.default_rng(0)
    weight, image = rng.standard_normal((5, 3, 2, 2)), rng.standard_normal((2, 2, 3))
    np.testing.assert_allclose(image.reshape(-1) @ patch(weight), np.einsum("dcpq,pqc->d", weight, image))


@pytest.fixture(scope="module")
def flamingo_file(golden):
    """(weights, skeleton, cross_every) of the golden OpenFlamingo."""
    weights, arrays = golden("flamingo_tiny")
    config = tiny.fixture_config(arrays["meta"])
    shapes = skeleton(Flamingo(config), jnp.zeros((1, 1, 28, 28, 3)), jnp.zeros((1, 2), jnp.int32))
    return weights, shapes, config.cross_every


def equal(a, b) -> bool:
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


def test_openflamingo_layouts_give_the_same_parameters(flamingo_file):
    weights, shapes, every = flamingo_file
    both = convert(weights, openflamingo(every), shapes)
    newer = {k: v for k, v in weights.items() if not k.startswith("lang_encoder.gated_cross_attn_layers.")}
    older = {k.replace("decoder_layer.", ""): v for k, v in weights.items() if ".gated_cross_attn_layer." not in k}
    untied = {k: v for k, v in weights.items() if k != "lang_encoder.lm_head.weight"}
    assert len(newer) < len(weights) and len(older) < len(weights) and len(untied) < len(weights)
    for layout in (newer, older, untied):
        assert equal(convert(layout, openflamingo(every), shapes), both)


def test_openflamingo_head_that_is_not_tied_is_refused(flamingo_file):
    weights, shapes, every = flamingo_file
    weights = weights | {"lang_encoder.lm_head.weight": weights["lang_encoder.lm_head.weight"] + 1}
    with pytest.raises(UserError, match="lm_head.weight -> lm/embedding: differs"):
        convert(weights, openflamingo(every), shapes)


def test_openflamingo_with_the_wrong_cross_every_is_refused(flamingo_file):
    weights, shapes, _ = flamingo_file
    with pytest.raises(UserError, match=r"no place for: .*blocks\.1\.gated_cross_attn_layer\.attn_gate"):
        convert(weights, openflamingo(4), shapes)


def test_last_norm_is_ignored_only_when_the_table_says_so(flamingo_file):
    weights, shapes, _ = flamingo_file
    vision = {k.removeprefix("vision_encoder.m."): v for k, v in weights.items() if k.startswith("vision_encoder.")}
    convert(vision, clip_vision(post_norm=False), shapes["vision"])
    with pytest.raises(UserError, match="no place for: post_layernorm.weight, post_layernorm.bias"):
        convert(vision, clip_vision(), shapes["vision"])
