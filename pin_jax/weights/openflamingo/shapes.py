"""The shapes of the published OpenFlamingo models (plain and instruct alike), and a tiny one of each."""

from __future__ import annotations

import dataclasses

from pin_jax.models.flamingo import FlamingoConfig
from pin_jax.models.language.gpt_neox import REDPAJAMA_3B, GPTNeoXConfig
from pin_jax.models.language.mpt import MPT_1B, MPT_7B, MPTConfig
from pin_jax.models.perceiver import PerceiverConfig
from pin_jax.models.vit import CLIP_L14, ViTConfig
from pin_jax.weights.published import OPENFLAMINGO


def _flamingo(lm: MPTConfig | GPTNeoXConfig, cross_every: int) -> FlamingoConfig:
    """CLIP ViT-L/14 and a language model whose embedding has the rows of GPT-NeoX's tokenizer and three more."""
    return FlamingoConfig(
        vision=dataclasses.replace(CLIP_L14, post_norm=False),
        lm=dataclasses.replace(lm, vocab=50280),
        perceiver=PerceiverConfig(),
        cross_every=cross_every,
        end_token=50277,
        image_token=50278,
        pad_token=50279,
    )


# by the name in `published.OPENFLAMINGO`; plain and instruct models are of one shape
SHAPES = {"3b": _flamingo(MPT_1B, 1), "4b": _flamingo(REDPAJAMA_3B, 2), "9b": _flamingo(MPT_7B, 4)}
BY_ID = {model.id: SHAPES[name.removesuffix("_instruct")] for name, model in OPENFLAMINGO.items()}


def tiny(config: FlamingoConfig) -> FlamingoConfig:
    """A few thousand parameters in the same form: two gated layers, 4 vision tokens, 64 words."""
    lm = dataclasses.replace(config.lm, vocab=64, width=32, depth=2 * config.cross_every, heads=4)
    if isinstance(lm, GPTNeoXConfig):
        lm = dataclasses.replace(lm, mlp=64)
    return dataclasses.replace(
        config,
        vision=ViTConfig(image_size=28, patch=14, width=16, depth=2, heads=2, mlp=32, post_norm=False),
        lm=lm,
        perceiver=PerceiverConfig(width=16, latents=3, depth=2, heads=8, head_dim=4),
        cross_heads=8,
        cross_head_dim=4,
        end_token=61,
        image_token=62,
        pad_token=63,
    )
