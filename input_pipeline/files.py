"""Reading files that users hand in: what is no regular file is refused at once, never waited for."""

from __future__ import annotations

import json
import os
import pathlib
import stat
from typing import Any

from input_pipeline.errors import UserError

MISSING, NO_FILE = "missing file", "no regular file"
_KINDS = {
    stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}  # fmt: skip


def shortened(text: Any, most: int = 200) -> str:
    """A text for an error's line: cut in the middle where it is long."""
    text = str(text)
    return text if len(text) <= most else f"{text[: most // 2]}...{text[-most // 2 :]}"


def regular(path: str | pathlib.Path, what: str, give: str, missing: str = MISSING) -> pathlib.Path:
    """The path, if it is of a regular file.

    Args:
      what: the file is, for the error. give: what to give instead. missing: kind of the error where there is none.

    Raises:
      UserError: there is none, or it is a folder, a FIFO, a socket or a device.
    """
    path = pathlib.Path(path)
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:  # also names that no file system takes
        said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        said = "no such file" if isinstance(error, FileNotFoundError) else said
        raise UserError(f"{what} {shortened(path)}: {said}; {give}", missing) from error
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "no regular file")
        raise UserError(f"{what} {shortened(path)}: is {kind}, not a file; {give}", NO_FILE)
    return path


def read_bytes(path: str | pathlib.Path, what: str, give: str, missing: str = MISSING) -> bytes:
    """What is in a file; arguments and errors as in `regular`, and a file that cannot be read."""
    path = regular(path, what, give, missing)
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{what} {shortened(path)}: cannot be read ({error.strerror}); {give}", NO_FILE) from error


def read_text(path: str | pathlib.Path, what: str, give: str, missing: str = MISSING) -> str:
    """A text in UTF-8, a byte order mark left out; arguments and errors as in `read_bytes`, and other encodings."""
    try:
        return read_bytes(path, what, give, missing).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{what} {shortened(path)}: is no text in UTF-8 ({error}); {give}") from error


def read_json(path: str | pathlib.Path, what: str, give: str, missing: str = MISSING) -> Any:
    """What a JSON file holds; arguments and errors as in `read_bytes`, and a file that is no JSON."""
    raw = read_bytes(path, what, give, missing)
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{what} {shortened(path)}: not intact JSON ({error}); {give}") from error
