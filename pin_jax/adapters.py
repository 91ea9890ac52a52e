"""A trained method as a file: safetensors whose header says which method, which options, which frozen weights.

Beside it stands a JSON card with the same, the number of parameters and the results.

PIN's authors publish theirs as a torch file, which is read too, and written by `export`.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

from ml_collections import ConfigDict
from safetensors import numpy as safetensors
from safetensors import safe_open

from input_pipeline.errors import UserError
from pin_jax import methods
from pin_jax.methods import pin_file
from pin_jax.models.interface import Inserts
from pin_jax.runtime import files
from pin_jax.vlm import VLM
from pin_jax.weights.parameters import count_parameters, fill, flatten, read_safetensors


def save(path: pathlib.Path, params: Any, config: ConfigDict, vlm: VLM) -> None:
    """Writes the trained parameters, and their card.

    Raises:
      UserError: they cannot be written.
    """
    name, options = methods.describe(methods.build(config.method, vlm.model.config, config.method_options))
    meta = {"method": name, "options": json.dumps(options), "frozen": vlm.identity}
    files.write_bytes(path, safetensors.save(flatten(params), metadata=meta))
    card = meta | {"options": options, "vlm": str(config.vlm), "parameters": count_parameters(params)}
    files.write_json(path.with_suffix(".json"), card)


def note(path: pathlib.Path, results: dict[str, Any]) -> None:
    """Adds results to the card of an adapter; one without a card gets none."""
    card = path.with_suffix(".json")
    if card.exists():
        files.write_json(card, json.loads(card.read_text("utf-8")) | {"results": results})


def export(path: pathlib.Path, method: Any, params: Any) -> None:
    """Writes an insert in the format of PIN's authors (see `pin_file`); which frozen weights it is for gets lost.

    Raises:
      UserError: another method than PIN, or it cannot be written.
    """
    if not isinstance(method, methods.Pin):
        raise UserError(f"{path}: only PIN has this format, not {type(method).__name__}; keep the safetensors file")
    files.write_with(path, lambda out: pin_file.write(out, method, params))


def load(path: pathlib.Path, vlm: VLM) -> tuple[Any, Any]:
    """Reads a file of `save`, or of PIN's authors (`.pt`, `.pth`, `.bin`): the method and its parameters.

    Raises:
      UserError: missing, broken, made on other frozen weights, or not a file of ours.
    """
    if path.suffix in (".pt", ".pth", ".bin"):
        return pin_file.read(path, vlm.model.config)
    tensors = read_safetensors(path)
    with safe_open(path, "numpy") as file:
        meta = file.metadata() or {}
    if not {"method", "options", "frozen"} <= meta.keys():
        raise UserError(f"adapter {path}: its header names no method; give a file that this project wrote")
    if meta["frozen"] != vlm.identity:
        raise UserError(
            f"adapter {path}: trained on frozen weights {meta['frozen']}, these are {vlm.identity}; use its own VLM"
        )
    method = methods.build(meta["method"], vlm.model.config, json.loads(meta["options"]))
    return method, fill(methods.shapes(method, vlm.params), tensors, str(path))


def load_adapter(path: str | pathlib.Path, vlm: VLM) -> Inserts:
    """What a file puts into its VLM: `vlm.apply(params, ..., inserts=load_adapter(path, vlm))`.

    Passing other inserts switches to another adapter, `Inserts()` to none; the VLM itself never changes.

    Raises:
      UserError: as `load`.
    """
    method, params = load(pathlib.Path(path), vlm)
    return method.inserts(params)
