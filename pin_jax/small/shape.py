"""What a small VLM's config describes: its module, and the words, boxes and names that it is to know."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
from ml_collections import ConfigDict

from input_pipeline.pasted import cutouts
from input_pipeline.text import word_tokenizer
from input_pipeline.text.box_codec import BoxCodec
from input_pipeline.text.prompts import Frame
from pin_jax.models.blip2 import Blip2, Blip2Config
from pin_jax.models.flamingo import Flamingo, FlamingoConfig
from pin_jax.models.language.mpt import MPTConfig
from pin_jax.models.language.opt import OPTConfig
from pin_jax.models.perceiver import PerceiverConfig
from pin_jax.models.qformer import QFormerConfig
from pin_jax.models.smolvlm import SmolVLM, SmolVLMConfig
from pin_jax.models.vit import ViTConfig
from pin_jax.weights import gguf

# In front of the image: of names whose embeddings stand in its places a decoder that was never shown an image says .43
# with these words there, .34 without (benchmarks/projection.py).
SAID = "Things in the photo:"


@dataclasses.dataclass
class Shape:
    """What a config describes: a module, its tokenizer, the names it is to know, its box codec and its frame."""

    model: nn.Module
    tokenizer: Any
    names: tuple[str, ...]
    codec: BoxCodec
    frame: Frame = Frame()


def build(config: ConfigDict) -> Shape:
    """The small Flamingo of a config; with config.qformer the small BLIP-2, with config.decoder the small SmolVLM."""
    names = tuple(sorted(set(cutouts.load(config.scenes.cutouts).names)))
    codec = BoxCodec(config.vision.image_size, config.grid)
    if config.decoder:
        return _around_a_decoder(config, names, codec)
    tokenizer = word_tokenizer.build(names, codec)
    ids = tokenizer.convert_tokens_to_ids
    shared = {
        "vision": ViTConfig(**config.vision),
        "image_token": ids(word_tokenizer.IMAGE),
        "end_token": ids(word_tokenizer.END),
        "pad_token": ids(word_tokenizer.PAD),
    }
    if config.qformer:
        lm, qformer = OPTConfig(vocab=len(tokenizer), **config.lm), QFormerConfig(**config.qformer)
        frame = Frame(prefix=word_tokenizer.IMAGE * qformer.queries)
        return Shape(Blip2(Blip2Config(qformer=qformer, lm=lm, **shared)), tokenizer, names, codec, frame)
    shape = FlamingoConfig(
        lm=MPTConfig(vocab=len(tokenizer), **config.lm),
        perceiver=PerceiverConfig(width=config.vision.width, **config.perceiver) if config.perceiver else None,
        cross_every=config.cross_every,
        cross_heads=config.cross_heads,
        cross_head_dim=config.cross_head_dim,
        unroll=True,
        **shared,
    )
    return Shape(Flamingo(shape), tokenizer, names, codec)


def _around_a_decoder(config: ConfigDict, names: tuple[str, ...], codec: BoxCodec) -> Shape:
    """A SmolVLM whose language model is a published one; in its own chat, the user shows the image."""
    lm, tokenizer = gguf.with_image(gguf.opened(config.decoder))
    ids, vision = tokenizer.convert_tokens_to_ids, ViTConfig(**config.vision)
    shape = SmolVLMConfig(
        vision,
        lm,
        config.projection.shuffle,
        ids(gguf.IMAGE),
        end_token=tokenizer.eos_token_id,
        pad_token=tokenizer.pad_token_id,
        hidden=config.projection.hidden,
    )
    image = gguf.IMAGE * shape.image_places
    frame = Frame(f"<|im_start|>user\n{SAID}{image}<|im_end|>\n<|im_start|>assistant\n", suffix=tokenizer.eos_token)
    return Shape(SmolVLM(shape), tokenizer, names, codec, frame)
