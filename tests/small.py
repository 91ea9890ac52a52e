"""A Flamingo of the shipped one's form, smaller still and with random weights: what run tests work on."""

from __future__ import annotations

import pathlib

import jax
import numpy as np

from configs import pin_flamingo, tiny_vlm
from pin_jax import pretrain, vlm
from pin_jax.pretrain_vision import MEAN, STD


def write_vlm(folder: pathlib.Path, seed: int = 0) -> pathlib.Path:
    """Writes a random VLM's folder; every weight perturbed, so that the gates are open."""
    config = tiny_vlm.get_config()
    config.vision.depth = config.lm.depth = 1
    shape = pretrain.build(config)
    model, codec = shape.model, shape.codec
    size = codec.image_size
    pixels, ids = np.zeros((1, 1, size, size, 3), np.float32), np.zeros((1, 2), np.int32)
    params = jax.jit(model.init)(jax.random.key(seed), pixels, ids)["params"]
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    leaves = [x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    vlm.save(
        folder, vlm.VLM(model, jax.tree.unflatten(tree, leaves), shape.tokenizer, codec, MEAN, STD, "", shape.names)
    )
    return folder


def config_for(folder: pathlib.Path, **changes):
    """The tiny config on that VLM, cut to seconds."""
    config = pin_flamingo.get_config("tiny")
    config.vlm = str(folder)
    config.update({"steps": 12, "batch_size": 4, "cache_images": 16, "save_every": 4, "log_every": 1})
    config.eval.update({"images": 6, "batch_size": 8})
    config.update(changes)
    return config
