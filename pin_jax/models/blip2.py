"""BLIP-2: an EVA ViT, a Q-Former whose queries stand for the image, and OPT or T5 to read them (Li et al. 2023)."""

from __future__ import annotations

import dataclasses

from jaxtyping import Array, Float

from pin_jax.models import layers
from pin_jax.models.base import ImagesInText
from pin_jax.models.language.opt import OPT, OPT_2_7B, OPT_6_7B, OPTConfig
from pin_jax.models.language.t5 import FLAN_T5_XL, T5, T5Config
from pin_jax.models.qformer import QFormer, QFormerConfig
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

    @property
    def image_places(self) -> int:
        """Tokens of an image in a text."""
        return self.qformer.queries


_OPT_IDS = {"image_token": 50265, "end_token": 2, "pad_token": 1}
BLIP2_OPT_2_7B = Blip2Config(EVA_G14, QFormerConfig(), OPT_2_7B, **_OPT_IDS)
BLIP2_OPT_6_7B = Blip2Config(EVA_G14, QFormerConfig(), OPT_6_7B, **_OPT_IDS)
BLIP2_FLAN_T5_XL = Blip2Config(EVA_G14, QFormerConfig(), FLAN_T5_XL, image_token=32100, end_token=1, pad_token=0)


class Blip2(ImagesInText):
    """The whole VLM. Its media are the projected queries, which stand among the text's embeddings."""

    config: Blip2Config

    def setup(self):
        config = self.config
        self.vision, self.qformer = ViT(config.vision), QFormer(config.qformer)
        self.projection = layers.dense(config.lm.width, dtype=config.lm.dtype)
        self.lm = T5(config.lm) if isinstance(config.lm, T5Config) else OPT(config.lm)

    def fusion(self, vision: Float[Array, "B N D"]) -> Float[Array, "B Q D_lm"]:
        """Vision tokens of images -> projected queries."""
        return self.projection(self.qformer(vision))
