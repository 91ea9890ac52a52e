"""Where something was found in a picture, whoever found it: PIN and GEM answer with the same `Found`."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from input_pipeline.images import Picture, open_image
from pin_jax.scoring.labels import COLOURS, INKS, place_labels

CERTAIN = 1.0  # the score of who gives none


@dataclasses.dataclass(frozen=True)
class Found:
    """Where something is.

    Attributes:
      name: what was asked for.
      box: x1, y1, x2, y2 in pixels of the picture that was given.
      score: how sure the answer is, the more the surer: of PIN what its decoder gives, the box's expected IoU or its
        probability (docs/decoding.md), and 1 where it gives none; of GEM the highest cosine of the name's map.
      text: what the language model wrote; empty where there is none (GEM).
      parsed: whether that was a box; otherwise `box` is the grid's first cell.
    """

    name: str
    box: tuple[float, float, float, float]
    score: float = CERTAIN
    text: str = ""
    parsed: bool = True


def scaled(box: np.ndarray, scale: Sequence[float]) -> tuple[float, float, float, float]:
    """A box float[4] in other pixels, those of x and y so many times as small, as Python's own numbers."""
    x1, y1, x2, y2 = (float(v) for v in np.asarray(box, float) * np.array([*scale, *scale]))
    return x1, y1, x2, y2


def draw(image: Picture, found: Sequence[Found]) -> Image.Image:
    """The picture with its boxes and their names, each with its score if there is one.

    Lines and letters grow with the picture; no name hides another as long as there is room.

    Raises:
      UserError: a picture that cannot be read.
    """
    photo = open_image(image).copy()
    pen, side = ImageDraw.Draw(photo), min(photo.size)
    width, pad = max(2, round(side / 200)), max(1, round(side / 250))
    font = ImageFont.load_default(size=max(9, side / 28))
    for k, at in enumerate(found):
        x1, y1, x2, y2 = at.box
        edge = (x1, y1, max(x1, x2 - 1), max(y1, y2 - 1))
        pen.rectangle(edge, outline="white", width=width + 2)  # a white edge keeps it legible on any photograph
        inner = (edge[0] + 1, edge[1] + 1, max(edge[0] + 1, edge[2] - 1), max(edge[1] + 1, edge[3] - 1))
        pen.rectangle(inner, outline=COLOURS[k % len(COLOURS)], width=width)
    texts = [at.name if at.score == CERTAIN else f"{at.name} {at.score:.2f}" for at in found]
    texts = [textwrap.fill(text, 38) for text in texts]
    extents = np.array([pen.multiline_textbbox((0, 0), text, font=font) for text in texts]).reshape(-1, 4)
    sizes = extents[:, 2:] + 2 * pad
    corners = place_labels(np.array([at.box[:2] for at in found]).reshape(-1, 2), sizes, photo.size)
    for k, (text, (x, y), (wide, high)) in enumerate(zip(texts, corners, sizes, strict=True)):
        pen.rectangle((x, y, x + wide, y + high), fill=COLOURS[k % len(COLOURS)])
        pen.multiline_text((x + pad, y + pad), text, fill=INKS[k % len(INKS)], font=font)
    return photo
