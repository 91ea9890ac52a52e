"""The base class of VLMs: a vision encoder, a fusion module and a language model in sequence."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int, Shaped

from pin_jax.models.interface import Cache, Inserts, Media


class FusedModel(nn.Module):
    """The frame of a VLM; it has the interface `interface.VisionLanguageModel`.

    A subclass sets up `vision` (a `vit.ViT`) and `lm` (an `interface.LanguageModel`), and says how vision tokens become
    media (`fusion`) and how media reach the language model (`read`).
    """

    config: Any

    def fusion(self, vision: Float[Array, "B N D"]) -> Float[Array, "B L D_media"]:
        """Vision tokens of images -> media tokens."""
        raise NotImplementedError

    def read(
        self, media: Float[Array, "B I L D_media"], ids: Int[Array, "R T"]
    ) -> tuple[Float[Array, "R T D"], Media | None]:
        """Embeddings of texts about images, and what the texts attend to beside themselves."""
        raise NotImplementedError

    def encode(self, pixels: Float[Array, "B I H W 3"], inserts: Inserts = Inserts()) -> Float[Array, "B I N D"]:
        """Normalised pixels -> vision tokens, `config.media_tokens` of them and those out of `vision_input`."""
        found = self.vision(rearrange(pixels, "b i h w c -> (b i) h w c"), extra_tokens=inserts.vision_input)
        dropped = self.config.vision.tokens - self.config.media_tokens  # the class token, or none
        return rearrange(found.tokens[:, dropped:], "(b i) n d -> b i n d", i=pixels.shape[1])

    def fuse(self, vision: Float[Array, "B I N D"], inserts: Inserts = Inserts()) -> Float[Array, "B I L D_media"]:
        """Vision tokens -> media tokens, with x* = x + psi(S) in between."""
        kept = self.config.media_tokens - self.config.vision.grid**2  # the class token, or none
        vision = inserts.after_vision(vision, first=kept)
        media = self.fusion(rearrange(vision, "b i n d -> (b i) n d"))
        return rearrange(media, "(b i) l d -> b i l d", i=vision.shape[1])

    def __call__(
        self,
        pixels: Float[Array, "B I H W 3"] | None,
        input_ids: Int[Array, "R T"],
        attention_mask: Shaped[Array, "R T"] | None = None,
        inserts: Inserts = Inserts(),
        vision: Float[Array, "B I N D"] | None = None,
        labels: Int[Array, "R T_labels"] | None = None,
    ) -> Float[Array, "R T_out V"]:
        """Logits of texts about images.

        Args:
          pixels: not needed when `vision` is given.
          input_ids: R a multiple of B. Of a Flamingo, each `<image>` starts the next of the row's images; of a BLIP-2,
            each row has Q image tokens for every image of its sample.
          attention_mask: 0 at pads and in holes. Logits there mean nothing.
          inserts: what a method puts in.
          vision: cached output of `encode`.
          labels: of an encoder-decoder language model only: the text to be written; padding or -100 where it does not
            count.

        Returns:
          float32, over the T of input_ids; with labels over theirs.
        """
        if vision is None:
            assert pixels is not None
            vision = self.encode(pixels, inserts)
        x, mask, prefix, media = self._embed(vision, input_ids, attention_mask, inserts)
        logits = self.lm(x, mask, labels, media)
        return logits if labels is not None else logits[:, prefix:]

    def predict(
        self, vision: Float[Array, "B I N D"], texts: Mapping[str, Array], inserts: Inserts = Inserts()
    ) -> tuple[Float[Array, "R P V"], Int[Array, "R P"], Float[Array, "R P"]]:
        """Teacher forcing; see the interface. Pads are told by `config.pad_token`."""
        ids = texts["ids"]
        if "opening" in texts:
            return self._go_on(vision, texts, inserts)
        x, mask, _, media = self._embed(vision, ids, ids != self.config.pad_token, inserts)
        return self.lm.predict(x, mask, texts, self.never_predicted(vision.shape[1]), media)

    def _go_on(self, vision, texts, inserts):
        """`predict` of texts behind an opening."""
        raise NotImplementedError

    def never_predicted(self, images: int) -> int:
        """How many tokens at the beginning of a text never count in the loss."""
        del images
        return 1

    def prefill(
        self,
        vision: Float[Array, "B I N D"],
        input_ids: Int[Array, "R T"],
        attention_mask: Shaped[Array, "R T"],
        steps: int,
        inserts: Inserts = Inserts(),
        start: tuple[int, ...] = (),
        ragged: bool = False,
    ) -> tuple[Float[Array, "R V"], Cache]:
        """Reads left-padded prompts and makes room for `steps` tokens more; see the interface."""
        x, mask, _, media = self._embed(vision, input_ids, attention_mask, inserts)
        return self.lm.prefill(x, mask, steps, start, ragged, media)

    def step(
        self, cache: Cache, tokens: Int[Array, " R *T"], lengths: Int[Array, " R"] | None = None
    ) -> tuple[Float[Array, "R V"], Cache]:
        """Some tokens more; see the interface."""
        return self.lm.step(cache, tokens, lengths)

    def _embed(
        self,
        vision: Float[Array, "B I N D"],
        ids: Int[Array, "R T"],
        mask: Shaped[Array, "R T"] | None,
        inserts: Inserts,
    ) -> tuple[Float[Array, "R P_and_T D"], Bool[Array, "R P_and_T"], int, Media | None]:
        """Embeddings and mask with P learned ones in front, P, and the media that the text attends to."""
        mask = jnp.ones(ids.shape, bool) if mask is None else mask.astype(bool)
        x, media = self.read(self.fuse(vision, inserts), ids)
        x, mask, prefix = inserts.before_text(x, mask)
        if media is not None:  # what stands in front of the text sees no image
            media = dataclasses.replace(media, index=jnp.pad(media.index, [(0, 0), (prefix, 0)]))
        return x, mask, prefix, media


class ImagesInText(FusedModel):
    """A VLM whose media stand among the text's embeddings, `config.image_places` of them an image."""

    def never_predicted(self, images: int) -> int:
        """The images' own places."""
        return self.config.image_places * images

    def _go_on(self, vision, texts, inserts):
        opening, told = texts["opening"], texts.get("told")
        if told is not None and inserts.stands_in_front:
            opening, told = jnp.concatenate([told, opening], 1), None
        first, seen, _, _ = self._embed(vision, opening, opening != self.config.pad_token, inserts)
        front = None if told is None else self.lm.embed(told[:1]).astype(first.dtype)
        x, mask = self.lm.embed(texts["ids"]).astype(first.dtype), texts["ids"] != self.config.pad_token
        return self.lm.predict(x, mask, texts, 1, opening=(first, seen, front))

    def read(self, media: Float[Array, "B I Q D"], ids: Int[Array, "R T"]) -> tuple[Float[Array, "R T D"], None]:
        """Embeddings of texts, with the media tokens of their images at the image tokens, in order."""
        media = rearrange(media, "b i q d -> b (i q) d")
        here = ids == self.config.image_token
        place = jnp.where(here, jnp.cumsum(here, 1) - 1, -1)
        # A product with one-hot rows instead of a gather: exact, and its gradient is a product too.
        pick = rearrange(
            jax.nn.one_hot(place, media.shape[1], dtype=media.dtype), "(b r) t q -> b (r t) q", b=len(media)
        )
        images = jnp.einsum("bnq,bqd->bnd", pick, media, precision="highest").reshape(*ids.shape, -1)
        return jnp.where(here[..., None], images, self.lm.embed(ids).astype(images.dtype)), None
