"""A small VLM around a published decoder: one projection learns from captions to say what a frozen ViT sees.

Neither the ViT nor the decoder changes. The projection starts by least squares: a token of the image is to look like
the words that a caption has for it. Which words those are say stage 1's names, learned from captions; no position is
used. Then it learns on captions and statements about looks, through the decoder.
"""

from __future__ import annotations

import pathlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from input_pipeline.loader import batches
from input_pipeline.pasted import looks
from input_pipeline.text.captions import Sentences
from pin_jax.models.smolvlm import pixel_shuffle
from pin_jax.runtime.train_stage import adamw, train_stage
from pin_jax.small import language, stage_1
from pin_jax.small.shape import Shape

MARGIN = 2.0  # a token that names an absent object by this much more is taken for background
LOOK = 0.5  # share of a look's word beside the name's
BACKGROUND, RIDGE = " background", 10.0


def _meaning(tokenizer: Any, embedding: np.ndarray, word: str) -> np.ndarray:
    """The mean embedding of a word's tokens, float[D]."""
    return embedding[tokenizer(word, add_special_tokens=False)["input_ids"]].mean(0)


def start(config: ConfigDict, shape: Shape, bank: Any, seen: Any, embedding: np.ndarray) -> np.ndarray:
    """The projection's kernel float32[r r D, D_lm] by ridge regression.

    Args:
      bank: scene records with `vision`. seen: parameters of stage 1's names over it. embedding: the decoder's.
    """
    model, tokenizer = stage_1.bag_of_words(shape, frozen=True), shape.tokenizer
    index = {name: i for i, name in enumerate(shape.names)}
    words = np.stack([_meaning(tokenizer, embedding, f" {name}") for name in shape.names])
    colours = {word: _meaning(tokenizer, embedding, f" {word}") for word in looks.SLOTS["colour"]}
    nothing, r = _meaning(tokenizer, embedding, BACKGROUND), config.projection.shuffle
    read = jax.jit(lambda vision: model.apply({"params": seen}, vision)[1])
    width = bank[0]["vision"].shape[-1] * r * r
    square, cross = RIDGE * np.eye(width), np.zeros((width, embedding.shape[1]))
    for first in range(0, min(config.projection.start_images, len(bank)), 50):
        records = [bank[i] for i in range(first, min(first + 50, config.projection.start_images, len(bank)))]
        vision = np.stack([record["vision"] for record in records])
        for record, tokens, scores in zip(records, vision, np.asarray(read(vision)), strict=True):
            own = np.array([index[name] for name in record["names"]])
            which = scores[:, own].argmax(1)
            real = scores[np.arange(len(scores)), own[which]] >= scores.max(1) - MARGIN
            said = np.stack(
                [words[i] + LOOK * colours[look.colour] * (look.colour != looks.NONE)
                 for i, look in zip(own, record["looks"], strict=True)]
            )  # fmt: skip
            target = np.where(real[:, None], said[which], nothing)
            shuffled = np.asarray(pixel_shuffle(tokens[None], r))[0]
            blocks = (
                np.asarray(pixel_shuffle(jnp.asarray(target[None]), r))[0].reshape(len(shuffled), r * r, -1).mean(1)
            )
            square += shuffled.T @ shuffled
            cross += shuffled.T @ blocks
    return np.linalg.solve(square, cross).astype(np.float32)


def loss_fn(model: nn.Module, projection: Any, lm: Any, batch: dict[str, jax.Array]):
    """Weighted next-token cross-entropy of `captions.Sentences`; see `language.text_loss`."""
    found: Any = model.apply(
        {"params": {"projection": projection, "lm": lm}}, batch["vision"][:, None],
        {"ids": batch["ids"], "target": batch["target"]}, method="predict",
    )  # fmt: skip
    return language.weighted_loss(*found)


def train(config: ConfigDict, workdir: pathlib.Path, shape: Shape, bank: Any, lm: Any) -> Any:
    """The projection's parameters.

    Args:
      bank: scene records with `vision`. lm: the decoder's parameters, which stay.
    """
    seen = stage_1.train_names(config, workdir, shape, bank, "names of tokens")
    kernel = start(config, shape, bank, seen, np.asarray(lm["embedding"]))
    part, model = config.projection, shape.model

    def loss(params, held, batch, rng, option):
        del rng, option
        return loss_fn(model, params, held, batch)

    def iterator():
        texts = Sentences(shape.tokenizer, shape.frame, config.text_length, part.statements)
        return batches(bank, [texts], part.batch, seed=config.seed, threads=config.threads)

    phases, tx = [(part.steps, iterator, [None])], adamw(part.lr, part.steps)
    return train_stage(
        "stage 2, projection", workdir / "projection", {"kernel": jnp.asarray(kernel)}, tx, loss, phases, config, lm
    )
