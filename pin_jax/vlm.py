"""A frozen VLM as one object: module, parameters, tokenizer, box codec and identity; read from and written to a folder.

The folder holds config.json (the dataclasses of `pin_jax.models`), model.safetensors (`lm/blocks/qkv/kernel`, ...),
and the tokenizer in transformers' own files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from input_pipeline.boxes import BoxCodec
from input_pipeline.errors import UserError
from pin_jax.models.flamingo import Flamingo, FlamingoConfig
from pin_jax.models.mpt import MPTConfig
from pin_jax.models.perceiver import PerceiverConfig
from pin_jax.models.vit import ViTConfig, normalise


@dataclasses.dataclass
class VLM:
    """A frozen VLM.

    Attributes:
      model: the Linen module. params: its parameters, a plain nested dict.
      tokenizer: a transformers tokenizer, padding on the left.
      codec: how boxes are written. mean, std: of the pixels, float[3].
      identity: a hash of the weights; an insert belongs to one identity.
      names: the object names that a small VLM knows; empty for one with an open vocabulary.
    """

    model: Flamingo
    params: Any
    tokenizer: Any
    codec: BoxCodec
    mean: Sequence[float]
    std: Sequence[float]
    identity: str
    names: tuple[str, ...] = ()

    def __post_init__(self):
        self._encode = jax.jit(
            lambda params, images: self.model.apply({"params": params}, self.pixels(images)[:, None], method="encode")[
                :, 0
            ]
        )

    def pixels(self, images: jax.Array) -> jax.Array:
        """uint8[B, H, W, 3] -> float32[B, H, W, 3], normalised."""
        return normalise(images, self.mean, self.std)

    def encode(self, images: np.ndarray) -> jax.Array:
        """Images uint8[B, H, W, 3] -> vision tokens float[B, N, D] of the frozen encoder."""
        return self._encode(self.params, images)

    def tokenize(self, texts: Sequence[str], length: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Texts -> left-padded ids int32[R, T] and mask bool[R, T].

        Raises:
          UserError: a word that a small VLM does not know.
        """
        rows = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        for text, row in zip(texts, rows, strict=True):
            if self.tokenizer.unk_token_id is not None and self.tokenizer.unk_token_id in row:
                raise UserError(f"text {text!r}: it has words that this small model does not know; see its model card")
        length = length or max(len(row) for row in rows)
        pad = self.tokenizer.pad_token_id
        ids = np.array([[pad] * (length - len(row)) + row[-length:] for row in rows], np.int32)
        return ids, np.arange(length)[None] >= length - np.array([len(row) for row in rows])[:, None]

    @property
    def suppressed(self) -> tuple[int, ...]:
        """Tokens that are never written: `<image>` and padding."""
        return (self.model.config.image_token, self.model.config.pad_token)


def count(params: Any) -> int:
    """Number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def flatten(params: Any) -> dict[str, np.ndarray]:
    """Nested dict -> {"a/b/c": array}."""
    return {k: np.asarray(v) for k, v in traverse_util.flatten_dict(params, sep="/").items()}


def identity(params: Any) -> str:
    """A hash over names, shapes and values: the identity of frozen weights."""
    digest = hashlib.sha256()
    for name, array in sorted(flatten(params).items()):
        digest.update(f"{name}{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Tensors of a file.

    Raises:
      UserError: it is missing, truncated or not a safetensors file.
    """
    if not path.is_file():
        raise UserError(f"weights {path}: no such file; give a folder or file written by this project")
    try:
        return safetensors.load_file(path)
    except (SafetensorError, ValueError, OSError) as error:
        raise UserError(f"weights {path}: not an intact safetensors file ({error}); fetch or write it again") from error


def fill(skeleton: Any, tensors: dict[str, np.ndarray], source: str) -> Any:
    """Puts tensors into the tree that `jax.eval_shape` describes.

    Raises:
      UserError: lists every missing, unknown and misshapen tensor at once.
    """
    wanted = traverse_util.flatten_dict(skeleton, sep="/")
    problems = [f"missing {k}" for k in sorted(wanted.keys() - tensors.keys())]
    problems += [f"unknown {k}" for k in sorted(tensors.keys() - wanted.keys())]
    problems += [
        f"{k} has shape {tensors[k].shape}, expected {wanted[k].shape}"
        for k in sorted(wanted.keys() & tensors.keys())
        if tensors[k].shape != wanted[k].shape
    ]
    if problems:
        raise UserError(f"weights {source} do not fit the model: {'; '.join(problems)}")
    return traverse_util.unflatten_dict({k: jnp.asarray(v) for k, v in tensors.items()}, sep="/")


def skeleton(model: Flamingo) -> Any:
    """Shapes and dtypes of the parameters, without computing any."""
    size = model.config.vision.image_size
    pixels, ids = jnp.zeros((1, 1, size, size, 3)), jnp.zeros((1, 2), jnp.int32)
    return jax.eval_shape(model.init, jax.random.key(0), pixels, ids)["params"]


def save(folder: pathlib.Path, vlm: VLM) -> None:
    """Writes a small VLM's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    config = dataclasses.asdict(vlm.model.config)
    for part in (config["vision"], config["lm"], config["perceiver"] or {}):
        part.pop("dtype", None)  # a choice of the run, not of the weights
    meta = {
        "model": config,
        "image_mean": list(vlm.mean),
        "image_std": list(vlm.std),
        "grid": vlm.codec.grid,
        "names": list(vlm.names),
    }
    (folder / "config.json").write_text(json.dumps(meta, indent=1) + "\n", "utf-8")
    safetensors.save_file(flatten(vlm.params), folder / "model.safetensors")
    vlm.tokenizer.save_pretrained(folder)


def load(folder: str | pathlib.Path, dtype: Any = None) -> VLM:
    """Reads a small VLM's folder.

    Args:
      folder: written by `save`.
      dtype: of the computation (None: float32).

    Raises:
      UserError: the folder, or what is in it, is missing or broken.
    """
    from transformers import PreTrainedTokenizerFast

    folder = pathlib.Path(folder)
    if not (folder / "config.json").is_file():
        raise UserError(f"VLM folder {folder}: no config.json in it; give a folder such as assets/tiny_flamingo")
    try:
        meta = json.loads((folder / "config.json").read_text("utf-8"))
        parts = dict(meta["model"])
        vision = ViTConfig(**{**parts.pop("vision"), "dtype": dtype})
        lm = MPTConfig(**{**parts.pop("lm"), "dtype": dtype})
        perceiver = parts.pop("perceiver")
        perceiver = PerceiverConfig(**{**perceiver, "dtype": dtype}) if perceiver else None
        model = Flamingo(FlamingoConfig(vision=vision, lm=lm, perceiver=perceiver, **parts))
        codec = BoxCodec(vision.image_size, meta["grid"])
        mean, std, names = meta["image_mean"], meta["image_std"], tuple(meta["names"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"VLM folder {folder}: config.json is not one of ours ({error!r})") from error
    params = fill(skeleton(model), read_safetensors(folder / "model.safetensors"), str(folder))
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    return VLM(model, params, tokenizer, codec, mean, std, identity(params), names)
