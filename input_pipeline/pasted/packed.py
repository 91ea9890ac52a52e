"""Cut-outs and backgrounds packed into ArrayRecord by `prepare`: pixels as training wants them, nothing to decode.

A folder holds index.json and data-*.array_record, whose record i is entry i of the index:
  backgrounds: uint8[side, side, 3], squashed; cut-outs: RGBA with colours multiplied by alpha, which is how a resize
  wants them, at the largest size and at halves of it, one after the other.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import grain
from PIL import Image

from input_pipeline.errors import UserError
from input_pipeline.files import read_json, regular

INDEX, VERSION = "index.json", 1
FEWEST = 24  # pixels of the longer side of the smallest level


def levels(width: int, height: int) -> list[tuple[int, int]]:
    """Sizes at which a cut-out is packed: the largest, then halves of it."""
    out = [(width, height)]
    while max(out[-1]) >= 2 * FEWEST:
        out.append((max(1, out[-1][0] // 2), max(1, out[-1][1] // 2)))
    return out


def _are(values: Any, count: int, accepts: Callable[[Any], bool]) -> bool:
    return isinstance(values, list) and len(values) == count and all(map(accepts, values))


def _is_side(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 65_536


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _checked(index: Any, kind: str, folder: Any) -> dict[str, Any]:
    """What index.json holds.

    Raises:
      UserError: it is another kind's, or an entry is missing or of another type.
    """
    if not isinstance(index, dict):
        raise UserError(f"packed:{folder}: {INDEX} is broken (a {type(index).__name__}); prepare it again")
    if index.get("kind") != kind or index.get("version") != VERSION:
        raise UserError(f"packed:{folder}: holds {index.get('kind')}, expected {kind}; prepare it again")
    count = index.get("count")
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        raise UserError(f"packed:{folder}: {INDEX} is broken (count {count!r}); prepare it again")
    good = {"source": _is_text(index.get("source", "")), "splits": _are(index.get("splits"), count, _is_text)}
    exclude = index.get("exclude", [])
    good["exclude"] = isinstance(exclude, list) and all(map(_is_text, exclude))
    if kind == "backgrounds":
        good["side"] = _is_side(index.get("side"))
    else:
        good["names"] = _are(index.get("names"), count, _is_text)
        good["sizes"] = _are(index.get("sizes"), count, lambda size: _are(size, 2, _is_side))
    for entry in (entry for entry, is_good in good.items() if not is_good):
        raise UserError(f"packed:{folder}: {INDEX} is broken ({entry}: not as `prepare` writes it); prepare it again")
    return index


class Pack:
    """A packed folder; read lazily, so that it pickles.

    Attributes:
      index: what index.json holds.

    Raises:
      UserError: no such folder, or it is not one of `kind`.
    """

    def __init__(self, folder: str | pathlib.Path, kind: str):
        self.folder = pathlib.Path(folder)
        path = self.folder / INDEX
        if not path.exists():
            raise UserError(f"{kind} packed:{folder}: no {INDEX} in it; make it first: configs/prepare.py")
        self.index: dict[str, Any] = _checked(read_json(path, f"{kind} packed", "prepare it again"), kind, folder)
        self._source: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_source": None}

    def read(self, number: int, size: int) -> bytes:
        """A record of so many bytes.

        Raises:
          UserError: a file is missing or broken, or the record has another size.
        """
        try:
            if self._source is None:
                files = [regular(p, "packed data", "prepare it again") for p in sorted(self.folder.glob("data-*"))]
                source: Any = grain.sources.ArrayRecordDataSource([str(path) for path in files])
                if len(source) != self.index["count"]:
                    raise ValueError(f"{len(source)} records, {INDEX} has {self.index['count']}")
                self._source = source
            record = self._source[number]
            if len(record) != size:
                raise ValueError(f"record {number} has {len(record)} bytes, {INDEX} says {size}")
            return record
        except UserError:
            raise
        except Exception as error:  # array_record raises many kinds
            raise UserError(f"packed:{self.folder}: broken ({error}); prepare it again") from error


class PackedCutouts:
    """Packed cut-outs, with the interface of `cutouts.Cutouts`."""

    def __init__(self, folder: str | pathlib.Path, kept: list[int] | None = None):
        self.pack = Pack(folder, "cutouts")
        self.kept = list(range(self.pack.index["count"])) if kept is None else kept

    def __len__(self) -> int:
        return len(self.kept)

    @property
    def names(self) -> list[str]:
        return [self.pack.index["names"][k] for k in self.kept]

    @property
    def kind(self) -> str:
        """Of the source that they were packed from, as its spec begins."""
        return self.pack.index.get("source", "").partition(":")[0]

    @property
    def splits(self) -> dict[str, str]:
        """Name -> split of what they were packed from."""
        return {self.pack.index["names"][k]: self.pack.index["splits"][k] for k in self.kept}

    def keep(self, names: Iterable[str]) -> PackedCutouts:
        """The cut-outs whose name is in `names`."""
        names = set(names)
        return PackedCutouts(self.pack.folder, [k for k in self.kept if self.pack.index["names"][k] in names])

    def drop(self, names: Iterable[str]) -> PackedCutouts:
        """The cut-outs whose name is not in `names`."""
        return self.keep(set(self.names) - set(names))

    def aspect(self, index: int) -> float:
        """Width / height of a cut-out."""
        width, height = self.pack.index["sizes"][self.kept[index]]
        return width / height

    def _level(self, index: int, size: tuple[int, int]) -> Image.Image:
        """The smallest level that is no smaller than a size, colours multiplied by alpha."""
        number = self.kept[index]
        sizes = levels(*self.pack.index["sizes"][number])
        chosen = max((k for k, (w, h) in enumerate(sizes) if w >= size[0] and h >= size[1]), default=0)
        start = sum(4 * w * h for w, h in sizes[:chosen])
        width, height = sizes[chosen]
        pixels = memoryview(self.pack.read(number, sum(4 * w * h for w, h in sizes)))[
            start : start + 4 * width * height
        ]
        return Image.frombuffer(
            "RGBa",
            (width, height),
            pixels,  # pyright: ignore[reportArgumentType]
            "raw",
            "RGBa",
            0,
            1,
        )

    def __getitem__(self, index: int) -> tuple[str, Image.Image]:
        number = self.kept[index]
        whole = self._level(index, tuple(self.pack.index["sizes"][number]))
        return self.pack.index["names"][number], whole.convert("RGBA")

    def render(self, index: int, size: tuple[int, int]) -> Image.Image:
        """A cut-out as RGBA of exactly (width, height) pixels."""
        image = self._level(index, size)
        return (image if image.size == size else image.resize(size, Image.Resampling.BILINEAR)).convert("RGBA")
