"""Variants behind the colon of --config: a model, and options, separated by commas: `tiny,method=vpt_v,grid=8`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def parse(variant: str, models: Iterable[str], options: Iterable[str]) -> tuple[str, dict[str, str]]:
    """Takes a variant apart.

    Args:
      variant: as given. models: known ones; the first is the default. options: known ones.

    Returns:
      The model, and the value of each option that was given.

    Raises:
      ValueError: in one line, what is unknown or said twice.
    """
    models, options = list(models), list(options)
    model, given = "", {}
    for item in filter(None, (part.strip() for part in variant.split(","))):
        name, is_option, value = item.partition("=")
        known = options if is_option else models
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, 0.0)
            kind = "option" if is_option else "variant"
            raise ValueError(
                f"no {kind} {name!r}; expected {', '.join(known) or 'none'}{f'; did you mean {near[0]}?' if near else ''}"
            )
        if is_option and not value:
            raise ValueError(f"option {name!r} has no value; write {name}=VALUE")
        if name in given or (model and not is_option):
            raise ValueError(f"{item!r} comes after {model or name!r}; give one")
        if is_option:
            given[name] = value
        else:
            model = name
    return model or models[0], given
