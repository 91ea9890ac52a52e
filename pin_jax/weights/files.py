"""Where published weights lie: a folder or a hub id, and its safetensors files as one lazy mapping of tensors."""

from __future__ import annotations

import json
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from input_pipeline.errors import UserError

# What a model needs of a hub repository: configs, tokenizer files and safetensors, no pickles of other frameworks.
PATTERNS = ("*.json", "*.txt", "*.model", "*.safetensors")
_HUB_ID = re.compile(r"(?:hf-hub:)?([\w.-]+/[\w.-]+)")


def resolve(source: str | pathlib.Path, patterns: Sequence[str] = PATTERNS) -> pathlib.Path:
    """The folder that a path or a Hugging Face hub id names; a hub's files are fetched once and cached.

    Args:
      source: an existing folder, or `owner/name` (with or without `hf-hub:` in front).
      patterns: the files wanted of a hub repository.

    Raises:
      UserError: neither a folder nor a hub id; the hub has no such repository, closes it to this account, or cannot be
        reached.
    """
    folder = pathlib.Path(source)
    if folder.is_dir():
        return folder
    match = _HUB_ID.fullmatch(str(source))
    if not match:
        raise UserError(f"model {str(source)!r}: no such folder, and not a hub id; give a folder or owner/name")
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return pathlib.Path(huggingface_hub.snapshot_download(match[1], allow_patterns=list(patterns)))
    except errors.GatedRepoError as error:
        raise UserError(f"model {match[1]}: its owner asks for consent; accept on its page, log in, repeat") from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise UserError(
            f"model {str(source)!r}: no such folder, and the hub has no such repository (or it is private)"
        ) from error
    except Exception as error:  # offline, proxy, time-out: every transport has its own kind
        raise UserError(
            f"model {str(source)!r}: no such folder here, and the hub cannot be reached ({type(error).__name__});"
            " give the path of a folder that holds the files"
        ) from error


def read_json(path: pathlib.Path) -> Any:
    """What a JSON file holds.

    Raises:
      UserError: it is missing or not JSON.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; the folder must hold {path.name}") from error
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: not readable as JSON ({error}); fetch it again") from error


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
            places = read_json(index).get("weight_map", {})
            absent = sorted({file for file in places.values() if not (folder / file).is_file()})
            if absent:
                raise UserError(f"weights {folder}: shards missing: {', '.join(absent)}; fetch them")
            self._where = {key: folder / file for key, file in sorted(places.items(), key=lambda item: item[1])}
        elif (folder / name).is_file():
            path = folder / name
            self._where = dict.fromkeys(self._file(path).keys(), path)
        else:
            found = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
            raise UserError(f"weights {folder}: neither {name} nor {index.name} in it (it holds {found})")

    def _file(self, path: pathlib.Path) -> Any:
        if self._open is None or self._open[0] != path:
            try:
                self._open = path, safe_open(path, "numpy")
            except (SafetensorError, OSError, ValueError) as error:
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
