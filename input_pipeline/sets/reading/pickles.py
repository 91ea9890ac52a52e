"""Pickles of plain lists, dicts, texts and numbers, read without running anything from them (RefCOCO's split files)."""

from __future__ import annotations

import io
import pathlib
import pickle
from typing import Any

from input_pipeline.errors import UserError
from input_pipeline.files import regular


class _Plain(pickle._Unpickler):  # the one in C takes memory for any number of memo that a damaged file names
    """Builds the plain types that need no name; every name in the pickle is refused."""

    path: pathlib.Path

    def find_class(self, module: str, name: str) -> Any:
        raise UserError(
            f"{self.path}: its pickle wants {module}.{name}, which is no plain list, dict, text or number: refused, and"
            " nothing of it was run; fetch the file anew from where the set is published"
        )


def load(path: str | pathlib.Path) -> Any:
    """What a pickle of plain values holds; texts of Python 2 are read as UTF-8.

    Raises:
      UserError: no such file, a broken one, or one that names anything to call.
    """
    path = regular(path, "split file", "expected one of RefCOCO, such as refs(unc).p")
    try:
        reader = _Plain(io.BytesIO(path.read_bytes()), encoding="utf-8", errors="replace")
        reader.path = path
        return reader.load()
    except UserError:
        raise
    except Exception as error:  # a broken pickle can fail in any way
        raise UserError(f"{path}: broken ({type(error).__name__}: {error}); fetch it again") from error
