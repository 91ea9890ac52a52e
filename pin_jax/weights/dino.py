"""DINO and DINOv2 (with registers): vision transformers that learned without text, from Hugging Face's folders.

Caron et al., ICCV 2021 (`facebook/dino-vitb8`: model_type `vit`); Oquab et al., 2023 (`facebook/dinov2-base`:
`dinov2`); Darcet et al., ICLR 2024 (`facebook/dinov2-with-registers-base`: `dinov2_with_registers`).
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from input_pipeline.errors import UserError
from pin_jax.models.vit import ViT, ViTConfig
from pin_jax.weights.configs import dino as configs
from pin_jax.weights.configs import image_text, sizes
from pin_jax.weights.configs.entries import pixel_statistics
from pin_jax.weights.convert import Rule, convert, flat, module, patch
from pin_jax.weights.files import Tensors, read_object, resolve

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A frozen vision encoder. params: of the module. mean, std: of the pixels, float[3]."""

    module: ViT
    params: Any
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD


def rules(kind: str, gated: bool = False) -> list[Rule]:
    """Keys of transformers' ViTModel, Dinov2Model or Dinov2WithRegistersModel -> `pin_jax.models.vit.ViT`."""
    prefix = r"(?:vit\.|dinov2\.|dinov2_with_registers\.)?"
    layer, blocks = prefix + r"encoder\.layer\.(?P<layer>\d+)\.", "blocks"
    parts = ("query", "key", "value")
    table = [
        Rule(prefix + r"embeddings\.cls_token", "class_token", flat),
        Rule(prefix + r"embeddings\.mask_token", None),  # of training
        Rule(prefix + r"embeddings\.register_tokens", "registers", flat),
        Rule(prefix + r"embeddings\.position_embeddings", "positions", flat),
        Rule(prefix + r"embeddings\.patch_embeddings\.projection\.weight", "patch/kernel", patch),
        Rule(prefix + r"embeddings\.patch_embeddings\.projection\.bias", "patch/bias"),
        *module(layer + r"attention\.attention\.(?P<part>query|key|value)", f"{blocks}/qkv", parts=parts),
        *module(layer + r"attention\.output\.dense", f"{blocks}/out"),
        *module(prefix + "layernorm", "post_norm", kind="norm"),
        Rule(prefix + r"pooler\..*", None),  # of classification
    ]
    if kind == "vit":
        return [
            *table,
            *module(layer + "layernorm_before", f"{blocks}/norm_1", kind="norm"),
            *module(layer + "layernorm_after", f"{blocks}/norm_2", kind="norm"),
            *module(layer + r"intermediate\.dense", f"{blocks}/fc1"),
            *module(layer + r"output\.dense", f"{blocks}/fc2"),
        ]
    names = ("weights_in", "weights_out") if gated else ("fc1", "fc2")
    return [
        *table,
        *module(layer + "norm([12])", rf"{blocks}/norm_\2", kind="norm"),
        Rule(layer + r"layer_scale([12])\.lambda1", rf"{blocks}/scale_\2"),
        *module(layer + rf"mlp\.{names[0]}", f"{blocks}/fc1"),
        *module(layer + rf"mlp\.{names[1]}", f"{blocks}/fc2"),
    ]


def skeleton(config: ViTConfig, where: str = "config.json") -> Any:
    """Shapes and dtypes of the parameters, without computing any."""
    pixels = jax.ShapeDtypeStruct((1, config.grid * config.patch, config.grid * config.patch, 3), np.float32)
    with sizes.buildable(where):
        return jax.eval_shape(ViT(config).init, jax.random.key(0), pixels)["params"]


def load(source: str | pathlib.Path, dtype: Any = None) -> Encoder:
    """Reads an encoder.

    Args:
      source: a folder with config.json and model.safetensors, or a hub id. dtype: of the computation (None: float32).

    Raises:
      UserError: something is missing, broken, or of an unknown kind.
    """
    folder = resolve(source)
    path = folder / "config.json"
    meta: Mapping[str, Any] = read_object(path)
    kind = meta.get("model_type")
    if kind not in configs.KINDS:
        raise UserError(f"encoder {source}: model_type {kind!r}; expected one of {', '.join(configs.KINDS)}")
    config = configs.read(meta, dtype, str(path))
    where, pixels = image_text.preprocessor(folder)
    mean, std = pixel_statistics(
        pixels.get("image_mean"), pixels.get("image_std"), (IMAGENET_MEAN, IMAGENET_STD), str(where)
    )
    table = rules(str(kind), config.gated)
    params = convert(Tensors(folder), table, skeleton(config, str(path)), str(folder / "model.safetensors"))
    return Encoder(ViT(config), jax.tree.map(jax.numpy.asarray, params), mean, std)
