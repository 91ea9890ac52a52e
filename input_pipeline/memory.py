"""An in-memory LRU cache with a byte budget (cachetools), thread-safe and empty in a new process."""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable
from typing import Any

import cachetools


class Memory(cachetools.LRUCache):
    """A cache that pickles empty, so that workers fill their own; `remembered` locks it.

    Args:
      budget: of the values' costs, such as bytes. cost: of a value; 1 each by default.
    """

    def __init__(self, budget: int, cost: Callable[[Any], int] | None = None):
        super().__init__(budget, cost)
        self.lock, self.cost = threading.Lock(), cost

    def __reduce__(self):
        return Memory, (self.maxsize, self.cost)


# A method whose results are kept in the object's `_memory`, by its arguments.
remembered = cachetools.cachedmethod(operator.attrgetter("_memory"), lock=operator.attrgetter("_memory.lock"))


def picture_bytes(image: Any) -> int:
    """Cost of a PIL image."""
    return image.width * image.height * len(image.getbands()) + 200
