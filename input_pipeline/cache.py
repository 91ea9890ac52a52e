"""A bounded memory of what was read or computed: the least recently used goes first."""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable, Hashable
from typing import Any


class Cache:
    """Keeps values up to a budget; safe in threads; pickles empty, so that workers fill their own.

    Attributes:
      budget: of the values' costs, such as bytes.
    """

    def __init__(self, budget: int):
        self.budget = budget
        self._start()

    def _start(self) -> None:
        self._held: collections.OrderedDict[Hashable, tuple[Any, int]] = collections.OrderedDict()
        self._cost, self._lock = 0, threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"budget": self.budget}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.budget = state["budget"]
        self._start()

    def __len__(self) -> int:
        return len(self._held)

    def get(self, key: Hashable, make: Callable[[], Any], cost: Callable[[Any], int] = lambda value: 1) -> Any:
        """The value of a key, made where it is not held."""
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key][0]
        value = make()
        price = cost(value)
        with self._lock:
            if key not in self._held and price <= self.budget:
                self._held[key] = value, price
                self._cost += price
                while self._cost > self.budget:
                    self._cost -= self._held.popitem(last=False)[1][1]
        return value


def picture_bytes(image: Any) -> int:
    """Cost of a PIL image."""
    return image.width * image.height * len(image.getbands()) + 200
