"""The workdir of a run: locked while in use, visible to every process, checked before any work.

A lock of the file system goes with the process that holds it; beside it stands who that is or was, in `.run.json`.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Iterator

import filelock
import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from input_pipeline.errors import UserError
from pin_jax.runtime import files, sharding
from pin_jax.runtime.reporting import say

LOCK, HOLDER = ".lock", ".run.json"


def named(text: str) -> epath.Path:
    """The path that a flag gives, local or in a bucket.

    Raises:
      UserError: it is empty, as from a shell variable that is not set.
    """
    if not text.strip():
        raise UserError("--workdir is empty: give a folder, such as --workdir=runs/tiny")
    return epath.Path(text)


@contextlib.contextmanager
def claimed(workdir: os.PathLike[str]) -> Iterator[epath.Path]:
    """A context in which a folder is this run's, made where it is not there.

    Raises:
      UserError: it cannot be written to, another run has it, or some process does not see it.
    """
    workdir, lock, refused, held = epath.Path(workdir), None, None, False
    new = not workdir.exists()
    first = not jax.distributed.is_initialized() or jax.process_index() == 0
    if first:
        try:
            files.make_folder(workdir)
            lock, held = _lock(workdir), True
        except UserError as error:
            refused = error
    if not _agreed(refused is None):
        raise refused or UserError(f"workdir {workdir}: the first process cannot have it, and says why")
    try:
        shared = owner(workdir) == 0
        if not _agreed(shared):
            raise UserError(
                f"workdir {workdir} is not shared between hosts: "
                + ("another process does" if shared else "this process does")
                + " not see what the first has written; choose a --workdir on a shared disk or in a bucket"
            )
        yield workdir
    finally:
        if held:
            files.remove(workdir / HOLDER)
        if lock is not None:
            files.remove(workdir / LOCK)
            lock.release()
            if new:
                with contextlib.suppress(OSError):  # not empty: something was written
                    os.rmdir(workdir)


def _agreed(here: bool) -> bool:
    return sharding.on_every_process(here) if jax.distributed.is_initialized() else here


def _lock(workdir: epath.Path) -> filelock.BaseFileLock | None:
    """Locks a folder for this process.

    Raises:
      UserError: another run has it.
    """
    holder = workdir / HOLDER
    me = {"host": socket.gethostname(), "pid": os.getpid(), "started": time.strftime("%Y-%m-%d %H:%M:%S"),
          "command": " ".join(sys.argv)[:500]}  # fmt: skip
    if files.is_remote(workdir):
        if holder.exists():
            raise UserError(
                f"workdir {workdir}: {_told(holder)} has it; a bucket cannot tell whether that run still goes on: if it"
                f" does not, delete {holder}"
            )
        lock = None
    else:
        with files.told(workdir / LOCK):  # which says more than the lock would
            open(workdir / LOCK, "a").close()
        lock = filelock.FileLock(os.fspath(workdir / LOCK), timeout=0)
        try:
            lock.acquire()
        except filelock.Timeout as error:
            raise UserError(
                f"workdir {workdir}: {_told(holder)} is running in it; wait for its end or choose another --workdir"
            ) from error
        if holder.exists():
            say(f"workdir {workdir}: {_told(holder)} ended without a word; its lock is taken over")
    files.write_json(holder, me)
    return lock


def _told(holder: epath.Path) -> str:
    try:
        there = json.loads(holder.read_text())
        return f"a run on {there['host']} (pid {there['pid']}, since {there['started']})"
    except (OSError, ValueError, TypeError, KeyError):
        return "a run"


def owner(folder: os.PathLike[str]) -> int:
    """The lowest process that sees this process's folder of that name: it writes there, the others read.

    A disk of each host has an owner on each, a shared one only the first process. All processes must ask.
    """
    if not jax.distributed.is_initialized() or jax.process_count() == 1:
        return 0
    token = int(multihost_utils.broadcast_one_to_all(np.int32(time.time_ns() % 2**31)))
    folder = epath.Path(folder)
    seen: list[int] = []
    mine = folder / f".seen_{token}_{jax.process_index()}"
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        mine.write_text("")
    sharding.barrier("seen")
    with contextlib.suppress(OSError):
        seen = [int(path.name.rsplit("_", 1)[1]) for path in folder.glob(f".seen_{token}_*")]
    sharding.barrier("counted")
    files.remove(mine)
    return min(seen, default=jax.process_index())
