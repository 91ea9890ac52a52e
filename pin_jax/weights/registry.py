"""Published VLMs: what a folder of weights is read into, and which module reads which layout.

A reader is a module with `recognises(folder) -> bool`, `read(folder, dtype, remat=..., attention=...) -> Published`,
and, for runs without weights, `architecture(source, dtype, remat=...) -> (model, dtypes of its parts, Frame) | None`.
A new layout is a new entry of `READERS`.
"""

from __future__ import annotations

import dataclasses
import importlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn

from input_pipeline.errors import UserError
from input_pipeline.text.prompts import Frame
from pin_jax.weights import files
from pin_jax.weights.convert import Rule

READERS = ("pin_jax.weights.blip2", "pin_jax.weights.smolvlm", "pin_jax.weights.openflamingo.load")


@dataclasses.dataclass
class Published:
    """A published VLM, all but its weights read.

    Attributes:
      model: the module, with the interface of `pin_jax.models.interface`.
      tensors: the weights by key, lazy. table: where they go.
      dtypes: of the weights, by top-level part of the parameters.
      tokenizer: of transformers, padding on the left.
      frame: what stands around prompt and answer.
      mean, std: of the pixels in [0, 1], float[3]. processor: transformers' own, where the weights came with one.
      source: what errors call it, where its folder is not enough.
    """

    model: nn.Module
    tensors: Mapping[str, Any]
    table: list[Rule]
    dtypes: Mapping[str, Any]
    tokenizer: Any
    frame: Frame
    mean: Sequence[float]
    std: Sequence[float]
    processor: Any = None
    source: str = ""


def reader(folder: pathlib.Path) -> Any | None:
    """The module that reads a folder; None for a small VLM of this project.

    Raises:
      UserError: nobody reads it.
    """
    config = folder / "config.json"
    if not config.is_file():
        return None
    meta = files.read_object(config)
    if "model" in meta:
        return None
    for name in READERS:
        module = importlib.import_module(name)
        if module.recognises(folder):
            return module
    kind = meta.get("model_type")
    raise UserError(
        f"VLM {folder}: no reader for model_type {kind!r}; give a BLIP-2, a SmolVLM or a small VLM of this project"
    )


def architecture(source: str, dtype: Any, remat: str) -> tuple[nn.Module, Mapping[str, Any], Frame]:
    """A published model by its hub id, or by a folder that holds no more than config.json.

    Raises:
      UserError: nobody knows it.
    """
    for name in READERS:
        found = importlib.import_module(name).architecture(source, dtype, remat=remat)
        if found is not None:
            return found
    raise UserError(f"config.vlm {source!r}: no published model by that name, and no folder that holds one")
