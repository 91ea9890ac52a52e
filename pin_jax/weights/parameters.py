"""Parameter trees as flat dicts of arrays: counted, hashed, read from and filled by safetensors."""

from __future__ import annotations

import hashlib
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import traverse_util
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from input_pipeline.errors import UserError


def count_parameters(params: Any) -> int:
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


_FLOATS = ("float16", "bfloat16", "float32", "float64")
# by the bytes of a number: how it is seen as an integer, and the bits of its exponent
_EXPONENT = {
    "float16": (np.uint16, 0x7C00), "bfloat16": (np.uint16, 0x7F80), "float32": (np.uint32, 0x7F800000),
    "float64": (np.uint64, 0x7FF0000000000000),
}  # fmt: skip


def unusable(array: Any) -> str:
    """What keeps an array from being a weight: another type than floating point, NaN, infinity; "" if nothing does."""
    array = np.asarray(array)
    if array.dtype.name not in _FLOATS:
        return f"is {array.dtype.name}, expected a floating-point tensor"
    array = array[tuple(slice(None if step else 1) for step in array.strides)]  # what is repeated is looked at once
    bits, mask = _EXPONENT[array.dtype.name]
    # An exponent of ones alone is NaN or infinity; on integers this runs at the speed of memory, bfloat16 too.
    flat = np.ascontiguousarray(array).reshape(-1).view(bits)
    step = 1 << 22  # a few megabytes at a time
    if any(((flat[i : i + step] & bits(mask)) == bits(mask)).any() for i in range(0, flat.size, step)):
        return "holds NaN or infinity"
    return ""


def read_safetensors(path: pathlib.Path | epath.Path) -> dict[str, np.ndarray]:
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
      UserError: lists every missing, unknown and misshapen tensor at once, and those that are no weights (`unusable`).
    """
    wanted: dict[str, Any] = traverse_util.flatten_dict(skeleton, sep="/")
    problems = [f"missing {k}" for k in sorted(wanted.keys() - tensors.keys())]
    problems += [f"unknown {k}" for k in sorted(tensors.keys() - wanted.keys())]
    problems += [f"{k} {fault}" for k in sorted(wanted.keys() & tensors.keys()) if (fault := unusable(tensors[k]))]
    problems += [
        f"{k} has shape {tensors[k].shape}, expected {wanted[k].shape}"
        for k in sorted(wanted.keys() & tensors.keys())
        if tensors[k].shape != wanted[k].shape
    ]
    if problems:
        raise UserError(f"weights {source} do not fit the model: {'; '.join(problems)}")
    return traverse_util.unflatten_dict({k: jnp.asarray(v) for k, v in tensors.items()}, sep="/")
