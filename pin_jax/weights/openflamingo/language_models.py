"""config.json of the language models beside which an OpenFlamingo was trained -> our configs."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from input_pipeline.errors import UserError
from pin_jax.models.language.gpt_neox import GPTNeoXConfig
from pin_jax.models.language.mpt import MPTConfig
from pin_jax.weights import files
from pin_jax.weights.configs import sizes
from pin_jax.weights.configs.entries import (
    ACTIVATION,
    ACTIVATIONS,
    EPS,
    FLAG,
    POSITIVE,
    REQUIRED,
    SHARE,
    SIZE,
    TRANSFORMERS,
    Table,
    optional,
    part,
    short,
)

_NULL = (None,)
_NONE = (None, False, 0)
# What MosaicML's own code writes of the run: where attention is computed, how, in which order, and how weights start.
_MOSAIC = (
    *TRANSFORMERS,
    "max_seq_len",
    "learned_pos_emb",
    "low_precision_layernorm",
    "emb_.*",
    "fan_mode",
    "param_init_fn",
    "name",
    "gradient_checkpointing.*",
)
_ATTENTION = {
    "alibi": (True,),
    "clip_qkv": _NULL,
    "softmax_scale": _NULL,
    "prefix_lm": _NONE,
    "attn_type": ("multihead_attention",),
    "rope": _NONE,
    "sliding_window_size": (-1, None),
    "qk_gn": _NONE,
}
_ATTENTION_HARMLESS = ("attn_impl", "attn_uses_sequence_id", "rope_.*", "model_type", "torch_dtype", "dtype")
_MPT_ATTENTION = Table(
    {"qk_ln": (FLAG, False), "alibi_bias_max": (SIZE, 8), "kv_n_heads": (optional(SIZE), None)},
    _ATTENTION,
    (*TRANSFORMERS, *_ATTENTION_HARMLESS),
)
_SHAPE = {
    "vocab_size": (SIZE, REQUIRED),
    "d_model": (SIZE, REQUIRED),
    "n_layers": (SIZE, REQUIRED),
    "n_heads": (SIZE, REQUIRED),
    "layer_norm_epsilon": (EPS, 1e-5),
}
_FORM = {
    "no_bias": (True,),
    "logit_scale": _NULL,
    "embedding_fraction": (1.0,),
    "tie_word_embeddings": (True,),
    "norm_type": ("low_precision_layernorm", "layernorm"),
    "fc_type": (None, "torch"),
    "pruned_heads": ({},),
    "use_pad_tok_in_ffn": (True, None),
}
_MPT = Table({**_SHAPE, "expansion_ratio": (POSITIVE, 4)}, _FORM, _MOSAIC, ("attn_config", "ffn_config"))
_MOSAIC_GPT = Table(
    {**_SHAPE, "mlp_ratio": (POSITIVE, 4), "attn_qk_ln": (FLAG, False), "alibi_bias_max": (SIZE, 8)},
    _FORM
    | {
        "alibi": (True,),
        "attn_clip_qkv": _NULL,
        "attn_softmax_scale": _NULL,
        "softmax_scale": _NULL,
        "prefix_lm": _NONE,
    },
    (*_MOSAIC, "attn_impl", "attn_uses_sequence_id", "hidden_size"),
)
_NEOX = Table(
    {
        "vocab_size": (SIZE, REQUIRED),
        "hidden_size": (SIZE, REQUIRED),
        "num_hidden_layers": (SIZE, REQUIRED),
        "num_attention_heads": (SIZE, REQUIRED),
        "intermediate_size": (SIZE, REQUIRED),
        "hidden_act": (ACTIVATION, "gelu"),
        "rotary_pct": (SHARE, 0.25),
        "rotary_emb_base": (POSITIVE, 10000),
        "partial_rotary_factor": (optional(SHARE), None),
        "rope_theta": (optional(POSITIVE), None),
        "use_parallel_residual": (FLAG, True),
        "layer_norm_eps": (EPS, 1e-5),
    },
    {"tie_word_embeddings": (False,), "attention_bias": (True,), "rope_scaling": _NULL, "pruned_heads": ({},)},
    (*TRANSFORMERS, "max_position_embeddings"),
    ("rope_parameters",),
)
_ROPE = Table(
    {"partial_rotary_factor": (optional(SHARE), None), "rope_theta": (optional(POSITIVE), None)},
    {"rope_type": ("default",), "type": ("default",)},
)


def language_config(folder: pathlib.Path) -> MPTConfig | GPTNeoXConfig:
    """The language model that config.json describes: transformers' MPT, MosaicML's own layouts, or GPT-NeoX.

    Raises:
      UserError: another architecture, or an option of these that no OpenFlamingo has.
    """
    path = folder / "config.json"
    meta = files.read_object(path)
    kind, where = meta.get("model_type"), f"language model {path}"
    read = {"mpt": _mpt, "mosaic_gpt": _mosaic_gpt, "gpt_neox": _gpt_neox}
    if not isinstance(kind, str) or kind not in read:
        raise UserError(f"{where}: its model_type is {short(kind)}; expected {', '.join(read)}")
    return sizes.check(read[kind](meta, where), where)


def _shape(found: Mapping[str, Any], ratio: float, qk_norm: bool, where: str) -> MPTConfig:
    if ratio != int(ratio):
        raise UserError(f"{where}: its feed-forward network is {ratio} times as wide; expected a whole number")
    return MPTConfig(
        vocab=found["vocab_size"],
        width=found["d_model"],
        depth=found["n_layers"],
        heads=found["n_heads"],
        mlp_ratio=int(ratio),
        qk_norm=qk_norm,
        alibi_max=found["alibi_bias_max"],
        eps=found["layer_norm_epsilon"],
    )


def _mpt(meta: Mapping[str, Any], where: str) -> MPTConfig:
    found = _MPT.read(meta, where)
    attention = _MPT_ATTENTION.read(part(meta, "attn_config", where), f"{where}, attn_config")
    if part(meta, "ffn_config", where).get("ffn_type", "mptmlp") != "mptmlp":
        raise UserError(f"{where}: ffn_config is {short(meta['ffn_config'])}; expected ffn_type 'mptmlp'")
    if attention["kv_n_heads"] not in (None, found["n_heads"]):
        raise UserError(f"{where}: kv_n_heads is {attention['kv_n_heads']}; expected one for each of n_heads")
    return _shape({**found, **attention}, found["expansion_ratio"], attention["qk_ln"], where)


def _mosaic_gpt(meta: Mapping[str, Any], where: str) -> MPTConfig:
    found = _MOSAIC_GPT.read(meta, where)
    return _shape(found, found["mlp_ratio"], found["attn_qk_ln"], where)


def _gpt_neox(meta: Mapping[str, Any], where: str) -> GPTNeoXConfig:
    found = _NEOX.read(meta, where)
    rope = _ROPE.read(part(meta, "rope_parameters", where), f"{where}, rope_parameters")

    def rotary(name: str, older: str) -> Any:
        return next(x for x in (rope[name], found[name], found[older]) if x is not None)

    return GPTNeoXConfig(
        vocab=found["vocab_size"],
        width=found["hidden_size"],
        depth=found["num_hidden_layers"],
        heads=found["num_attention_heads"],
        mlp=found["intermediate_size"],
        rotary_share=rotary("partial_rotary_factor", "rotary_pct"),
        rotary_base=rotary("rope_theta", "rotary_emb_base"),
        parallel=found["use_parallel_residual"],
        act=ACTIVATIONS[found["hidden_act"]],
        eps=found["layer_norm_eps"],
    )
