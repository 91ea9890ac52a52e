"""A tiny BLIP-2 folder in Hugging Face's layout, written from shapes with random weights: what run tests work on."""

from __future__ import annotations

import json
import pathlib
import re

import numpy as np
from conftest import GOLDEN
from einops import rearrange
from flax import traverse_util
from safetensors.numpy import save_file
from tokenizers import AddedToken

from configs import pin_blip2
from input_pipeline import cutouts
from input_pipeline.boxes import BoxCodec
from pin_jax import word_tokenizer
from pin_jax.models.blip2 import Blip2
from pin_jax.vlm import skeleton
from pin_jax.weights.blip2 import config_of, table
from pin_jax.weights.convert import flat, linear, patch

SIZE, QUERIES = 32, 4
OPT = {"model_type": "opt", "hidden_size": 32, "num_hidden_layers": 2, "ffn_dim": 64, "num_attention_heads": 4}
OPT |= {"max_position_embeddings": 128, "word_embed_proj_dim": 32}
T5 = {"model_type": "t5", "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
T5 |= {"feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu"}


def tokenizer():
    """The small models' words, with the special tokens that OPT's or T5's tokenizer has."""
    made = word_tokenizer.build(sorted(set(cutouts.load("twemoji").names)), BoxCodec(SIZE))
    made.add_special_tokens({"eos_token": AddedToken("</s>", special=True)})
    while len(made) % 8:  # a vocabulary that meshes divide, as published ones are
        made.add_tokens(f"<spare{len(made)}>", special_tokens=True)
    return made


def meta_of(kind: str, words) -> dict:
    """A config.json, pruned as published ones are."""
    text = dict(OPT if kind == "opt" else T5) | {"vocab_size": len(words), "pad_token_id": words.pad_token_id}
    return {
        "model_type": "blip-2",
        "vision_config": {
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": SIZE, "patch_size": 8,
        },
        "qformer_config": {
            "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
        },
        "text_config": text,
        "num_query_tokens": QUERIES,
        "image_token_index": words.convert_tokens_to_ids("<image>"),
    }  # fmt: skip


def tensors_of(meta: dict, kind: str, seed: int) -> dict[str, np.ndarray]:
    """Random tensors under the keys of transformers (those of the golden checkpoint), every weight moved."""
    config = config_of(meta)
    rng = np.random.default_rng(seed)
    shapes = traverse_util.flatten_dict(skeleton(Blip2(config)), sep="/")
    out = {}
    with np.load(GOLDEN / f"blip2_{kind}.npz") as file:
        names = [name[3:] for name in file.files if name.startswith("sd/")]
    for name in names:
        match, rule = next((m, rule) for rule in table(config) if (m := re.fullmatch(rule.pattern, name)))
        target, layer = match.expand(rule.target), match.groupdict().get("layer")
        shape = shapes[target].shape
        if layer is not None:
            place = rule.layer(int(layer))
            if place is None or place >= shape[0]:
                continue
            shape = shape[1:]
        value = rng.standard_normal(shape).astype(np.float32) * 0.2 + (1.0 if target.endswith("scale") else 0.0)
        if rule.transform is patch:
            value = rearrange(value, "(p q c) d -> d c p q", p=config.vision.patch, q=config.vision.patch)
        elif rule.transform is linear:
            value = value.T
        elif rule.transform is flat:
            value = value.reshape((1,) * (3 - value.ndim) + value.shape)
        out[name] = np.ascontiguousarray(value)
    return out


def write(folder: pathlib.Path, kind: str = "opt", seed: int = 0, shards: int = 1) -> pathlib.Path:
    """Writes a folder as the hub has it: config, weights in one file or in shards, tokenizer, image processor."""
    folder.mkdir(parents=True, exist_ok=True)
    words = tokenizer()
    meta = meta_of(kind, words)
    (folder / "config.json").write_text(json.dumps(meta), "utf-8")
    tensors = tensors_of(meta, kind, seed)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
    else:
        index = {}
        for i in range(shards):
            name = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
            part = {key: tensors[key] for key in sorted(tensors)[i::shards]}
            save_file(part, folder / name)
            index |= dict.fromkeys(part, name)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}), "utf-8")
    words.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {"image_processor_type": "BlipImageProcessor", "size": {"height": SIZE, "width": SIZE},
             "image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}
        )
    )  # fmt: skip
    return folder


def config_for(folder: pathlib.Path, **changes):
    """The published config on such a folder, cut to seconds."""
    config = pin_blip2.get_config("opt-2.7b")
    config.vlm, config.dtype, config.workers, config.remat = str(folder), "float32", 0, "none"
    config.update({"steps": 12, "batch_size": 8, "save_every": 6, "log_every": 1, "curriculum": 0.0})
    config.text_length = 24
    config.eval.update({"images": 2, "batch_size": 8, "decoder": "greedy"})
    config.update(changes)
    return config
