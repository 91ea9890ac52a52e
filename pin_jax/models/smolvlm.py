"""SmolVLM (the Idefics3 form): a ViT, a pixel shuffle, one projection, and Llama to read the image's tokens.

Marafioti et al. 2025, "SmolVLM: Redefining small and efficient multimodal models"; one image, not split.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange, repeat
from jaxtyping import Array, Float

from pin_jax.models import layers
from pin_jax.models.base import ImagesInText
from pin_jax.models.interface import Inserts
from pin_jax.models.language.llama import Llama, LlamaConfig
from pin_jax.models.vit import ViT, ViTConfig


@dataclasses.dataclass(frozen=True)
class SmolVLMConfig:
    """A SmolVLM.

    Attributes:
      vision, lm: the two towers.
      shuffle: r; every r x r patches become one token of the language model.
      hidden: width of an MLP on each vision token behind the encoder; 0: none, as in all published SmolVLMs. It is
        there for an encoder that was not trained with the rest. An insert is added behind it, so that the projection,
        which is linear, does not bend what tokens say where psi is large.
      image_token: its places in a text take the image's tokens, in order.
      end_token, pad_token: of the texts that are written.
    """

    vision: ViTConfig
    lm: LlamaConfig
    shuffle: int
    image_token: int
    end_token: int
    pad_token: int
    hidden: int = 0

    @property
    def media_tokens(self) -> int:
        """Vision tokens per image that an insert is added to."""
        return self.vision.tokens

    @property
    def image_places(self) -> int:
        """Tokens of an image in a text."""
        return self.vision.tokens // self.shuffle**2


def _siglip(width: int, depth: int, heads: int, mlp: int, size: int, patch: int) -> ViTConfig:
    return ViTConfig(
        image_size=size, patch=patch, width=width, depth=depth, heads=heads, mlp=mlp, act="gelu_tanh", eps=1e-6,
        class_token=False, patch_bias=True, pre_norm=False,
    )  # fmt: skip


_BASE, _IDS = _siglip(768, 12, 12, 3072, 512, 16), {"image_token": 49190, "end_token": 49279, "pad_token": 2}
SMOLVLM_256M = SmolVLMConfig(_BASE, LlamaConfig(), 4, **_IDS)
SMOLVLM_500M = SmolVLMConfig(_BASE, LlamaConfig(width=960, depth=32, heads=15, key_heads=5, mlp=2560), 4, **_IDS)
SMOLVLM_2_2B = SmolVLMConfig(
    _siglip(1152, 27, 16, 4304, 384, 14),
    LlamaConfig(vocab=49155, width=2048, depth=24, heads=32, key_heads=32, mlp=8192, theta=273768.0, positions=16384),
    3, image_token=49153, end_token=49154, pad_token=2,
)  # fmt: skip


def pixel_shuffle(x: Float[Array, "B N D"], r: int) -> Float[Array, "B M C"]:
    """g x g vision tokens -> (g / r)^2 of r^2 D channels: the block's rows first, then its columns, then D."""
    side = round(x.shape[1] ** 0.5)
    return rearrange(x, "b (h i w j) d -> b (h w) (i j d)", h=side // r, w=side // r, i=r, j=r)


class Refinement(nn.Module):
    """x + MLP(x) of each vision token, for a SmolVLM whose config has `hidden`."""

    hidden: int

    @nn.compact
    def __call__(self, x: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
        y = layers.ACTIVATIONS["gelu"](layers.dense(self.hidden, name="fc1")(x))
        return x + layers.dense(x.shape[-1], name="fc2")(y)


class SmolVLM(ImagesInText):
    """The whole VLM. Its media are the projected tokens, which stand among the text's embeddings.

    Tokens that a method puts in beside the patches (VPT) each fill all r^2 slots of a token of the language model, are
    projected like the image's, and stand in front of the text.
    """

    config: SmolVLMConfig

    def setup(self):
        config = self.config
        self.vision = ViT(config.vision)
        self.refine = Refinement(config.hidden) if config.hidden else None
        self.projection = layers.dense(config.lm.width, use_bias=False, dtype=config.lm.dtype)
        self.lm = Llama(config.lm)

    def encode(self, pixels: Float[Array, "B I H W 3"], inserts: Inserts = Inserts()) -> Float[Array, "B I N D"]:
        """Normalised pixels -> vision tokens.

        A side that is no multiple of the patch loses its last pixels, as in the published convolution.
        """
        side = self.config.vision.grid * self.config.vision.patch
        return self.refined(super().encode(pixels[..., :side, :side, :], inserts))

    def refined(self, vision: Float[Array, "*rows D"]) -> Float[Array, "*rows D"]:
        """The encoder's tokens -> vision tokens: the same where the config has no `hidden`."""
        return vision if self.refine is None else self.refine(vision)

    def fuse(self, vision: Float[Array, "B I N D"], inserts: Inserts = Inserts()) -> Float[Array, "B I L D_lm"]:
        """Vision tokens -> the image's tokens with x* = x + psi(S) in between, and behind them those of a method."""
        config, images = self.config, vision.shape[1]
        vision = rearrange(inserts.after_vision(vision), "b i n d -> (b i) n d")
        first = 0 if inserts.vision_input is None else inserts.vision_input.shape[-2]
        last = first + config.media_tokens
        patches = pixel_shuffle(vision[:, first:last], config.shuffle)
        others = jnp.concatenate([vision[:, :first], vision[:, last:]], 1)
        others = repeat(others, "b n d -> b n (r d)", r=config.shuffle**2)
        media = self.projection(jnp.concatenate([patches, others], 1))
        return rearrange(media, "(b i) l d -> b i l d", i=images)

    def _embed(self, vision, ids, mask, inserts):
        """See `FusedModel`: a method's own tokens stand in front of the text too."""
        media = self.fuse(vision, inserts)
        image, others = jnp.split(media, [self.config.image_places], 2)
        mask = jnp.ones(ids.shape, bool) if mask is None else mask.astype(bool)
        x, mask, prefix = inserts.before_text(self.read(image, ids)[0], mask)
        count = others.shape[1] * others.shape[2]
        if count:
            others = repeat(others, "b i l d -> (b r) (i l) d", r=len(ids) // len(others)).astype(x.dtype)
            x = jnp.concatenate([others, x], 1)
            mask = jnp.pad(mask, [(0, 0), (count, 0)], constant_values=True)
        return x, mask, prefix + count, None
