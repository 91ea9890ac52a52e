"""Locating published weights: a folder or a hub id, and its safetensors files as one lazy mapping of tensors."""

from __future__ import annotations

import contextlib
import errno
import json
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from safetensors import SafetensorError, safe_open

from input_pipeline.errors import UserError

# What a model needs of a hub repository: configs, tokenizer files and safetensors, no pickles of other frameworks.
PATTERNS = ("*.json", "*.txt", "*.model", "*.safetensors")
PROJECT = pathlib.Path(__file__).resolve().parents[2]  # whose assets/ hold the small models that ship
_HUB_ID = re.compile(r"(?:hf-hub:)?([\w.-]+/[\w.-]+)")
_NO_HUB = "give the path of a folder that holds the files, or take the variant tiny, which needs no hub"


def of_project(path: str | pathlib.Path | epath.Path) -> pathlib.Path:
    """A path; one of the project's own (`assets/tiny_clip`) is found from every folder that a run starts in."""
    path = pathlib.Path(path)
    shipped = PROJECT / path
    inside = not path.is_absolute() and path.parts[:1] == ("assets",) and ".." not in path.parts
    return shipped if inside and not path.exists() and shipped.exists() else path


def is_hub_id(source: str) -> bool:
    """Whether a text has the form of a Hugging Face hub id, `owner/name`."""
    return _HUB_ID.fullmatch(source) is not None


def resolve(source: str | pathlib.Path, patterns: Sequence[str] = PATTERNS) -> pathlib.Path:
    """The folder that a path or a Hugging Face hub id names; a hub's files are fetched once and cached.

    Of several processes on a host the first one fetches, with the hub's own progress bars, and the others wait for it.

    Args:
      source: an existing folder, or `owner/name` (with or without `hf-hub:` in front).
      patterns: the files wanted of a hub repository.

    Raises:
      UserError: neither a folder nor a hub id; the hub has no such repository, closes it to this account, or cannot be
        reached.
    """
    folder = of_project(source)
    if folder.is_dir():
        _refuse_pipes(folder)
        return folder
    match = _HUB_ID.fullmatch(str(source))
    if not match:
        raise UserError(f"model {short(source, 300)}: no such folder, and not a hub id; give a folder or owner/name")
    return _fetch(match[1], list(patterns))


def _refuse_pipes(folder: pathlib.Path) -> None:
    """Refuses a folder that holds what blocks its reader for ever, whoever that is: a tokenizer reads its own files."""
    for path in folder.iterdir():
        if path.is_fifo() or path.is_socket():
            raise UserError(f"model {folder}: {path.name} is a FIFO or a socket, not a file; give an intact folder")


def _fetch(repo: str, patterns: list[str]) -> pathlib.Path:
    """A hub repository's files in the local cache; see `resolve`."""
    import huggingface_hub
    from huggingface_hub import constants, errors

    try:
        with _one_process(pathlib.Path(constants.HF_HUB_CACHE), repo):
            return pathlib.Path(huggingface_hub.snapshot_download(repo, allow_patterns=patterns))
    except errors.GatedRepoError as error:
        raise UserError(
            f"model {repo}: its owner asks for consent; accept on https://huggingface.co/{repo}, log in"
            " (hf auth login, or HF_TOKEN) with that account, and repeat"
        ) from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise UserError(
            f"model {repo!r}: no such folder, and the hub has no such repository, or it is private and needs a token"
            " (hf auth login, or HF_TOKEN)"
        ) from error
    except Exception as error:  # offline, proxy, time-out: every transport has its own kind
        if constants.HF_HUB_OFFLINE:
            raise UserError(
                f"model {repo!r}: no such folder here, and not whole in the hub's cache {constants.HF_HUB_CACHE}, while"
                f" HF_HUB_OFFLINE is set; fetch it before (hf download {repo}), {_NO_HUB}"
            ) from error
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT):
            raise UserError(
                f"model {repo!r}: cannot be written to the hub's cache {constants.HF_HUB_CACHE} ({error.strerror});"
                " choose another by HF_HOME"
            ) from error
        raise UserError(
            f"model {repo!r}: no such folder here, and the hub cannot be reached ({type(error).__name__}); {_NO_HUB}"
        ) from error


@contextlib.contextmanager
def _one_process(cache: pathlib.Path, repo: str) -> Iterator[None]:
    """One process of the host at a time; the others wait, and then find the files there."""
    import filelock

    try:
        (cache / ".locks").mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(cache / ".locks" / f"{repo.replace('/', '--')}.pin_jax.lock")
        lock.acquire()
    except (OSError, NotImplementedError):  # a cache that is only read needs no lock
        yield
        return
    try:
        yield
    finally:
        lock.release()


def short(value: Any, limit: int = 60) -> str:
    """A value of a file or of a command line as an error quotes it, in at most `limit` letters."""
    text = repr(str(value)) if isinstance(value, pathlib.Path) else repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def read_json(path: pathlib.Path | epath.Path) -> Any:
    """What a JSON file holds.

    Raises:
      UserError: it is missing or not JSON.
    """
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: is no file; give the folder as it was published")
        return json.loads(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; the folder must hold {path.name}") from error
    except RecursionError as error:
        raise UserError(f"{path}: not readable as JSON (nested too deep); fetch it again") from error
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); fetch it again") from error


def read_object(path: pathlib.Path | epath.Path) -> dict[str, Any]:
    """The object {...} that a JSON file holds.

    Raises:
      UserError: it is missing, not JSON, or holds something else.
    """
    held = read_json(path)
    if not isinstance(held, dict):
        raise UserError(f"{path}: holds a {type(held).__name__}; expected an object {{...}}; fetch it again")
    return held


def shards(index: pathlib.Path) -> dict[str, pathlib.Path]:
    """The file of each tensor, by an index of shards.

    Raises:
      UserError: the index is broken, a file is missing, or one lies outside of the index's own folder.
    """
    folder = index.parent
    places = read_object(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise UserError(f"{index}: weight_map is {short(places)}; expected an object of tensor names and files")
    names = set()
    for key, name in places.items():
        if not isinstance(name, str) or not 0 < len(name) <= 255:
            raise UserError(f"{index}: {short(key)} is in {short(name)}; expected the name of a file beside the index")
        names.add(name)
    for name in sorted(names):
        if not _inside(folder, name):
            raise UserError(f"{index}: {short(name)} leads out of its folder, and is not read; fetch the model again")
    absent = sorted(name for name in names if not (folder / name).is_file())
    if absent:
        raise UserError(f"weights {folder}: shards missing: {', '.join(absent)}; fetch them")
    return {key: folder / name for key, name in places.items()}


def _inside(folder: pathlib.Path, name: str) -> bool:
    """Whether a file that an index names lies in its folder, links followed; the hub's cache links to its own blobs."""
    path = pathlib.PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        return False
    target, home = (folder / name).resolve(), folder.resolve()
    allowed = [home]
    if home.parent.name == "snapshots":
        allowed.append(home.parent.parent / "blobs")
    return any(target.is_relative_to(place) for place in allowed)


class Tensors(Mapping[str, np.ndarray]):
    """The tensors of a folder by key, in one file or in shards named by `NAME.index.json`; each is read when asked for.

    Values keep their dtype (bfloat16 as ml_dtypes has it). Files are memory-mapped, one open at a time: iterate in
    order, and host memory holds no more than one shard and one tensor.

    Args:
      folder: as `resolve` gives it.
      name: of the single file, `model.safetensors` or `open_clip_model.safetensors`.

    Raises:
      UserError: no such file, a missing shard, or a file that is not intact.
    """

    def __init__(self, folder: pathlib.Path, name: str = "model.safetensors"):
        index = folder / f"{name}.index.json"
        self._open: tuple[pathlib.Path, Any] | None = None
        if index.is_file():
            places = shards(index)
            self._where = dict(sorted(places.items(), key=lambda item: str(item[1])))
        elif (folder / name).is_file():
            path = folder / name
            self._where = dict.fromkeys(self._file(path).keys(), path)
        else:
            found = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
            raise UserError(f"weights {folder}: neither {name} nor {index.name} in it (it holds {found})")

    @property
    def files(self) -> list[pathlib.Path]:
        """The files that the tensors stand in."""
        return sorted(set(self._where.values()))

    def _file(self, path: pathlib.Path) -> Any:
        if self._open is None or self._open[0] != path:
            try:
                self._open = path, safe_open(path, "numpy")
            except (SafetensorError, OSError, ValueError) as error:
                self._open = None
                raise UserError(
                    f"weights {path}: not an intact safetensors file ({error}); fetch or write it again"
                ) from error
        return self._open[1]

    def __getitem__(self, key: str) -> np.ndarray:
        path = self._where[key]
        try:
            return self._file(path).get_tensor(key)
        except SafetensorError as error:
            raise UserError(f"weights {path}: {key} cannot be read ({error}); fetch the file again") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __len__(self) -> int:
        return len(self._where)
