"""An OpenFlamingo from its published pieces: a checkpoint, a language model and a CLIP, each a folder or a hub id."""

from __future__ import annotations

import dataclasses
import pathlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from input_pipeline.errors import UserError
from input_pipeline.text.prompts import Frame
from pin_jax.models.flamingo import Flamingo, FlamingoConfig
from pin_jax.models.language.gpt_neox import GPTNeoXConfig
from pin_jax.models.language.mpt import MPTConfig
from pin_jax.models.perceiver import PerceiverConfig
from pin_jax.models.vit import CLIP_MEAN, CLIP_STD, ViTConfig
from pin_jax.weights import files, tokenizers
from pin_jax.weights.configs import image_text
from pin_jax.weights.configs.entries import pixel_statistics
from pin_jax.weights.openflamingo.language_models import language_config
from pin_jax.weights.openflamingo.rules import openflamingo
from pin_jax.weights.openflamingo.shapes import BY_ID
from pin_jax.weights.published import CLIP_L14
from pin_jax.weights.registry import Published
from pin_jax.weights.torch_file import TorchTensors

# OpenFlamingo's own tokens, in the order in which it adds them to the tokenizer.
END, IMAGE, PAD = "<|endofchunk|>", "<image>", "<PAD>"
_RESAMPLER = "perceiver.layers.0.0.to_q.weight"
HEADS = 8  # of the Perceiver and of cross-attention: no weight tells
PARTS = ("vision", "perceiver", "lm")


# --- the pieces on disk ----------------------------------------------------------------------------------------------


def vision_config(folder: pathlib.Path) -> tuple[ViTConfig, tuple[float, ...], tuple[float, ...]]:
    """CLIP's tower without its last norm, and the mean and deviation of its pixels.

    Reads Hugging Face's config.json or open_clip's open_clip_config.json. Where the latter says nothing of QuickGELU it
    is used all the same: every published OpenFlamingo stands on OpenAI's weights, which need it.
    """
    if _is_open_clip(folder):
        config, _, pixels = image_text.open_clip_tower(folder, quick_by_default=True, post_norm=False)
        where, names = folder / "open_clip_config.json", ("mean", "std")
    else:
        meta = files.read_object(folder / "config.json")
        if meta.get("model_type") not in ("clip", "clip_vision_model"):
            raise UserError(f"vision model {folder}: its model_type is {meta.get('model_type')!r}; expected clip")
        config = image_text.clip_tower(meta, str(folder / "config.json"), post_norm=False)
        where, pixels = image_text.preprocessor(folder)
        names = ("image_mean", "image_std")
    if config.image_size % config.patch:
        raise UserError(f"vision model {folder}: patch {config.patch} does not divide its image of {config.image_size}")
    found = pixel_statistics(pixels.get(names[0]), pixels.get(names[1]), (CLIP_MEAN, CLIP_STD), str(where))
    return config, *found


def _is_open_clip(folder: pathlib.Path) -> bool:
    """Whether a folder's weights are in open_clip's layout; one that has both layouts is read in Hugging Face's."""
    if not (folder / "open_clip_config.json").is_file():
        return False
    hugging_face = any((folder / name).is_file() for name in ("model.safetensors", "pytorch_model.bin"))
    return not (hugging_face and (folder / "config.json").is_file())


def folder_of(source: str | pathlib.Path) -> pathlib.Path:
    """The folder of a model; of a hub id the safetensors, or torch's files where it has no others."""
    folder = files.resolve(source)
    if folder == pathlib.Path(source) or any(folder.glob("*.safetensors*")):
        return folder
    return files.resolve(source, (*files.PATTERNS, "*.bin"))


def tensors_of(folder: pathlib.Path) -> Mapping[str, np.ndarray]:
    """The tensors of a folder: safetensors, else torch's .bin files (read as pickles that hold only tensors)."""
    prefix = "open_clip_" if _is_open_clip(folder) else ""
    name, pickled = f"{prefix}model.safetensors", folder / f"{prefix}pytorch_model.bin"
    index = folder / f"{pickled.name}.index.json"
    if not (folder / name).is_file() and not (folder / f"{name}.index.json").is_file():
        if index.is_file():
            return TorchTensors(*sorted(set(files.shards(index).values())))
        if pickled.is_file():
            return TorchTensors(pickled)
    return files.Tensors(folder, name)


def checkpoint_file(source: str | pathlib.Path) -> pathlib.Path:
    """The .pt file that a path, a folder or a hub id names."""
    path = pathlib.Path(source)
    if path.is_file() or path.suffix == ".pt":
        return path
    folder = files.resolve(source, ("*.pt",))
    found = sorted(folder.glob("*.pt"))
    if len(found) != 1:
        names = ", ".join(p.name for p in found) or "none"
        raise UserError(f"checkpoint {source}: expected one .pt file in it, found {names}; give the file's own path")
    return found[0]


class _Joined(Mapping[str, np.ndarray]):
    """Several mappings as one, under new keys; of two with one key the first is taken."""

    def __init__(self):
        self._where: dict[str, tuple[Mapping[str, np.ndarray], str, Callable | None]] = {}

    def add(self, key: str, source: Mapping[str, np.ndarray], name: str, change: Callable | None = None) -> None:
        self._where.setdefault(key, (source, name, change))

    @property
    def files(self) -> list[pathlib.Path]:
        """The files that the tensors stand in."""
        sources = {id(source): source for source, _, _ in self._where.values()}
        return sorted({path for source in sources.values() for path in source.files})  # pyright: ignore[reportAttributeAccessIssue]

    def __getitem__(self, key: str) -> np.ndarray:
        source, name, change = self._where[key]
        return source[name] if change is None else change(source[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)


def _plain(key: str, neox: bool) -> str:
    """A key of a checkpoint without the wrappers that training left in it, under one name for one tensor."""
    key = re.sub(r"^(?:module\.)+", "", key).replace(".decoder_layer.", ".")
    layers = "gpt_neox.layers" if neox else "transformer.blocks"
    key = key.replace("lang_encoder.old_decoder_blocks.", f"lang_encoder.{layers}.")
    return key.replace("lang_encoder.lm_head.", "lang_encoder.embed_out.") if neox else key


# --- the whole --------------------------------------------------------------------------------------------------------


def open_pieces(
    checkpoint: str | pathlib.Path,
    language_model: str | pathlib.Path,
    vision: str | pathlib.Path = CLIP_L14,
    *,
    tokenizer: str | pathlib.Path | None = None,
    image_token_id: int | None = None,
    end_token_id: int | None = None,
    pad_token_id: int | None = None,
    dtype: Any = None,
    remat: str = "none",
    attention: str = "xla",
) -> Published:
    """Opens the pieces of an OpenFlamingo and finds that they belong together; no tensor is read yet.

    Args:
      checkpoint: the .pt file (a state dict, or one under `model_state_dict`), its folder, or a hub id.
      language_model: folder or hub id of the one it was trained with: MPT, mosaic_gpt or GPT-NeoX.
      vision: folder or hub id of CLIP, Hugging Face's layout or open_clip's.
      tokenizer: folder or hub id; by default the language model's.
      image_token_id, end_token_id, pad_token_id: of `<image>`, `<|endofchunk|>` and padding; by default what the
        tokenizer gives them, once OpenFlamingo's tokens are added to it.
      dtype: of weights and computation, a name (None, and `published`: float32).
      remat, attention: see `vlm.load_vlm`.

    Raises:
      UserError: a piece is missing, broken, or not of this checkpoint.
    """
    path = checkpoint_file(checkpoint)
    own = TorchTensors(path, inside="model_state_dict")
    language, tower = folder_of(language_model), folder_of(vision)
    lm, (vit, mean, std) = language_config(language), vision_config(tower)
    neox = isinstance(lm, GPTNeoXConfig)
    embedding = f"lang_encoder.{'gpt_neox.embed_in' if neox else 'transformer.wte'}.weight"

    tensors = _Joined()
    shapes: dict[str, tuple[int, ...]] = {}
    for name in own:
        key = _plain(name, neox)
        tensors.add(key, own, name)
        shapes.setdefault(key, own.shape(name))
    reader, every = _gated(shapes, path, lm, language)
    rows, width = shapes.get(embedding, (lm.vocab, reader[1]))
    _belongs(lm, language, path, rows, width)
    latents = shapes["perceiver.latents"]
    if latents[1] != vit.width:
        raise UserError(
            f"vision model {tower}: width {vit.width}, but {path} was trained on one of width {latents[1]};"
            f" give the CLIP that it was trained with (published: {CLIP_L14})"
        )
    given = {"end": end_token_id, "image": image_token_id, "pad": pad_token_id}
    words, ids = _token_ids(tokenizer or language, given, rows, embedding in shapes, path)

    from_folder = tensors_of(language)
    for name in from_folder:
        key = _plain(f"lang_encoder.{name}", neox)
        table = key in (embedding, "lang_encoder.embed_out.weight")
        if key != "lang_encoder.lm_head.weight":  # tied
            tensors.add(key, from_folder, name, (lambda x: x[:rows]) if table else None)  # as torch resizes a table
    if not any(key.startswith("vision_encoder.") for key in shapes):
        from_folder = tensors_of(tower)
        inside = next((p for p in ("vision_model.", "visual.") if any(k.startswith(p) for k in from_folder)), "")
        for name in from_folder:
            if name.startswith(inside):
                tensors.add(f"vision_encoder.{name.removeprefix(inside)}", from_folder, name)

    dtype = None if dtype in (None, "published", "float32") else dtype
    again: Any = remat != "none" and remat
    config = FlamingoConfig(
        vision=dataclasses.replace(vit, dtype=dtype, attention=attention, remat=again),
        lm=dataclasses.replace(lm, vocab=rows, dtype=dtype),
        perceiver=PerceiverConfig(
            width=vit.width,
            latents=latents[0],
            depth=1 + max(int(key.split(".")[2]) for key in shapes if key.startswith("perceiver.layers.")),
            heads=HEADS,
            head_dim=shapes[_RESAMPLER][0] // HEADS,
            dtype=dtype,
        ),
        cross_every=every,
        cross_heads=HEADS,
        cross_head_dim=reader[0] // HEADS,
        image_token=ids["image"],
        end_token=ids["end"],
        pad_token=ids["pad"],
        remat=again,
    )
    source = f"OpenFlamingo of {path}, {language} and {tower}"
    dtypes: dict[str, Any] = dict.fromkeys(PARTS, dtype or "float32")
    table = openflamingo(every, config.lm)
    return Published(Flamingo(config), tensors, table, dtypes, words, Frame(), mean, std, source=source)


def _gated(
    shapes: Mapping[str, tuple[int, ...]], path: pathlib.Path, lm: MPTConfig | GPTNeoXConfig, folder: pathlib.Path
) -> tuple[tuple[int, ...], int]:
    """The shape [inner, width] of a gated layer's queries, and how often such layers come, by either layout.

    Raises:
      UserError: this is no OpenFlamingo, or one for a language model of another depth.
    """
    layer = re.compile(
        r"lang_encoder\..*?(?:gated_cross_attn_layers\.(\d+)|\.(\d+)\.gated_cross_attn_layer)\.attn\.to_q\.weight"
    )
    found = {int(match[1] or match[2]): shape for key, shape in shapes.items() if (match := layer.fullmatch(key))}
    if not found or not {"perceiver.latents", _RESAMPLER} <= shapes.keys():
        raise UserError(f"checkpoint {path}: no gated cross-attention or no Perceiver in it; give one of OpenFlamingo")
    blocks = sorted(found)
    every, depth = blocks[0] + 1, blocks[-1] + 1
    if blocks != list(range(every - 1, depth, every)) or not depth <= lm.depth < depth + every:
        raise UserError(
            f"language model {folder}: {lm.depth} layers, but {path} has cross-attention before layers"
            f" {', '.join(map(str, blocks))}; give the language model that it was trained with"
        )
    return found[blocks[0]], every


def _belongs(lm: MPTConfig | GPTNeoXConfig, folder: pathlib.Path, path: pathlib.Path, rows: int, width: int) -> None:
    """Refuses a language model of another width or vocabulary than the checkpoint's."""
    if lm.width != width:
        raise UserError(
            f"language model {folder}: width {lm.width}, but {path} was trained with one of width {width};"
            " give the language model that it was trained with"
        )
    if rows > lm.vocab + 3:  # it grew by OpenFlamingo's three tokens at most
        raise UserError(
            f"language model {folder}: a vocabulary of {lm.vocab}, but the word embedding of {path} has {rows} rows;"
            " give the language model that it was trained with"
        )


# --- tokens -----------------------------------------------------------------------------------------------------------


def _token_ids(
    source: str | pathlib.Path, given: Mapping[str, int | None], rows: int, own: bool, path: pathlib.Path
) -> tuple[Any, dict[str, int]]:
    """The tokenizer, if there is one, and the ids of chunk end, image and padding: those given, or else its own.

    Args:
      source: of the tokenizer. rows: of the word embedding; own: it is the checkpoint's, so that each row is a token.
    """
    asked = None in given.values()
    tokenizer = _tokenizer(source, asked)
    ids: dict[str, Any] = dict(given)
    if tokenizer is not None:
        found: dict[str, int] = dict(zip(("end", "image", "pad"), _add_tokens(tokenizer), strict=True))
        tokenizers.belongs(tokenizer, source, rows)
        if asked and own and len(tokenizer) != rows:
            raise UserError(
                f"tokenizer of {source}: {len(tokenizer)} tokens with OpenFlamingo's own, but the word embedding of"
                f" {path} has {rows} rows; give the tokenizer and language model that it was trained with"
            )
        ids = {name: found[name] if value is None else value for name, value in given.items()}
    outside = {name: value for name, value in ids.items() if not 0 <= value < rows}
    if outside:
        raise UserError(f"token ids {outside} are beyond the {rows} rows of the word embedding of {path}")
    return tokenizer, ids


def _tokenizer(source: str | pathlib.Path, needed: bool) -> Any:
    """The tokenizer of a folder or hub id; None where there is none and none is needed.

    Raises:
      UserError: it is needed, and there is none or a broken one.
    """
    from transformers import PreTrainedTokenizerFast

    folder = files.resolve(source, ("*.json", "*.txt", "*.model"))
    if not (folder / "tokenizer.json").is_file():
        if not needed:
            return None
        raise UserError(
            f"tokenizer {folder}: no tokenizer.json in it; give tokenizer=FOLDER, or image_token_id=, end_token_id= and"
            " pad_token_id="
        )
    options = {"clean_up_tokenization_spaces": False}
    return tokenizers.parse(folder, tokenizers.FAST, PreTrainedTokenizerFast, **options)


def _add_tokens(tokenizer: Any) -> tuple[int, int, int]:
    """Adds OpenFlamingo's tokens where they are missing, in its order; returns the ids of chunk end, image, padding."""
    from transformers import AddedToken

    def special(text: str) -> Any:
        return AddedToken(text, special=True, normalized=False)

    tokenizer.add_tokens([special(END), special(IMAGE)], special_tokens=True)
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": special(PAD)})
    tokenizer.padding_side = "left"
    end, image = tokenizer.convert_tokens_to_ids([END, IMAGE])
    return end, image, tokenizer.pad_token_id


def recognises(folder: pathlib.Path) -> bool:
    """No folder is an OpenFlamingo: its pieces are named one by one, see `open_pieces`."""
    del folder
    return False


def architecture(
    source: str, dtype: Any, attention: str = "xla", remat: str = "none"
) -> tuple[Flamingo, dict[str, Any], Frame] | None:
    """A published OpenFlamingo by its hub id, without its weights; see `published.architecture`."""
    config = BY_ID.get(source)
    if config is None:
        return None
    dtype = "float32" if dtype == "published" else dtype
    parts = {name: dataclasses.replace(getattr(config, name), dtype=dtype) for name in PARTS}
    parts["vision"] = dataclasses.replace(parts["vision"], attention=attention, remat=remat)
    return Flamingo(dataclasses.replace(config, **parts, remat=remat)), dict.fromkeys(PARTS, dtype), Frame()
