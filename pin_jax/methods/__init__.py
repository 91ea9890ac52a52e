"""Methods: parameters, and a pure function from them to `Inserts`; nothing else knows which method is trained.

A method is a frozen dataclass. Its first field, `config`, is the config of the VLM that it goes into; the others are
its options, numbers, booleans, strings or tuples with defaults. It has

  init(rng, frozen) -> parameters, a nested dict of float32 arrays. `frozen`: the VLM's own, or only their shapes.
  inserts(params, rng=None, images=1) -> Inserts. With an rng as in training (dropout), for a batch of that many images;
    without one as in use.

Where it acts need not be said: `Inserts.in_vision` follows from what it puts in.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import math
from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from input_pipeline.errors import UserError
from pin_jax.methods.combined import Combined
from pin_jax.methods.coop import CoOp
from pin_jax.methods.lora import LoraVision
from pin_jax.methods.pin import Pin
from pin_jax.methods.vpt import VptFusion, VptVision

METHODS = {"pin": Pin, "vpt_f": VptFusion, "vpt_v": VptVision, "coop": CoOp, "lora_v": LoraVision}


def _find(name: str) -> type:
    """The class of one method: a name of `METHODS`, or `module:Class` for one that is written elsewhere."""
    if name in METHODS:
        return METHODS[name]
    module, _, attribute = name.partition(":")
    if not attribute:
        near = difflib.get_close_matches(name, METHODS, 1, 0.0)
        raise UserError(
            f"config.method {name!r}: expected {', '.join(METHODS)}, some of them joined by +, or module:Class;"
            f" did you mean {near[0]}?"
        )
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"config.method {name!r}: cannot be imported ({error}); expected module:Class") from error


def _options(kind: type) -> dict[str, Any]:
    """A method's options with their defaults."""
    return {field.name: field.default for field in dataclasses.fields(kind) if field.name != "config"}


def _key(name: str) -> str:
    """What a method is called among several."""
    return name.rpartition(":")[2]


def defaults(name: str) -> dict[str, Any]:
    """The options of a method; of several, joined by +, those of each under its name.

    Raises:
      UserError: an unknown method.
    """
    parts = name.split("+")
    if len(parts) == 1:
        return _options(_find(name))
    return {_key(part): _options(_find(part)) for part in parts}


def build(name: str, config: Any, options: Mapping[str, Any] | None = None) -> Any:
    """A method.

    Args:
      name: of `METHODS`, `module:Class`, or several of them joined by +.
      config: of the VLM that it goes into.
      options: as in `defaults`; those not given have their defaults.

    Raises:
      UserError: an unknown method or option, a value of another type than its default, or one method twice.
    """
    parts, options = name.split("+"), dict(options or {})
    if len(parts) > 1:
        keys = [_key(part) for part in parts]
        if len(set(keys)) < len(keys):
            raise UserError(f"config.method {name!r}: the same method twice")
        _check(name, options, keys)
        for key, inner in options.items():
            if not isinstance(inner, Mapping | ConfigDict):
                raise UserError(f"method {name}: options of {key} are {inner!r}; expected an object of them")
        return Combined({_key(part): build(part, config, options.get(_key(part))) for part in parts})
    kind = _find(name)
    default = _options(kind)
    _check(name, options, default)
    return kind(config, **{k: _value(f"method {name}: option {k}", v, default[k]) for k, v in options.items()})


def names_module(name: str) -> list[str]:
    """Which of the methods that are joined by + are not built in: they would be imported by this name."""
    return [part for part in name.split("+") if part not in METHODS]


def _value(what: str, value: Any, default: Any) -> Any:
    """An option's value, lists as tuples, of its default's type; an int may stand for a float.

    Raises:
      UserError: another type, or NaN.
    """
    if isinstance(default, tuple):
        if not isinstance(value, list | tuple):
            raise UserError(f"{what} is {value!r}; expected several values, as {default!r}")
        return tuple(_value(what, one, default[0]) if default else one for one in value)
    kinds = {bool: (bool,), int: (int,), float: (int, float), str: (str,)}.get(type(default))
    if kinds is None:
        return tuple(value) if isinstance(value, list) else value
    wrong = not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)
    if wrong or (isinstance(value, float) and not math.isfinite(value)):
        raise UserError(f"{what} is {value!r}; expected a {type(default).__name__}, as {default!r}")
    return value


def _check(name: str, options: Mapping[str, Any], known: Any) -> None:
    for option in options.keys() - set(known):
        raise UserError(
            f"method {name} has no option {option!r}; expected {', '.join(known) or 'none'}; the variant"
            f" --config=FILE:method={name} chooses a method together with its options"
        )


def shapes(method: Any, frozen: Any = None) -> Any:
    """Shapes and dtypes of a method's parameters, without computing any; `frozen` as in its `init`."""
    return jax.eval_shape(lambda rng: method.init(rng, frozen), jax.random.key(0))


def describe(method: Any) -> tuple[str, dict[str, Any]]:
    """Name and options of a method: what `build` makes it from."""
    if isinstance(method, Combined):
        parts = {key: describe(part) for key, part in method.parts.items()}
        return "+".join(name for name, _ in parts.values()), {key: options for key, (_, options) in parts.items()}
    kind = type(method)
    name = next((name for name, known in METHODS.items() if known is kind), f"{kind.__module__}:{kind.__qualname__}")
    return name, {option: getattr(method, option) for option in _options(kind)}
