"""Preemption: on SIGTERM all processes of a training run save the same step; the exit status is always 143.

In a run of several processes JAX's preemption service catches the signal, whoever gets it, and lets all of them agree
on one point. It counts that point by calls, so every process must ask at the same places and in the same order. A
process alone has no such service: there a Python handler stands in for it, within the contexts below only.
"""

from __future__ import annotations

import contextlib
import itertools
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

STATUS = 128 + signal.SIGTERM  # what a shell says of a process that SIGTERM ended
_calls = itertools.count(1)  # of this process: JAX's service is one for the process too
_asked = threading.Event()
_waiting: list[None] = []  # one for each `waits` that is open


class Preempted(SystemExit):
    """Ends a run after SIGTERM, with the status 143."""

    def __init__(self):
        super().__init__(STATUS)


def reached() -> bool:
    """Whether SIGTERM asks for an end here, the same answer on every process; all of them must ask."""
    if jax.distributed.is_initialized():
        return multihost_utils.reached_preemption_sync_point(next(_calls))
    return _asked.is_set()


def check() -> None:
    """Ends the run here after SIGTERM: for loops that have nothing to save; every process must come by.

    Within `waits` it does nothing: who waits has something to save.

    Raises:
      Preempted: with the status 143.
    """
    if not _waiting and reached():
        raise Preempted


@contextlib.contextmanager
def _handler(of_signal: Callable[[int, Any], None]) -> Iterator[None]:
    alone = not jax.distributed.is_initialized() and threading.current_thread() is threading.main_thread()
    if not alone:
        yield
        return
    former = signal.signal(signal.SIGTERM, of_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)


def ends_at_once() -> contextlib.AbstractContextManager[None]:
    """A context in which SIGTERM ends a process that is alone where it stands, files closed and its lock given up."""

    def end(*_: Any) -> None:
        raise Preempted

    return _handler(end)


@contextlib.contextmanager
def waits() -> Iterator[None]:
    """A context in which SIGTERM waits until `reached` or `check` is asked."""
    _asked.clear()
    _waiting.append(None)
    try:
        with _handler(lambda *_: _asked.set()):
            yield
    finally:
        _waiting.pop()
        _asked.clear()
