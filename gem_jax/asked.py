"""What is asked for: names as users give them, one list for all pictures or a list for each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from input_pipeline.errors import UserError


def names(prompts: Iterable[str]) -> list[str]:
    """One list of names, without the space around them.

    Raises:
      UserError: a text instead of a list, no name, or an empty one.
    """
    if isinstance(prompts, str):
        raise UserError(f"prompts {prompts!r}: expected a list of names, such as [{prompts!r}]")
    prompts = list(prompts)
    if not prompts or any(not isinstance(p, str) or not p.strip() for p in prompts):
        raise UserError(f"prompts {prompts}: expected names, none of them empty, such as ['cat', 'remote control']")
    return [p.strip() for p in prompts]


def lists(prompts: Any, count: int) -> list[list[str]]:
    """A list of names for each of `count` pictures.

    Raises:
      UserError: as `names`, or another number of lists.
    """
    if isinstance(prompts, str):
        return [names(prompts)]  # which refuses it
    prompts = list(prompts)
    if not prompts or isinstance(prompts[0], str):
        return [names(prompts)] * count
    if len(prompts) != count:
        raise UserError(f"prompts: {len(prompts)} lists for {count} images; give one each, or one list of names")
    return [names(own) for own in prompts]
