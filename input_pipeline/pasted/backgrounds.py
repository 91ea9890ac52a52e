"""Sources of backgrounds: photographs without names, all behind one small interface.

A source has `len(source)` and `source.draw(rng, size) -> RGB image of size x size`. `load(spec)` builds one from its
config entry: `photos` (those that scikit-image and scikit-learn carry), `folder:DIR` (BG-20k, wallpapers, any photos),
`packed:DIR` (what `prepare` has made of either), `tfds:NAME[:SPLIT]` (of tensorflow-datasets).
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from importlib import resources

import numpy as np
from PIL import Image

from input_pipeline.errors import UserError
from input_pipeline.images import SUFFIXES, open_image
from input_pipeline.memory import Memory, picture_bytes, remembered
from input_pipeline.pasted import packed
from input_pipeline.sets.bad_records import BadRecordLog
from input_pipeline.sets.reading.tfds_folder import Records

# Photographs inside the pip packages (public domain or CC0, chosen by hand; no downloads).
PHOTOS = {
    "train": (
        "skimage/astronaut.png", "skimage/brick.png", "skimage/camera.png", "skimage/chelsea.png",
        "skimage/coffee.png", "skimage/grass.png", "skimage/hubble_deep_field.jpg", "skimage/ihc.png",
        "skimage/moon.png", "skimage/motorcycle_left.png", "sklearn/china.jpg",
    ),
    "held_out": ("skimage/rocket.jpg", "skimage/gravel.png", "skimage/retina.jpg", "skimage/coins.png",
                 "sklearn/flower.jpg"),
}  # fmt: skip
SPLITS = (*PHOTOS, "all")
CACHE_BYTES = 256 * 2**20  # of photographs kept in memory, for each process
_FOLDERS = {"skimage": ("skimage", "data"), "sklearn": ("sklearn", "datasets/images")}


class Backgrounds:
    """Photographs, read on first use; those used last are kept in memory at a small size.

    Attributes:
      paths: the files.
      crop: smallest share of the shorter side that a random square crop keeps; 1.0 squashes the whole photograph
        to a square, as published.
      vary: probability of a variation: another photograph shines through, colours change places, light and contrast
        change, quarter turns. A few photographs then stand for many.
      max_side: photographs are shrunk to this many pixels on reading.
      bad_records: takes photographs that cannot be read; the next one stands for such a one.
    """

    def __init__(
        self,
        paths: Sequence[pathlib.Path],
        crop: float = 1.0,
        vary: float = 0.0,
        max_side: int = 448,
        bad_records: BadRecordLog | None = None,
    ):
        self.paths = list(paths)
        self.bad_records = bad_records or BadRecordLog("refuse")
        self.crop = crop
        self.vary = vary
        self.max_side = max_side
        self._memory = Memory(CACHE_BYTES, picture_bytes)

    def __len__(self) -> int:
        return len(self.paths)

    @remembered
    def photo(self, index: int) -> Image.Image:
        """The whole photograph, RGB, at most max_side pixels long."""
        image = self.original(index)
        image.thumbnail((self.max_side, self.max_side), Image.Resampling.LANCZOS)
        return image

    def original(self, index: int) -> Image.Image:
        """The photograph read anew, RGB, at its own size."""
        return open_image(self.paths[index], "RGB")

    def _good(self, index: int) -> Image.Image:
        """The photograph, or the next one that can be read: the same for the same files, whoever asks.

        Raises:
          UserError: none can be read.
        """
        for k in range(len(self)):
            try:
                return self.photo((index + k) % len(self))
            except UserError as error:
                self.bad_records.add(error)
        raise UserError(f"backgrounds: none of {len(self)} photographs can be read ({self.bad_records.report()})")

    def draw(self, rng: np.random.Generator, size: int) -> Image.Image:
        """A random photograph as a square of `size` pixels, cropped and mirrored when crop < 1, varied by `vary`."""
        image = self._draw(rng, size)
        if self.vary and rng.random() < self.vary:
            share = rng.uniform(0, 0.5)
            pixels = (1 - share) * np.asarray(image, np.float32) + share * np.asarray(self._draw(rng, size), np.float32)
            pixels = np.rot90(pixels[..., rng.permutation(3)], int(rng.integers(4)))
            pixels = (pixels - 128) * rng.uniform(0.4, 1.3) + 128 + rng.uniform(-60, 60)
            image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
        return image

    def _draw(self, rng: np.random.Generator, size: int) -> Image.Image:
        photo = self._good(int(rng.integers(len(self))))
        if self.crop >= 1.0:
            return photo if photo.size == (size, size) else photo.resize((size, size), Image.Resampling.BILINEAR)
        side = float(rng.uniform(self.crop, 1.0)) * min(photo.size)
        x, y = rng.uniform(0, photo.width - side), rng.uniform(0, photo.height - side)
        image = photo.resize((size, size), Image.Resampling.BILINEAR, box=(x, y, x + side, y + side))
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else image


class TfdsBackgrounds(Backgrounds):
    """The pictures of a set of tensorflow-datasets, decoded as they are drawn; packing them is faster to train on."""

    def __init__(self, spec: str, split: str, crop: float, vary: float, bad_records: BadRecordLog | None):
        super().__init__([], crop, vary, bad_records=bad_records)
        self.records = Records(spec, "", ("train", "validation", "test"))
        if "image" not in self.records.features:
            raise UserError(f"backgrounds tfds:{spec}: no image in it; it has {', '.join(self.records.features)}")
        held_out = split == "held_out"
        self.kept = [k for k in range(len(self.records)) if split == "all" or (k % 5 == 4) == held_out]
        self.paths = [pathlib.Path(f"record {k}") for k in self.kept]
        if not self.kept:
            raise UserError(f"backgrounds tfds:{spec}: none for split {split!r}")

    def original(self, index: int) -> Image.Image:
        """The picture, RGB, at its own size."""
        return open_image(np.asarray(self.records[self.kept[index]]["image"]), "RGB")


class PackedBackgrounds(Backgrounds):
    """Backgrounds that `prepare` has resized and packed: nothing is decoded any more."""

    def __init__(self, folder: str, split: str, crop: float, vary: float):
        self.pack = packed.Pack(folder, "backgrounds")
        super().__init__([], crop, vary)
        self.kept = [k for k, own in enumerate(self.pack.index["splits"]) if split in ("all", own)]
        if not self.kept:
            raise UserError(f"backgrounds packed:{folder}: none of split {split!r} in it")

    def __len__(self) -> int:
        return len(self.kept)

    def photo(self, index: int) -> Image.Image:
        """The photograph, RGB, as it was packed."""
        side = self.pack.index["side"]
        return Image.frombuffer("RGB", (side, side), self.pack.read(self.kept[index], 3 * side**2), "raw", "RGB", 0, 1)


def load(
    spec: str, split: str = "all", crop: float = 1.0, vary: float = 0.0, bad_records: BadRecordLog | None = None
) -> Backgrounds:
    """Builds the source that a config names.

    Args:
      spec: `photos`; `folder:DIR` with pictures anywhere below DIR; `packed:DIR`; or `tfds:NAME`. A folder that has
        the sub-folders `train` and `testval` (BG-20k) is split by them; any other holds out every fifth picture.
      split: `train`, `held_out` or `all`.
      crop, vary, bad_records: see `Backgrounds`.

    Raises:
      UserError: an unknown kind or split, a missing folder, no picture.
    """
    kind, _, where = spec.partition(":")
    if split not in SPLITS:
        raise UserError(f"background split {split!r}: expected one of {', '.join(SPLITS)}")
    if kind == "photos":
        names = [name for key in PHOTOS if split in ("all", key) for name in PHOTOS[key]]
        paths = []
        for name in names:
            package, file = name.split("/")
            module, sub = _FOLDERS[package]
            paths.append(pathlib.Path(str(resources.files(module))) / sub / file)
        return Backgrounds(paths, crop, vary, bad_records=bad_records)
    if kind not in ("folder", "packed", "tfds") or not where:
        raise UserError(f"backgrounds {spec!r}: expected photos, folder:DIR, packed:DIR or tfds:NAME")
    if kind == "tfds":
        return TfdsBackgrounds(where, split, crop, vary, bad_records)
    if kind == "packed":
        return PackedBackgrounds(where, split, crop, vary)
    root = pathlib.Path(where)
    if not root.is_dir():
        raise UserError(f"backgrounds folder {root}: no such folder; give one that holds photographs")
    bg20k = {"train": root / "train", "held_out": root / "testval"}
    has_layout = all(p.is_dir() for p in bg20k.values())
    top = bg20k[split] if has_layout and split in bg20k else root
    files = [p for p in sorted(top.rglob("*")) if p.suffix.lower() in SUFFIXES]
    if not has_layout and split != "all":
        files = [p for i, p in enumerate(files) if (i % 5 == 4) == (split == "held_out")]
    if not files:
        raise UserError(f"backgrounds folder {top}: no JPEG, PNG or WebP for split {split!r}; give photographs")
    return Backgrounds(files, crop, vary, bad_records=bad_records)
