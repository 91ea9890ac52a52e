"""BLIP-2: an EVA ViT, a Q-Former whose queries stand for the image, and OPT or T5 to read them (Li et al. 2023)."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from pin_jax.models import layers
from pin_jax.models.interface import Inserts
from pin_jax.models.opt import OPT, OPT_2_7B, OPT_6_7B, OPTConfig
from pin_jax.models.qformer import QFormer, QFormerConfig
from pin_jax.models.t5 import FLAN_T5_XL, T5, T5Config
from pin_jax.models.vit import EVA_G14, ViT, ViTConfig


@dataclasses.dataclass(frozen=True)
class Blip2Config:
    """A BLIP-2.

    Attributes:
      vision, qformer, lm: the three parts; the type of `lm` says which language model it is.
      image_token: its places in a text take the projected queries, in order.
      end_token, pad_token: of the texts that are written.
    """

    vision: ViTConfig
    qformer: QFormerConfig
    lm: OPTConfig | T5Config
    image_token: int
    end_token: int
    pad_token: int

    @property
    def media_tokens(self) -> int:
        """Vision tokens per image that an insert is added to (class token kept)."""
        return self.vision.tokens


_OPT_IDS = {"image_token": 50265, "end_token": 2, "pad_token": 1}
BLIP2_OPT_2_7B = Blip2Config(EVA_G14, QFormerConfig(), OPT_2_7B, **_OPT_IDS)
BLIP2_OPT_6_7B = Blip2Config(EVA_G14, QFormerConfig(), OPT_6_7B, **_OPT_IDS)
BLIP2_FLAN_T5_XL = Blip2Config(EVA_G14, QFormerConfig(), FLAN_T5_XL, image_token=32100, end_token=1, pad_token=0)
PRESETS = {
    "Salesforce/blip2-opt-2.7b": BLIP2_OPT_2_7B,
    "Salesforce/blip2-opt-6.7b": BLIP2_OPT_6_7B,
    "Salesforce/blip2-flan-t5-xl": BLIP2_FLAN_T5_XL,
}


class Blip2(nn.Module):
    """The whole VLM; see `pin_jax.models.interface`. Its media are the projected queries float[B, I, Q, D_lm]."""

    config: Blip2Config

    def setup(self):
        config = self.config
        self.vision, self.qformer = ViT(config.vision), QFormer(config.qformer)
        self.projection = layers.dense(config.lm.width, dtype=config.lm.dtype)
        self.lm = (T5 if isinstance(config.lm, T5Config) else OPT)(config.lm)

    def encode(self, pixels: jax.Array, inserts: Inserts = Inserts()) -> jax.Array:
        """Pixels float[B, I, H, W, 3] -> vision tokens float[B, I, N, D], class token kept."""
        tokens = self.vision(rearrange(pixels, "b i h w c -> (b i) h w c"), extra_tokens=inserts.vision_input)
        return rearrange(tokens, "(b i) n d -> b i n d", i=pixels.shape[1])

    def fuse(self, vision: jax.Array, inserts: Inserts = Inserts()) -> jax.Array:
        """Vision tokens float[B, I, N, D] -> projected queries float[B, I, Q, D_lm]."""
        vision = inserts.after_vision(vision, first=int(self.config.vision.class_token))
        media = self.projection(self.qformer(rearrange(vision, "b i n d -> (b i) n d")))
        return rearrange(media, "(b i) q d -> b i q d", i=vision.shape[1])

    def __call__(
        self,
        pixels: jax.Array | None,
        input_ids: jax.Array,
        attention_mask: jax.Array | None = None,
        inserts: Inserts = Inserts(),
        vision: jax.Array | None = None,
        labels: jax.Array | None = None,
    ) -> jax.Array:
        """Logits of texts about images.

        Args:
          pixels: float[B, I, H, W, 3]; not needed when `vision` is given.
          input_ids: int[R, T], R a multiple of B, each row with Q image tokens for every image of its sample.
          attention_mask: bool or int[R, T]; 0 at pads and in holes. Logits there mean nothing.
          inserts: what a method puts in.
          vision: float[B, I, N, D], cached output of `encode`.
          labels: int[R, L], with T5 only: the text to be written; padding or -100 where it does not count.

        Returns:
          float32[R, T, V]; with T5 float32[R, L, V].
        """
        if vision is None:
            vision = self.encode(pixels, inserts)
        x, mask, prefix = self._embed(vision, input_ids, attention_mask, inserts)
        logits = self.lm(x, mask, labels)
        return logits if labels is not None else logits[:, prefix:]

    def predict(
        self, vision: jax.Array, texts: dict[str, jax.Array], inserts: Inserts = Inserts()
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Teacher forcing.

        Args:
          vision: float[B, I, N, D].
          texts: with OPT ids int[R, T] and target float[R, T], the weight of each token in the loss; with T5 ids
            int[R, S], labels int[R, T] and target float[R, T] of the labels.

        Returns:
          Logits float32[R, T', V], labels int[R, T'] and weights float[R, T'], of the places that can count.
        """
        ids = texts["ids"]
        x, mask, _ = self._embed(vision, ids, ids != self.config.pad_token, inserts)
        return self.lm.predict(x, mask, texts, skip=self.config.qformer.queries * vision.shape[1])

    def prefill(
        self,
        vision: jax.Array,
        input_ids: jax.Array,
        attention_mask: jax.Array,
        steps: int,
        inserts: Inserts = Inserts(),
        start: tuple[int, ...] = (),
        ragged: bool = False,
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Reads left-padded prompts and makes room for `steps` tokens; see the interface.

        Returns:
          Logits float32[R, V] of the next token, and the cache for `step`.
        """
        x, mask, _ = self._embed(vision, input_ids, attention_mask, inserts)
        return self.lm.prefill(x, mask, steps, start, ragged)

    def step(
        self, cache: dict[str, Any], tokens: jax.Array, lengths: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Some tokens more: int[R] or int[R, T] -> logits float32[R, V] of the next, and the cache."""
        return self.lm.step(cache, tokens, lengths)

    @nn.nowrap
    def reorder(self, cache: dict[str, Any], rows: jax.Array) -> dict[str, Any]:
        """Picks rows of a decoding cache; see the interface."""
        return (T5 if isinstance(self.config.lm, T5Config) else OPT).reorder(None, cache, rows)

    def _embed(self, vision, ids, mask, inserts):
        """Embeddings with the images in their places, the mask bool[R, P + T], and the number P of learned ones."""
        mask = jnp.ones(ids.shape, bool) if mask is None else mask.astype(bool)
        media = rearrange(self.fuse(vision, inserts), "b i q d -> b (i q) d")
        here = ids == self.config.image_token
        place = jnp.where(here, jnp.cumsum(here, 1) - 1, -1)
        # A product with one-hot rows instead of a gather: exact, and its gradient is a product too.
        pick = rearrange(
            jax.nn.one_hot(place, media.shape[1], dtype=media.dtype), "(b r) t q -> b (r t) q", b=len(media)
        )
        images = jnp.einsum("bnq,bqd->bnd", pick, media, precision="highest").reshape(*ids.shape, -1)
        x = jnp.where(here[..., None], images, self.lm.embed(ids).astype(images.dtype))
        return inserts.before_text(x, mask)
