"""Starting and ending distributed processes: SLURM, Open MPI, Cloud TPU, Kubernetes, or environment variables.

JAX finds the launcher itself. For any other one, `JAX_COORDINATOR_ADDRESS` (host:port of the first process),
`JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` say the same; each replaces what was found.
"""

from __future__ import annotations

import contextlib
import faulthandler
import itertools
import multiprocessing
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any

import jax
from jax._src import distributed

from input_pipeline.errors import UserError

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
WITHOUT_SIGN = 25  # seconds after which a process that gives no sign counts as dead
HEARTBEAT = 45  # the same for JAX, which would end the others with a stack trace
_AGAIN = "start the same command again on all of them"
_SIGNS, _BETWEEN = "pin_jax/signs", 3
LAST_WORDS = 2  # seconds that threads have to end before an error is told
# What JAX's errors say where another process is gone: of Gloo, of NCCL, and of the service that joins the processes.
_GONE = re.compile(
    r"gloo|nccl|connection (closed|reset|refused)|broken pipe|heartbeat|coordination|socket closed|barrier|preempt"
    r"|another task|UNAVAILABLE|DEADLINE_EXCEEDED",
    re.IGNORECASE,
)


def start() -> None:
    """Joins the processes of a launcher; without one, this process is alone.

    Raises:
      UserError: variables that cannot be; processes that do not come; a platform that is not there.
    """
    address, count, index = _given()
    try:
        jax.distributed.initialize(address, count, index, heartbeat_timeout_seconds=HEARTBEAT)
    except ValueError as error:
        if address or count is not None or index is not None:
            raise UserError(
                f"{ADDRESS}={address or ''}, {COUNT}={_shown(count)}, {INDEX}={_shown(index)}: {error} Set all three"
                " for every process, or start it by srun, mpirun or on a TPU slice"
            ) from error
    except (RuntimeError, OSError, KeyError) as error:
        if jax.distributed.is_initialized():
            raise
        told = " ".join(str(error).split())[:200]
        raise UserError(
            f"the processes of this run cannot be joined ({told}); look at {ADDRESS} and the launcher"
        ) from (error)
    if jax.distributed.is_initialized():
        faulthandler.disable()  # which absl turns on: where another process dies, JAX ends this one and says why
    if platforms := os.environ.get("JAX_PLATFORMS"):
        try:
            jax.local_devices()
        except (RuntimeError, AssertionError) as error:  # the latter for CUDA without its plug-in
            told = f" ({' '.join(str(error).split())[:160]})" if str(error) else ""
            raise UserError(
                f"JAX_PLATFORMS={platforms}: JAX has no such devices here{told}; unset it, or install JAX for them"
            ) from error


def _given() -> tuple[str | None, int | None, int | None]:
    """What the variables say: address, number of processes, index of this one; None where they say nothing."""
    address = os.environ.get(ADDRESS) or os.environ.get("COORDINATOR_ADDRESS")
    count, index = _number(COUNT, 1), _number(INDEX, 0)
    if address:
        host, _, port = address.rpartition(":")
        if not re.fullmatch(r"[\w.\-]+|\[[0-9a-fA-F:.]+\]", host) or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise UserError(f"{ADDRESS}={address}: expected HOST:PORT of the first process, such as 10.0.0.2:8476")
    if count is not None and index is not None and index >= count:
        raise UserError(f"{INDEX}={index}: expected under {COUNT}, {count}")
    return address, count, index


def _number(name: str, least: int) -> int | None:
    text = os.environ.get(name)
    if not text:
        return None
    if not text.isdecimal() or not least <= int(text) < 2**20:
        raise UserError(f"{name}={text}: expected a whole number, {least} or above")
    return int(text)


def _shown(value: int | None) -> str:
    return "" if value is None else str(value)


def described() -> str:
    """How many processes there are, for the plan of a run."""
    if not jax.distributed.is_initialized():
        return "one process (no launcher found)"
    return "one process" if jax.process_count() == 1 else f"{jax.process_count()} processes"


def alone(what: str) -> None:
    """Refuses several processes.

    Raises:
      UserError: there are, and names what runs on one.
    """
    if jax.distributed.is_initialized() and jax.process_count() > 1:
        raise UserError(f"{what} runs on one process, and this launcher started {jax.process_count()}; start one")


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """A context in which each of several processes gives signs of life, and ends with one line where another does not.

    A collective waits for a process that was killed: on some devices for ever.
    """
    if not jax.distributed.is_initialized() or jax.process_count() == 1:
        yield
        return
    service = distributed.global_state.client  # no public name leads to it
    me, ended = str(jax.process_index()), threading.Event()
    threading.Thread(target=_watch, args=(service, me, ended), name="signs", daemon=True).start()
    try:
        yield
    except Exception:
        raise  # without a word to the others, who end too
    except SystemExit:
        _sign(service, me, ended)
        raise
    _sign(service, me, ended)


def _sign(service: Any, me: str, ended: threading.Event) -> None:
    ended.set()
    service.key_value_set(f"{_SIGNS}/{me}", "done", allow_overwrite=True)


def _watch(service: Any, me: str, ended: threading.Event) -> None:
    seen: dict[str, tuple[str, float]] = {}
    for count in itertools.count():
        try:
            service.key_value_set(f"{_SIGNS}/{me}", str(count), allow_overwrite=True)
            signs = service.key_value_dir_get(_SIGNS)
        except jax.errors.JaxRuntimeError:
            return  # the service is gone, and JAX ends this process
        now = time.monotonic()
        for name, sign in signs:
            if seen.get(name, ("", 0))[0] != sign:
                seen[name] = sign, now
            if sign != "done" and now - seen[name][1] > WITHOUT_SIGN:
                one = name.rsplit("/", 1)[1]
                leave(
                    f"error: process {one} of this run has ended; start the same command again on all of them", now=True
                )
        if ended.wait(_BETWEEN):
            return


def failed(error: Exception) -> None:
    """Ends one of several processes after an error that no user caused: with one line where another process is gone.

    Where this process is alone, or the fault is its own, the traceback is told as ever.
    """
    if not jax.distributed.is_initialized():
        raise error
    told = " ".join(str(error).split())
    if not _GONE.search(told):
        traceback.print_exception(error)
    leave(f"error: {told[:200]}; one process of this run has ended; {_AGAIN}")


def leave(message: str, status: int = 1, now: bool = False) -> None:
    """Ends this process with one line, whatever its threads wait for.

    Orbax's threads wait for a write that failed, and JAX at its end for the other processes, minutes both.

    Args:
      now: no thread is waited for.
    """
    waiting = [] if now else [t for t in threading.enumerate() if not t.daemon and t is not threading.current_thread()]
    for thread in waiting:
        thread.join(LAST_WORDS / len(waiting))
    sys.stdout.flush()
    print(message, file=sys.stderr, flush=True)  # the last line, whatever those threads say of the same error
    if now or jax.distributed.is_initialized() or any(thread.is_alive() for thread in waiting):
        for child in multiprocessing.active_children():
            child.kill()
        os._exit(status)
    sys.exit(status)
