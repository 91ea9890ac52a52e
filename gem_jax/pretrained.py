"""Image-text models from disk or hub: Hugging Face folders of CLIP, SigLIP and BLIP, open_clip folders, and our own."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import numpy as safetensors

from input_pipeline.errors import UserError
from pin_jax.models.blip import BLIP, BERTConfig, BLIPConfig
from pin_jax.models.clip import CLIP, CLIPConfig, TextConfig
from pin_jax.models.layers import unit_length
from pin_jax.models.vit import CLIP_MEAN, CLIP_STD, ViTConfig
from pin_jax.runtime import reporting
from pin_jax.weights import image_text, tokenizers
from pin_jax.weights.convert import convert
from pin_jax.weights.files import Tensors, read_json, resolve
from pin_jax.weights.parameters import fill, flatten, read_safetensors

HALF = (0.5, 0.5, 0.5)
_ROWS = 16
KIND = "gem_jax clip"  # how config.json says that a folder is one of ours
# Whose weights need which activation, by a word in the source's name; elsewhere the config decides.
ACTIVATIONS = {"openai": "quick_gelu", "metaclip": "quick_gelu", "laion": "gelu"}
# transformers' names -> ours
_ACTS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}


@dataclasses.dataclass
class ImageText:
    """A frozen image-text model.

    Attributes:
      module: has the methods `image_tokens`, `image` and `text` of `clip.CLIP`. params: its parameters.
      tokenizer: a transformers tokenizer. end: written behind every text (a tokenizer that adds no end token itself).
      mean, std: of the pixels, float[3].
      names: the names that a small model knows; empty for one with an open vocabulary.
    """

    module: Any
    params: Any
    tokenizer: Any
    mean: Sequence[float] = CLIP_MEAN
    std: Sequence[float] = CLIP_STD
    end: str = ""
    names: tuple[str, ...] = ()

    def __post_init__(self):
        self._text = jax.jit(lambda params, ids: unit_length(self.module.apply({"params": params}, ids, method="text")))

    @property
    def config(self) -> Any:
        return self.module.config

    def encode_text(self, ids: np.ndarray) -> jax.Array:
        """Ids int[C, T] -> float[C, E], L2-normalised; the tower takes 16 rows at a time, one shape for any number."""
        padded = np.pad(np.asarray(ids, np.int32), [(0, -len(ids) % _ROWS), (0, 0)], mode="edge")
        out = [self._text(self.params, padded[i : i + _ROWS]) for i in range(0, len(padded), _ROWS)]
        return jnp.concatenate(out)[: len(ids)]

    def tokenize(self, texts: Sequence[str]) -> np.ndarray:
        """Texts -> ids int32[C, T], padded on the right; T is 16, 32 or the whole context, so that few shapes compile.

        Raises:
          UserError: a text with a word that a small model does not know.
        """
        form = self.config.text
        rows = self.tokenizer([text + self.end for text in texts], truncation=True, max_length=form.context,
                              add_special_tokens=not self.end)["input_ids"]  # fmt: skip
        tokenizers.refuse_unknown_words(self.tokenizer, texts, rows)
        longest = max(len(row) for row in rows)
        whole = getattr(form, "pool", "") == "last"  # SigLIP reads the last place, padding included
        length = form.context if whole else next((n for n in (16, 32) if longest <= n < form.context), form.context)
        ids = np.full((len(rows), length), form.pad, np.int32)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
        return ids


def skeleton(module: Any) -> Any:
    """Shapes and dtypes of the parameters, without computing any."""
    size = module.config.vision.image_size
    pixels, ids = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32), jax.ShapeDtypeStruct((1, 2), jnp.int32)
    return jax.eval_shape(module.init, jax.random.key(0), pixels, ids)["params"]


def load(source: str | pathlib.Path, dtype: Any = None, activation: str | None = None) -> ImageText:
    """Reads a model.

    Args:
      source: a folder of transformers (config.json, model.safetensors: CLIP, SigLIP, BLIP), of open_clip
        (open_clip_config.json, open_clip_model.safetensors) or of `save`; or the hub id of one.
      dtype: of the computation, and of the weights (None: float32).
      activation: quick_gelu, gelu or gelu_tanh, against what the source's name or config says.

    Raises:
      UserError: the source, or what is in it, is missing, broken or of an unknown kind.
    """
    folder = resolve(source)
    if (folder / "open_clip_config.json").is_file() and not (folder / "config.json").is_file():
        module, table, weights = _open_clip(folder, dtype)
        meta = read_json(folder / "open_clip_config.json").get("preprocess_cfg", {})
        mean, std, tokenizer = meta.get("mean", CLIP_MEAN), meta.get("std", CLIP_STD), _tokenizer(folder, "clip")
    else:
        meta = read_json(folder / "config.json")
        if meta.get("kind") == KIND:
            return _own(folder, meta, dtype)
        kind = meta.get("model_type")
        if kind not in _HUGGING_FACE:
            raise UserError(f"model {source}: model_type {kind!r}; expected one of {', '.join(_HUGGING_FACE)}")
        make, table = _HUGGING_FACE[kind]
        module, weights, tokenizer = make(meta, dtype), "model.safetensors", _tokenizer(folder, kind)
        path = folder / "preprocessor_config.json"
        meta = read_json(path) if path.is_file() else {}
        default = (HALF, HALF) if kind == "siglip" else (CLIP_MEAN, CLIP_STD)
        mean, std = meta.get("image_mean", default[0]), meta.get("image_std", default[1])
    if isinstance(module, CLIP):
        module = _with_activation(module, activation, str(source))
    params = convert(Tensors(folder, weights), table(), skeleton(module), str(folder / weights))
    return ImageText(module, cast(params, dtype), tokenizer, mean, std)


def cast(params: Any, dtype: Any) -> Any:
    """Weights in the dtype of the computation; position tables, which are resized first, and single numbers stay."""

    def one(path, leaf):
        keep = dtype is None or leaf.ndim == 0 or path[-1].key == "positions"
        return jnp.asarray(leaf if keep else np.asarray(leaf).astype(jnp.dtype(dtype)))

    return jax.tree_util.tree_map_with_path(one, params)


# --- Hugging Face's layout --------------------------------------------------------------------------------------------


def _part(config: Mapping[str, Any], name: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """One tower's entries; published files leave out what equals the code's defaults."""
    given = {**(config.get(f"{name}_config_dict") or {}), **(config.get(f"{name}_config") or {})}
    return {key: given.get(key, value) for key, value in defaults.items()}


def _act(name: str) -> str:
    if name not in _ACTS:
        raise UserError(f"activation {name!r} in config.json: expected one of {', '.join(_ACTS)}")
    return _ACTS[name]


def _vision(part: Mapping[str, Any], dtype: Any, **form: Any) -> ViTConfig:
    return ViTConfig(
        image_size=part["image_size"], patch=part["patch_size"], width=part["hidden_size"],
        depth=part["num_hidden_layers"], heads=part["num_attention_heads"], mlp=part["intermediate_size"],
        act=_act(part["hidden_act"]), eps=part["layer_norm_eps"], dtype=dtype, **form,
    )  # fmt: skip


def _text(part: Mapping[str, Any], dtype: Any, **form: Any) -> dict[str, Any]:
    return {
        "vocab": part["vocab_size"], "context": part["max_position_embeddings"], "width": part["hidden_size"],
        "depth": part["num_hidden_layers"], "heads": part["num_attention_heads"], "mlp": part["intermediate_size"],
        "act": _act(part["hidden_act"]), "eps": part["layer_norm_eps"], "dtype": dtype, **form,
    }  # fmt: skip


_TEXT = {"vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12,
         "num_attention_heads": 8, "max_position_embeddings": 77, "hidden_act": "quick_gelu",
         "layer_norm_eps": 1e-5, "eos_token_id": 49407}  # fmt: skip
_VISION = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
           "image_size": 224, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}  # fmt: skip


def _hf_clip(config: Mapping[str, Any], dtype: Any) -> CLIP:
    text = _part(config, "text", _TEXT)
    # Older files name 2 as the end token, by mistake: transformers then pools at the highest id, and so do we.
    pool = "argmax" if text["eos_token_id"] == 2 else "eos"
    form = TextConfig(**_text(text, dtype, pool=pool, eos=text["eos_token_id"]))
    embed = config.get("projection_dim", 512)
    return CLIP(CLIPConfig(_vision(_part(config, "vision", _VISION), dtype), form, embed))


def _hf_siglip(config: Mapping[str, Any], dtype: Any) -> CLIP:
    defaults = {"hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
    text = {"vocab_size": 32000, "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12,
            "max_position_embeddings": 64, "projection_size": None, "pad_token_id": 1}  # fmt: skip
    text = _part(config, "text", {**_TEXT, **defaults, **text})
    vision = _part(config, "vision", {**_VISION, **defaults, "patch_size": 16})
    form = TextConfig(**_text(text, dtype, pool="last", causal=False, pad=text["pad_token_id"]))
    tower = _vision(vision, dtype, class_token=False, patch_bias=True, pre_norm=False)
    embed = text["projection_size"] or text["hidden_size"]
    return CLIP(CLIPConfig(tower, form, embed, head="map", text_bias=True, logit_bias=True))


def _hf_blip(config: Mapping[str, Any], dtype: Any) -> BLIP:
    text = {"vocab_size": 30524, "hidden_size": 768, "intermediate_size": 3072, "max_position_embeddings": 512,
            "hidden_act": "gelu", "layer_norm_eps": 1e-12, "pad_token_id": 0}  # fmt: skip
    text = _part(config, "text", {**_TEXT, **text})
    vision = {"image_size": 384, "patch_size": 16, "hidden_act": "gelu", "layer_norm_eps": 1e-5}
    vision = _vision(_part(config, "vision", {**_VISION, **vision}), dtype, patch_bias=True, pre_norm=False)
    form = BERTConfig(**_text(text, dtype, pad=text["pad_token_id"]))
    return BLIP(BLIPConfig(vision, form, config.get("image_text_hidden_size", 256)))


_HUGGING_FACE = {
    "clip": (_hf_clip, image_text.hf_clip),
    "siglip": (_hf_siglip, image_text.hf_siglip),
    "blip": (_hf_blip, image_text.hf_blip),
}


def _tokenizer(folder: pathlib.Path, kind: str) -> Any:
    import transformers

    try:
        if kind == "clip":  # open_clip's folders have no model_type to go by
            return transformers.CLIPTokenizerFast.from_pretrained(folder)
        return transformers.AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # transformers raises many kinds for a file that is missing or broken
        raise UserError(
            f"model {folder}: no tokenizer can be read there ({type(error).__name__}); the folder must hold"
            " tokenizer.json, or the vocabulary files that its kind has"
        ) from error


# --- open_clip's layout -----------------------------------------------------------------------------------------------


def _open_clip(folder: pathlib.Path, dtype: Any) -> tuple[CLIP, Any, str]:
    config = read_json(folder / "open_clip_config.json")
    config = config.get("model_cfg", config)
    try:
        vision, text = config["vision_cfg"], config["text_cfg"]
        if not isinstance(vision["layers"], int) or "timm_model_name" in vision or "hf_model_name" in text:
            raise UserError(f"model {folder}: not a plain ViT with CLIP's text tower; those alone are read")
        act = "quick_gelu" if config.get("quick_gelu") else "gelu"
        width, image_size = vision["width"], vision["image_size"]
        tower = ViTConfig(
            image_size=image_size, patch=vision["patch_size"], width=width, depth=vision["layers"],
            heads=width // vision.get("head_width", 64), mlp=round(width * vision.get("mlp_ratio", 4.0)), act=act,
            dtype=dtype,
        )  # fmt: skip
        wide = text.get("width", 512)
        form = TextConfig(
            vocab=text.get("vocab_size", 49408), context=text.get("context_length", 77), width=wide,
            depth=text.get("layers", 12), heads=text.get("heads", 8), mlp=round(wide * text.get("mlp_ratio", 4.0)),
            act=act, dtype=dtype,
        )  # fmt: skip
        module = CLIP(CLIPConfig(tower, form, config["embed_dim"]))
    except (KeyError, TypeError) as error:
        raise UserError(f"model {folder}: open_clip_config.json is not a CLIP's ({error!r} missing)") from error
    return module, image_text.open_clip, "open_clip_model.safetensors"


def _with_activation(module: CLIP, wanted: str | None, source: str) -> CLIP:
    """The activation that the weights need: as asked, else by whose they are, else as the config says."""
    config = module.config
    known = next((act for word, act in ACTIVATIONS.items() if word in pathlib.Path(source).name.lower()
                  or word in source.lower().split("/")[0]), None)  # fmt: skip
    if wanted is not None and wanted not in _ACTS.values():
        raise UserError(f"activation {wanted!r}: expected one of {', '.join(sorted(set(_ACTS.values())))}")
    act = wanted or (known if config.head == "projection" else None) or config.vision.act
    if act == config.vision.act == config.text.act:
        return module
    if not wanted:
        reporting.say(f"{source}: its config says {config.vision.act}, weights of that name need {act}: taken")
    change = {
        "vision": dataclasses.replace(config.vision, act=act), "text": dataclasses.replace(config.text, act=act)
    }  # fmt: skip
    return CLIP(dataclasses.replace(config, **change))


# --- our own layout ---------------------------------------------------------------------------------------------------


def save(
    folder: pathlib.Path,
    module: CLIP,
    params: Any,
    tokenizer: Any,
    mean: Sequence[float],
    std: Sequence[float],
    names: Sequence[str] = (),
) -> None:
    """Writes a folder that `load` reads: config.json, model.safetensors, the tokenizer in transformers' own files."""
    folder.mkdir(parents=True, exist_ok=True)
    config = dataclasses.asdict(module.config)
    for part in (config["vision"], config["text"]):
        part.pop("dtype")  # a choice of the run, not of the weights
    meta = {"kind": KIND, "model": config, "image_mean": list(mean), "image_std": list(std), "names": list(names)}
    (folder / "config.json").write_text(json.dumps(meta, indent=1) + "\n", "utf-8")
    safetensors.save_file(flatten(params), folder / "model.safetensors")
    tokenizer.save_pretrained(folder)


def _own(folder: pathlib.Path, meta: Mapping[str, Any], dtype: Any) -> ImageText:
    from transformers import PreTrainedTokenizerFast

    try:
        parts = dict(meta["model"])
        vision = ViTConfig(**{**parts.pop("vision"), "dtype": dtype})
        text = TextConfig(**{**parts.pop("text"), "dtype": dtype})
        module = CLIP(CLIPConfig(vision=vision, text=text, **parts))
        mean, std, names = meta["image_mean"], meta["image_std"], tuple(meta["names"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"model {folder}: config.json is not one of ours ({error!r})") from error
    params = cast(fill(skeleton(module), read_safetensors(folder / "model.safetensors"), str(folder)), dtype)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    return ImageText(module, params, tokenizer, mean, std, tokenizer.eos_token, names)
