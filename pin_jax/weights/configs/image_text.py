"""Configs of published image-text models -> ours: Hugging Face's CLIP, SigLIP and BLIP, and open_clip's CLIP."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

from input_pipeline.errors import UserError
from pin_jax.models.blip import BERTConfig, BLIPConfig
from pin_jax.models.clip import CLIPConfig, TextConfig
from pin_jax.models.vit import ViTConfig
from pin_jax.weights import files
from pin_jax.weights.configs import sizes as config_sizes
from pin_jax.weights.configs.entries import (  # fmt: skip
    ACTIVATION,
    ACTIVATIONS,
    EPS,
    FLAG,
    ID,
    POSITIVE,
    PREPROCESSOR,
    REQUIRED,
    SIZE,
    TRANSFORMERS,
    Kind,
    Table,
    one_of,
    optional,
    part,
    short,
)

# --- Hugging Face's layout --------------------------------------------------------------------------------------------


def _hf_tower(act: str, eps: float, sizes: Mapping[str, int], **more: tuple[Kind, Any]) -> dict[str, tuple[Kind, Any]]:
    return {
        **{name: (SIZE, value) for name, value in sizes.items()},
        "hidden_act": (ACTIVATION, act),
        "layer_norm_eps": (EPS, eps),
        **more,
    }


def _sizes(width: int, mlp: int, heads: int, **more: int) -> dict[str, int]:
    return {
        "hidden_size": width, "intermediate_size": mlp, "num_hidden_layers": 12, "num_attention_heads": heads, **more
    }  # fmt: skip


_HARMLESS = (*TRANSFORMERS, "projection_dim", "tie_word_embeddings", "logit_scale_init_value")
_VISION = {"num_channels": (3,), "vision_use_head": (True,), "pruned_heads": ({},)}
_TEXT = {"pruned_heads": ({},)}
_WHOLE = {"pruned_heads": ({},)}
_PARTS = ("text_config", "vision_config", "text_config_dict", "vision_config_dict")
_SIGLIP = ("gelu_pytorch_tanh", 1e-6)

_TABLES = {
    "clip": (
        Table({"projection_dim": (SIZE, 512)}, _WHOLE, _HARMLESS, _PARTS),
        Table(
            _hf_tower("quick_gelu", 1e-5, _sizes(768, 3072, 12, image_size=224, patch_size=32)), _VISION, _HARMLESS
        ),
        Table(
            _hf_tower(
                "quick_gelu", 1e-5, _sizes(512, 2048, 8, vocab_size=49408, max_position_embeddings=77),
                eos_token_id=(ID, 49407),
            ),
            _TEXT, _HARMLESS,
        ),
    ),
    "siglip": (
        Table({}, _WHOLE, _HARMLESS, _PARTS),
        Table(_hf_tower(*_SIGLIP, _sizes(768, 3072, 12, image_size=224, patch_size=16)), _VISION, _HARMLESS),
        Table(
            _hf_tower(
                *_SIGLIP, _sizes(768, 3072, 12, vocab_size=32000, max_position_embeddings=64),
                projection_size=(optional(SIZE), None),
            ),
            _TEXT, _HARMLESS,
        ),
    ),
    "blip": (
        Table({"image_text_hidden_size": (SIZE, 256)}, _WHOLE, _HARMLESS, _PARTS),
        Table(_hf_tower("gelu", 1e-5, _sizes(768, 3072, 12, image_size=384, patch_size=16)), _VISION, _HARMLESS),
        Table(
            _hf_tower(
                "gelu", 1e-12, _sizes(768, 3072, 8, vocab_size=30524, max_position_embeddings=512),
                pad_token_id=(ID, 0),
            ),
            _TEXT | {"position_embedding_type": ("absolute",)}, (*_HARMLESS, "encoder_hidden_size", "type_vocab_size"),
        ),
    ),
}  # fmt: skip
HUGGING_FACE = tuple(_TABLES)


def _hf_parts(meta: Mapping[str, Any], kind: str, where: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """The computed entries of the whole, the vision and the text part; `*_config_dict` of older files goes first."""
    whole, vision, text = _TABLES[kind]

    def inner(name: str, table: Any) -> dict[str, Any]:
        held = {**part(meta, name, where), **part(meta, f"{name}_dict", where)}
        return table.read(held, f"{where}, {name}")

    return whole.read(meta, where), inner("vision_config", vision), inner("text_config", text)


def hf_vision(found: Mapping[str, Any], dtype: Any, **form: Any) -> ViTConfig:
    """A vision tower, from the computed entries of its config."""
    return ViTConfig(
        image_size=found["image_size"], patch=found["patch_size"], width=found["hidden_size"],
        depth=found["num_hidden_layers"], heads=found["num_attention_heads"], mlp=found["intermediate_size"],
        act=ACTIVATIONS[found["hidden_act"]], eps=found["layer_norm_eps"], dtype=dtype, **form,
    )  # fmt: skip


def _hf_text(found: Mapping[str, Any], dtype: Any) -> dict[str, Any]:
    return {
        "vocab": found["vocab_size"], "context": found["max_position_embeddings"], "width": found["hidden_size"],
        "depth": found["num_hidden_layers"], "heads": found["num_attention_heads"],
        "mlp": found["intermediate_size"], "act": ACTIVATIONS[found["hidden_act"]], "eps": found["layer_norm_eps"],
        "dtype": dtype,
    }  # fmt: skip


def hugging_face(meta: Mapping[str, Any], kind: str, dtype: Any = None, where: str = "config.json") -> Any:
    """transformers' config.json of a CLIP, SigLIP or BLIP (image-text retrieval) -> `CLIPConfig` or `BLIPConfig`.

    Args:
      kind: of `HUGGING_FACE`. where: what the error calls the file.

    Raises:
      UserError: an entry that is not known, or a size that cannot be.
    """
    whole, vision, text = _hf_parts(meta, kind, where)
    if kind == "clip":
        # Older files name 2 as the end token, by mistake: transformers then pools at the highest id, and so do we.
        pool = "argmax" if text["eos_token_id"] == 2 else "eos"
        form = TextConfig(**_hf_text(text, dtype), pool=pool, eos=text["eos_token_id"])
        config = CLIPConfig(hf_vision(vision, dtype), form, whole["projection_dim"])
    elif kind == "siglip":
        form = TextConfig(**_hf_text(text, dtype), pool="last", causal=False)
        tower = hf_vision(vision, dtype, class_token=False, patch_bias=True, pre_norm=False)
        embed = text["projection_size"] or text["hidden_size"]
        config = CLIPConfig(tower, form, embed, head="map", text_bias=True, logit_bias=True)
    else:
        tower = hf_vision(vision, dtype, patch_bias=True, pre_norm=False)
        form = BERTConfig(**_hf_text(text, dtype), pad=text["pad_token_id"])
        config = BLIPConfig(tower, form, whole["image_text_hidden_size"])
    return config_sizes.check(config, where)


def clip_tower(meta: Mapping[str, Any], where: str, **form: Any) -> ViTConfig:
    """The vision tower of a CLIP's config.json, whole or saved alone (`clip_vision_model`).

    Raises:
      UserError: as `hugging_face`.
    """
    _, table, _ = _TABLES["clip"]
    if meta.get("model_type") == "clip":
        held = {**part(meta, "vision_config", where), **part(meta, "vision_config_dict", where)}
        return config_sizes.check(hf_vision(table.read(held, f"{where}, vision_config"), None, **form), where)
    return config_sizes.check(hf_vision(table.read(meta, where), None, **form), where)


def preprocessor(folder: pathlib.Path, table: Table = PREPROCESSOR) -> tuple[pathlib.Path, dict[str, Any]]:
    """The file that says how pixels are prepared, and its computed entries; null where it says nothing.

    preprocessor_config.json, or what transformers 5 writes instead: `image_processor` in processor_config.json.

    Args:
      table: of the entries of its kind of model.

    Raises:
      UserError: broken, or an entry that is not known.
    """
    older, newer = folder / "preprocessor_config.json", folder / "processor_config.json"
    if newer.is_file():
        held = files.read_object(newer).get("image_processor")
        if held is not None:
            return newer, table.read(held, f"{newer}, image_processor")
    held = files.read_object(older) if older.is_file() else {}
    return older, table.read(held, str(older))


# --- open_clip's layout -----------------------------------------------------------------------------------------------


def _keywords(*names: str) -> Kind:
    return Kind(
        f"null or an object with no more than {', '.join(names)}",
        lambda value: value is None or (isinstance(value, dict) and value.keys() <= set(names)),
    )


_NONE = (None, False, 0)
_OPEN_CLIP = Table(
    {"embed_dim": (SIZE, REQUIRED), "quick_gelu": (optional(FLAG), False)},
    {"init_logit_bias": (None,), "nonscalar_logit_scale": (False, None), "multimodal_cfg": (None,)},
    ("custom_text", "init_logit_scale", "cast_dtype", "output_dict", "model_type", "version"),
    ("vision_cfg", "text_cfg"),
)
_OPEN_CLIP_VISION = Table(
    {
        "image_size": (SIZE, REQUIRED), "patch_size": (SIZE, REQUIRED), "width": (SIZE, REQUIRED),
        "layers": (SIZE, REQUIRED), "head_width": (SIZE, 64), "mlp_ratio": (POSITIVE, 4.0),
        "norm_kwargs": (_keywords("eps"), None), "act_kwargs": (_keywords("approximate"), None),
    },
    {
        "ls_init_value": (None,), "attentional_pool": _NONE, "no_ln_pre": _NONE, "pos_embed_type": ("learnable",),
        "final_ln_after_pool": _NONE, "pool_type": ("tok",), "input_patchnorm": _NONE, "global_average_pool": _NONE,
        "timm_model_name": (None, ""), "block_type": (None, "default"), "qk_norm": _NONE, "scaled_cosine_attn": _NONE,
        "scale_heads": _NONE, "scale_attn_inner": _NONE, "scale_attn": _NONE, "scale_fc": _NONE,
    },
    ("attn_pooler_queries", "attn_pooler_heads", "output_tokens", "timm_.*"),
)  # fmt: skip
_OPEN_CLIP_TEXT = Table(
    {
        "context_length": (SIZE, 77), "vocab_size": (SIZE, 49408), "width": (SIZE, 512), "heads": (SIZE, 8),
        "layers": (SIZE, 12), "mlp_ratio": (POSITIVE, 4.0), "no_causal_mask": (optional(FLAG), False),
        "pool_type": (one_of("argmax", "last", "eos"), "argmax"),
        "eos_id": (optional(ID), None), "norm_kwargs": (_keywords("eps"), None),
        "act_kwargs": (_keywords("approximate"), None),
    },
    {
        "ls_init_value": (None,), "embed_cls": _NONE, "final_ln_after_pool": _NONE, "proj_bias": _NONE,
        "proj_type": ("linear",), "hf_model_name": (None, ""), "hf_tokenizer_name": (None, ""),
        "tokenizer_kwargs": (None, {}), "tokenizer_mode": (None, "", "clean"), "bert_tokenizer": _NONE,
        "block_type": (None, "default"), "qk_norm": _NONE, "scaled_cosine_attn": _NONE, "scale_heads": _NONE,
        "scale_attn_inner": _NONE, "scale_attn": _NONE, "scale_fc": _NONE, "use_pad_mask": _NONE,
        "correct_cls_mask": _NONE, "xattn": _NONE, "text_mask": (None, "first"),
    },
    ("output_tokens", "hf_.*", "pad_id"),  # pad_id acts with embed_cls alone: open_clip fills texts with 0
)  # fmt: skip


def _norm_eps(found: Mapping[str, Any], where: str) -> float:
    eps = (found["norm_kwargs"] or {}).get("eps", 1e-5)
    if not EPS.test(eps):
        raise UserError(f"{where}: norm_kwargs has eps {short(eps)}; expected {EPS.says}")
    return eps


def _act(found: Mapping[str, Any], quick: bool | None, where: str) -> str:
    how = (found["act_kwargs"] or {}).get("approximate", "none")
    if how not in ("none", "tanh") or (quick and how != "none"):
        raise UserError(f"{where}: act_kwargs has approximate {short(how)}; expected none or tanh, of a GELU")
    return "quick_gelu" if quick else "gelu_tanh" if how == "tanh" else "gelu"


def open_clip_tower(
    folder: pathlib.Path, dtype: Any = None, quick_by_default: bool = False, **form: Any
) -> tuple[ViTConfig, dict[str, Any], dict[str, Any]]:
    """The vision tower of open_clip_config.json, the model's own entries, and preprocess_cfg.

    Args:
      quick_by_default: QuickGELU where the file says nothing of it.

    Raises:
      UserError: as `open_clip`.
    """
    meta = files.read_object(folder / "open_clip_config.json")
    where = f"{folder / 'open_clip_config.json'}"
    config = part(meta, "model_cfg", where) if "model_cfg" in meta else meta
    vision = part(config, "vision_cfg", where, required=True)
    if not isinstance(vision.get("layers", 0), int) or vision.get("timm_model_name"):
        raise UserError(f"{where}: not one of CLIP's own vision transformers; those alone are read")
    found = _OPEN_CLIP_VISION.read(vision, f"{where}, vision_cfg")
    quick = config.get("quick_gelu", quick_by_default)
    if not optional(FLAG).test(quick):
        raise UserError(f"{where}: quick_gelu is {short(quick)}; expected true or false")
    if found["width"] % found["head_width"]:
        raise UserError(f"{where}: head_width {found['head_width']} does not divide the width {found['width']}")
    tower = ViTConfig(
        image_size=found["image_size"], patch=found["patch_size"], width=found["width"], depth=found["layers"],
        heads=found["width"] // found["head_width"], mlp=int(found["width"] * found["mlp_ratio"]),
        act=_act(found, quick, f"{where}, vision_cfg"), eps=_norm_eps(found, f"{where}, vision_cfg"), dtype=dtype,
        **form,
    )  # fmt: skip
    pixels = part(meta, "preprocess_cfg", where)
    return config_sizes.check(tower, where), dict(config), dict(pixels)


def open_clip(folder: pathlib.Path, dtype: Any = None) -> tuple[CLIPConfig, dict[str, Any]]:
    """open_clip_config.json -> the model, and preprocess_cfg.

    Raises:
      UserError: another architecture than CLIP's ViT with CLIP's text tower, or an entry that is not known.
    """
    tower, config, pixels = open_clip_tower(folder, dtype)
    where = f"{folder / 'open_clip_config.json'}"
    whole = _OPEN_CLIP.read(config, where)
    found = _OPEN_CLIP_TEXT.read(part(config, "text_cfg", where), f"{where}, text_cfg")
    if found["pool_type"] == "eos" and found["eos_id"] is None:
        raise UserError(f"{where}, text_cfg: pool_type is 'eos', but eos_id is not given")
    inside = f"{where}, text_cfg"
    form = TextConfig(
        vocab=found["vocab_size"], context=found["context_length"], width=found["width"], depth=found["layers"],
        heads=found["heads"], mlp=int(found["width"] * found["mlp_ratio"]),
        act=_act(found, whole["quick_gelu"], inside), eps=_norm_eps(found, inside),
        causal=not found["no_causal_mask"], pool=found["pool_type"],
        **({} if found["eos_id"] is None else {"eos": found["eos_id"]}), dtype=dtype,
    )  # fmt: skip
    return config_sizes.check(CLIPConfig(tower, form, whole["embed_dim"]), where), pixels
