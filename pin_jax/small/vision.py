"""Stage 1 of the small VLMs: an encoder learns names and looks from captions as bags of words, not positions.

A name's score in an image is the log-sum-exp over tokens of the tokens' logits for it; names in the caption are set
against names that are not. A look word is read from the tokens pooled by the name's own softmax. The encoder is the
ViT, and after it BLIP-2's Q-Former, whose queries are the tokens then. Over an encoder that another small VLM has
learned only the names and the heads are learned anew.
"""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import flax.linen as nn
import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax

from input_pipeline.loader import pad_rows
from input_pipeline.pasted import looks
from pin_jax.models.layers import standardise
from pin_jax.models.qformer import QFormer, QFormerConfig
from pin_jax.models.vit import CLIP_MEAN, CLIP_STD, ViT, ViTConfig, normalise, visible_patches


@dataclasses.dataclass(frozen=True)
class BagOfWords(grain.transforms.Map):
    """A scene as its image and the words of its caption, padded to `max_objects` objects.

    Returns image uint8[H, W, 3] (or the record's `vision`), names int32[max_objects] (-1 pads) and looks
    int32[max_objects, 4] (-1: not said).
    """

    names: tuple[str, ...]
    max_objects: int

    def map(self, record: dict[str, Any]) -> dict[str, np.ndarray]:
        index = {name: i for i, name in enumerate(self.names)}
        ids = np.array([index[name] for name in record["names"]], np.int32)
        seen = (
            [look.indices() for look in record["looks"]] if record["looks"] else -np.ones((len(ids), len(looks.SLOTS)))
        )
        words = {
            "names": pad_rows(ids, self.max_objects, -1),
            "looks": pad_rows(np.array(seen, np.int32), self.max_objects, -1),
        }
        return words | {key: record[key] for key in ("vision", "image") if key in record}


class BagOfWordsModel(nn.Module):
    """An encoder, one embedding per name, and one linear head per look slot.

    Attributes:
      vision: shape of the ViT. names: how many there are.
      qformer: the encoder is this Q-Former, which reads the ViT's tokens; None: it is the ViT.
      frozen: the encoder is elsewhere and what is given are its tokens, whatever their scale: only names and heads are
        learned.
    """

    vision: ViTConfig
    names: int
    qformer: QFormerConfig | None = None
    frozen: bool = False

    def setup(self):
        self.width = (self.qformer or self.vision).width
        if not self.frozen:
            self.encoder: Any = QFormer(self.qformer) if self.qformer else ViT(self.vision)
        self.embedding = self.param("names", nn.initializers.normal(1.0), (self.names, self.width))
        self.log_scale = self.param("log_scale", nn.initializers.constant(1.0), ())
        self.heads = {slot: nn.Dense(len(words), name=f"look_{slot}") for slot, words in looks.SLOTS.items()}

    def __call__(self, seen: jax.Array, keep: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """Images uint8[B, H, W, 3], or vision tokens, -> tokens float[B, N, D], name logits float[B, N, names]."""
        if self.frozen:
            return seen, jnp.einsum("bnd,vd->bnv", standardise(seen), self._names())
        if self.qformer:
            tokens = self.encoder(seen)
        else:
            streams = self.encoder(normalise(seen, CLIP_MEAN, CLIP_STD), keep=keep)
            tokens = streams.tokens[:, int(self.vision.class_token) :]
        return tokens, jnp.einsum("bnd,vd->bnv", tokens, self._names())

    def _names(self) -> jax.Array:
        return standardise(self.embedding) * jnp.exp(self.log_scale) / self.width**0.5

    def read(self, tokens: jax.Array, asked: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Logits float[B, N, K] of the asked names int[B, K], and look logits from tokens pooled by their softmax."""
        # The asked rows of the table, not the asked columns of the logits: their gradient is no large scatter.
        tokens = standardise(tokens) if self.frozen else tokens
        own = jnp.einsum("bnd,bkd->bnk", tokens, self._names()[asked])
        pooled = jnp.einsum("bnk,bnd->bkd", jax.nn.softmax(own, 1), tokens)
        return own, {slot: head(pooled) for slot, head in self.heads.items()}

    def everything(self, seen, asked):
        """Everything that has parameters, for `init`."""
        return self.read(self(seen)[0], asked)


def loss_fn(
    model: BagOfWordsModel, params: Any, batch: dict[str, jax.Array], rng: jax.Array, keep: float, look_weight: float
):
    """Caption loss.

    Args:
      batch: what `BagOfWords` makes. keep: see `place`; for pictures only.
      look_weight: weight of each look slot beside the names.

    Returns:
      The loss, and a dict of its parts.
    """
    cached = model.frozen or model.qformer
    seen = (batch["vision"],) if cached else visible_patches(batch["image"], rng, model.vision, keep)
    tokens, logits = cast(tuple, model.apply({"params": params}, *seen))
    present = batch["names"] >= 0
    asked = jnp.maximum(batch["names"], 0)
    own, read = cast(tuple, model.apply({"params": params}, tokens, asked, method="read"))
    own = jax.nn.logsumexp(own, 1)
    in_caption = jax.nn.one_hot(batch["names"], model.names).sum(1)
    scores = jax.nn.logsumexp(logits, 1)
    absent = jax.nn.logsumexp(scores - 1e9 * in_caption, 1, keepdims=True)
    count = present.sum()
    name_loss = jnp.where(present, jnp.logaddexp(own, absent) - own, 0).sum() / count
    parts = {"names": name_loss}
    for i, (slot, slot_logits) in enumerate(read.items()):
        said = batch["looks"][..., i] >= 0
        cost = optax.softmax_cross_entropy_with_integer_labels(slot_logits, jnp.maximum(batch["looks"][..., i], 0))
        parts[slot] = jnp.where(said, cost, 0).sum() / count
    return name_loss + look_weight * sum(parts[slot] for slot in read), parts
