"""Checkpoints: the trainable tree, the optimiser and the step, written in the background by orbax, with their digest.

Beside the state stand the identity of the frozen weights, which are not written, and the entries of the config that a
run is bound to. The digest of every file is written before orbax gives a checkpoint its name: a checkpoint that is
there is whole, and one that was changed since is found before orbax reads it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from input_pipeline.errors import UserError, reason, remedy
from pin_jax.runtime import files, sharding
from pin_jax.runtime.entries import refuse_another
from pin_jax.runtime.reporting import say

FOLDER, DIGESTS, BROKEN = "checkpoints", "digests.json", "broken_checkpoints"
_SPARE = 2**16  # bytes of a checkpoint that are not arrays


class _Raised(logging.Filter):
    """Leaves out what orbax logs of an error, with its traceback: the same error is raised."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno < logging.ERROR or "orbax" not in record.pathname


class Checkpoints:
    """Saves and restores training states below `workdir/checkpoints`.

    Args:
      identity: of the frozen weights; a state made with others is refused.
      config: entries that a run is bound to; a state made with others is refused. None binds to nothing.
      keep: how many checkpoints stay.

    Raises:
      UserError: the folder cannot be made.
    """

    def __init__(
        self, workdir: os.PathLike[str], identity: str, config: Mapping[str, Any] | None = None, keep: int = 3
    ):
        self.workdir = epath.Path(workdir)
        self.folder = epath.Path(files.absolute(self.workdir / FOLDER))
        self.identity, self.config = identity, config
        self._saving: int | None = None
        files.make_folder(self.folder)
        self._filter = _Raised()
        logging.getLogger("absl").addFilter(self._filter)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            enable_async_checkpointing=True,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._write_digests),
        )
        handlers = {"state": ocp.StandardCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()}
        self._manager = _Manager(self.folder, options=options, item_handlers=handlers)

    def save(self, step: int, state: Any, data_state: Any = None) -> None:
        """Starts writing a state; returns before it is on disk.

        Args:
          state: pytree of arrays. data_state: of a data iterator, anything that JSON takes.

        Raises:
          UserError: it cannot be written, and why. Earlier checkpoints stay.
        """
        meta = {"identity": self.identity, "data": _to_json(data_state), "config": self.config}
        args = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
        self.wait()
        self._reserve(step, sum(leaf.nbytes for leaf in jax.tree.leaves(state)) + _SPARE)
        self._saving = step
        try:
            self._manager.save(step, args=args)
        except (OSError, ValueError, RuntimeError) as error:
            raise self._cannot_write(error) from error

    def wait(self) -> None:
        """Waits until everything is on disk; raises what `save` would."""
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError, RuntimeError) as error:
            raise self._cannot_write(error) from error

    def _reserve(self, step: int, size: int) -> None:
        """Looks whether a checkpoint has room, since orbax's threads may outlive a disk that fills under them."""
        if jax.process_index() > 0 or files.is_remote(self.folder) or not hasattr(os, "posix_fallocate"):
            return
        probe, self._saving = self.folder / ".room", step
        try:
            with open(probe, "wb") as file:
                os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            raise self._cannot_write(error) from error
        finally:
            files.remove(probe)

    def _cannot_write(self, error: Exception) -> UserError:
        steps = self.steps()
        kept = f"; the checkpoint of step {max(steps)} is intact" if steps else ""
        return UserError(
            f"checkpoint {self._saving} in {self.folder}: cannot be written ({reason(error)});"
            f" {remedy(error)}, and start the same command again{kept}"
        )

    def _write_digests(self) -> None:
        """The last thing that orbax does before it gives a checkpoint its name."""
        if jax.process_index() > 0:
            return
        unnamed = [path for path in self.folder.glob(f"{self._saving}.*") if path.is_dir()]
        folder = unnamed[0] if unnamed else self.folder / str(self._saving)
        files.write_json(folder / DIGESTS, {"sha256": _digests(folder)})

    def steps(self) -> list[int]:
        """Steps of the finished checkpoints."""
        return sorted(ocp.utils.checkpoint_steps(self.folder))

    def restore(self, state: Any) -> tuple[int, Any, Any] | None:
        """The newest state that is whole.

        Args:
          state: a state of the same structure, shapes and sharding, to restore into.

        Returns:
          Step, state and data state; None when there is none. A checkpoint that was damaged or cannot be read is
          named, moved aside and the one before it is tried.

        Raises:
          UserError: the state belongs to other frozen weights, another config or another structure, which leaves it
            where it is; or no checkpoint can be read.
        """
        steps = self.steps()
        for step in reversed(steps):
            whole: Any = None
            there: dict[str, str] = {}
            sealed = (self.folder / str(step) / DIGESTS).exists()
            damage = _damage(self.folder / str(step)) if sealed and jax.process_index() == 0 else ""
            if sharding.on_every_process(not damage):
                try:
                    meta = self._read(step, meta=ocp.args.JsonRestore())["meta"]
                    there = _shapes(self._manager.item_metadata(step)["state"].tree)
                    whole = meta["identity"], meta.get("config"), meta["data"]
                except Exception as error:  # orbax and tensorstore raise many kinds for a broken file
                    damage = type(error).__name__
            if sharding.on_every_process(whole is not None):
                identity, config, data = whole
                self._refuse_another(step, identity, config, there, _shapes(state))
                abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
                restored = None
                try:
                    restored = self._read(step, state=ocp.args.StandardRestore(abstract))["state"]
                except Exception as error:
                    if sealed:  # it is as it was written: the fault lies elsewhere
                        raise UserError(
                            f"checkpoint {step} in {self.folder}: cannot be restored ({reason(error)})"
                        ) from error
                    damage = type(error).__name__
                if sharding.on_every_process(restored is not None):
                    return step, restored, _from_json(data)
            say(f"checkpoint {step} in {self.folder} is broken ({damage or 'another process'}); trying the one before")
            self._set_aside(step)
        if steps:
            raise UserError(f"checkpoints in {self.folder}: none can be read; choose another --workdir to start anew")
        return None

    def _refuse_another(self, step: int, identity: str, config: Any, there: Mapping, here: Mapping) -> None:
        if identity != self.identity:
            raise UserError(
                f"workdir {self.workdir}: its checkpoints belong to frozen weights {identity}, not to {self.identity};"
                " choose another --workdir"
            )
        if config and self.config:
            mine = json.loads(json.dumps(dict(self.config)))
            refuse_another(self.workdir, config, {key: mine[key] for key in mine if key in config})
        different = [
            f"{name} {there.get(name, 'missing')} there, {here.get(name, 'missing')} here"
            for name in sorted(there.keys() | here.keys())
            if there.get(name) != here.get(name)
        ]
        if different:
            more = f" and {len(different) - 4} more" if len(different) > 4 else ""
            raise UserError(
                f"checkpoint {step} in {self.folder} has another structure: {'; '.join(different[:4])}{more};"
                " choose another --workdir"
            )

    def _read(self, step: int, **args: Any) -> Any:
        return self._manager.restore(step, args=ocp.args.Composite(**args))

    def _set_aside(self, step: int) -> None:
        if jax.process_index() == 0:
            broken = self.folder.parent / BROKEN
            files.make_folder(broken)
            number, target = 1, broken / str(step)
            while target.exists():
                number, target = number + 1, broken / f"{step}_{number}"
            files.move(self.folder / str(step), target)
        sharding.barrier("set_aside")
        self._manager.reload()

    def close(self) -> None:
        self._manager.close()
        logging.getLogger("absl").removeFilter(self._filter)


class _Manager(ocp.CheckpointManager):
    """Leaves the question of preemption to `preemption`, which counts its own calls: each asks once."""

    def reached_preemption(self, step: int) -> bool:
        return False


def bound_to(workdir: os.PathLike[str]) -> tuple[list[int], dict[str, Any] | None]:
    """The steps of the checkpoints in a workdir, and the config that the newest is bound to, if it says so."""
    folder = epath.Path(workdir) / FOLDER
    steps = sorted(ocp.utils.checkpoint_steps(folder)) if folder.is_dir() else []
    for step in reversed(steps):
        try:
            meta = json.loads((folder / str(step) / "meta" / "metadata").read_text())
            return steps, dict(meta["config"])
        except (OSError, ValueError, TypeError, KeyError):
            continue
    return steps, None


def _digests(folder: epath.Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, by its path there."""
    found = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            found |= {f"{path.name}/{name}": digest for name, digest in _digests(path).items()}
        elif path.name not in (DIGESTS, "_CHECKPOINT_METADATA"):  # orbax adds the time of its end to the latter
            found[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _damage(folder: epath.Path) -> str:
    """What of a checkpoint is not as it was written; empty when all is."""
    try:
        wanted = json.loads((folder / DIGESTS).read_text())["sha256"]
        for name, digest in wanted.items():
            path = folder / name
            if not path.exists():
                return f"{name} is missing"
            if hashlib.sha256(path.read_bytes()).hexdigest() != digest:
                return f"{name} is not as it was written"
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        return f"{DIGESTS}: {type(error).__name__}"
    return ""


def _shapes(tree: Any) -> dict[str, str]:
    """Shape and dtype of every leaf by its path, alike for a state and for orbax's description of one."""

    def name(key: Any) -> str:
        return str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))))

    leaves = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda x: hasattr(x, "shape"))[0]
    return {
        "/".join(map(name, path)): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves if hasattr(leaf, "shape")
    }


def _to_json(state: Any) -> Any:
    """A grain iterator's state (a dict, or bytes that hold JSON) as something that JSON takes."""
    return {"bytes": state.decode()} if isinstance(state, bytes) else {"dict": state}


def _from_json(state: Any) -> Any:
    return state["bytes"].encode() if "bytes" in state else state["dict"]
