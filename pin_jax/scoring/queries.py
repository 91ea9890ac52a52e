"""Box queries and their answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass
class Query:
    """One box question.

    Attributes:
      image: index of the scene. name: what is asked for. box: float[4], the truth in pixels.
      others: float[k, 4], the image's other objects.
    """

    image: int
    name: str
    box: np.ndarray
    others: np.ndarray


@dataclasses.dataclass
class Answer:
    """What was written: the raw text, the box float[4] read from it, whether it parsed, and how sure the decoder is.

    The score is 1 where a decoder gives none; see `pin_jax.decoding.grid.answer`.
    """

    text: str
    box: np.ndarray
    parsed: bool
    score: float = 1.0


def of_records(records: Sequence[dict[str, Any]]) -> list[Query]:
    """Every object of every record is one query; several phrases may be about the same object, by its `ids`."""
    return [
        Query(i, name, box, record["boxes"][[other != own for other in ids]])
        for i, record in enumerate(records)
        for ids in [record.get("ids", range(len(record["query_text"])))]
        for name, box, own in zip(record["query_text"], record["boxes"], ids, strict=True)
    ]
