"""SmolVLM in Hugging Face's layout (`idefics3`, `smolvlm`): its config.json, the table of its weights, its chat frame.

One image a text, not split into tiles, squashed to the native square.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from input_pipeline.errors import UserError
from input_pipeline.text.prompts import Frame
from pin_jax.models.language.llama import LlamaConfig
from pin_jax.models.smolvlm import SMOLVLM_2_2B, SMOLVLM_256M, SMOLVLM_500M, SmolVLM, SmolVLMConfig
from pin_jax.models.vit import ViTConfig
from pin_jax.runtime import reporting
from pin_jax.weights import files, published, tokenizers
from pin_jax.weights.clip import clip_vision
from pin_jax.weights.configs import sizes
from pin_jax.weights.configs.entries import (
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
    Table,
    optional,
    part,
    pixel_statistics,
)
from pin_jax.weights.configs.image_text import preprocessor
from pin_jax.weights.convert import Rule, linear, module
from pin_jax.weights.registry import Published

PARTS = ("vision", "lm")
PLACEMENTS = ("answer", "request")  # of the prompt
MODEL_TYPES = ("idefics3", "smolvlm")
SHAPES = {"256m": SMOLVLM_256M, "500m": SMOLVLM_500M, "2.2b": SMOLVLM_2_2B}
BY_ID = {model.id: SHAPES[name.removesuffix("_video")] for name, model in published.SMOLVLM.items()}
MEAN = STD = (0.5, 0.5, 0.5)
IMAGE, AROUND, WHOLE, END = "<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"

_COMMON = (
    *TRANSFORMERS, r"transformers\.js_config", "_pad_token_id", "num_channels", "vision_feature_layer",
    "use_reentrant_checkpointing",
)  # fmt: skip
# Of how a picture is cut into tiles, and a film into pictures.
_TILES = dataclasses.replace(
    PREPROCESSOR,
    computed={**PREPROCESSOR.computed, "do_image_splitting": (FLAG, False)},
    harmless=(*PREPROCESSOR.harmless, "max_image_size", "video_sampling", "return_row_col_info"),
)
_WHOLE = Table(
    {
        "image_token_id": (optional(ID), None),
        "scale_factor": (SIZE, 2),
        "tie_word_embeddings": (FLAG, False),
    },
    {},
    (*_COMMON, "vocab_size", "hidden_size", "max_position_embeddings", "frame_extraction_params", "head_dim"),
    ("vision_config", "text_config"),
)
_VISION = Table(
    {
        "hidden_size": (SIZE, 1152),
        "intermediate_size": (SIZE, 3072),
        "num_hidden_layers": (SIZE, 12),
        "num_attention_heads": (SIZE, 16),
        "image_size": (SIZE, 224),
        "patch_size": (SIZE, 32),
        "hidden_act": (ACTIVATION, "gelu_pytorch_tanh"),
        "layer_norm_eps": (EPS, 1e-6),
    },
    {"num_channels": (3,)},
    (*_COMMON, "tie_word_embeddings", "max_image_size", "size", "use_base_siglip", "video_sampling"),
)
_TEXT = Table(
    {
        "vocab_size": (SIZE, REQUIRED),
        "hidden_size": (SIZE, REQUIRED),
        "intermediate_size": (SIZE, REQUIRED),
        "num_hidden_layers": (SIZE, REQUIRED),
        "num_attention_heads": (SIZE, REQUIRED),
        "num_key_value_heads": (optional(SIZE), None),
        "head_dim": (optional(SIZE), None),
        "hidden_act": (ACTIVATION, "silu"),
        "max_position_embeddings": (SIZE, 2048),
        "rms_norm_eps": (EPS, 1e-6),
        "rope_theta": (optional(POSITIVE), None),
        "pad_token_id": (optional(ID), None),
        "eos_token_id": (optional(ID), None),
        "tie_word_embeddings": (FLAG, False),
    },
    {
        "attention_bias": (False,),
        "mlp_bias": (False,),
        "pretraining_tp": (1,),
        "rope_scaling": (None,),
        "rope_interleaved": (False,),
        "qk_layer_norms": (False,),
        "use_resampler": (False,),
        "is_llama_config": (True,),
    },
    (*_COMMON, "_flash_attn_2_enabled", "neftune_noise_alpha", "perceiver_config", "pixel_shuffle_factor"),
    ("rope_parameters",),
)
_ROPE = Table({"rope_theta": (POSITIVE, 10000.0)}, {"rope_type": ("default",), "type": ("default",)}, ())


def recognises(folder: pathlib.Path) -> bool:
    """Whether a folder holds a SmolVLM of Hugging Face."""
    path = folder / "config.json"
    return path.is_file() and files.read_object(path).get("model_type") in MODEL_TYPES


def config_of(
    meta: Mapping[str, Any],
    dtypes: Mapping[str, Any] | None = None,
    attention: str = "xla",
    where: str = "config.json",
    **fields: Any,
) -> SmolVLMConfig:
    """A `config.json` of transformers 4 or 5 -> our config; arguments as in `blip2.config_of`.

    Raises:
      UserError: an entry that is not known, or a form that no published SmolVLM has.
    """
    dtypes = dtypes or {}
    whole = _WHOLE.read(meta, where)
    vision = _VISION.read(part(meta, "vision_config", where, required=True), f"{where}, vision_config")
    held = part(meta, "text_config", where, required=True)
    if held.get("model_type", "llama") != "llama":
        raise UserError(f"{where}, text_config: model_type is {held['model_type']!r}; expected llama")
    text = _TEXT.read(held, f"{where}, text_config")
    rope = _ROPE.read(part(held, "rope_parameters", where), f"{where}, text_config, rope_parameters")
    heads = text["num_attention_heads"]
    lm = LlamaConfig(
        vocab=text["vocab_size"], width=text["hidden_size"], depth=text["num_hidden_layers"], heads=heads,
        key_heads=text["num_key_value_heads"] or heads, head_dim=text["head_dim"] or text["hidden_size"] // heads,
        mlp=text["intermediate_size"], theta=float(text["rope_theta"] or rope["rope_theta"]),
        tied=whole["tie_word_embeddings"] or text["tie_word_embeddings"], positions=text["max_position_embeddings"],
        act=ACTIVATIONS[text["hidden_act"]], eps=text["rms_norm_eps"], dtype=dtypes.get("lm"), **fields,
    )  # fmt: skip
    vit = ViTConfig(
        image_size=vision["image_size"], patch=vision["patch_size"], width=vision["hidden_size"],
        depth=vision["num_hidden_layers"], heads=vision["num_attention_heads"], mlp=vision["intermediate_size"],
        act=ACTIVATIONS[vision["hidden_act"]], eps=vision["layer_norm_eps"], class_token=False, patch_bias=True,
        pre_norm=False, dtype=dtypes.get("vision"), attention=attention, **fields,
    )  # fmt: skip
    shuffle = whole["scale_factor"]
    if vit.image_size < vit.patch or vit.grid % shuffle:
        raise UserError(f"{where}: scale_factor {shuffle} does not divide the {vit.grid} x {vit.grid} patches")
    if lm.heads % lm.key_heads:
        raise UserError(f"{where}, text_config: {lm.key_heads} key heads do not divide {lm.heads} heads")
    pad = text["pad_token_id"] if text["pad_token_id"] is not None else meta.get("pad_token_id") or 0
    ids = {"image_token": whole["image_token_id"] or 0, "end_token": text["eos_token_id"] or 0, "pad_token": pad}
    return sizes.check(SmolVLMConfig(vit, lm, shuffle, **ids), where)


def llama(prefix: str = "", to: str = "", head: str = r"lm_head\.weight", tied: bool = False) -> list[Rule]:
    """Llama -> `models.llama.Llama`; where the head is tied, `convert` checks that a stored one is equal."""
    layer, blocks = prefix + r"layers\.(?P<layer>\d+)\.", f"{to}blocks"
    plain: dict[str, Any] = {"bias": False}
    return [
        Rule(prefix + r"embed_tokens\.weight", f"{to}embedding"),
        Rule(head, f"{to}embedding") if tied else Rule(head, f"{to}head/kernel", linear),
        Rule(layer + r"self_attn\.rotary_emb\.inv_freq", None),  # computed
        *module(prefix + "norm", f"{to}norm", kind="norm", **plain),
        *module(layer + "input_layernorm", f"{blocks}/norm_1", kind="norm", **plain),
        *module(layer + "post_attention_layernorm", f"{blocks}/norm_2", kind="norm", **plain),
        *module(layer + r"self_attn\.([qkv])_proj", rf"{blocks}/\2", **plain),
        *module(layer + r"self_attn\.o_proj", f"{blocks}/out", **plain),
        *module(layer + r"mlp\.(gate|up|down)_proj", rf"{blocks}/\2", **plain),
    ]


def table(config: SmolVLMConfig) -> list[Rule]:
    """The rules of a whole SmolVLM -> `models.smolvlm.SmolVLM`."""
    tower = r"model\.vision_model\."
    return [
        *(
            rule
            for rule in clip_vision(tower, "vision/")
            if "class_" not in rule.pattern and "pre_" not in rule.pattern
        ),
        Rule(tower + r"embeddings\.patch_embedding\.bias", "vision/patch/bias"),
        *module(r"model\.connector\.modality_projection\.proj", "projection", bias=False),
        *llama(r"model\.text_model\.", "lm/", tied=config.lm.tied),
    ]


def frame(config: SmolVLMConfig, placement: str = "answer") -> Frame:
    """The chat frame.

    Args:
      placement: of the prompt, one of `PLACEMENTS`: at the start of the assistant's `answer`, behind a user's turn that
        is the image alone, where a language model goes on as in the paper; or as the user's `request`.
    """
    image = f"{AROUND}{WHOLE}{IMAGE * config.image_places}{AROUND}"
    if placement == "request":
        return Frame(prefix=f"<|im_start|>User:{image}", separator=f"{END}\nAssistant:", suffix=END)
    return Frame(prefix=f"<|im_start|>User:{image}{END}\nAssistant: ", suffix=END)


def placed(model: Any, placement: str) -> Frame:
    """The frame of a SmolVLM with its prompt at another place.

    Raises:
      UserError: another VLM, whose texts have one form.
    """
    if not isinstance(model, SmolVLM):
        raise UserError(f"config.placement {placement!r}: of SmolVLM alone; a {type(model).__name__} has 'answer'")
    return frame(model.config, placement)


def _dtypes(dtype: Any) -> dict[str, Any]:
    """A name, `published` (bfloat16), or a mapping -> a dtype for each of `PARTS`."""
    dtype = "bfloat16" if dtype == "published" else dtype
    dtypes: dict[str, Any] = dict(dtype) if isinstance(dtype, Mapping) else dict.fromkeys(PARTS, dtype)
    if set(dtypes) != set(PARTS):
        raise UserError(f"dtype {dtypes!r}: expected one name, published, or a name for each of {', '.join(PARTS)}")
    return dtypes


def architecture(
    source: str, dtype: Any, attention: str = "xla", **fields: Any
) -> tuple[SmolVLM, dict[str, Any], Frame] | None:
    """A published SmolVLM by name or folder, without its weights; see `registry.architecture`."""
    dtypes = _dtypes(dtype)
    if source in BY_ID:
        config = BY_ID[source]
        parts = {name: dataclasses.replace(getattr(config, name), dtype=dtypes[name], **fields) for name in PARTS}
        parts["vision"] = dataclasses.replace(parts["vision"], attention=attention)
        config = dataclasses.replace(config, **parts)
    elif recognises(pathlib.Path(source)):
        path = pathlib.Path(source) / "config.json"
        config = config_of(files.read_object(path), dtypes, attention, str(path), **fields)
    else:
        return None
    return SmolVLM(config), dtypes | {"projection": dtypes["lm"]}, frame(config)


def read(folder: pathlib.Path, dtype: Any = None, **fields: Any) -> Published:
    """Everything but the weights themselves; see `registry.Published`.

    Raises:
      UserError: files are missing, broken, or of another model.
    """
    from transformers import PreTrainedTokenizerFast

    built = architecture(str(folder), dtype, **fields)
    assert built is not None, folder  # `recognises` has been asked
    model, dtypes, around = built
    config = model.config
    where, found = preprocessor(folder, _TILES)
    if found["do_image_splitting"]:
        reporting.say(
            f"{where}: do_image_splitting is true; here a picture is not cut into tiles, it is one square of"
            f" {config.vision.image_size} px, and boxes are of the whole of it"
        )
    mean, std = pixel_statistics(found["image_mean"], found["image_std"], (MEAN, STD), str(where))
    special = (IMAGE, AROUND, WHOLE, END)
    options: dict[str, Any] = {"padding_side": "left", "clean_up_tokenization_spaces": False}
    # tokenizer.json as it is: the class that tokenizer_config.json names (GPT2's) would keep several digits in a token.
    options |= {"loader": PreTrainedTokenizerFast, "special": special}
    tokenizer = tokenizers.read(folder, config.lm.vocab, tokenizers.FAST, **options)
    if tokenizer.pad_token_id is None:
        raise UserError(f"tokenizer {folder}: it names no pad_token; give the tokenizer that its model came with")
    if files.read_object(folder / "config.json").get("image_token_id") is not None:
        tokenizers.check_ids(tokenizer, folder, {"image_token_id": (IMAGE, config.image_token)})
    ids = {"image_token": tokenizers.token_id(tokenizer, IMAGE), "end_token": tokenizers.token_id(tokenizer, END)}
    model = SmolVLM(dataclasses.replace(config, pad_token=tokenizer.pad_token_id, **ids))
    return Published(model, files.Tensors(folder), table(model.config), dtypes, tokenizer, around, mean, std)
