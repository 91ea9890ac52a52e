"""Looks: what can be said of a pasted object without saying where it is (only the small models' captions use them).

A look has four slots, each a word: size, tint, pattern and border. Words are the only thing that captions say about a
picture; no number and no position is ever tied to an image.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageFilter

SIZES = ("tiny", "small", "big", "huge")
COLOURS = {
    "red": (225, 30, 40), "orange": (255, 140, 0), "yellow": (250, 225, 30), "green": (30, 165, 60),
    "blue": (30, 80, 225), "purple": (140, 40, 190), "white": (245, 245, 245), "black": (20, 20, 20),
}  # fmt: skip
NONE = "plain"
PATTERNS = ("striped", "dotted")
DRAWN = ("colour", "pattern", "border")
SLOTS = {"size": SIZES, "colour": (NONE, *COLOURS), "pattern": (NONE, *PATTERNS), "border": (NONE, *COLOURS)}


@dataclasses.dataclass(frozen=True)
class Look:
    """One object's look; every field is a word of `SLOTS`."""

    size: str
    colour: str = NONE
    pattern: str = NONE
    border: str = NONE

    def words(self) -> tuple[str, str, str, str]:
        return self.size, self.colour, self.pattern, self.border

    def indices(self) -> list[int]:
        """Position of each word in its slot's list: int[4]."""
        return [options.index(word) for options, word in zip(SLOTS.values(), self.words(), strict=True)]


def size_word(w: int, h: int, grid: int) -> str:
    """The size word of a box of w x h cells: by the geometric mean of its sides, at .3, .45 and .65 of the image."""
    share = (w * h) ** 0.5 / grid
    return SIZES[int(np.searchsorted((0.30, 0.45, 0.65), share))]


def pair_split(name: str, colour: str) -> str:
    """`train` or `held_out`: of the eight tints of every name two are held out, which ones by a hash of the name."""
    return "held_out" if (zlib.crc32(name.encode()) + tuple(COLOURS).index(colour)) % 4 == 0 else "train"


def tints(name: str, pairs: str) -> tuple[str, ...]:
    """The tints of a name that a split of pairs (`train`, `held_out` or `all`) allows."""
    return tuple(colour for colour in COLOURS if pairs in ("all", pair_split(name, colour)))


def draw(
    rng: np.random.Generator,
    w: int,
    h: int,
    grid: int,
    share: float,
    slots: Sequence[str] = DRAWN,
    colours: Sequence[str] = tuple(COLOURS),
) -> Look:
    """A random look for an object of w x h cells.

    Args:
      share: probability that a slot is given at all. slots: those that may be given; the size always is.
      colours: tints to choose from.
    """
    words = {}
    for slot in slots:
        options = colours if slot == "colour" else SLOTS[slot][1:]
        chosen = options[int(rng.integers(len(options)))]
        words[slot] = chosen if rng.random() < share else NONE
    return Look(size_word(w, h, grid), **words)


def apply(image: Image.Image, look: Look, size: tuple[int, int]) -> Image.Image:
    """Renders a look on an RGBA cut-out.

    The border is drawn inside `size`, so that the box stays what the layout says.

    Args:
      image: RGBA, any size.
      look: what to render.
      size: pixels (width, height) of the result.
    """
    ring = max(2, round(max(size) * 0.05)) if look.border != NONE else 0
    inner = (max(1, size[0] - 2 * ring), max(1, size[1] - 2 * ring))
    sprite = image.resize(inner, Image.Resampling.BILINEAR)
    rgba = np.array(sprite, np.float32)
    if look.colour != NONE:
        rgba[..., :3] = 0.45 * rgba[..., :3] + 0.55 * np.array(COLOURS[look.colour], np.float32)
    if look.pattern != NONE:
        rgba[..., :3] = _paint_pattern(rgba[..., :3], look.pattern)
    sprite = Image.fromarray(rgba.clip(0, 255).astype(np.uint8), "RGBA")
    if not ring:
        return sprite
    alpha = Image.new("L", size, 0)
    alpha.paste(sprite.getchannel("A").point([255 * (a >= 96) for a in range(256)]), (ring, ring))
    canvas = Image.new("RGBA", size, (*COLOURS[look.border], 255))
    canvas.putalpha(alpha.filter(ImageFilter.MaxFilter(2 * ring + 1)))
    canvas.alpha_composite(sprite, (ring, ring))
    return canvas


def _paint_pattern(rgb: np.ndarray, pattern: str) -> np.ndarray:
    """Dark diagonal stripes or light dots, about 8 pixels apart, on float[H, W, 3]."""
    y, x = np.mgrid[: rgb.shape[0], : rgb.shape[1]]
    if pattern == "striped":
        return np.where(((x + y) % 8 < 3)[..., None], rgb * 0.25, rgb)
    on = ((x % 8 - 4) ** 2 + (y % 8 - 4) ** 2) <= 5
    return np.where(on[..., None], 0.2 * rgb + 0.8 * 255, rgb)


def called(name: str, look: Look | None) -> str:
    """What an object is called: its name with the words for its tint and pattern, `red striped cat`."""
    words = () if look is None else (look.colour, look.pattern)
    return " ".join([*(word for word in words if word != NONE), name])
