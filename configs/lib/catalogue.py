"""What there is to run: the configs of this folder, their variants and runs, for `python main.py` and `--help`."""

from __future__ import annotations

import importlib.util
import pathlib
import re
import types

from ml_collections import ConfigDict

from configs.lib import schema

CONFIGS = pathlib.Path(__file__).parents[1]


def found(path: str | pathlib.Path) -> pathlib.Path:
    """A config file's path; one of the project's own (`configs/pin_blip2.py`) is found from every folder."""
    path = pathlib.Path(path)
    own = CONFIGS.parent / path
    return own if path.parts[:1] == (CONFIGS.name,) and not path.exists() and own.is_file() else path


def load(path: str | pathlib.Path) -> types.ModuleType:
    """A config file as a module."""
    path = found(path)
    spec = importlib.util.spec_from_file_location(f"given_{pathlib.Path(path).stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def get_config(path: str | pathlib.Path, variant: str = "") -> ConfigDict:
    """The config of a file and a variant."""
    module = load(path)
    return module.get_config(variant) if variant else module.get_config()


def workdir(path: str, variant: str) -> pathlib.Path:
    """Where a run writes that names no folder: runs/CONFIG-VARIANT."""
    name = variant or next(iter(getattr(load(path), "VARIANTS", {"": ""})))
    name = "-".join(filter(None, (pathlib.Path(path).stem, re.sub(r"[^\w.+=,-]", "_", name))))
    return pathlib.Path("runs") / name[:200]


def _about(module: types.ModuleType) -> str:
    """The first sentence of a file."""
    return re.split(r"\.(?:\s|$)", " ".join((module.__doc__ or "").split()), maxsplit=1)[0]


def of_all() -> str:
    """Every config with its variants and runs, a line each."""
    lines = [
        "python main.py --config=FILE[:VARIANT] [--workdir=FOLDER] [--config.NAME=VALUE ...]",
        "python main.py --config=FILE[:VARIANT] --help      # the entries of a config",
    ]
    for path in sorted(CONFIGS.glob("*.py")):
        module = load(path)
        if not hasattr(module, "get_config"):
            continue
        lines += ["", f"configs/{path.name}: {_about(module)}"]
        lines += _variants(module)
        lines += _runs(module.get_config())
    return "\n".join(lines)


def _variants(module: types.ModuleType) -> list[str]:
    known = getattr(module, "VARIANTS", {})
    lines = [f"  {':' + name if name else '(none)':<22} {about}" for name, about in known.items()]
    choices = getattr(module, "CHOICES", {})
    return lines + ([f"  {'and, by commas':<22} {', '.join(f'{name}=' for name in choices)}"] if choices else [])


def _runs(config: ConfigDict) -> list[str]:
    runs = schema.RUNS.get(config.program, {})
    return [f"  --config.run={name:<9} {about}{' (default)' * (name == config.run)}" for name, about in runs.items()]


def of_config(path: str, variant: str) -> str:
    """Variants, runs and entries of one config, a line each."""
    module, config = load(path), get_config(path, variant)
    lines = [f"{path}: {_about(module)}", *_variants(module), *_runs(config), ""]
    known = schema.program(config.program)
    for name, value in schema.entries(config):
        entry = schema.find(known, name)
        lines.append(f"  --config.{name}={value!r}" + (f"\n      {entry.help} ({entry.expected})" if entry else ""))
    return "\n".join(lines)
