"""Prefetching: batches are prepared and sent to the devices ahead of the step, in a background thread."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


@contextlib.contextmanager
def prefetched(make: Callable[[], T], count: int = 2) -> Iterator[Callable[[], T]]:
    """A context that gives what `make` returns, call after call and in order, `count` results ahead.

    Yields:
      A function that returns the next one, or raises what `make` raised for it.
    """
    with ThreadPoolExecutor(1, "prefetch") as thread:
        ahead = collections.deque(thread.submit(make) for _ in range(count))

        def take() -> T:
            first = ahead.popleft()
            ahead.append(thread.submit(make))
            return first.result()

        try:
            yield take
        finally:
            thread.shutdown(cancel_futures=True)
