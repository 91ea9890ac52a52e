"""A small VLM around a published decoder: a projection learns from captions to say what a frozen ViT sees.

Neither the ViT nor the decoder changes; what learns with the projection refines the ViT's tokens in front of it. They
start by regression: a token of the image is to look like the embedding of what a caption calls it. Which name that is
say stage 1's names, learned from captions; no position is used. Then they learn on captions and statements about looks,
through the decoder.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float
from ml_collections import ConfigDict

from input_pipeline.loader import batches
from input_pipeline.text.captions import Sentences
from pin_jax.models.smolvlm import pixel_shuffle
from pin_jax.runtime.train_stage import adamw, train_stage
from pin_jax.small import language, stage_1, vision
from pin_jax.small.shape import Shape

SURE = 0.5  # chance of a name in the caption, among all names, from which on a patch is taken for that object
REST = 0.3  # weight of a token without an object beside one with
NOTHING = "."  # what a token without an object is to look like


def meanings(tokenizer: Any, embedding: np.ndarray, words: Sequence[str]) -> np.ndarray:
    """Each word's tokens as one embedding float32[words, D]: a token weighs half of the one before it.

    The first decides what the decoder will say; with a plain mean it says it much more rarely.
    """
    rows = [tokenizer(f" {word}", add_special_tokens=False)["input_ids"] for word in words]
    return np.stack([np.average(embedding[row], axis=0, weights=0.5 ** np.arange(len(row))) for row in rows])


def named(
    shape: Shape, held: dict[str, Any], tokens: jax.Array, names: jax.Array
) -> tuple[Float[Array, "B M D_lm"], Bool[Array, "B M"]]:
    """What the image's tokens are to look like, and which of them are an object's.

    Args:
      held: `seen`, of stage 1's names; `words` float[names, D_lm]; `nothing` float[D_lm].
      tokens: of the vision encoder, float[B, N, D]. names: int[B, K] (-1 pads), those that may be said of an image.
    """
    bag: Any = stage_1.bag_of_words(shape, frozen=True)
    scores, known = bag.apply({"params": held["seen"]}, tokens)[1], jnp.maximum(names, 0)
    own = jnp.take_along_axis(jax.nn.softmax(scores, -1), known[:, None], -1)  # B N K
    sure = (own > SURE) & (names >= 0)[:, None]
    r = shape.model.config.shuffle
    patches = rearrange(pixel_shuffle(sure.astype(jnp.float32), r), "b m (p k) -> b m p k", p=r * r).sum(2)
    which, found = jnp.take_along_axis(known, patches.argmax(-1), 1), patches.max(-1) > 0
    return jnp.where(found[..., None], held["words"][which], held["nothing"]), found


def media_of(module: Any, tokens: Float[Array, "B N D"]) -> Float[Array, "B M D_lm"]:
    """The encoder's tokens -> what the language model reads: a method of a SmolVLM, for `apply`."""
    return module.fuse(module.refined(tokens)[:, None])[:, 0]


def start_loss(shape: Shape, params: Any, held: dict[str, Any], batch: dict[str, jax.Array]):
    """Mean squared distance of the image's tokens to what their patches are called in the caption.

    Args:
      params: `projection`, and `refine` if there is one. held: see `named`. batch: vision float[B, N, D], of the
        encoder, and names int[B, K] (-1 pads).
    """
    model: Any = shape.model
    media = model.apply({"params": params}, batch["vision"], method=media_of)
    target, found = named(shape, held, batch["vision"], batch["names"])
    weight = jnp.where(found, 1.0, REST)
    away = ((media - target) ** 2).sum(-1)
    alike = (media * target).sum(-1) / jnp.linalg.norm(media, axis=-1) / jnp.linalg.norm(target, axis=-1)
    return (away * weight).sum() / weight.sum(), {"alike": (alike * found).sum() / jnp.maximum(found.sum(), 1)}


def vocabulary(shape: Shape, seen: Any, embedding: np.ndarray) -> dict[str, Any]:
    """`held` of `named`, by stage 1's parameters and the decoder's embedding float[V, D_lm]."""
    words, nothing = (meanings(shape.tokenizer, embedding, some) for some in (shape.names, [NOTHING]))
    return {"seen": seen, "words": jnp.asarray(words), "nothing": jnp.asarray(nothing[0])}


def train_start(
    config: ConfigDict, workdir: pathlib.Path, shape: Shape, bank: Any, seen: Any, embedding: np.ndarray
) -> Any:
    """The parameters that the projection starts from.

    Args:
      bank: scene records with `vision`. seen: parameters of stage 1's names over it. embedding: the decoder's,
        float[V, D].
    """
    part, model = config.projection.start, shape.model
    params = model.init(jax.random.key(config.seed), jnp.asarray(bank[0]["vision"])[None], method=media_of)

    def loss(params, held, batch, rng, option):
        del rng, option
        return start_loss(shape, params, held, batch)

    def iterator():
        names = vision.BagOfWords(shape.names, config.language_scenes.objects[1])
        return batches(bank, [names], part.batch, seed=config.seed + 2, threads=config.threads)

    held = vocabulary(shape, seen, embedding)
    return train_stage(
        "stage 2, start of the projection", workdir / "projection_start", params["params"],
        adamw(part.lr, part.steps), loss, [(part.steps, iterator, [None])], config, held,
    )  # fmt: skip


def loss_fn(model: nn.Module, params: Any, lm: Any, batch: dict[str, jax.Array]):
    """Weighted next-token cross-entropy of `captions.Sentences`; see `language.text_loss`."""

    def predict(module, tokens, texts):
        return module.predict(module.refined(tokens)[:, None], texts)

    texts = {"ids": batch["ids"], "target": batch["target"]}
    found: Any = model.apply({"params": {**params, "lm": lm}}, batch["vision"], texts, method=predict)
    return language.weighted_loss(*found)


def train(config: ConfigDict, workdir: pathlib.Path, shape: Shape, bank: Any, lm: Any) -> Any:
    """Parameters of the projection, and of what refines the encoder's tokens if the config has it.

    Args:
      bank: scene records with `vision`. lm: the decoder's parameters, which stay.
    """
    seen = stage_1.train_names(config, workdir, shape, bank, "names of tokens")
    params = train_start(config, workdir, shape, bank, seen, np.asarray(lm["embedding"]))
    part, model = config.projection, shape.model

    def loss(params, held, batch, rng, option):
        del rng, option
        return loss_fn(model, params, held, batch)

    def iterator():
        texts = Sentences(shape.tokenizer, shape.frame, config.text_length, part.statements, part.without_caption)
        return batches(bank, [texts], part.batch, seed=config.seed, threads=config.threads)

    phases, tx = [(part.steps, iterator, [None])], adamw(part.lr, part.steps)
    return train_stage("stage 2, projection", workdir / "projection", params, tx, loss, phases, config, lm)
