"""The published OpenFlamingo models: which towers stand beside which language model, and a tiny one of each."""

from __future__ import annotations

import dataclasses

from pin_jax.models.flamingo import FlamingoConfig
from pin_jax.models.gpt_neox import REDPAJAMA_3B, GPTNeoXConfig
from pin_jax.models.mpt import MPT_1B, MPT_7B, MPTConfig
from pin_jax.models.perceiver import PerceiverConfig
from pin_jax.models.vit import CLIP_L14, ViTConfig

CLIP = "openai/clip-vit-large-patch14"
# GPT-NeoX's tokenizer has 50,277 tokens; OpenFlamingo adds three, and cuts the word embedding to as many rows.
END, IMAGE, PAD = "<|endofchunk|>", "<image>", "<PAD>"
_IDS = {"end_token": 50277, "image_token": 50278, "pad_token": 50279}
ROWS = 50280


@dataclasses.dataclass(frozen=True)
class Published:
    """A published model.

    Attributes:
      config: its shape.
      checkpoint, language_model, vision: hub ids of the pieces.
    """

    config: FlamingoConfig
    checkpoint: str
    language_model: str
    vision: str = CLIP


def _flamingo(lm: MPTConfig | GPTNeoXConfig, cross_every: int) -> FlamingoConfig:
    return FlamingoConfig(
        vision=dataclasses.replace(CLIP_L14, post_norm=False),
        lm=dataclasses.replace(lm, vocab=ROWS),
        perceiver=PerceiverConfig(),
        cross_every=cross_every,
        **_IDS,
    )


_3B, _4B, _9B = _flamingo(MPT_1B, 1), _flamingo(REDPAJAMA_3B, 2), _flamingo(MPT_7B, 4)
PUBLISHED = {
    "3b": Published(_3B, "openflamingo/OpenFlamingo-3B-vitl-mpt1b", "anas-awadalla/mpt-1b-redpajama-200b"),
    "3b_instruct": Published(
        _3B, "openflamingo/OpenFlamingo-3B-vitl-mpt1b-langinstruct", "anas-awadalla/mpt-1b-redpajama-200b-dolly"
    ),
    "4b": Published(_4B, "openflamingo/OpenFlamingo-4B-vitl-rpj3b", "togethercomputer/RedPajama-INCITE-Base-3B-v1"),
    "4b_instruct": Published(
        _4B,
        "openflamingo/OpenFlamingo-4B-vitl-rpj3b-langinstruct",
        "togethercomputer/RedPajama-INCITE-Instruct-3B-v1",
    ),
    "9b": Published(_9B, "openflamingo/OpenFlamingo-9B-vitl-mpt7b", "anas-awadalla/mpt-7b"),
}


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
