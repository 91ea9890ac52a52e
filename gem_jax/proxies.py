"""Encoders whose features stand for CLIP's own attention (ProxyCLIP): DINO, DINOv2, or the ViT of a small VLM."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from input_pipeline.errors import UserError
from pin_jax.models.vit import CLIP_MEAN, CLIP_STD, ViT, ViTConfig
from pin_jax.weights import dino
from pin_jax.weights.configs import sizes
from pin_jax.weights.configs.entries import part, pixel_statistics
from pin_jax.weights.dino import Encoder
from pin_jax.weights.files import read_object, resolve
from pin_jax.weights.parameters import fill, read_safetensors

VISION = "vision/"


def load(source: str | pathlib.Path, dtype: Any = None) -> Encoder:
    """Reads an encoder: a folder or hub id of DINO or DINOv2, or a folder of one of this project's small VLMs.

    Raises:
      UserError: there is none, or what is in it is broken.
    """
    folder = resolve(source)
    path = folder / "config.json"
    meta = read_object(path)
    if "model" not in meta:
        return dino.load(source, dtype)
    held = part(meta, "model", str(path), required=True)
    config: ViTConfig = sizes.build(ViTConfig, held.get("vision"), f"{path}, vision", dtype=dtype)
    weights = read_safetensors(folder / "model.safetensors")
    own = {key[len(VISION) :]: value for key, value in weights.items() if key.startswith(VISION)}
    if not own:
        raise UserError(f"proxy {source}: no vision encoder in it; give a DINO, DINOv2 or one of the small VLMs")
    params = fill(dino.skeleton(config, str(path)), own, str(folder))
    mean, std = pixel_statistics(meta.get("image_mean"), meta.get("image_std"), (CLIP_MEAN, CLIP_STD), str(path))
    return Encoder(ViT(config), jax.tree.map(jnp.asarray, params), mean, std)
