"""DINO and DINOv2 from Hugging Face's folders: against live transformers, published sizes, and what is refused."""

from __future__ import annotations

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline.errors import UserError
from pin_jax.models.vit import ViT
from pin_jax.weights import dino
from pin_jax.weights.configs import dino as configs
from pin_jax.weights.parameters import count_parameters

SMALL = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "image_size": 32, "patch_size": 8}
KINDS = {
    "vit": {"model_type": "vit", **SMALL, "intermediate_size": 40},
    "dinov2": {"model_type": "dinov2", **SMALL, "mlp_ratio": 2},
    "swiglu": {"model_type": "dinov2", **SMALL, "mlp_ratio": 2, "use_swiglu_ffn": True},
    "registers": {"model_type": "dinov2_with_registers", **SMALL, "mlp_ratio": 2, "num_register_tokens": 3},
}
# As their makers published them, and the parameters of their towers: transformers' count less head, pooler and mask.
PUBLISHED = {
    "facebook/dino-vits8": ({"model_type": "vit", "hidden_size": 384, "num_attention_heads": 6, "patch_size": 8,
                             "intermediate_size": 1536}, 21_670_272),
    "facebook/dino-vitb8": ({"model_type": "vit", "patch_size": 8}, 85_807_872),
    "facebook/dino-vitb16": ({"model_type": "vit"}, 85_798_656),
    "facebook/dinov2-small": ({"model_type": "dinov2", "hidden_size": 384, "num_attention_heads": 6, "image_size": 518,
                               "patch_size": 14}, 22_056_576),
    "facebook/dinov2-base": ({"model_type": "dinov2", "image_size": 518, "patch_size": 14}, 86_580_480),
    "facebook/dinov2-large": ({"model_type": "dinov2", "hidden_size": 1024, "num_hidden_layers": 24,
                               "num_attention_heads": 16, "image_size": 518, "patch_size": 14}, 304_368_640),
    "facebook/dinov2-giant": ({"model_type": "dinov2", "hidden_size": 1536, "num_hidden_layers": 40,
                               "num_attention_heads": 24, "image_size": 518, "patch_size": 14,
                               "use_swiglu_ffn": True}, 1_136_480_768),
    "facebook/dinov2-with-registers-base": ({"model_type": "dinov2_with_registers", "image_size": 518,
                                             "patch_size": 14}, 86_583_552),
}  # fmt: skip


def reference(kind: str, folder: pathlib.Path, seed: int = 0):
    """A perturbed model of transformers, saved as its makers save theirs; returns it."""
    import torch
    import transformers

    meta = dict(KINDS[kind])
    config, model = {
        "vit": (transformers.ViTConfig, transformers.ViTModel),
        "dinov2": (transformers.Dinov2Config, transformers.Dinov2Model),
        "dinov2_with_registers": (transformers.Dinov2WithRegistersConfig, transformers.Dinov2WithRegistersModel),
    }[meta.pop("model_type")]
    torch.manual_seed(seed)
    made = model(config(**meta)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    made.save_pretrained(folder)
    return made


@pytest.mark.torch
@pytest.mark.parametrize("size", [(32, 32), (40, 24)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_live_transformers(kind, size, tmp_path):
    import torch

    made = reference(kind, tmp_path)
    pixels = np.random.default_rng(1).standard_normal((2, 3, *size)).astype(np.float32)
    with torch.no_grad():
        given = {"interpolate_pos_encoding": True} if kind == "vit" else {}
        theirs = made(torch.tensor(pixels), **given).last_hidden_state.numpy()
    encoder = dino.load(tmp_path)
    with jax.default_matmul_precision("highest"):
        ours = encoder.module.apply({"params": encoder.params}, jnp.asarray(pixels.transpose(0, 2, 3, 1))).tokens
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=1e-5, atol=1e-5)


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
    ],
)
def test_what_is_not_understood_is_refused_by_name(change, words, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(KINDS["dinov2"] | change))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=words):
        dino.load(tmp_path)


def test_registers_stand_behind_the_class_token():
    config = configs.read(KINDS["registers"])
    vit = ViT(config)
    pixels = jnp.asarray(np.random.default_rng(0).standard_normal((1, 32, 32, 3)), jnp.float32)
    params = vit.init(jax.random.key(0), pixels)["params"]
    tokens = vit.apply({"params": params}, pixels).tokens
    assert tokens.shape == (1, config.tokens, 24) == (1, 1 + 3 + 16, 24)
    moved = params | {"registers": params["registers"][::-1]}
    other = vit.apply({"params": moved}, pixels).tokens  # they have no positions: only their own places change
    np.testing.assert_allclose(other[:, 4:], tokens[:, 4:], atol=1e-5)
    np.testing.assert_allclose(other[:, 1:4], tokens[:, 3:0:-1], atol=1e-5)
