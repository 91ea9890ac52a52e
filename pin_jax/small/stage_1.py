"""Stage 1 of the small VLMs, before any text is written: the vision encoder, and BLIP-2's queries (`small.vision`)."""

from __future__ import annotations

import functools
import pathlib
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from input_pipeline.loader import batches
from input_pipeline.pasted.scenes import Scenes, scene_config
from pin_jax.models.vit import ViT
from pin_jax.runtime.train_stage import adamw, train_stage
from pin_jax.small import queries, vision
from pin_jax.small.shape import Shape
from pin_jax.weights import parameters


def bag_of_words(shape: Shape, qformer: bool = False, frozen: bool = False) -> vision.BagOfWordsModel:
    """The model of stage 1, or of its queries, or of names and looks alone."""
    config = shape.model.config
    return vision.BagOfWordsModel(config.vision, len(shape.names), config.qformer if qformer else None, frozen)


def _words_loss(model: vision.BagOfWordsModel, look_weight: float):
    """The loss of stage 1 for `fit`; its option is the share of patches that are seen."""

    def loss(params, held, batch, rng, keep):
        del held
        return vision.loss_fn(model, params, batch, rng, keep, look_weight)

    return loss


def train_vision(config: ConfigDict, workdir: pathlib.Path, shape: Shape) -> Any:
    """Stage 1: see `small.vision`. Returns its parameters."""
    model = bag_of_words(shape)
    size = config.vision.image_size
    params = jax.jit(functools.partial(model.init, method="everything"))(
        jax.random.key(config.seed), np.zeros((1, size, size, 3), np.uint8), np.zeros((1, 1), np.int32)
    )["params"]

    def make(phase):
        def iterator():
            options = {**config.scenes, **phase["scenes"]}
            scenes = Scenes(scene_config(options, shape.codec), phase["seed"] + config.seed, phase["images"])
            words = vision.BagOfWords(shape.names, options["objects"][1])
            return batches(scenes, [words], phase["batch"], shuffle=False, threads=config.threads)

        return iterator

    for k, part in enumerate(config.vision_fits):
        phases = [(p["images"] // p["batch"], make(p), list(p["keep"])) for p in part["phases"]]
        tx = adamw(part["lr"], part["schedule_steps"] or sum(steps for steps, _, _ in phases))
        title, loss = f"stage 1, vision, part {k + 1}", _words_loss(model, part["look_weight"])
        params = train_stage(title, workdir / f"vision_{k + 1}", params, tx, loss, phases, config)
    return params


def shipped_vision(config: ConfigDict, shape: Shape) -> Any:
    """The vision encoder of the VLM in config.vision_of, where a workdir has no stage 1: `{"encoder": parameters}`."""
    size, path = config.vision.image_size, pathlib.Path(config.vision_of) / "model.safetensors"
    skeleton = jax.eval_shape(ViT(shape.model.config.vision).init, jax.random.key(0), np.zeros((1, size, size, 3)))
    tensors = parameters.read_safetensors(path)
    own = {name.removeprefix("vision/"): x for name, x in tensors.items() if name.startswith("vision/")}
    return {"encoder": parameters.fill(skeleton["params"], own, str(path))}


def train_names(config: ConfigDict, workdir: pathlib.Path, shape: Shape, bank: Any, title: str) -> Any:
    """Stage 1's names and looks alone, read from tokens of an encoder that is there already; their parameters.

    Args:
      bank: scene records whose `vision` those tokens are. title: says which.
    """
    model, part, most = bag_of_words(shape, frozen=True), config.names_fit, config.language_scenes.objects[1]
    params = jax.jit(functools.partial(model.init, method="everything"))(
        jax.random.key(config.seed), bank[0]["vision"][None], np.zeros((1, 1), np.int32)
    )["params"]

    def iterator():
        words = vision.BagOfWords(shape.names, most)
        return batches(bank, [words], part.batch, seed=config.seed + 1, threads=config.threads)

    loss, phases = _words_loss(model, part.look_weight), [(part.steps, iterator, [None])]
    folder = workdir / f"{title.replace(' ', '_')}{config.suffix}"
    return train_stage(title, folder, params, adamw(part.lr, part.steps), loss, phases, config)


def train_queries(config: ConfigDict, workdir: pathlib.Path, shape: Shape, seen: Any, bank: Any) -> Any:
    """Stage 1 of BLIP-2's queries: the same words, read from them. `seen` and what returns: parameters of stage 1."""
    model = bag_of_words(shape, True)
    part, most = config.query_fit, config.language_scenes.objects[1]
    params = jax.jit(functools.partial(model.init, method="everything"))(
        jax.random.key(config.seed), bank[0]["vision"][None], np.zeros((1, 1), np.int32)
    )["params"]
    encoder = queries.gather_init(params["encoder"], jax.random.key(config.seed + 2))
    params = {**{name: x for name, x in seen.items() if name != "encoder"}, "encoder": encoder}

    def iterator():
        words = vision.BagOfWords(shape.names, most)
        return batches(bank, [words], part.batch, seed=config.seed, threads=config.threads)

    tx = adamw(part.lr, part.steps)
    loss, phases = _words_loss(model, part.look_weight), [(part.steps, iterator, [None])]
    return train_stage("stage 1, queries", workdir / f"queries{config.suffix}", params, tx, loss, phases, config)
