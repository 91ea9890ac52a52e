"""What a run says while it works: the plan, progress bars with ETA and rate, scalars for TensorBoard and curves."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
from etils import epath
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from tensorboardX import SummaryWriter

from pin_jax.runtime import files

console = Console(width=None if sys.stdout.isatty() else 120)


def say(text: str) -> None:
    """One line for the user; only the first process speaks."""
    if jax.process_index() == 0:
        console.print(text, highlight=False, markup=False, soft_wrap=True)


def plan(title: str, rows: Mapping[str, str]) -> None:
    """The table of what a run will do, printed before it works."""
    table = Table(title=title, show_header=False, title_justify="left")
    for name, value in rows.items():
        table.add_row(name, value)
    if jax.process_index() == 0:
        console.print(table)


def results_table(title: str, rows: Mapping[str, Mapping[str, Any]], columns: tuple[str, ...]) -> None:
    """A table of scores: a row a method, a column a score."""
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    for name, scores in rows.items():
        table.add_row(name, *(_cell(scores.get(column)) for column in columns))
    if jax.process_index() == 0:
        console.print(table)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else f"{value}"


class _Rate(ProgressColumn):
    """Items per second since the start of the task."""

    def __init__(self, unit: str):
        super().__init__()
        self.unit = unit

    def render(self, task) -> Text:
        speed = (task.completed - task.fields["start_at"]) / task.elapsed if task.elapsed else 0
        return Text(f"{speed:,.0f} {self.unit}/s")


@contextlib.contextmanager
def progress(title: str, total: int, unit: str) -> Iterator[Callable[..., None]]:
    """A progress bar with ETA and rate.

    On a terminal it moves; in a log it is a line for every tenth. Without a title there is none.

    Yields:
      advance(done, note=""): sets how much is done.
    """
    if not title:
        yield lambda done, note="": None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"), _Rate(unit + "s"))
    columns += (TimeElapsedColumn(), TextColumn("ETA"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
    quiet = jax.process_index() != 0
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal) as bar:
        task = bar.add_task(title, total=total, note="", start_at=0)
        begin, start_at, tenth = time.monotonic(), None, -1

        def advance(done: int, note: str = "") -> None:
            nonlocal start_at, tenth
            if start_at is None:  # a resumed run does not count what an earlier one did
                start_at = done if done > total // 10 else 0
            bar.update(task, completed=done, note=note, start_at=start_at)
            if console.is_terminal or quiet or 10 * done // max(total, 1) == tenth:
                return
            tenth = 10 * done // max(total, 1)
            speed = (done - start_at) / (time.monotonic() - begin)
            rate = f"{speed:,.0f} {unit}s/s, ETA {(total - done) / speed:,.0f} s " if speed else ""
            say(f"{title}: {done:,} of {total:,} {unit}s, {rate}{note}".rstrip(" ,"))

        yield advance


class Log:
    """Scalars of a run, for TensorBoard and for the loss curve; a resumed run goes on in the same files.

    Raises:
      UserError: they cannot be written.
    """

    def __init__(self, workdir: os.PathLike[str]):
        self._path = epath.Path(workdir) / "scalars.jsonl"
        self._writer = None
        self.latest_loss = 0.0
        if jax.process_index() > 0:  # the others have the same values
            return
        tensorboard = epath.Path(workdir) / "tensorboard"
        files.make_folder(tensorboard)
        self._held = None
        if files.is_remote(self._path):
            self._held = self._path.read_text() if self._path.exists() else ""
        with files.told(self._path):
            cut = self._path.exists() and self._path.read_bytes()[-1:] not in (b"", b"\n")  # a line that a death cut
        self._append("\n" if cut else "")
        with files.told(tensorboard):
            self._writer = SummaryWriter(os.fspath(tensorboard))

    def _append(self, text: str) -> None:
        with files.told(self._path):
            if self._held is not None:  # an object in a bucket cannot grow
                self._held += text
                self._path.write_text(self._held)
                return
            with open(self._path, "a", encoding="utf-8") as file:
                file.write(text)

    def scalars(self, step: int, **values: float) -> None:
        """Writes values of one step."""
        self.latest_loss = values.get("loss", self.latest_loss)
        if self._writer is None:
            return
        self._append(json.dumps({"step": step, **values}) + "\n")
        with files.told(self._path.parent / "tensorboard"):
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


def read_scalars(workdir: os.PathLike[str]) -> list[dict[str, float]]:
    """The scalars of a run by step; of a step written twice (before and after a restart) the later counts.

    What a power loss or a full disk has left of a line is passed over.
    """
    path, rows = epath.Path(workdir) / "scalars.jsonl", {}
    for line in path.read_bytes().splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
            rows[int(row["step"])] = row
        except (ValueError, TypeError, KeyError):
            continue
    return [rows[step] for step in sorted(rows)]


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "transformers", "numpy", "pillow")
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in packages}}


def devices() -> str:
    """What the run ran on, for results.json."""
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"
