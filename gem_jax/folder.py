"""A small image-text model as a folder: config.json, model.safetensors and the tokenizer in transformers' own files."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from safetensors import numpy as safetensors

from gem_jax.clip import CLIP, CLIPConfig, TextConfig
from input_pipeline.errors import UserError
from pin_jax.models.vit import ViTConfig
from pin_jax.vlm import fill, flatten, read_safetensors

KIND = "gem_jax clip"  # how config.json says that the folder is one of ours


@dataclasses.dataclass
class ImageText:
    """A frozen image-text model.

    Attributes:
      module: has the methods `image_tokens`, `image` and `text` of `clip.CLIP`. params: its parameters.
      tokenizer: a transformers tokenizer. mean, std: of the pixels, float[3].
      names: the names that a small model knows; empty for one with an open vocabulary.
    """

    module: Any
    params: Any
    tokenizer: Any
    mean: Sequence[float]
    std: Sequence[float]
    names: tuple[str, ...] = ()

    @property
    def config(self) -> Any:
        return self.module.config


def skeleton(module: Any) -> Any:
    """Shapes and dtypes of the parameters, without computing any."""
    size = module.config.vision.image_size
    pixels, ids = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32), jax.ShapeDtypeStruct((1, 2), jnp.int32)
    return jax.eval_shape(module.init, jax.random.key(0), pixels, ids)["params"]


def save(
    folder: pathlib.Path,
    module: CLIP,
    params: Any,
    tokenizer: Any,
    mean: Sequence[float],
    std: Sequence[float],
    names: Sequence[str] = (),
) -> None:
    """Writes a folder that `load` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    config = dataclasses.asdict(module.config)
    for part in (config["vision"], config["text"]):
        part.pop("dtype")  # a choice of the run, not of the weights
    meta = {"kind": KIND, "model": config, "image_mean": list(mean), "image_std": list(std), "names": list(names)}
    (folder / "config.json").write_text(json.dumps(meta, indent=1) + "\n", "utf-8")
    safetensors.save_file(flatten(params), folder / "model.safetensors")
    tokenizer.save_pretrained(folder)


def load(folder: str | pathlib.Path, dtype: Any = None) -> ImageText:
    """Reads a folder of `save`.

    Args:
      dtype: of the computation (None: float32).

    Raises:
      UserError: the folder, or what is in it, is missing or broken.
    """
    from transformers import PreTrainedTokenizerFast

    folder = pathlib.Path(folder)
    if not (folder / "config.json").is_file():
        raise UserError(f"model folder {folder}: no config.json in it; give a folder such as assets/tiny_clip")
    try:
        meta = json.loads((folder / "config.json").read_text("utf-8"))
        parts = dict(meta["model"])
        vision = ViTConfig(**{**parts.pop("vision"), "dtype": dtype})
        text = TextConfig(**{**parts.pop("text"), "dtype": dtype})
        module = CLIP(CLIPConfig(vision=vision, text=text, **parts))
        mean, std, names = meta["image_mean"], meta["image_std"], tuple(meta["names"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"model folder {folder}: config.json is not one of ours ({error!r})") from error
    params = fill(skeleton(module), read_safetensors(folder / "model.safetensors"), str(folder))
    return ImageText(module, params, PreTrainedTokenizerFast.from_pretrained(folder), mean, std, names)
