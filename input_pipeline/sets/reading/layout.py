"""Locating a published set on disk: the folder given may be the set itself or its parent."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterable

from input_pipeline.errors import UserError
from input_pipeline.files import read_text, shortened


def find(root: str | pathlib.Path, name: str, *candidates: str) -> pathlib.Path:
    """The first of some places below `root` that exists.

    Args:
      name: of the set, for the error. candidates: paths; `*` matches.

    Raises:
      UserError: none of them is there.
    """
    root = pathlib.Path(root)
    if not str(root) or not root.is_dir():
        raise UserError(f"{name}: data folder {str(root)!r} does not exist; give it, --config.data_dir=FOLDER")
    for candidate in candidates:
        found = sorted(root.glob(candidate)) if "*" in candidate else [root / candidate]
        if found and found[0].exists():
            return found[0]
    raise UserError(f"{name}: nothing of it in {root}; expected there one of {', '.join(candidates)} (docs/data.md)")


class Pictures:
    """Finds pictures by name in several folders, remembering where they were.

    Attributes:
      folders: looked through in order.
    """

    def __init__(self, folders: Iterable[pathlib.Path]):
        self.folders = [folder for folder in dict.fromkeys(map(pathlib.Path, folders)) if folder.is_dir()]

    def path(self, name: str) -> pathlib.Path:
        """The picture of a name in one of the folders; where there is none, the path that was expected.

        The name is as other tools write it: with folders above it that are another machine's or lead elsewhere, with
        backslashes. It is looked for as it stands, then without its folders; it never leads out of the folders that
        were given, since what stands in an annotation file is not trusted.

        Raises:
          UserError: a name that leads elsewhere, and whose picture is not here.
        """
        plain = name.replace("\\", "/").rstrip("/").rpartition("/")[2]
        inside = [own for own in dict.fromkeys((name, name.replace("\\", "/"), plain)) if is_inside(own)]
        for own in inside:
            for folder in self.folders:
                if os.path.isfile(folder / own):  # unlike pathlib's, False for names that no file system takes
                    return folder / own
        if name not in inside:
            raise UserError(
                f"file name {shortened(name)!r}: leads out of its folder, and {shortened(plain)!r} is not in it",
                "bad file name",
            )
        return (self.folders[0] if self.folders else pathlib.Path()) / name


def is_inside(name: str) -> bool:
    """Whether a path below a folder stays below it, on any system."""
    parts = name.replace("\\", "/").split("/")
    absolute = name[:1] in ("/", "\\") or name[1:2] == ":"
    return bool(name.strip()) and not absolute and ".." not in parts and "\0" not in name


def listed(path: pathlib.Path) -> list[str]:
    """The ids in a list of a set (`ImageSets/.../val.txt`): the first word of each line.

    Raises:
      UserError: no such list, no text, or an id that leads out of the set's folders.
    """
    lines = read_text(path, "list", "expected one image id a line").splitlines()
    ids = [line.split()[0] for line in lines if line.strip()]
    for name in ids:
        if not is_inside(name):
            raise UserError(f"list {path}: id {shortened(name)!r} leads out of the set's folder; expected a plain name")
    return ids
