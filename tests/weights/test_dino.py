"""DINO and DINOv2 from Hugging Face's folders: against live transformers, published sizes, and what is refused."""

from __future__ import annotations

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors

from input_pipeline.errors import UserError
from pin_jax.models.vit import ViT
from pin_jax.weights import dino
from pin_jax.weights.configs import dino as configs
from pin_jax.weights.parameters import count_parameters
from tests.fixtures.golden_files import split_weights

NAMES = ("dino_vit", "dino_v2", "dino_v2_swiglu", "dino_v2_registers")
SMALL = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "image_size": 32, "patch_size": 8}
V2 = {"model_type": "dinov2", **SMALL, "mlp_ratio": 2}
# As their makers published them, and the parameters of their towers: transformers' count less head, pooler and mask.
PUBLISHED = {
    "facebook/dino-vits8": ({"model_type": "vit", "hidden_size": 384, "num_attention_heads": 6, "patch_size": 8,
                             "intermediate_size": 1536}, 21_670_272),
    "facebook/dino-vitb8": ({"model_type": "vit", "patch_size": 8}, 85_807_872),
    "facebook/dino-vitb16": ({"model_type": "vit"}, 85_798_656),
    "facebook/dinov2-small": ({"model_type": "dinov2", "hidden_size": 384, "num_attention_heads": 6, "image_size": 518,
                               "patch_size": 14}, 22_056_192),
    "facebook/dinov2-base": ({"model_type": "dinov2", "image_size": 518, "patch_size": 14}, 86_579_712),
    "facebook/dinov2-large": ({"model_type": "dinov2", "hidden_size": 1024, "num_hidden_layers": 24,
                               "num_attention_heads": 16, "image_size": 518, "patch_size": 14}, 304_367_616),
    "facebook/dinov2-giant": ({"model_type": "dinov2", "hidden_size": 1536, "num_hidden_layers": 40,
                               "num_attention_heads": 24, "image_size": 518, "patch_size": 14,
                               "use_swiglu_ffn": True}, 1_136_479_232),
    "facebook/dinov2-with-registers-base": ({"model_type": "dinov2_with_registers", "image_size": 518,
                                             "patch_size": 14}, 86_582_784),
}  # fmt: skip


def compare(folder: pathlib.Path, weights: dict[str, np.ndarray], arrays: dict[str, np.ndarray]) -> None:
    """Reads the folder and compares tokens."""
    folder.mkdir()
    (folder / "config.json").write_text(str(arrays["config"]))
    safetensors.save_file(
        {key: np.array(value, order="C") for key, value in weights.items()}, folder / "model.safetensors"
    )
    encoder = dino.load(folder)
    pixels = jnp.asarray(arrays["in/pixels"].transpose(0, 2, 3, 1))
    ours = encoder.module.apply({"params": encoder.params}, pixels).tokens
    np.testing.assert_allclose(np.asarray(ours), arrays["out/tokens"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_golden(golden, name, tmp_path):
    compare(tmp_path / "m", *golden(name))


@pytest.mark.torch
@pytest.mark.parametrize("size", [(32, 32), (24, 56)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_live_transformers(name, size, tmp_path):
    from tests.fixtures.golden.make_dino import reference

    compare(tmp_path / "m", *split_weights(reference(name, seed=7, size=size)))


@pytest.mark.torch
@pytest.mark.parametrize("name", PUBLISHED)
def test_counts_are_transformers(name):
    import torch
    import transformers

    meta, count = dict(PUBLISHED[name][0]), PUBLISHED[name][1]
    kind = {"vit": "ViT", "dinov2": "Dinov2", "dinov2_with_registers": "Dinov2WithRegisters"}[meta.pop("model_type")]
    with torch.device("meta"):
        made = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**meta))
    own = sum(p.numel() for key, p in made.named_parameters() if "pooler" not in key and "mask_token" not in key)
    assert own == count


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    meta, count = PUBLISHED[name]
    config = configs.read(meta)
    assert count_parameters(dino.skeleton(config)) == count
    registers = 4 if "registers" in name else 0
    assert config.tokens == (config.image_size // config.patch) ** 2 + 1 + registers


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "swin"}, "model_type 'swin'; expected one of vit, dinov2, dinov2_with_registers"),
        ({"qkv_bias": False}, "qkv_bias is False, but only True is computed here"),
        ({"window_size": 7}, "'window_size' \\(7\\) is not known here and may change what is computed"),
        ({"hidden_size": 25}, "width"),
        ({"hidden_size": None}, "hidden_size is None, expected a whole number"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(change, words, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(V2 | change))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=words):
        dino.load(tmp_path)


def test_a_tensor_that_is_missing_or_renamed_is_listed(golden, tmp_path):
    weights, arrays = golden("dino_v2")
    weights["encoder.layer.1.norm3.weight"] = weights.pop("encoder.layer.1.norm2.weight")
    with pytest.raises(UserError, match=r"no place for: encoder\.layer\.1\.norm3\.weight; .*blocks/norm_2/scale .*1"):
        compare(tmp_path / "m", weights, arrays)


def test_registers_stand_behind_the_class_token():
    config = configs.read(V2 | {"model_type": "dinov2_with_registers", "num_register_tokens": 3})
    vit = ViT(config)
    pixels = jnp.asarray(np.random.default_rng(0).standard_normal((1, 32, 32, 3)), jnp.float32)
    params = vit.init(jax.random.key(0), pixels)["params"]
    tokens = vit.apply({"params": params}, pixels).tokens
    assert tokens.shape == (1, config.tokens, 24) == (1, 1 + 3 + 16, 24)
    moved = params | {"registers": params["registers"][::-1]}
    other = vit.apply({"params": moved}, pixels).tokens  # they have no positions: only their own places change
    np.testing.assert_allclose(other[:, 4:], tokens[:, 4:], atol=1e-5)
    np.testing.assert_allclose(other[:, 1:4], tokens[:, 3:0:-1], atol=1e-5)
