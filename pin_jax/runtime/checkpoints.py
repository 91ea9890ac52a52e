"""Checkpoints: the trainable tree, the optimiser, the step and the data iterator, written asynchronously by orbax."""

from __future__ import annotations

import json
import logging
import pathlib
import sys
from typing import Any

import jax
import orbax.checkpoint as ocp

from input_pipeline.errors import UserError
from pin_jax.runtime.reporting import say


class Checkpoints:
    """Saves and restores training states below `workdir/checkpoints`.

    The frozen weights are not written: their identity is, and a state made with others is refused.
    """

    def __init__(self, workdir: pathlib.Path, identity: str, keep: int = 3):
        self.folder = (workdir / "checkpoints").absolute()
        self.identity = identity
        logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax logs what it raises, traceback and all
        sys.unraisablehook = _without_closed_loops
        self._manager = ocp.CheckpointManager(
            self.folder, options=ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        )

    def save(self, step: int, state: Any, data_state: Any) -> None:
        """Starts writing a state; returns before it is on disk.

        Args:
          state: pytree of arrays. data_state: of the data iterator, anything that JSON takes.

        Raises:
          UserError: the disk is full. Earlier checkpoints stay.
        """
        meta = {"identity": self.identity, "data": _to_json(data_state)}
        try:
            self._manager.save(
                step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise self._cannot_write(step, error) from error

    def wait(self) -> None:
        """Waits until everything is on disk; raises what `save` would."""
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError, RuntimeError) as error:
            raise self._cannot_write(None, error) from error

    def _cannot_write(self, step: int | None, error: Exception) -> UserError:
        steps = self.steps()
        kept = f"; the checkpoint of step {max(steps)} is intact" if steps else ""
        return UserError(
            f"checkpoint {'' if step is None else step} in {self.folder}: cannot be written"
            f" ({type(error).__name__}: {str(error)[:160]}); free disk space and start the same command again{kept}"
        )

    def steps(self) -> list[int]:
        """Steps of the finished checkpoints."""
        return sorted(self._manager.all_steps(read=True))

    def restore(self, state: Any) -> tuple[int, Any, Any] | None:
        """The newest state that can be read.

        Args:
          state: a state of the same structure, shapes and sharding, to restore into.

        Returns:
          Step, state and data state; None when there is none. A checkpoint that cannot be read is named, moved aside
          and the one before it is tried.

        Raises:
          UserError: the state belongs to other frozen weights, or every checkpoint is broken.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                meta = json.loads(json.dumps(self._read(step, meta=ocp.args.JsonRestore())["meta"]))
                abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
                restored = self._read(step, state=ocp.args.StandardRestore(abstract))["state"]
            except Exception as error:  # orbax and tensorstore raise many kinds for a broken file
                say(f"checkpoint {step} in {self.folder} is broken ({type(error).__name__}); trying the one before")
                self._set_aside(step)
                continue
            if meta["identity"] != self.identity:
                raise UserError(
                    f"workdir {self.folder.parent}: its checkpoints belong to frozen weights {meta['identity']},"
                    f" not to {self.identity}; choose another --workdir"
                )
            return step, restored, _from_json(meta["data"])
        if steps:
            raise UserError(f"checkpoints in {self.folder}: none can be read; choose another --workdir to start anew")
        return None

    def _read(self, step: int, **args: Any) -> Any:
        return self._manager.restore(step, args=ocp.args.Composite(**args))

    def _set_aside(self, step: int) -> None:
        broken = self.folder.parent / "broken_checkpoints"
        broken.mkdir(exist_ok=True)
        source, target = self.folder / str(step), broken / str(step)
        if source.exists() and not target.exists():
            source.rename(target)
        self._manager.reload()

    def close(self) -> None:
        self._manager.close()


def _without_closed_loops(unraisable: Any) -> None:
    """Leaves out the tracebacks of writes that end after the first failed one has closed orbax's event loop.

    They would bury the one line that says what happened.
    """
    if not (isinstance(unraisable.exc_value, RuntimeError) and "Event loop is closed" in str(unraisable.exc_value)):
        sys.__unraisablehook__(unraisable)


def _to_json(state: Any) -> Any:
    """A grain iterator's state (a dict, or bytes that hold JSON) as something that JSON takes."""
    return {"bytes": state.decode()} if isinstance(state, bytes) else {"dict": state}


def _from_json(state: Any) -> Any:
    return state["bytes"].encode() if "bytes" in state else state["dict"]
