"""Performance of the training loop: throughput, time spent waiting for data, device memory, profiler traces."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from etils import epath

from input_pipeline.errors import UserError
from pin_jax.runtime import reporting


class Meter:
    """Counts what is done in a window of time, which begins at the last `restart` or `read`."""

    def __init__(self):
        self.restart()

    def restart(self) -> None:
        """Begins a new window: what was done before (compilation, checkpoints) does not count."""
        self._begin, self._done, self._waited = time.monotonic(), 0, 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """A context in which the loop waits for data."""
        begin = time.monotonic()
        yield
        self._waited += time.monotonic() - begin

    def count(self, items: int) -> None:
        """Counts what was done in a step."""
        self._done += items

    def read(self) -> dict[str, float]:
        """images_per_second and data_wait, the share of the time that was spent waiting; empty if nothing was done.

        Arrays of the window's last step must be ready: steps are only dispatched before.
        """
        seconds = max(time.monotonic() - self._begin, 1e-9)
        found = {"images_per_second": self._done / seconds, "data_wait": min(self._waited / seconds, 1.0)}
        found = found if self._done else {}
        self.restart()
        return found


def device_memory() -> dict[str, float]:
    """device_memory_gib, the most that any device of this process has held; empty where the backend does not say."""
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()]
    peaks = [peak for peak in peaks if peak is not None]
    return {"device_memory_gib": max(peaks) / 2**30} if peaks else {}


class Profile:
    """Writes a trace of some steps (`jax.profiler`), which TensorBoard and Perfetto read.

    Args:
      steps: the first and the last of them; empty for none. folder: where the trace goes.

    Raises:
      UserError: the last is before the first.
    """

    def __init__(self, steps: Sequence[int], folder: os.PathLike[str]):
        if steps and (len(steps) != 2 or not 1 <= steps[0] <= steps[1]):
            raise UserError(f"config.profile {tuple(steps)}: expected the first and the last step, such as (100, 110)")
        self._steps, self._folder, self._running = tuple(steps), epath.Path(folder), False

    def before(self, step: int) -> None:
        """To be called before a step: begins the trace at the first."""
        if self._steps and self._steps[0] == step:
            jax.profiler.start_trace(os.fspath(self._folder))
            self._running = True

    def after(self, step: int, result: Any) -> None:
        """To be called behind a step, with something that it computed: ends the trace behind the last."""
        if self._running and step >= self._steps[1]:
            jax.block_until_ready(result)
            self.close()
            reporting.say(f"trace of steps {self._steps[0]} to {self._steps[1]}: {self._folder}")

    def close(self) -> None:
        """Ends a trace that is running."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()
