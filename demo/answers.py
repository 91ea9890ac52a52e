"""What the page shows of one picture: PIN's boxes, its probabilities, GEM's and CLIP's heat maps, the raw VLM's boxes.

Nothing here knows of the page; `demo/page.py` does.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import pathlib
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageOps

from gem_jax import GEM
from input_pipeline.errors import UserError
from input_pipeline.images import open_image
from pin_jax import PIN, Found
from pin_jax.weights import published

SIDE = 1024  # pixels: photos are shrunk to this longer side
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
# As the small CLIP was taught, and with a fixed temperature, which it needs (docs/gem.md).
_TINY = {"size": 160, "templates": ("A photo of {article} {}.",), "temperature": 10.0}
# name on the page -> VLM, image-text model, and the options of GEM
SMALL = {
    "small Flamingo": ("tiny_flamingo", "assets/tiny_clip", _TINY),
    "small BLIP-2": ("tiny_blip2", "assets/tiny_clip", _TINY),
}
CLIP = "openai/clip-vit-base-patch16"


def choices() -> dict[str, tuple[str, str, dict[str, Any]]]:
    """The models that can be chosen: the small ones, and published ones whose files are in the hub's cache."""
    found: dict[str, tuple[str, str, dict[str, Any]]] = dict(SMALL)
    if _cached(CLIP):
        for models in (published.BLIP2, published.SMOLVLM):
            found |= {vlm.id: (vlm.id, CLIP, {}) for vlm in models.values() if _cached(vlm.id)}
    return found


def _cached(repo: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(repo, "config.json"), str)


class Models:
    """The models of the page, read when they are first asked for; threads may ask at the same time."""

    def __init__(self, known: Mapping[str, tuple[str, str, dict[str, Any]]], inserts: Mapping[str, str] | None = None):
        self.known, self._inserts = dict(known), dict(inserts or {})
        self._lock = threading.Lock()
        self._held: dict[str, tuple[PIN, PIN, GEM, GEM]] = {}

    def __getitem__(self, name: str) -> tuple[PIN, PIN, GEM, GEM]:
        """PIN, the raw VLM, GEM and plain CLIP.

        Raises:
          UserError: no such model, or its files cannot be read.
        """
        if name not in self.known:
            raise UserError(f"model {name!r}: expected one of {', '.join(self.known)}")
        with self._lock:
            if name not in self._held:
                vlm, clip, options = self.known[name]
                pin = PIN.from_pretrained(vlm, insert=self._inserts.get(name))
                raw = PIN(pin.vlm, pin.config)  # the same weights, no insert
                gem = GEM.from_pretrained(clip, **options)
                self._held[name] = pin, raw, gem, GEM(gem.model, attention="clip", **_without_temperature(options))
            return self._held[name]


def _without_temperature(options: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key != "temperature"}


@dataclasses.dataclass(frozen=True)
class Answer:
    """Of one picture: boxes of PIN and of the raw VLM, and heat maps float32[H, W] from 0 to 1 by method and name."""

    picture: Image.Image
    names: list[str]
    pin: list[Found]
    raw: list[Found]
    heat: dict[str, list[np.ndarray]]


def names_of(text: str, most: int) -> list[str]:
    """Names between commas.

    Raises:
      UserError: none, or too many of them.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise UserError("no name: write what to look for, such as: cat, red apple")
    if len(names) > most:
        raise UserError(f"{len(names)} names: at most {most} at a time")
    if long := next((name for name in names if len(name) > 80), ""):
        raise UserError(f"the name {long[:40]!r}... has {len(long)} letters: at most 80")
    return names


def photo_of(path: str | pathlib.Path, most_pixels: int) -> Image.Image:
    """An uploaded file as a picture, upright, shrunk to `SIDE` pixels.

    Raises:
      UserError: no JPEG, PNG or WebP, a broken one, or one of too many pixels. It is checked before it is decoded.
    """
    path = pathlib.Path(path)
    try:
        with Image.open(path, formats=("JPEG", "PNG", "WEBP")) as image:
            width, height = image.size
    except Image.DecompressionBombError as error:
        raise UserError(f"{path.name}: too many pixels; at most {most_pixels:,} are taken") from error
    except Exception as error:  # PIL raises many kinds for what is no picture
        raise UserError(f"{path.name}: not a picture that can be read; give a JPEG, PNG or WebP") from error
    if width * height > most_pixels:
        raise UserError(f"{path.name}: {width} x {height} pixels; at most {most_pixels:,} are taken, shrink it")
    try:
        picture = open_image(path)
    except UserError as error:  # which names the whole path
        raise UserError(f"{path.name}: not a picture that can be read; give an intact JPEG, PNG or WebP") from error
    return ImageOps.contain(picture, (SIDE, SIDE)) if max(picture.size) > SIDE else picture


def answer(models: Models, model: str, picture: Image.Image, names: Sequence[str]) -> Answer:
    """Asks all methods of a model.

    Raises:
      UserError: a name that a small model does not know.
    """
    pin, raw, gem, clip = models[model]
    names = list(names)
    found, without = pin.locate(picture, names)[0], raw.locate(picture, names)[0]
    size = (picture.height, picture.width)
    heat = {"PIN": [pin.distribution(picture, name) for name in names]}
    for title, method in (("GEM", gem), ("CLIP", clip)):
        maps = method.maps(picture, names)
        low, high = (f(maps, axis=(1, 2), keepdims=True) for f in (np.min, np.max))
        heat[title] = list((maps - low) / np.maximum(high - low, 1e-6))
    assert all(one.shape == size for maps in heat.values() for one in maps)
    return Answer(picture, names, found, without, heat)


def overlay(picture: Image.Image, heat: np.ndarray) -> Image.Image:
    """A heat map laid over its picture, in a palette that the colour-blind read."""
    colours = matplotlib.colormaps["cividis"](np.clip(heat, 0, 1))[..., :3] * 255
    share = 0.25 + 0.5 * np.clip(heat, 0, 1)[..., None]
    return Image.fromarray(((1 - share) * np.asarray(picture, np.float32) + share * colours).round().astype(np.uint8))


def panels(found: Answer) -> list[tuple[Image.Image, str]]:
    """The pictures of the page with what stands below each."""
    rows = [
        (found.picture, "the picture"),
        (PIN.draw(found.picture, found.pin), "PIN: what the language model writes"),
        (PIN.draw(found.picture, found.raw), "the same model without PIN"),
    ]
    titles = {"PIN": "PIN: probability to be inside of", "GEM": "GEM:", "CLIP": "plain CLIP:"}
    for k, name in enumerate(found.names):
        rows += [(overlay(found.picture, found.heat[key][k]), f"{title} {name}") for key, title in titles.items()]
    return rows


def sheet(rows: Sequence[tuple[Image.Image, str]], side: int = 320, columns: int = 3) -> bytes:
    """All panels on one sheet, with their titles, as a PNG."""
    line = 22
    lines = -(-len(rows) // columns)
    out = Image.new("RGB", (columns * side, lines * (side + line)), "white")
    pen = ImageDraw.Draw(out)
    for k, (picture, title) in enumerate(rows):
        small = ImageOps.contain(picture, (side, side))
        x, y = k % columns * side, k // columns * (side + line)
        out.paste(small, (x + (side - small.width) // 2, y + line + (side - small.height) // 2))
        pen.text((x + 4, y + 4), title[:52], fill="black")
    held = io.BytesIO()
    out.save(held, "PNG", optimize=True)
    return held.getvalue()


def coco(found: Answer, file_name: str = "photo.png") -> str:
    """PIN's boxes in COCO's form, as JSON; boxes are x, y, width, height in pixels."""
    categories = {name: k for k, name in enumerate(dict.fromkeys(found.names), 1)}
    boxes = []
    for k, at in enumerate(found.pin, 1):
        x1, y1, x2, y2 = (round(float(v), 2) for v in at.box)
        box = [x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)]
        boxes.append({"id": k, "image_id": 1, "category_id": categories[at.name], "bbox": box,
                      "area": round(box[2] * box[3], 2), "iscrowd": 0, "score": round(float(at.score), 4)})  # fmt: skip
    image = {"id": 1, "file_name": file_name, "width": found.picture.width, "height": found.picture.height}
    whole = {"images": [image], "categories": [{"id": k, "name": name} for name, k in categories.items()]}
    return json.dumps(whole | {"annotations": boxes}, indent=1)


@functools.cache
def stickers() -> dict[str, int]:
    """Names of the stickers -> their place among the cut-outs."""
    return {name: k for k, name in enumerate(_cutouts().names)}


@functools.cache
def _cutouts() -> Any:
    from input_pipeline.pasted import cutouts

    return cutouts.load("twemoji", "all")


@functools.cache
def _backgrounds() -> Any:
    from input_pipeline.pasted import backgrounds

    return backgrounds.load("photos", "held_out")


def background_count() -> int:
    """How many backgrounds there are to drop stickers on."""
    return len(_backgrounds())


def compose(background: int, dropped: Sequence[tuple[str, float, float, float]], side: int = 480) -> Image.Image:
    """A photograph with stickers on it.

    Args:
      background: its number. dropped: name, centre x and y and side of each sticker, as shares of the picture's side.

    Raises:
      UserError: a name that is no sticker.
    """
    photo = ImageOps.fit(_backgrounds().original(background % background_count()), (side, side))
    for name, x, y, share in dropped:
        if name not in stickers():
            raise UserError(f"sticker {name!r}: there is none of that name")
        _, cut = _cutouts()[stickers()[name]]
        longest = max(1, round(share * side))
        cut = ImageOps.contain(cut, (longest, longest))
        photo.paste(cut, (round(x * side - cut.width / 2), round(y * side - cut.height / 2)), cut)
    return photo
