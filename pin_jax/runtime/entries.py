"""Config entries: comma-separated lists, and entries that must match on resume."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from input_pipeline.errors import UserError


def listed(given: str | Sequence[str]) -> list[str]:
    """`a,b`, or a sequence of names, as a list without empty ones."""
    parts = given.split(",") if isinstance(given, str) else given
    return [part.strip() for part in parts if part.strip()]


def refuse_another(workdir: os.PathLike[str], theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
    """Refuses a workdir whose config is another one, in any entry of mine.

    Raises:
      UserError: names the entries.
    """
    different = [f"{key} {theirs.get(key)!r} there, {mine[key]!r} here" for key in mine if theirs.get(key) != mine[key]]
    if different:
        raise UserError(
            f"workdir {workdir} belongs to another config: {'; '.join(different)}; choose another --workdir"
        )
