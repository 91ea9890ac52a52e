"""Configs of our models, checked before anything is built from them: types, ranges, and sizes that must divide."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

from input_pipeline.errors import UserError
from pin_jax.models.layers import ACTIVATIONS
from pin_jax.weights.files import short

_FROM_ZERO = {"image_token", "end_token", "pad_token", "eos", "pad", "start", "stem_width", "registers", "hidden"}
_MOST = 2**24
# What is laid out one by one when a module is built: a number beyond all models would take for ever, not fail.
_MOST_OF = {"depth": 1000, "decoder_depth": 1000, "cross_every": 1000, "queries": 4096, "latents": 4096}
_MOST_OF |= {"image_size": 2**14, "grid": 2**14}
_CHOICES = {"act": tuple(ACTIVATIONS), "head": ("projection", "map"), "pool": ("argmax", "eos", "last")}


def build(kind: type, held: Any, where: str, parts: Mapping[str, type | None] | None = None, **fields: Any) -> Any:
    """A config dataclass from what a file of ours holds.

    Args:
      held: name -> value, of `kind`'s fields. parts: fields that are dataclasses themselves, built by the caller.
      where: what the error calls it. **fields: in place of the file's.

    Raises:
      UserError: not an object, or an entry that the dataclass does not have or that is missing.
    """
    if not isinstance(held, Mapping):
        raise UserError(f"{where}: {short(held)}; expected an object {{...}} of config entries")
    known = {field.name: field for field in dataclasses.fields(kind)}
    stray = [name for name in held if name not in known]
    if stray:
        raise UserError(f"{where}: has {', '.join(map(short, stray))}; expected {', '.join(known)}")
    given = {**held, **fields}
    missing = [
        name for name, field in known.items() if name not in given and field.default is dataclasses.MISSING
    ]  # fmt: skip
    if missing:
        raise UserError(f"{where}: lacks {', '.join(missing)}")
    try:
        return kind(**given)
    except (ValueError, TypeError) as error:
        raise UserError(f"{where}: {error}") from error


def check(config: Any, where: str) -> Any:
    """The config, a dataclass with dataclasses inside.

    Raises:
      UserError: names the first entry that has a wrong type or cannot be, `vision.heads` for instance.
    """
    problem = next(_problems(config, ""), None)
    if problem:
        raise UserError(f"{where}: {problem}; fetch or write it again")
    return config


@contextlib.contextmanager
def buildable(where: str) -> Iterator[None]:
    """Around the building of a module: what still fails after `check` is said in one line.

    Raises:
      UserError: no module can be built from the config.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # shapes that do not fit end in many kinds, of jax, flax and einops
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{where}: no model can be built with these sizes ({reason})") from error


def _problems(config: Any, path: str):
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{path}{field.name}"
        if dataclasses.is_dataclass(value):
            yield from _problems(value, f"{name}.")
        elif field.type in ("int", int):
            low, high = 0 if field.name in _FROM_ZERO else 1, _MOST_OF.get(field.name, _MOST)
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                yield f"{name} is {short(value)}, expected a whole number from {low} to {high}"
        elif field.type in ("float", float):
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or value <= 0:
                yield f"{name} is {short(value)}, expected a number over 0"
        elif field.type in ("bool", bool):
            if not isinstance(value, bool):
                yield f"{name} is {short(value)}, expected true or false"
        elif field.name in _CHOICES:
            if not isinstance(value, str) or value not in _CHOICES[field.name]:
                yield f"{name} is {short(value)}, expected one of {', '.join(_CHOICES[field.name])}"
        elif field.type in ("str", str) and not isinstance(value, str):
            yield f"{name} is {short(value)}, expected a text"
    sizes = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    if {"width", "heads"} <= sizes.keys() and "head_dim" not in sizes and sizes["width"] % sizes["heads"]:
        yield f"{path}heads is {sizes['heads']}, which does not divide the width {sizes['width']}"
    if {"image_size", "patch"} <= sizes.keys() and sizes["image_size"] < sizes["patch"]:
        yield f"{path}patch is {sizes['patch']}, larger than the image of {sizes['image_size']}"
    rows = getattr(sizes.get("lm"), "vocab", None)
    for name in ("image_token", "end_token", "pad_token"):
        if rows is not None and name in sizes and sizes[name] >= rows:
            yield f"{path}{name} is {sizes[name]}, beyond the {rows} rows of the word embedding"
    for name in ("eos", "pad", "start"):
        used = name != "eos" or sizes.get("pool") == "eos"
        if used and sizes.get(name, 0) >= sizes.get("vocab", _MOST):
            yield f"{path}{name} is {sizes[name]}, beyond the {sizes['vocab']} rows of the word embedding"
