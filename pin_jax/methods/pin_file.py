"""The PIN insert as its authors publish it: a torch dict {'mlp': state dict of psi, 'pos_enc': S float[1, N, 64]}.

psi is a Sequential of Linear, SiLU, LayerNorm, ... Linear, so layer i has its Linear at place 3 i and its LayerNorm at
3 i + 2. The file does not say which frozen weights it was trained on.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Mapping
from typing import IO, Any

import jax
import numpy as np

from input_pipeline.errors import UserError
from pin_jax.methods.pin import Pin, sinusoid
from pin_jax.weights import torch_file
from pin_jax.weights.convert import Rule, convert, linear
from pin_jax.weights.files import short
from pin_jax.weights.parameters import unusable

_TABLE = [
    Rule(r"mlp\.linear_(\d+)\.weight", r"linear_\1/kernel", linear),
    Rule(r"mlp\.linear_(\d+)\.bias", r"linear_\1/bias"),
    Rule(r"mlp\.norm_(\d+)\.weight", r"norm_\1/scale"),
    Rule(r"mlp\.norm_(\d+)\.bias", r"norm_\1/bias"),
    Rule("positions", "positions"),
]


def _named(key: str) -> str:
    """`3.weight` -> `mlp.linear_1.weight`."""
    place, _, kind = key.partition(".")
    if not re.fullmatch("[0-9]{1,6}", place) or int(place) % 3 == 1:
        return f"mlp.{key}"
    return f"mlp.{'linear' if int(place) % 3 == 0 else 'norm'}_{int(place) // 3}.{kind}"


def read(path: str | pathlib.Path, config: Any) -> tuple[Pin, Any]:
    """The method and its parameters; positions other than the fixed sinusoid count as learned.

    Args:
      path: of the authors' file.
      config: of the VLM that it goes into.

    Raises:
      UserError: not such a file, or not for that VLM (another number or width of vision tokens).
    """
    held = torch_file.load(path)
    psi, table = (held.get("mlp"), held.get("pos_enc")) if isinstance(held, Mapping) else (None, None)
    if not isinstance(psi, Mapping) or not isinstance(table, torch_file.Tensor):
        raise UserError(f"insert {path}: no 'mlp' and 'pos_enc' in it; give a PIN file as its authors publish them")
    tensors = {_named(str(key)): value for key, value in psi.items()}
    for key, value in (*tensors.items(), ("pos_enc", table)):
        fault = unusable(value) if isinstance(value, torch_file.Tensor) else f"is {short(value)}, expected a tensor"
        if fault:
            raise UserError(f"insert {path}: {key} {fault}; give a PIN file as its authors publish them")
    positions = np.asarray(table, np.float32).reshape(-1, table.shape[-1] if table.shape else 1)
    tokens = (config.media_tokens, 64)
    if positions.shape != tokens:
        raise UserError(
            f"insert {path}: positions of {positions.shape[0]} tokens x {positions.shape[1]}, but this VLM's insert has"
            f" {tokens[0]} x {tokens[1]}; use the VLM that it was trained on"
        )
    learned = not np.allclose(positions, np.asarray(sinusoid(*tokens)), atol=1e-4)
    if learned:
        tensors["positions"] = positions
    count = sum(key.endswith(".weight") and ".norm_" in key for key in tensors)
    norms: list[Any] = [tensors.get(f"mlp.norm_{i}.weight") for i in range(count)]
    odd = [i for i, norm in enumerate(norms) if norm is not None and len(norm.shape) != 1]
    if odd:
        raise UserError(
            f"insert {path}: {3 * odd[0] + 2}.weight has shape {norms[odd[0]].shape}, expected a vector;"
            " give a PIN file as its authors publish them"
        )
    hidden = tuple(norm.shape[0] for norm in norms if norm is not None)
    method = Pin(config, learned=learned, hidden=hidden)
    skeleton = jax.eval_shape(method.init, jax.random.key(0))
    return method, jax.device_put(convert(tensors, _TABLE, skeleton, f"insert {path}"))


def write(path: str | pathlib.Path | IO[bytes], method: Pin, params: Any) -> None:
    """Writes an insert so that the authors' code, and `torch.load(path, weights_only=True)`, read it."""
    psi: dict[str, np.ndarray] = {}
    for i in range(len(method.hidden) + 1):
        layer = params[f"linear_{i}"]
        psi[f"{3 * i}.weight"] = np.ascontiguousarray(np.asarray(layer["kernel"], np.float32).T)
        psi[f"{3 * i}.bias"] = np.asarray(layer["bias"], np.float32)
        if i < len(method.hidden):
            norm = params[f"norm_{i}"]
            psi[f"{3 * i + 2}.weight"] = np.asarray(norm["scale"], np.float32)
            psi[f"{3 * i + 2}.bias"] = np.asarray(norm["bias"], np.float32)
    positions = params["positions"] if method.learned else sinusoid(method.config.media_tokens)
    torch_file.save(path, {"mlp": psi, "pos_enc": np.asarray(positions, np.float32)[None]})
