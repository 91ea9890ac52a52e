"""Contrastive training of a small CLIP: captions of pasted scenes, and the softmax and sigmoid losses over a batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, cast

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax

from input_pipeline.loader import pad_rows
from input_pipeline.pasted.looks import called
from input_pipeline.text.prompts import article
from pin_jax.models.clip import CLIP
from pin_jax.models.vit import CLIP_MEAN, CLIP_STD, normalise, visible_patches


def caption(names: Sequence[str]) -> str:
    """`A photo of a cat, a dog and a red apple.`"""
    things = [f"{article(name)} {name}" for name in names]
    return f"A photo of {', '.join(things[:-1])}{' and ' if things[1:] else ''}{things[-1]}."


@dataclasses.dataclass(frozen=True)
class Captioned(grain.transforms.RandomMap):
    """A scene's record -> its picture and its caption, names in random order.

    Returns image uint8[H, W, 3] and ids int32[T], the end token last, padded.

    Attributes:
      tokenizer: a transformers tokenizer. length: T.
    """

    tokenizer: Any
    length: int

    def random_map(self, record: dict[str, Any], rng: np.random.Generator) -> dict[str, np.ndarray]:
        names = [called(n, k) for n, k in zip(record["names"], record["looks"] or [None] * 99, strict=False)]
        text = caption([names[i] for i in rng.permutation(len(names))]) + self.tokenizer.eos_token
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) > self.length:
            raise ValueError(f"caption {text!r} has over {self.length} tokens; raise the phase's text")
        return {"image": record["image"], "ids": pad_rows(np.array(ids, np.int32), self.length, 0)}


def softmax_loss(logits: jax.Array, same: jax.Array) -> jax.Array:
    """Cross-entropy over rows and over columns (CLIP, section 2.3).

    Args:
      logits: float[B, B], images by texts.
      same: bool[B, B], captions that are equal word for word: each of them is right (no false negatives).
    """
    target = same / same.sum(-1, keepdims=True)  # symmetric: `same` is an equivalence
    rows = optax.softmax_cross_entropy(logits, target).mean()
    return (rows + optax.softmax_cross_entropy(logits.T, target).mean()) / 2


def sigmoid_loss(logits: jax.Array, same: jax.Array) -> jax.Array:
    """Every pair is a yes or a no of its own (SigLIP, equation 1)."""
    return -jax.nn.log_sigmoid(jnp.where(same, logits, -logits)).sum(-1).mean()


LOSSES = {"softmax": softmax_loss, "sigmoid": sigmoid_loss}


def loss_fn(
    model: CLIP, loss: str, params: Any, batch: dict[str, jax.Array], rng: jax.Array, keep: float
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Contrastive loss of a batch image uint8[B, S, S, 3], ids int32[B, T].

    Args:
      loss: key of `LOSSES`. rng, keep: of the patches that are seen, see `pretrain_vision.place`.

    Returns:
      The loss, and a dict of it and of the share of images whose best text is a right one.
    """
    images, kept = visible_patches(batch["image"], rng, model.config.vision, keep)
    same = (batch["ids"][:, None] == batch["ids"][None]).all(-1)

    def logits(clip: CLIP) -> jax.Array:
        return clip.similarity(clip.image(normalise(images, CLIP_MEAN, CLIP_STD), kept), clip.text(batch["ids"]))

    scores = cast(jax.Array, model.apply({"params": params}, method=logits))
    value = LOSSES[loss](scores, same)
    right = jnp.take_along_axis(same, scores.argmax(-1)[:, None], 1).mean()
    return value, {"loss": value, "right": right}
