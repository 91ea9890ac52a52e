"""Finding a published set on a user's disk: the folder given may be the set's own or one above it."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable

from input_pipeline.errors import UserError


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

    def path(self, *names: str) -> pathlib.Path:
        """The first of the names that is in one of the folders; where none is, the path that was expected.

        A name may not lead out of its folder: what stands in an annotation file is not trusted.

        Raises:
          UserError: a name that leads elsewhere.
        """
        for name in names:
            if pathlib.PurePath(name).is_absolute() or ".." in pathlib.PurePath(name).parts or "\0" in name:
                raise UserError(f"file name {name!r}: leads out of its folder; expected a plain name", "bad file name")
        for name in names:
            for folder in self.folders:
                if (folder / name).is_file():
                    return folder / name
        return (self.folders[0] if self.folders else pathlib.Path()) / names[0]


def listed(path: pathlib.Path) -> list[str]:
    """The ids in a list of a set (`ImageSets/.../val.txt`): the first word of each line."""
    try:
        return [line.split()[0] for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"list {path}: cannot be read ({error}); expected one image id a line") from error
