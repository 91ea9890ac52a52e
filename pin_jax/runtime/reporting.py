"""Console output and logs: the plan of a run, progress bars, scalars for TensorBoard, results as tables."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.metadata
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from tensorboardX import SummaryWriter

from input_pipeline.errors import UserError
from pin_jax.runtime import files

SAY_EVERY = 30.0  # seconds between lines of progress in a log
REDRAW_EVERY = 0.5  # seconds, of a bar in a notebook
BAR = 24  # letters of it
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


def markdown_table(title: str, rows: Mapping[str, Mapping[str, Any]], columns: tuple[str, ...]) -> str:
    """The same table as Markdown."""
    lines = [f"{title}.", "", f"| | {' | '.join(columns)} |", "|---" + "|---:" * len(columns) + "|"]
    lines += [f"| {name} | {' | '.join(_cell(scores.get(c)) for c in columns)} |" for name, scores in rows.items()]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else f"{value}"


class _Rate(ProgressColumn):
    """Items per second, lately."""

    def __init__(self, unit: str):
        super().__init__()
        self.unit = unit

    def render(self, task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f} {self.unit}/s" if speed else "")


@contextlib.contextmanager
def progress(title: str, total: int, unit: str, every: float = SAY_EVERY) -> Iterator[Callable[..., None]]:
    """A progress bar with ETA and rate, those of late: neither compilation nor an earlier run counts.

    On a terminal and in a notebook it moves; in a log it is a line now and then, and one at the end. Without a title
    there is none.

    Args:
      every: seconds from line to line in a log.

    Yields:
      advance(done, note=""): sets how much is done.
    """
    quiet = not title or jax.process_index() != 0
    if quiet:
        yield lambda done, note="": None
        return
    if console.is_jupyter:
        yield _lines(title, total, unit, REDRAW_EVERY, _notebook_bar(total))
        return
    if not console.is_terminal:
        yield _lines(title, total, unit, every, lambda line, done: say(line))
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"), _Rate(unit + "s"))
    columns += (TimeElapsedColumn(), TextColumn("ETA"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=total, note="")
        yield lambda done, note="": bar.update(task, completed=done, note=note)


def _lines(title: str, total: int, unit: str, every: float, write: Callable[[str, int], None]) -> Callable[..., None]:
    """Progress as lines; a rate is that since the line before. `write` gets a line and how much is done."""
    said = time.monotonic()
    before: tuple[float, int] | None = None

    def advance(done: int, note: str = "") -> None:
        nonlocal said, before
        now = time.monotonic()
        before = before or (now, done)
        if done < total and now - said < every:
            return
        speed = (done - before[1]) / (now - before[0]) if now > before[0] else 0
        rate = f"{speed:,.0f} {unit}s/s, ETA {(total - done) / speed:,.0f} s, " if speed else ""
        write(f"{title}: {done:,} of {total:,} {unit}s, {rate}{note}".rstrip(" ,"), done)
        said, before = now, (now, done)

    return advance


def _notebook_bar(total: int) -> Callable[[str, int], None]:
    """One output of a notebook's cell that is written over, as text: it needs no widgets and stays when it is saved."""
    from IPython.display import display  # pyright: ignore[reportMissingImports] (a notebook has it)

    def shown(line: str, done: int) -> dict[str, str]:
        full = BAR * done // max(total, 1)
        return {"text/plain": f"{'█' * full}{'░' * (BAR - full)} {line}"}

    held: list[Any] = []

    def write(line: str, done: int) -> None:
        if held:
            held[0].update(shown(line, done), raw=True)
        else:
            held.append(display(shown(line, done), raw=True, display_id=True))

    return write


def wandb() -> Any:
    """The module of Weights & Biases.

    Raises:
      UserError: it is not installed.
    """
    try:
        return importlib.import_module("wandb")
    except ImportError as error:
        raise UserError(
            "config.wandb: wandb is not installed; pip install wandb, or leave config.wandb=False"
        ) from error


class Log:
    """Scalars of a run, for TensorBoard and for the loss curve; a resumed run goes on in the same files.

    Args:
      workdir: where they go. config: of the run, for Weights & Biases; None does without.

    Raises:
      UserError: they cannot be written, or Weights & Biases is not installed.
    """

    def __init__(self, workdir: os.PathLike[str], config: Mapping[str, Any] | None = None):
        self._path = epath.Path(workdir) / "scalars.jsonl"
        self._writer = self._wandb = None
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
            try:
                self._writer = SummaryWriter(os.fspath(tensorboard))
            except ImportError as error:
                raise UserError(f"{tensorboard}: TensorBoard's files in a bucket need a library: {error}") from error
        if config is not None:
            name = files.absolute(workdir)  # of a resumed run the same
            self._wandb = wandb().init(
                dir=None if files.is_remote(self._path) else os.fspath(workdir),
                id=hashlib.sha256(name.encode()).hexdigest()[:16],
                name=epath.Path(workdir).name,
                config=dict(config),
                resume="allow",
            )

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
        if self._wandb is not None:
            self._wandb.log(values, step=step)

    def picture(self, path: os.PathLike[str]) -> None:
        """Shows a picture's file, under its name, at step 0."""
        if self._writer is None:
            return
        path = epath.Path(path)
        with path.open("rb") as file:
            pixels = np.asarray(Image.open(file).convert("RGB"))
        with files.told(self._path.parent / "tensorboard"):
            self._writer.add_image(path.stem, pixels, 0, dataformats="HWC")
        if self._wandb is not None:
            self._wandb.log({path.stem: wandb().Image(pixels)}, step=0)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
        if self._wandb is not None:
            self._wandb.finish()


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


def command() -> str:
    """The command line of this run, as a shell takes it."""
    return shlex.join(["python", *sys.argv] if sys.argv[0].endswith(".py") else sys.argv)


def devices() -> str:
    """What the run ran on, for results.json."""
    return f"{jax.device_count()} x {jax.devices()[0].device_kind}"
