"""Bad records: skipped and counted by name, or refused at the first, as `config.on_bad_record` says.

A record of a source is a dict: image uint8[H, W, 3]; image_id; and of what it has a truth for
boxes float32[n, 4] (x1, y1, x2, y2 in pixels), names and said (n category names, and what the objects are asked for
by), masks bool[n, H, W], labels int32[H, W], points.
"""

from __future__ import annotations

import collections
import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from input_pipeline.errors import UserError

MODES = ("skip", "refuse")
SHOWN = 20  # lines of one kind; the others are counted


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class BadRecordLog:
    """Counts bad records by kind, and says each in one line.

    Attributes:
      mode: `skip` goes on without them; `refuse` raises the first.
      counts: kind -> number. lines: what was wrong, one line each, and its kind; what is met again counts once.
    """

    def __init__(self, mode: str = "skip", say: Callable[[str], None] = _to_stderr):
        if mode not in MODES:
            raise UserError(f"config.on_bad_record {mode!r}: expected {' or '.join(MODES)}")
        self.mode, self.say = mode, say
        self.counts: collections.Counter[str] = collections.Counter()
        self.lines: dict[str, str] = {}

    def add(self, error: UserError) -> None:
        """Takes a bad record.

        Raises:
          UserError: the same, with `refuse`.
        """
        if self.mode == "refuse":
            raise UserError(f"{error} (or leave such records out: --config.on_bad_record=skip)", error.kind) from error
        if str(error) in self.lines:
            return
        self.counts[error.kind] += 1
        self.lines[str(error)] = error.kind
        if self.counts[error.kind] <= SHOWN:
            self.say(f"skipped ({error.kind}): {error}")
        elif self.counts[error.kind] == SHOWN + 1:
            self.say(f"skipped ({error.kind}): more of them, which are counted only")

    @contextlib.contextmanager
    def guard(self, where: str) -> Iterator[None]:
        """Takes what goes wrong inside: a `UserError` as it is, a wrong type or a missing entry as `wrong type`."""
        try:
            yield
        except UserError as error:
            self.add(error)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
            self.add(UserError(f"{where}: {type(error).__name__} {error}; expected its published form", "wrong type"))

    def take(self, lines: Mapping[str, str]) -> None:
        """Counts what others have found, without saying it: lines, each with its kind."""
        for line, kind in lines.items():
            self.counts[kind] += line not in self.lines
            self.lines[line] = kind

    def report(self) -> str:
        """`3 missing image, 1 wrong type`, or an empty text."""
        return ", ".join(f"{count} {kind}" for kind, count in sorted(self.counts.items()))

    def summary(self) -> dict[str, Any]:
        """Counts and lines, for results.json."""
        return {"counts": dict(self.counts), "lines": list(self.lines)}


def good_box(box: Any, width: int, height: int, where: str) -> np.ndarray:
    """A box float32[4] (x1, y1, x2, y2) cut to its image.

    Raises:
      UserError: not four finite numbers, inverted or empty, or wholly outside the image.
    """
    numbers = [float(v) for v in box] if not isinstance(box, str | bytes) else []
    if len(numbers) != 4 or any(isinstance(v, str | bool) for v in box) or not np.isfinite(numbers).all():
        raise UserError(f"{where}: box {box!r}; expected four numbers", "wrong type")
    x1, y1, x2, y2 = numbers
    if x1 >= x2 or y1 >= y2:
        raise UserError(f"{where}: box {numbers} is inverted or empty; expected x1 < x2 and y1 < y2", "inverted box")
    if x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
        raise UserError(f"{where}: box {numbers} is outside its image of {width} x {height}", "box outside")
    return np.array([max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)], np.float32)


def walk(
    source: Any, bad_records: BadRecordLog, limit: int | None = None, first: int = 0, step: int = 1
) -> Iterator[dict[str, Any]]:
    """The good records of a random-access source, or of its first `limit`, in order; bad ones go to the bad_records.

    Args:
      first, step: only every `step`-th from the `first` on.
    """
    for index in range(first, len(source) if limit is None else limit, step):
        try:
            record = source[index]
        except UserError as error:
            bad_records.add(error)
            continue
        yield record
