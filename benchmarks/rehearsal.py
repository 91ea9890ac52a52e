"""The rehearsal of a first real run: tiny models in their makers' layouts through everything that a user does.

  python benchmarks/rehearsal.py [--models opt flan-t5 openflamingo] [--workdir FOLDER]

A BLIP-2 with OPT, one with Flan-T5 and an OpenFlamingo, with the published tokenizers' special tokens and byte-level
vocabularies, on data in the published layouts (X-Paste's pool, BG-20k, VOC2007). For each model, every step a process
of its own that a user could have started:

  prepare -> train on 2 processes x 4 devices, evaluating in the loop -> SIGTERM to one of the processes -> the same
  command on 1 process x 8 devices with other workers, to the last step -> the final table on VOC2007 -> the insert in
  its authors' format -> read again by a new process, which must write the same boxes

Prints a line a step with its seconds. A step that does not do what it must ends the rehearsal with what it printed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).parent.parent
os.environ["JAX_PLATFORMS"] = "cpu"  # of this process and of all that it starts: their devices are pretended
sys.path.insert(0, str(ROOT))
from tests.fixtures import layouts, published_models  # noqa: E402

# name -> config file, variant, and what writes the model
MODELS: dict[str, tuple[str, str, Callable[[pathlib.Path], dict[str, str]]]] = {
    "opt": ("configs/pin_blip2.py", "opt-2.7b", published_models.blip2_opt),
    "flan-t5": ("configs/pin_blip2.py", "flan-t5-xl", published_models.blip2_flan_t5),
    "openflamingo": ("configs/pin_flamingo.py", "3b", published_models.openflamingo),
}
# Of the published settings only sizes are changed: bfloat16, remat, curriculum, learning rate and beams stay.
STEPS, STOP_AFTER, EVAL_EVERY = 192, 40, 32
SETTINGS = {
    "batch_size": 16, "steps": STEPS, "save_every": 1000, "log_every": 1,
    "eval_every": EVAL_EVERY, "eval_subset": 4, "eval.images": 8, "eval.batch_size": 1, "eval.new_tokens": 24,
}  # fmt: skip
PROCESSES, DEVICES = 2, 4
GRACE, LIMIT = 30, 600  # seconds on an idle machine: from SIGTERM to the last exit; of any process


patience = 1.0  # times these; --patience


class Failed(Exception):
    """A step has not done what it must."""


class Run:
    """A process of main.py, its output in a file."""

    def __init__(
        self, log: pathlib.Path, flags: Sequence[str], devices: int = 1, process: dict[str, str] | None = None
    ):
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        count = f"--xla_force_host_platform_device_count={devices}"
        env = {**os.environ, "XLA_FLAGS": count, **(process or {})}
        with log.open("w") as out:
            self.process = subprocess.Popen(
                [sys.executable, "main.py", *flags], cwd=ROOT, env=env, stdout=out, stderr=subprocess.STDOUT
            )

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self.log.read_text("utf-8", "replace")

    def require(self, held: bool, said: str) -> None:
        """Fails with the process's output unless something holds."""
        if not held:
            raise Failed(f"{said}\n--- {self.log}\n{self.output[-6000:]}")

    def finish(self, status: int = 0, until: float | None = None) -> None:
        """Waits for its end, which must be with that exit status.

        Args:
          until: when it must have ended, by time.monotonic().
        """
        until = until or time.monotonic() + patience * LIMIT
        try:
            self.process.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.require(False, "still running when it should have ended")
        finally:
            self.kill()
        self.require(self.process.returncode == status, f"exit status {self.process.returncode}, expected {status}")

    def kill(self) -> None:
        """Ends it, if it still runs: whatever happens, nothing is left behind."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def flags_of(entries: dict[str, Any]) -> list[str]:
    """Config entries as flags."""
    return [f"--config.{key}={value}" for key, value in entries.items()]


@contextlib.contextmanager
def step(model: str, name: str) -> Iterator[list[str]]:
    """Prints a line when the step ends: its seconds, and what was put into the list."""
    begin, said = time.monotonic(), []
    try:
        yield said
    except Failed:
        print(f"{model:13s} {name:44s} {time.monotonic() - begin:6.1f} s  FAILED", flush=True)
        raise
    print(f"{model:13s} {name:44s} {time.monotonic() - begin:6.1f} s  {', '.join(said)}", flush=True)


def scalars(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of a run's scalars.jsonl; the last may be half written."""
    path = workdir / "scalars.jsonl"
    lines = path.read_text("utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def losses(workdir: pathlib.Path) -> dict[int, float]:
    """Loss by step."""
    return {row["step"]: row["loss"] for row in scalars(workdir) if "loss" in row}


def evaluated(workdir: pathlib.Path) -> list[int]:
    """Steps at which the insert was evaluated in the loop."""
    return [row["step"] for row in scalars(workdir) if "eval_mIoU" in row]


def cluster() -> list[dict[str, str]]:
    """The environment of each process, on a port that was free."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    shared = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(PROCESSES)}
    return [shared | {"JAX_PROCESS_ID": str(index)} for index in range(PROCESSES)]


# --- the steps --------------------------------------------------------------------------------------------------------


def prepare(root: pathlib.Path) -> dict[str, str]:
    """Packs the training data; returns the config entries that name them."""
    with step("data", "prepare: X-Paste's pool, BG-20k") as said:
        entries = {"cutouts": layouts.xpaste(root / "xpaste"), "backgrounds": layouts.bg20k(root / "bg20k"), "side": 56}
        packed = root / "packed"
        run = Run(
            root / "logs" / "prepare.log", ["--config=configs/prepare.py", f"--workdir={packed}", *flags_of(entries)]
        )
        run.finish()
        counts = json.loads((packed / "prepared.json").read_text("utf-8"))
        said.append(f"{counts['cutouts']} cut-outs, {counts['backgrounds']} backgrounds")
    return {f"scenes.{kind}": f"packed:{packed / kind}" for kind in ("cutouts", "backgrounds")}


def interrupted(model: str, flags: list[str], workdir: pathlib.Path, logs: pathlib.Path) -> int:
    """Trains on several processes until one of them gets SIGTERM; returns the step that they saved."""
    with step(model, f"train: {PROCESSES} processes x {DEVICES} devices, SIGTERM to one") as said:
        runs = [
            Run(logs / f"train_{i}.log", [*flags, "--config.workers=2"], DEVICES, process)
            for i, process in enumerate(cluster())
        ]
        try:
            begin = time.monotonic()
            while max(losses(workdir), default=0) < STOP_AFTER:
                for run in runs:
                    run.require(run.process.poll() is None, "ended before it was asked to")
                    run.require(time.monotonic() - begin < patience * LIMIT, f"step {STOP_AFTER} was not reached")
                time.sleep(0.1)
            asked = time.monotonic()
            runs[-1].process.send_signal(signal.SIGTERM)
            for run in runs:
                run.finish(128 + signal.SIGTERM, asked + patience * GRACE)
        finally:
            for run in runs:
                run.kill()
        steps = sorted(int(p.name) for p in (workdir / "checkpoints").iterdir() if p.name.isdigit())
        last, scored = max(losses(workdir)), evaluated(workdir)
        runs[0].require(steps[-1:] == [last], f"checkpoints {steps}, but the last step was {last}")
        runs[0].require((workdir / "inserts" / f"{last}.safetensors").exists(), "no insert beside the checkpoint")
        runs[0].require(scored == list(range(EVAL_EVERY, last, EVAL_EVERY)), f"evaluated at steps {scored}")
        said += [f"step {last} saved", f"all ended {time.monotonic() - asked:.1f} s after it with status 143"]
    return last


def resumed(model: str, flags: list[str], workdir: pathlib.Path, logs: pathlib.Path, stopped: int) -> None:
    """Goes on where they stopped: one process, other workers; to the last step."""
    with step(model, f"go on: 1 process x {PROCESSES * DEVICES} devices, other workers") as said:
        run = Run(logs / "resumed.log", [*flags, "--config.workers=0"], PROCESSES * DEVICES)
        run.finish()
        run.require(f"going on from step {stopped} of {STEPS}" in run.output, f"did not go on from step {stopped}")
        own = losses(workdir)
        run.require(
            list(own) == list(range(1, STEPS + 1)), f"losses of steps {list(own)}, expected 1 to {STEPS}, in order"
        )
        scored = [
            step for step in range(EVAL_EVERY, STEPS + 1, EVAL_EVERY) if step != stopped
        ]  # it ended there at once
        run.require(evaluated(workdir) == scored, f"evaluated at steps {evaluated(workdir)}, expected {scored}")
        run.require((workdir / "best.safetensors").exists(), "no best insert was kept")
        first, last = (sum(list(own.values())[part]) / 16 for part in (slice(0, 16), slice(-16, None)))
        run.require(last < first, f"the loss went from {first:.3f} to {last:.3f}")
        said += [f"loss {first:.3f} to {last:.3f}"]


def answers(workdir: pathlib.Path) -> list[Any]:
    """Every answer of an evaluation: its box, and the text that was written."""
    return json.loads((workdir / "predictions.json").read_text("utf-8"))


def final_table(model: str, flags: list[str], workdir: pathlib.Path, logs: pathlib.Path, context: int) -> None:
    """The rows of the paper's table on VOC2007."""
    with step(model, "final table on VOC2007") as said:
        run = Run(logs / "table.log", [*flags, f"--config.eval.context=({context},)"], PROCESSES * DEVICES)
        run.finish()
        results = json.loads((workdir / "results.json").read_text("utf-8"))
        for row in ("raw", f"{context}_context", "pin"):
            run.require(row in results, f"no row {row}")
            said.append(f"{row} {results[row]['mIoU']:.3f}")
        rows = [results[row]["mIoU"] for row in ("raw", "pin")]
        run.require(rows[0] != rows[1], "the insert has changed no answer")


def exported(model: str, flags: list[str], workdir: pathlib.Path, logs: pathlib.Path) -> None:
    """The insert in its authors' format, and the same boxes with it in a new workdir."""
    with step(model, "export the insert in its authors' format"):
        Run(logs / "export.log", [*flags, f"--workdir={workdir}", "--config.run=export"]).finish()
    with step(model, "the same boxes from it in a new process") as said:
        again = workdir.parent / "from_file"
        run = Run(
            logs / "from_file.log", [*flags, f"--workdir={again}", f"--config.insert={workdir / 'insert.pt'}"],
            PROCESSES * DEVICES,
        )  # fmt: skip
        run.finish()
        before, after = answers(workdir), answers(again)
        run.require(before == after, f"other answers:\n{before}\n{after}")
        said.append(f"{len(after)} answers")


def rehearse(model: str, root: pathlib.Path, data: dict[str, str], voc: pathlib.Path) -> None:
    """One model through all steps.

    Raises:
      Failed: at the first step that does not do what it must.
    """
    file, variant, write = MODELS[model]
    workdir, logs = root / model / "run", root / "logs" / model
    with step(model, "weights in their makers' layout"):
        entries = write(root / model / "published")
    flags = flags_of(entries | data | SETTINGS)
    train = [f"--config={file}:{variant}", f"--workdir={workdir}", *flags]
    stopped = interrupted(model, train, workdir, logs)
    resumed(model, train, workdir, logs, stopped)
    # On the grid: a model of random weights writes no box of its own accord, and what is no box could not differ.
    table = [f"--config={file}:{variant},eval=pvoc", *flags, *flags_of({"data_dir": voc, "eval.decoder": "grid_beam"})]
    final_table(model, [*table, f"--workdir={workdir}"], workdir, logs, 2)
    exported(model, table, workdir, logs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--workdir", type=pathlib.Path, help="a temporary folder by default, removed at the end")
    parser.add_argument("--patience", type=float, default=1, help="times all limits, on a machine with other work")
    options = parser.parse_args()
    global patience
    patience = options.patience
    root = options.workdir or pathlib.Path(tempfile.mkdtemp(prefix="rehearsal_"))
    if root.exists() and any(root.iterdir()):
        sys.exit(f"error: --workdir {root}: not empty; give a new folder")
    begin = time.monotonic()
    try:
        data, voc = prepare(root), layouts.voc2007(root / "voc") / "VOCdevkit"
        for model in options.models:
            rehearse(model, root, data, voc)
    except Failed as error:
        sys.exit(f"error: {error}\nall output: {root / 'logs'}")
    print(f"{len(options.models)} models, {time.monotonic() - begin:.0f} s")
    if not options.workdir:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
