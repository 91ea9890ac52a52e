"""Flags and distributed start-up, then the program that the config names.

python main.py                                                      # what there is to run
python main.py --config=configs/pin_flamingo.py:tiny [--workdir=runs/tiny] [--config.lr=3e-4 ...]
"""

from __future__ import annotations

import difflib
import importlib
import pathlib
import re
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from configs.lib import catalogue, schema
from input_pipeline.errors import UserError

logging.set_verbosity(logging.WARNING)

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, with :variant; override by --config.name=value.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder for everything that a run writes; runs/CONFIG-VARIANT if none.")
# program -> module with `run(config, workdir)`
PROGRAMS = {
    "pin": "pin_jax.programs.pin",
    "pin_table": "pin_jax.programs.table",
    "tiny_vlm": "pin_jax.small.recipe",
    "tiny_clip": "gem_jax.small",
    "gem": "gem_jax.programs",
    "prepare": "pin_jax.programs.prepare",
    "demo": "demo.page",
}


def _given(argv: list[str]) -> tuple[str, str]:
    """Path and variant of --config."""
    given = next((a.split("=", 1)[-1] for a in argv if re.match(r"--?config=", a)), "")
    path, _, variant = given.partition(":")
    return path, variant


def _override_error(argv: list[str], error: Exception) -> str:
    """One line for a config file or an override that does not parse; names the nearest right entry."""
    try:
        entries = [path for path, _ in schema.entries(catalogue.get_config(*_given(argv)))]
    except Exception as inner:  # the config file itself refuses
        return " ".join(str(inner).split())
    for argument in argv:
        name = re.match(r"--?config\.([^=]+)", argument)
        if name and name[1] not in entries:
            near = difflib.get_close_matches(name[1], entries, 1, 0.0)
            return f"--config.{name[1]}: no such entry; did you mean --config.{near[0]}?"
    return " ".join(str(error).split())


def _parse(argv: list[str]) -> list[str]:
    path, variant = _given(argv)
    if path and not pathlib.Path(path).is_file():
        near = difflib.get_close_matches(
            path, sorted(f"configs/{p.name}" for p in catalogue.CONFIGS.glob("*.py")), 1, 0.3
        )
        sys.exit(f"error: --config={path}: no such file{f'; did you mean {near[0]}?' if near else ''}")
    try:
        if len(argv) == 1 or {"--help", "-h", "-help", "--helpfull"} & set(argv):
            print(catalogue.of_config(path, variant) if path else catalogue.of_all())
            sys.exit(0)
        return flags.FLAGS(argv)
    except (flags.Error, ValueError, TypeError, AttributeError, KeyError, OSError) as error:
        sys.exit(f"error: {_override_error(argv, error)}")


def _run() -> None:
    """Starts the processes, claims the workdir and runs the program.

    Raises:
      UserError: as they say.
    """
    from pin_jax.runtime import compilation, reporting  # not above: they import JAX
    from pin_jax.runtime.processes import launch, preemption, workdirs  # not above: they import JAX

    given = WORKDIR.value if WORKDIR.value is not None else str(catalogue.workdir(*_given(sys.argv)))
    workdir = workdirs.named(given)
    try:
        compilation.keep()
        launch.start()
        if WORKDIR.value is None:
            reporting.say(f"workdir: {workdir} (another: --workdir=FOLDER)")
        program = importlib.import_module(PROGRAMS[CONFIG.value.program])
        with launch.watched(), preemption.ends_at_once(), workdirs.claimed(workdir):
            program.run(CONFIG.value, workdir)
    except UserError as error:
        launch.leave(f"error: {error}")
    except Exception as error:
        launch.failed(error)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        sys.exit(f"error: {argv[1]!r} is not a flag; overrides are written --config.name=value")
    if CONFIG.value is None:
        sys.exit("error: --config is missing; for example --config=configs/pin_flamingo.py:tiny (all: python main.py)")
    try:
        schema.check(CONFIG.value)
        _run()
    except UserError as error:
        sys.exit(f"error: {error}")


def _from_anywhere(argument: str) -> str:
    """`--config=configs/...` where that is not below this folder, but the project's own."""
    given = re.fullmatch(r"(--?config=)([^:]*)(.*)", argument)
    return f"{given[1]}{catalogue.found(given[2])}{given[3]}" if given else argument


def command() -> None:
    """The command `pin-gem`, and this file as a script."""
    sys.argv[1:] = [_from_anywhere(argument) for argument in sys.argv[1:]]
    app.run(main, flags_parser=_parse)


if __name__ == "__main__":
    command()
