"""The type, range and help text of one config entry."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Collection
from typing import Any

LARGE = 10**9


@dataclasses.dataclass(frozen=True)
class Entry:
    """Attributes:
    expected: what it may be, in words. help: what it is. accepts: whether a value is one.
    """

    expected: str
    help: str
    accepts: Callable[[Any], bool]


def _is_number(value: Any, whole: bool = False) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, int) if whole else math.isfinite(value)


def whole(low: int, high: int, help: str, also: Collection[int] = ()) -> Entry:
    """A whole number from low to high, or one of `also`."""
    more = "".join(f"{number}, or " for number in also)
    return Entry(
        f"{more}a whole number from {low:,} to {high:,}", help,
        lambda value: _is_number(value, True) and (low <= value <= high or value in also),
    )  # fmt: skip


def number(low: float, high: float, help: str, above: bool = False) -> Entry:
    """A finite number from low (or above it) to high."""
    return Entry(
        f"a number {'above' if above else 'from'} {low:g} to {high:g}", help,
        lambda value: _is_number(value) and low <= value <= high and not (above and value == low),
    )  # fmt: skip


def share(help: str) -> Entry:
    """A number from 0 to 1."""
    return number(0, 1, help)


def flag(help: str) -> Entry:
    """True or False."""
    return Entry("True or False", help, lambda value: isinstance(value, bool))


def text(help: str, empty: bool = True) -> Entry:
    """A text."""
    return Entry(
        "a text" if empty else "a text that is not empty", help,
        lambda value: isinstance(value, str) and "\0" not in value and (empty or bool(value.strip())),
    )  # fmt: skip


def one_of(choices: Collection[str], help: str) -> Entry:
    """One of some words; an empty one is `none`."""
    said = ", ".join(choice or "'' (none)" for choice in choices)
    return Entry(f"one of {said}", help, lambda value: isinstance(value, str) and value in choices)


def several(each: Entry, help: str, least: int = 0, most: int = 64) -> Entry:
    """A tuple or list of them."""
    count = f"{least}" if least == most else f"{least} to {most}"
    return Entry(
        f"a tuple of {count}, each {each.expected}", help,
        lambda value: isinstance(value, tuple | list) and least <= len(value) <= most and all(map(each.accepts, value)),
    )  # fmt: skip


def span(low: int, high: int, help: str) -> Entry:
    """Two whole numbers, the second not below the first."""
    ends = several(whole(low, high, ""), help, 2, 2)
    return Entry(
        f"two whole numbers from {low} to {high}, the second not below the first", help,
        lambda value: ends.accepts(value) and value[0] <= value[1],
    )  # fmt: skip


def either(first: Entry, second: Entry) -> Entry:
    """One or the other."""
    return Entry(
        f"{first.expected}; or {second.expected}", first.help,
        lambda value: first.accepts(value) or second.accepts(value),
    )  # fmt: skip


def or_none(entry: Entry) -> Entry:
    """The same, or None, which keeps what another config says."""
    return Entry(f"None, or {entry.expected}", entry.help, lambda value: value is None or entry.accepts(value))


def option(help: str) -> Entry:
    """Of a method that one has written: a number, a flag, a text, or a tuple of them."""
    simple = Entry(
        "a number, True or False, or a text", help, lambda v: _is_number(v) or isinstance(v, bool | str)
    )  # fmt: skip
    return either(simple, several(simple, help))


def anything(help: str) -> Entry:
    """What is checked elsewhere."""
    return Entry("checked with the config that it goes into", help, lambda value: True)


def is_rule(value: Any) -> bool:
    """Whether it is a rule of sharding: a regular expression, and an axis or None for each of the last dimensions."""
    if not isinstance(value, tuple | list) or len(value) != 2 or not isinstance(value[0], str):
        return False
    try:
        re.compile(value[0])
    except re.error:
        return False
    return isinstance(value[1], tuple | list) and all(axis is None or isinstance(axis, str) for axis in value[1])
