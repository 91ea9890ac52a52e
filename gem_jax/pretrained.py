"""Loading image-text models: Hugging Face folders of CLIP, SigLIP and BLIP, open_clip folders, and our own format."""

from __future__ import annotations

import dataclasses
import pathlib
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import numpy as safetensors

from input_pipeline.errors import UserError
from pin_jax.models.blip import BLIP, BLIPConfig
from pin_jax.models.clip import CLIP, CLIPConfig, TextConfig
from pin_jax.models.layers import unit_length
from pin_jax.models.vit import CLIP_MEAN, CLIP_STD, ViTConfig
from pin_jax.runtime import files, reporting
from pin_jax.weights import image_text, tokenizers
from pin_jax.weights.configs import image_text as image_text_configs
from pin_jax.weights.configs import sizes
from pin_jax.weights.configs.entries import ACTIVATIONS, known_names, part, pixel_statistics
from pin_jax.weights.convert import convert
from pin_jax.weights.files import Tensors, read_object, resolve, short
from pin_jax.weights.parameters import fill, flatten, read_safetensors

HALF = (0.5, 0.5, 0.5)
_ROWS = 16
KIND = "gem_jax clip"  # how config.json says that a folder is one of ours
# Whose weights need which activation, by a word in the source's name; elsewhere the config decides.
WEIGHTS_ACTIVATIONS = {"openai": "quick_gelu", "metaclip": "quick_gelu", "laion": "gelu"}
_TABLES = {"clip": image_text.hf_clip, "siglip": image_text.hf_siglip, "blip": image_text.hf_blip}


@dataclasses.dataclass
class ImageText:
    """A frozen image-text model.

    Attributes:
      module: has the methods `image_tokens`, `image` and `text` of `clip.CLIP`. params: its parameters.
      tokenizer: a transformers tokenizer. end: written behind every text (a tokenizer that adds no end token itself).
      mean, std: of the pixels, float[3].
      names: the names that a small model knows; empty for one with an open vocabulary.
      lower: texts are read in lower case, which the tokenizer does not see to itself (SigLIP 2).
    """

    module: Any
    params: Any
    tokenizer: Any
    mean: Sequence[float] = CLIP_MEAN
    std: Sequence[float] = CLIP_STD
    end: str = ""
    names: tuple[str, ...] = ()
    lower: bool = False

    def __post_init__(self):
        self._lock = threading.Lock()  # two threads cannot use a tokenizer at a time
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

        A text beyond the context is cut before its end token, and a line says so.

        Raises:
          UserError: a text with a word that a small model does not know.
        """
        form = self.config.text
        texts = [text.lower() if self.lower else text for text in texts]
        with self._lock:
            rows = self.tokenizer([text + self.end for text in texts], add_special_tokens=not self.end, verbose=False)
        rows = [list(row) for row in rows["input_ids"]]
        for text, row in zip(texts, rows, strict=True):
            if len(row) > form.context:  # the last token ends the text: it is what a tower reads
                reporting.say(f"text {short(text)}: {len(row)} tokens; the tower reads {form.context}, so it is cut")
                row[form.context - 1 :] = row[-1:]
        tokenizers.refuse_unknown_words(self.tokenizer, texts, rows)
        longest = max(len(row) for row in rows)
        whole = getattr(form, "pool", "") == "last"  # SigLIP reads the last place, padding included
        length = form.context if whole else next((n for n in (16, 32) if longest <= n < form.context), form.context)
        ids = np.full((len(rows), length), form.pad, np.int32)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
        return ids


def skeleton(module: Any, where: str = "config.json") -> Any:
    """Shapes and dtypes of the parameters, without computing any.

    Raises:
      UserError: no model can be built with these sizes.
    """
    vision = module.config.vision
    side = vision.grid * vision.patch  # a rest of the image that fills no patch is cut off (384 = 27 * 14 + 6)
    pixels, ids = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32), jax.ShapeDtypeStruct((1, 2), jnp.int32)
    with sizes.buildable(where):
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
    if _is_open_clip(folder):
        config, pixels = image_text_configs.open_clip(folder, dtype)
        where, names, default = folder / "open_clip_config.json", ("mean", "std"), (CLIP_MEAN, CLIP_STD)
        table, weights, lower = image_text.open_clip, "open_clip_model.safetensors", False
        tokenizer, config = _clip_tokenizer(folder, config)
    else:
        meta = read_object(folder / "config.json")
        if meta.get("kind") == KIND:
            return _own(folder, meta, dtype)
        kind = meta.get("model_type")
        if kind not in image_text_configs.HUGGING_FACE:
            raise UserError(
                f"model {source}: model_type {kind!r}; expected one of {', '.join(image_text_configs.HUGGING_FACE)}"
            )
        config = image_text_configs.hugging_face(meta, kind, dtype, str(folder / "config.json"))
        where, pixels = image_text_configs.preprocessor(folder)
        names, default = ("image_mean", "image_std"), (HALF, HALF) if kind == "siglip" else (CLIP_MEAN, CLIP_STD)
        table, weights = _TABLES[kind], "model.safetensors"
        read = {"clip": _clip_tokenizer, "siglip": _siglip_tokenizer, "blip": _blip_tokenizer}[kind]
        tokenizer, config = read(folder, config)
        lower = kind == "siglip" and "<eos>" == tokenizer.eos_token
    mean, std = pixel_statistics(pixels.get(names[0]), pixels.get(names[1]), default, str(where))
    module = BLIP(config) if isinstance(config, BLIPConfig) else CLIP(config)
    if isinstance(module, CLIP):
        module = _with_activation(module, activation, str(source))
    params = convert(Tensors(folder, weights), table(), skeleton(module, str(folder)), str(folder / weights))
    return ImageText(module, cast(params, dtype), tokenizer, mean, std, lower=lower)


def _is_open_clip(folder: pathlib.Path) -> bool:
    """Whether a folder is open_clip's: timm's own config.json may stand beside open_clip_config.json."""
    if not (folder / "open_clip_config.json").is_file():
        return False
    if not (folder / "config.json").is_file():
        return True
    meta = read_object(folder / "config.json")
    return meta.get("kind") != KIND and meta.get("model_type") not in image_text_configs.HUGGING_FACE


def cast(params: Any, dtype: Any) -> Any:
    """Weights in the dtype of the computation; position tables, which are resized first, and single numbers stay."""

    def one(path, leaf):
        keep = dtype is None or leaf.ndim == 0 or path[-1].key == "positions"
        return jnp.asarray(leaf if keep else np.asarray(leaf).astype(jnp.dtype(dtype)))

    return jax.tree_util.tree_map_with_path(one, params)


# --- tokenizers -------------------------------------------------------------------------------------------------------


def _clip_tokenizer(folder: pathlib.Path, config: CLIPConfig) -> tuple[Any, CLIPConfig]:
    """CLIP's tokenizer, whose end token is the one that the text is pooled at."""
    from transformers import CLIPTokenizerFast  # pyright: ignore[reportAttributeAccessIssue]

    # open_clip's folders have no model_type to go by
    text = config.text
    tokenizer = tokenizers.read(
        folder, text.vocab, tokenizers.BYTE_LEVEL, loader=CLIPTokenizerFast, first="bos_token", last="eos_token"
    )
    end = tokenizer.eos_token_id
    if text.pool == "argmax" and end != max(tokenizer.get_vocab().values()):
        raise UserError(
            f"tokenizer {folder}: {tokenizer.eos_token} is {end}, not the highest id, at which the text is pooled;"
            " give the tokenizer that its model was trained with"
        )
    if text.pool == "eos" and _is_hugging_face(folder) and end != text.eos:
        raise UserError(
            f"tokenizer {folder}: {tokenizer.eos_token} is {end}, but eos_token_id is {text.eos} in config.json;"
            " give config and tokenizer of one model"
        )
    return tokenizer, config


def _is_hugging_face(folder: pathlib.Path) -> bool:
    return not _is_open_clip(folder)


def _siglip_tokenizer(folder: pathlib.Path, config: CLIPConfig) -> tuple[Any, CLIPConfig]:
    """SigLIP's sentencepiece, which cleans its texts, or Gemma's (SigLIP 2), whose texts are put in lower case.

    Both fill a text up to the tower's whole length with their own padding, whatever config.json says of it.
    """
    classes = ("SiglipTokenizer", "Siglip2Tokenizer", "GemmaTokenizer")
    tokenizer = tokenizers.read(folder, config.text.vocab, tokenizers.SENTENCEPIECE, classes=classes, last="eos_token")
    if tokenizer.pad_token_id is None:
        raise UserError(f"tokenizer {folder}: it names no pad_token, which SigLIP fills its texts with; fetch it again")
    cleans = type(tokenizer).__name__.startswith("SiglipTokenizer")
    gemma = {"<pad>", "<eos>", "<bos>", "<unk>"} <= tokenizer.get_vocab().keys() and tokenizer.eos_token == "<eos>"
    if not cleans and not gemma:
        raise UserError(
            f"tokenizer {folder}: a {type(tokenizer).__name__}, neither SigLIP's own (spiece.model) nor Gemma's"
            " (SigLIP 2); how its texts are prepared is not known here"
        )
    if gemma and tokenizer.pad_token_id != tokenizer.get_vocab()["<pad>"]:
        raise UserError(f"tokenizer {folder}: its pad_token is {tokenizer.pad_token!r}; expected Gemma's <pad>")
    text = dataclasses.replace(config.text, pad=tokenizer.pad_token_id)
    return tokenizer, dataclasses.replace(config, text=text)


def _blip_tokenizer(folder: pathlib.Path, config: BLIPConfig) -> tuple[Any, BLIPConfig]:
    """BERT's tokenizer."""
    from transformers import BertTokenizerFast  # pyright: ignore[reportAttributeAccessIssue]

    tokenizer = tokenizers.read(
        folder, config.text.vocab, tokenizers.WORDPIECE, loader=BertTokenizerFast, first="cls_token", last="sep_token"
    )
    tokenizers.check_ids(tokenizer, folder, {"pad_token_id": (tokenizer.pad_token, config.text.pad)})
    return tokenizer, config


def _with_activation(module: CLIP, wanted: str | None, source: str) -> CLIP:
    """The activation that the weights need: as asked, else by whose they are, else as the config says."""
    config = module.config
    known = next((act for word, act in WEIGHTS_ACTIVATIONS.items() if word in pathlib.Path(source).name.lower()
                  or word in source.lower().split("/")[0]), None)  # fmt: skip
    if wanted is not None and wanted not in ACTIVATIONS.values():
        raise UserError(f"activation {wanted!r}: expected one of {', '.join(sorted(set(ACTIVATIONS.values())))}")
    act = wanted or (known if config.head == "projection" else None)
    if act is None or act == config.vision.act == config.text.act:
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
    for tower in (config["vision"], config["text"]):
        tower.pop("dtype")  # a choice of the run, not of the weights
    meta = {"kind": KIND, "model": config, "image_mean": list(mean), "image_std": list(std), "names": list(names)}
    files.write_json(folder / "config.json", meta)
    files.write_bytes(folder / "model.safetensors", safetensors.save(flatten(params)))
    tokenizer.save_pretrained(folder)


def _own(folder: pathlib.Path, meta: Mapping[str, Any], dtype: Any) -> ImageText:
    from transformers import PreTrainedTokenizerFast

    where = str(folder / "config.json")
    held = part(meta, "model", where, required=True)
    vision = sizes.build(ViTConfig, held.get("vision"), f"{where}, model.vision", dtype=dtype)
    text = sizes.build(TextConfig, held.get("text"), f"{where}, model.text", dtype=dtype)
    config = sizes.build(CLIPConfig, {**held, "vision": vision, "text": text}, f"{where}, model")
    module = CLIP(sizes.check(config, where))
    mean, std = pixel_statistics(meta.get("image_mean"), meta.get("image_std"), (CLIP_MEAN, CLIP_STD), where)
    names = known_names(meta, where)
    params = fill(skeleton(module, where), read_safetensors(folder / "model.safetensors"), str(folder))
    params = cast(params, dtype)
    tokenizer = tokenizers.read(folder, text.vocab, tokenizers.FAST, loader=PreTrainedTokenizerFast)
    if tokenizer.eos_token is None:
        raise UserError(f"tokenizer {folder}: it names no eos_token; fetch or write it again")
    return ImageText(module, params, tokenizer, mean, std, tokenizer.eos_token, names)
