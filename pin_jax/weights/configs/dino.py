"""Configs of DINO and DINOv2 in transformers' form -> `ViTConfig`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pin_jax.models.vit import ViTConfig
from pin_jax.weights.configs import sizes
from pin_jax.weights.configs.entries import ACTIVATION, ACTIVATIONS, EPS, FLAG, SIZE, TRANSFORMERS, Table

_BACKBONE = ("out_features", "out_indices", "stage_names", "apply_layernorm", "reshape_hidden_states", "_out_.*")
_SIZES = {
    "hidden_size": (SIZE, 768), "num_hidden_layers": (SIZE, 12), "num_attention_heads": (SIZE, 12),
    "hidden_act": (ACTIVATION, "gelu"), "image_size": (SIZE, 224),
}  # fmt: skip
_FIXED = {"num_channels": (3,), "qkv_bias": (True,), "pruned_heads": ({},)}
_HARMLESS = (*TRANSFORMERS, *_BACKBONE, "layerscale_value", "encoder_stride", "pooler_.*", "use_mask_token")
_DINOV2 = {
    **_SIZES, "patch_size": (SIZE, 14), "layer_norm_eps": (EPS, 1e-6), "mlp_ratio": (SIZE, 4),
    "use_swiglu_ffn": (FLAG, False),
}  # fmt: skip
KINDS = {
    "vit": Table(
        {**_SIZES, "patch_size": (SIZE, 16), "layer_norm_eps": (EPS, 1e-12), "intermediate_size": (SIZE, 3072)},
        _FIXED, _HARMLESS,
    ),
    "dinov2": Table({**_DINOV2, "patch_size": (SIZE, 16)}, _FIXED, _HARMLESS),
    "dinov2_with_registers": Table(
        {**_DINOV2, "patch_size": (SIZE, 16), "num_register_tokens": (SIZE, 4)}, _FIXED, _HARMLESS
    ),
}  # fmt: skip


def read(meta: Mapping[str, Any], dtype: Any = None, where: str = "config.json") -> ViTConfig:
    """A config.json whose model_type is one of `KINDS`.

    Raises:
      UserError: an entry that is not known, or a size that cannot be.
    """
    kind = meta["model_type"]
    found = KINDS[kind].read(meta, where)
    gated = found.get("use_swiglu_ffn", False)
    mlp = found.get("intermediate_size") or found["hidden_size"] * found["mlp_ratio"]
    if gated:
        mlp = (int(mlp * 2 / 3) + 7) // 8 * 8
    # Positions of another size: DINOv2 with registers is antialiased by its code, the others are not.
    config = ViTConfig(
        image_size=found["image_size"], patch=found["patch_size"], width=found["hidden_size"],
        depth=found["num_hidden_layers"], heads=found["num_attention_heads"], mlp=mlp,
        act=ACTIVATIONS[found["hidden_act"]], eps=found["layer_norm_eps"], patch_bias=True, pre_norm=False,
        antialias=kind == "dinov2_with_registers", registers=found.get("num_register_tokens", 0),
        layer_scale=kind != "vit", gated=gated, dtype=dtype,
    )  # fmt: skip
    return sizes.check(config, where)
