"""Locating named objects in a picture: a VLM and its insert, in one call."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from input_pipeline.errors import UserError
from input_pipeline.images import open_image
from pin_jax import evaluate
from pin_jax.models.interface import Inserts
from pin_jax.vlm import VLM


@dataclasses.dataclass(frozen=True)
class Location:
    """Where a VLM says that something is.

    Attributes:
      name: what was asked for.
      box: x1, y1, x2, y2 in pixels of the picture that was given.
      text: what the language model wrote.
      parsed: whether that was a box; otherwise `box` is the grid's first cell.
      score: of a decoder on the grid (docs/decoding.md); 1 for `greedy` and `beam`.
    """

    name: str
    box: tuple[float, float, float, float]
    text: str
    parsed: bool
    score: float


def check_names(vlm: VLM, names: Sequence[str]) -> None:
    """Whether a VLM can be asked for names: a small one knows its own alone.

    Raises:
      UserError: no name, or an unknown one.
    """
    if not names or not all(name.strip() for name in names):
        raise UserError(f"names {list(names)}: expected one or more, such as 'cat'")
    for name in names:
        if vlm.names and name not in vlm.names:
            near = difflib.get_close_matches(name, vlm.names, 3, 0.5)
            hint = f"; near it: {', '.join(near)}" if near else f"; its {len(vlm.names)} names are in its model card"
            raise UserError(f"prompt {name!r}: the small VLM does not know that name{hint}")


def locate(
    vlm: VLM, inserts: Inserts, image: Any, names: Sequence[str], options: ConfigDict | dict[str, Any] | None = None
) -> list[Location]:
    """Asks a VLM where things are in a picture.

    Args:
      vlm: from `pin_jax.load_vlm`.
      inserts: of a trained method, from `pin_jax.load_adapter`; `Inserts()` asks the frozen VLM as it is.
      image: a path, a PIL image or uint8[H, W, 3].
      names: what to look for, one question each.
      options: as config.eval; by default greedy decoding on the grid of boxes, where every answer parses.

    Returns:
      One location a name, in their order.

    Raises:
      UserError: a picture that cannot be read, or a name that a small VLM does not know.
    """
    check_names(vlm, names)
    chosen = {"decoder": "grid_greedy", "beams": 3, "length_penalty": 1.0, "new_tokens": 12, "batch_size": len(names)}
    photo = open_image(image)
    size = vlm.codec.image_size
    square = np.asarray(photo.resize((size, size), Image.Resampling.BICUBIC))  # squashed, as in training and evaluation
    vision = evaluate.encode(vlm, [square], 1, inserts)
    questions = [(0, name) for name in names]
    answers = evaluate.locate(vlm, vision, questions, inserts, ConfigDict(chosen | dict(options or {})), "asking")
    scale = np.array([photo.width, photo.height] * 2) / size
    out = []
    for name, answer in zip(names, answers, strict=True):
        x1, y1, x2, y2 = (float(v) for v in answer.box * scale)
        out.append(Location(name, (x1, y1, x2, y2), answer.text, bool(answer.parsed), float(answer.score)))
    return out
