"""A trained method as a file: safetensors whose header says which method, which options, which frozen weights.

Beside it stands a JSON card with the same, the number of parameters and the results.

PIN's authors publish theirs as a torch file, which is read too, and written by `export`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import re
import tempfile
from collections.abc import Iterator
from typing import Any

from etils import epath
from ml_collections import ConfigDict
from safetensors import numpy as safetensors
from safetensors import safe_open

from input_pipeline.errors import UserError
from pin_jax import methods
from pin_jax.methods import pin_file
from pin_jax.models.interface import Inserts
from pin_jax.runtime import files, reporting
from pin_jax.runtime.files import AnyPath
from pin_jax.vlm import VLM
from pin_jax.weights.configs import sizes
from pin_jax.weights.files import of_project, read_object, short
from pin_jax.weights.parameters import count_parameters, fill, flatten, read_safetensors

INSERT = "insert.safetensors"  # what an adapter is called in a folder of its own


def _frame(vlm: VLM) -> str:
    """What stands around prompts, as headers have it."""
    return json.dumps(dataclasses.asdict(vlm.frame))


def save(path: AnyPath, params: Any, config: ConfigDict, vlm: VLM) -> None:
    """Writes the trained parameters, and their card.

    Raises:
      UserError: they cannot be written.
    """
    name, options = methods.describe(methods.build(config.method, vlm.model.config, config.method_options))
    meta = {"method": name, "options": json.dumps(options), "frozen": vlm.identity, "frame": _frame(vlm)}
    files.write_bytes(path, safetensors.save(flatten(params), metadata=meta))
    card = meta | {"options": options, "vlm": str(config.vlm), "parameters": count_parameters(params)}
    files.write_json(path.with_suffix(".json"), card)


def note(path: AnyPath, results: dict[str, Any]) -> None:
    """Adds results to the card of an adapter; one without a card gets none. A broken card is written anew."""
    place = path.with_suffix(".json")
    if place.exists():
        card = _card(path)
        if card is None:
            meta, tensors = _header(path), read_safetensors(path)
            card = meta | {"options": json.loads(meta["options"]), "parameters": count_parameters(tensors)}
        files.write_json(place, card | {"results": results})


@contextlib.contextmanager
def _fetched(path: epath.Path) -> Iterator[pathlib.Path]:
    """A context in which an adapter of a bucket, and its card, lie on this disk: what reads them reads local files."""
    if not path.is_file():
        raise UserError(f"adapter {path}: no such file; give one that a run of this project wrote")
    with tempfile.TemporaryDirectory() as folder:
        local = pathlib.Path(folder) / path.name
        for source in (path, path.with_suffix(".json")):
            if source.exists():
                (local.parent / source.name).write_bytes(source.read_bytes())
        yield local


def _card(path: AnyPath) -> dict[str, Any] | None:
    """The card beside an adapter; None if there is none, or none that can be read, which is said."""
    place = path.with_suffix(".json")
    if not place.exists():
        return None
    try:
        return read_object(place)
    except UserError as error:
        reporting.say(f"{error} (the adapter itself says all that is needed; its card is not used)")
        return None


def _header(path: AnyPath) -> dict[str, str]:
    """What an adapter says of itself: method, options (JSON), the identity of its frozen weights, and the frame (JSON)
    of the prompts that it was trained with, which files from before 2026-11-27 do not say.

    Raises:
      UserError: not a file of ours.
    """
    with safe_open(path, "numpy") as file:
        meta = file.metadata() or {}
    if not {"method", "options", "frozen"} <= meta.keys():
        raise UserError(f"adapter {path}: its header names no method; give a file that this project wrote")
    return {name: meta[name] for name in ("method", "options", "frozen", "frame") if name in meta}


def export(path: AnyPath, method: Any, params: Any) -> None:
    """Writes an insert in the format of PIN's authors (see `pin_file`); which frozen weights it is for gets lost.

    Raises:
      UserError: another method than PIN, or it cannot be written.
    """
    if not isinstance(method, methods.Pin):
        raise UserError(f"{path}: only PIN has this format, not {type(method).__name__}; keep the safetensors file")
    files.write_with(path, lambda out: pin_file.write(out, method, params))


def load(path: str | AnyPath, vlm: VLM, method: str = "") -> tuple[Any, Any]:
    """Reads a file of `save`, or of PIN's authors (`.pt`, `.pth`, `.bin`): the method and its parameters.

    A file names built-in methods only: what it names is otherwise imported, and files come from others.

    Args:
      method: of the user's own, `module:Class`, that the file may name too.

    Raises:
      UserError: missing, broken, made on other frozen weights, not a file of ours, or one that names code of its own.
    """
    if files.is_remote(path):
        with _fetched(epath.Path(path)) as local:
            return load(local, vlm, method)
    path = of_project(path)
    if path.suffix in (".pt", ".pth", ".bin"):
        return pin_file.read(path, vlm.model.config)
    tensors, meta = read_safetensors(path), _header(path)
    foreign = [name for name in methods.names_module(meta["method"]) if name not in method.split("+")]
    if foreign:
        raise UserError(
            f"adapter {path}: its header names the method {short(foreign[0])}, which is none of"
            f" {', '.join(methods.METHODS)}; a file may not name code that is run: if it is your own method, name it"
            " yourself, --config.method=module:Class"
        )
    if meta["frozen"] != vlm.identity:
        raise UserError(
            f"adapter {path}: trained on frozen weights {meta['frozen'][:40]}, these are {vlm.identity};"
            " use its own VLM"
        )
    if meta.get("frame", frame := _frame(vlm)) != frame:
        theirs, ours = (short(re.sub("(<image>)+", "<image>", text), 240) for text in (meta["frame"], frame))
        raise UserError(
            f"adapter {path}: trained with prompts in the frame {theirs}, these are in {ours}; give the"
            " config.placement and config.example of its training"
        )
    try:
        options = json.loads(meta["options"])
    except (ValueError, RecursionError) as error:
        raise UserError(f"adapter {path}: options in its header are not JSON; train or fetch it again") from error
    if not isinstance(options, dict):
        raise UserError(f"adapter {path}: options in its header are {short(options)}; expected an object")
    _same_card(path, meta | {"options": options, "parameters": count_parameters(tensors)})
    with sizes.buildable(f"adapter {path}"):
        built = methods.build(meta["method"], vlm.model.config, options)
        shapes = methods.shapes(built, vlm.params)
    return built, fill(shapes, tensors, f"of adapter {path}")


def _same_card(path: AnyPath, about: dict[str, Any]) -> None:
    """Refuses an adapter whose card says something else than the adapter itself.

    Raises:
      UserError: names the entry.
    """
    card = _card(path) or {}
    for name, value in about.items():
        if name in card and card[name] != value:
            raise UserError(
                f"adapter {path}: its card {path.with_suffix('.json').name} has {name} {short(card[name])}, the adapter"
                f" itself {short(value)}; fetch both again, or remove the card"
            )


def load_adapter(path: str | AnyPath, vlm: VLM, method: str = "") -> Inserts:
    """What a file puts into its VLM: `vlm.apply(params, ..., inserts=load_adapter(path, vlm))`.

    Passing other inserts switches to another adapter, `Inserts()` to none; the VLM itself never changes.

    Args:
      method: see `load`.

    Raises:
      UserError: as `load`.
    """
    found, params = load(path, vlm, method)
    return found.inserts(params)
