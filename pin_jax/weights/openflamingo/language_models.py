"""config.json of the language models beside which an OpenFlamingo was trained -> our configs."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from input_pipeline.errors import UserError
from pin_jax.models.gpt_neox import GPTNeoXConfig
from pin_jax.models.mpt import MPTConfig
from pin_jax.weights import files

ACTIVATIONS = {  # transformers' names -> ours
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "quick_gelu": "quick_gelu",
}


def language_config(folder: pathlib.Path) -> MPTConfig | GPTNeoXConfig:
    """The language model that config.json describes: transformers' MPT, MosaicML's own layouts, or GPT-NeoX.

    Raises:
      UserError: another architecture, or an option of these that no OpenFlamingo has.
    """
    meta = files.read_json(folder / "config.json")
    kind = meta.get("model_type")
    try:
        if kind == "mpt":
            return _mpt(folder, meta, meta.get("attn_config") or {}, meta.get("expansion_ratio", 4))
        if kind == "mosaic_gpt":
            attention = {key.removeprefix("attn_"): value for key, value in meta.items()}
            return _mpt(folder, meta, attention, meta.get("mlp_ratio", 4))
        if kind == "gpt_neox":
            return _gpt_neox(folder, meta)
    except KeyError as error:
        raise UserError(f"language model {folder}: its config.json lacks {error}; fetch it again") from error
    raise UserError(f"language model {folder}: its model_type is {kind!r}; expected mpt, mosaic_gpt or gpt_neox")


def _refuse(folder: pathlib.Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Refuses options that our modules do not have; an absent one is as expected."""
    for name, value in expected.items():
        if found.get(name, value) != value:
            raise UserError(
                f"language model {folder}: {name} is {found[name]!r} in its config.json; expected {value!r}"
            )


def _mpt(folder: pathlib.Path, meta: Mapping[str, Any], attention: Mapping[str, Any], ratio: float) -> MPTConfig:
    _refuse(folder, meta, {"no_bias": True, "logit_scale": None, "embedding_fraction": 1.0})
    _refuse(folder, attention, {"alibi": True, "clip_qkv": None, "softmax_scale": None, "prefix_lm": False})
    return MPTConfig(
        vocab=meta["vocab_size"],
        width=meta["d_model"],
        depth=meta["n_layers"],
        heads=meta["n_heads"],
        mlp_ratio=int(ratio),
        qk_norm=attention.get("qk_ln", False),
        alibi_max=attention.get("alibi_bias_max", 8),
        eps=meta.get("layer_norm_epsilon", 1e-5),
    )


def _gpt_neox(folder: pathlib.Path, meta: Mapping[str, Any]) -> GPTNeoXConfig:
    rope = meta.get("rope_parameters") or {}
    _refuse(folder, meta, {"tie_word_embeddings": False, "attention_bias": True, "rope_scaling": None})
    _refuse(folder, rope, {"rope_type": "default"})
    act = meta.get("hidden_act", "gelu")
    if act not in ACTIVATIONS:
        raise UserError(f"language model {folder}: hidden_act {act!r}; expected one of {', '.join(ACTIVATIONS)}")
    return GPTNeoXConfig(
        vocab=meta["vocab_size"],
        width=meta["hidden_size"],
        depth=meta["num_hidden_layers"],
        heads=meta["num_attention_heads"],
        mlp=meta["intermediate_size"],
        rotary_share=rope.get("partial_rotary_factor", meta.get("rotary_pct", 0.25)),
        rotary_base=rope.get("rope_theta", meta.get("rotary_emb_base", 10000)),
        parallel=meta.get("use_parallel_residual", True),
        act=ACTIVATIONS[act],
        eps=meta.get("layer_norm_eps", 1e-5),
    )
