"""A trained method as a file: safetensors whose header says which method, which options, which frozen weights.

PIN's authors publish theirs as a torch file, which is read too, and written by `export`.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

import jax
from ml_collections import ConfigDict
from safetensors import numpy as safetensors
from safetensors import safe_open

from input_pipeline.errors import UserError
from pin_jax.methods import METHODS
from pin_jax.vlm import VLM, fill, flatten, read_safetensors
from pin_jax.weights import pin_file


def save(path: pathlib.Path, params: Any, config: ConfigDict, vlm: VLM) -> None:
    """Writes the trained parameters.

    Raises:
      UserError: the disk is full.
    """
    meta = {"method": config.method, "options": json.dumps(dict(config.method_options)), "frozen": vlm.identity}
    partial = path.with_suffix(".partial")
    try:
        safetensors.save_file(flatten(params), partial, metadata=meta)
        partial.replace(path)
    except Exception as error:  # safetensors has its own error for a full disk
        partial.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written ({error}); free disk space or choose another --workdir") from error


def export(path: pathlib.Path, method: Any, params: Any) -> None:
    """Writes an insert in the format of PIN's authors (see `pin_file`); which frozen weights it is for gets lost.

    Raises:
      UserError: another method than PIN.
    """
    if not isinstance(method, METHODS["pin"]):
        raise UserError(f"{path}: only PIN has this format, not {type(method).__name__}; keep the safetensors file")
    pin_file.write(path, method, params)


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
    if meta.get("method") not in METHODS:
        raise UserError(f"insert {path}: its header names method {meta.get('method')!r}; expected {', '.join(METHODS)}")
    if meta["frozen"] != vlm.identity:
        raise UserError(
            f"insert {path}: trained on frozen weights {meta['frozen']}, these are {vlm.identity}; use its own VLM"
        )
    method = METHODS[meta["method"]](vlm.model.config, **json.loads(meta["options"]))
    skeleton = jax.eval_shape(method.init, jax.random.key(0))
    return method, fill(skeleton, tensors, str(path))
