"""The one exception that a user causes, printed by main.py as one line; and words for files that cannot be written."""

from __future__ import annotations

import errno
import re

_LONG = re.compile(r"\S{400,}")  # a word that no one reads


class UserError(Exception):
    """Bad input from a user.

    The message names the thing, says what was expected and what to do, in one line.

    Attributes:
      kind: what is wrong in two words (`missing image`), by which bad records are counted; see `records.BadRecordLog`.
    """

    def __init__(self, message: str, kind: str = "bad input"):
        text = " ".join(str(message).split())
        # What a broken file holds may be of any length; a line that quotes it stays one that can be read.
        super().__init__(_LONG.sub(lambda found: f"{found[0][:200]}...{found[0][-100:]}", text))
        self.kind = kind

    def __reduce__(self):  # workers send it to their parent
        return type(self), (str(self), self.kind)


_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_ROOM_WORDS = ("no space left", "quota", "file too large", "resource_exhausted")


def reason(error: BaseException) -> str:
    """What went wrong with a file, in words for a user."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def remedy(error: BaseException) -> str:
    """What to do about a file that cannot be written."""
    words, number = str(error).lower(), getattr(error, "errno", None)
    if isinstance(error, ImportError):
        return "pip install it"
    if number in _NO_ROOM or any(word in words for word in _ROOM_WORDS):
        return "free disk space or choose another --workdir"
    if isinstance(error, NotADirectoryError | IsADirectoryError | FileExistsError):
        return "move away what stands there or choose another --workdir"
    if isinstance(error, PermissionError) or number == errno.EROFS:
        return "allow this user to write there or choose another --workdir"
    return "choose another --workdir"
