"""X-Paste's pools of cut-outs: a JSON that names the files of each LVIS category, in both layouts that exist."""

from __future__ import annotations

import os
import pathlib

from input_pipeline.errors import UserError
from input_pipeline.files import shortened
from input_pipeline.sets import lvis
from input_pipeline.sets.coco import load_json
from input_pipeline.sets.names import normalise

PICTURES = (".png", ".webp")


def entries(where: str | pathlib.Path) -> list[tuple[str, pathlib.Path]]:
    """Name and file of every cut-out of a pool.

    Args:
      where: a JSON {category name: [paths below images/]}, or {0-based LVIS index: ["*path", ...]}; a folder with one
        such JSON; or a folder with one folder of RGBA files a category.

    Raises:
      UserError: none of these, or a JSON of another form.
    """
    where = pathlib.Path(where)
    if where.is_dir():
        pools = sorted(where.glob("*.json"))
        if len(pools) > 1:
            raise UserError(f"cut-outs xpaste:{where}: {len(pools)} JSON files in it; give the pool's own path")
        if not pools:
            files = [p for p in sorted(where.rglob("*")) if p.suffix.lower() in PICTURES]
            return [(normalise(p.parent.name), p) for p in files]
        where = pools[0]
    pool = load_json(where)
    if not isinstance(pool, dict) or not pool:
        raise UserError(f"cut-outs xpaste:{where}: a {type(pool).__name__}; expected an object: category -> paths")
    by_index = all(key.isdigit() for key in pool)
    known = lvis.categories()
    out = []
    for key, paths in pool.items():
        if by_index and int(key) >= len(known):
            raise UserError(f"cut-outs xpaste:{where}: category {key}; LVIS has 0 to {len(known) - 1}")
        if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
            raise UserError(f"cut-outs xpaste:{where}: {key!r} is not a list of paths")
        name = known[int(key)] if by_index else normalise(key)
        out += [(name, _file(where.parent, path)) for path in paths]
    return out


def _file(top: pathlib.Path, path: str) -> pathlib.Path:
    """The file of a pool's path: from `images/` or from the JSON's folder; a `*` in front is not part of it."""
    given = pathlib.PurePosixPath(path.removeprefix("*"))
    if ".." in given.parts or "\0" in path:
        raise UserError(f"cut-outs xpaste:{top}: path {shortened(path)!r} leads out of the pool; expected one below it")
    relative = given.relative_to("/") if given.is_absolute() else given
    options = [top / "images" / relative, top / relative, *([pathlib.Path(given)] if given.is_absolute() else [])]
    return next((option for option in options if os.path.isfile(option)), options[0])
