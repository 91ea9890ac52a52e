"""The first training batch as a picture: what the VLM is shown, asked and taught, read back from the tokens."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from input_pipeline.text.box_codec import BoxCodec
from pin_jax.scoring import figures

SHOWN = 8


def texts(batch: Mapping[str, np.ndarray], tokenizer: Any, hidden: Sequence[int]) -> list[list[tuple[str, str]]]:
    """What is read and what is taught of each question of each picture, as text; rows without targets are left out.

    Args:
      batch: ids, target and perhaps labels, int or float[B, Q, T], and opening int[B, S] and told int[B, C], as
        `BoxQuestions` makes them.
      hidden: tokens that are not shown: padding, the image's places.
    """

    def decode(tokens: np.ndarray) -> str:
        return tokenizer.decode([int(token) for token in tokens if token not in hidden])

    written = batch.get("labels", batch["ids"])
    none = np.zeros((len(written), 0), np.int32)
    openings = np.concatenate([batch.get("told", none), batch.get("opening", none)], 1)
    found = []
    for opening, ids, labels, target in zip(openings, batch["ids"], written, batch["target"], strict=True):
        rows = []
        for read, answer, counts in zip(ids, labels, target, strict=True):
            if counts.any():
                before = read if "labels" in batch else read[: int(counts.argmax())]
                rows.append((decode(np.concatenate([opening, before])), decode(answer[counts > 0])))
        found.append(rows)
    return found


def draw(
    path: os.PathLike[str],
    images: Sequence[np.ndarray],
    batch: Mapping[str, np.ndarray],
    tokenizer: Any,
    codec: BoxCodec,
    hidden: Sequence[int],
) -> None:
    """Saves the first pictures uint8[H, W, 3] of a batch, each with its questions, their answers and boxes."""
    rows = texts(batch, tokenizer, hidden)[:SHOWN]
    titles = ["\n".join(f"{i + 1}: {read} |{answer}" for i, (read, answer) in enumerate(row)) for row in rows]
    boxes = [[codec.decode(f" {answer.lstrip()}")[0] for _, answer in row] for row in rows]
    names = [[str(i + 1) for i in range(len(row))] for row in rows]
    figures.predictions(path, images[: len(rows)], titles, names, boxes, columns=4)
