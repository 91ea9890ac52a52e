"""Tiny models that the tests share, and parameters with every weight moved (gates start at zero and hide errors)."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np

from pin_jax.models.flamingo import Flamingo, FlamingoConfig
from pin_jax.models.mpt import MPTConfig
from pin_jax.models.perceiver import PerceiverConfig
from pin_jax.models.vit import ViTConfig

VISION = ViTConfig(image_size=28, patch=14, width=16, depth=1, heads=2, mlp=32, post_norm=False)
IMAGE, END, PAD = 27, 28, 29


def flamingo_config(depth: int = 2, cross_every: int = 1, **fields) -> FlamingoConfig:
    """A Flamingo of a few thousand parameters: 4 vision tokens, 3 latents, 30 words."""
    fields = {
        "vision": VISION,
        "lm": MPTConfig(vocab=30, width=16, depth=depth, heads=2),
        "perceiver": PerceiverConfig(width=16, latents=3, depth=1, heads=2, head_dim=4),
        "cross_heads": 2,
        "cross_head_dim": 4,
    } | fields
    return FlamingoConfig(cross_every=cross_every, image_token=IMAGE, end_token=END, pad_token=PAD, **fields)


def skeleton(model, *inputs):
    """Shapes of a module's parameters."""
    return jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]


def random_params(shapes, seed: int = 0, scale: float = 0.3):
    """Parameters of the given shapes, all normal; one-dimensional scales around 1."""
    rng = np.random.default_rng(seed)

    def draw(path, spec):
        centre = 1.0 if path[-1].key == "scale" else 0.0
        return jnp.asarray(centre + scale * rng.standard_normal(spec.shape), spec.dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@functools.cache
def flamingo(depth: int = 2, cross_every: int = 1):
    """(model, params) of a tiny Flamingo with random weights."""
    model = Flamingo(flamingo_config(depth, cross_every))
    shapes = skeleton(model, jnp.zeros((1, 1, 28, 28, 3)), jnp.zeros((1, 3), jnp.int32))
    return model, random_params(shapes)


@functools.cache
def run(model, method: str = "__call__"):
    """A method of a module, compiled once a shape: (params, *args) -> outputs. What sets prefill's shapes is static."""
    static = ("steps", "start", "ragged") if method == "prefill" else ()
    return jax.jit(lambda params, *args, **kwargs: model.apply({"params": params}, *args, method=method, **kwargs),
                   static_argnames=static)  # fmt: skip


def fixture_config(meta: str) -> FlamingoConfig:
    """The config that a golden Flamingo file describes in its `meta`."""
    meta = json.loads(str(meta))
    lm, vision = meta["lm"], meta["vision"]
    return FlamingoConfig(
        vision=ViTConfig(
            image_size=vision["image"], patch=vision["patch"], width=vision["width"], depth=vision["layers"],
            heads=vision["heads"], mlp=vision["mlp"], act=vision["act"], post_norm=False,
        ),
        lm=MPTConfig(
            vocab=lm["vocab"], width=lm["d_model"], depth=lm["n_layers"], heads=lm["n_heads"],
            alibi_max=lm["alibi_bias_max"],
        ),
        perceiver=PerceiverConfig(width=vision["width"]),
        cross_every=meta["cross_attn_every_n_layers"],
        image_token=meta["image_token"],
        end_token=meta["endofchunk_token"],
        pad_token=meta["pad_token"],
    )  # fmt: skip
