"""Files of a run, local or in a bucket (`gs://...`): written in one go, or else one line that says what to do.

Of several processes the first writes them, whoever calls: to the others there is nothing to do.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
from etils import epath
from safetensors import SafetensorError

from input_pipeline.errors import UserError, reason, remedy

AnyPath = pathlib.Path | epath.Path


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path is in a bucket, so that it cannot be mapped, locked or renamed as a local one."""
    return "://" in os.fspath(path)


def absolute(path: os.PathLike[str]) -> str:
    """A path that another working directory does not change."""
    return os.fspath(path) if is_remote(path) else os.path.abspath(path)


@contextlib.contextmanager
def told(path: os.PathLike[str]) -> Iterator[None]:
    """A context in which an error of writing a file becomes one line.

    Raises:
      UserError: names the file, the reason and the remedy.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        named = getattr(error, "filename2", None) or getattr(error, "filename", None)  # of a rename its target
        where = named if isinstance(named, str) else os.fspath(path)
        raise UserError(f"{where}: cannot be written ({reason(error)}); {remedy(error)}") from error


def first_process() -> bool:
    """Whether this is the process that writes; does not wake the devices of one that is alone."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def needs_local(path: os.PathLike[str], what: str) -> None:
    """Refuses a bucket.

    Raises:
      UserError: names who needs a local folder.
    """
    if is_remote(path):
        raise UserError(f"--workdir={os.fspath(path)}: {what} needs a local folder; copy it to a bucket afterwards")


def remove(path: os.PathLike[str]) -> None:
    """Removes a file, where there is one that can be: clean-up never hides why it was needed."""
    with contextlib.suppress(OSError):
        epath.Path(path).unlink(missing_ok=True)


def make_folder(path: os.PathLike[str]) -> None:
    """Makes a folder and those above it.

    Raises:
      UserError: it cannot be made.
    """
    try:
        epath.Path(path).mkdir(parents=True, exist_ok=True)
    except Exception as error:
        if not isinstance(error, OSError) and not is_remote(path):  # libraries of buckets have errors of their own
            raise
        raise UserError(f"{os.fspath(path)}: cannot be made ({reason(error)}); {remedy(error)}") from error


def move(source: os.PathLike[str], target: os.PathLike[str]) -> None:
    """Moves a file or folder.

    Raises:
      UserError: it cannot be moved.
    """
    with told(target):
        epath.Path(source).rename(target)


def write_bytes(path: os.PathLike[str], content: bytes) -> None:
    """Writes a file in one go: a reader sees the old one or the new one, and a full disk leaves the old one.

    Raises:
      UserError: it cannot be written.
    """
    if not first_process():
        return
    path = epath.Path(path)
    if is_remote(path):  # an object in a bucket appears whole
        with told(path):
            path.write_bytes(content)
        return
    partial = path.with_suffix(".partial")
    with told(path):
        try:
            with open(partial, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())  # after a power loss no file is there with a new name and old content
            os.replace(partial, path)
        except OSError:
            remove(partial)
            raise


def write_json(path: os.PathLike[str], value: Any) -> None:
    """Writes JSON in one go.

    Raises:
      UserError: it cannot be written.
    """
    write_bytes(path, (json.dumps(value, indent=1) + "\n").encode())


def write_with(path: os.PathLike[str], save: Callable[[io.BytesIO], Any]) -> None:
    """Writes what `save` puts into a binary file, such as a picture, in one go.

    Raises:
      UserError: it cannot be written.
    """
    held = io.BytesIO()
    save(held)
    write_bytes(path, held.getvalue())
