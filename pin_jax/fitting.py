"""A training in a workdir: bound to one config, planned, trained, and left there as an insert and a loss curve."""

from __future__ import annotations

import json
from typing import Any

import jax
from ml_collections import ConfigDict

from input_pipeline.errors import UserError, reason
from pin_jax import adapters, train
from pin_jax.adapters import INSERT
from pin_jax.runtime import entries, files, reporting, sharding
from pin_jax.runtime.checkpoints import bound_to
from pin_jax.runtime.files import AnyPath
from pin_jax.scoring import figures
from pin_jax.vlm import VLM


def fit(config: ConfigDict, workdir: AnyPath, vlm: VLM) -> Any:
    """Trains in a workdir that is claimed; writes the insert and loss.png, and returns the trained parameters.

    Raises:
      UserError: as `train.train`.
    """
    params = train.train(config, workdir, vlm)
    if jax.process_index() == 0:
        adapters.save(workdir / INSERT, jax.device_get(params), config, vlm)
        figures.loss_curve(workdir / "loss.png", reporting.read_scalars(workdir))
    sharding.barrier("insert")  # the others read what the first has written
    return params


def plan(config: ConfigDict, workdir: AnyPath | str, vlm: VLM) -> None:
    """Prints what a run will do."""
    reporting.plan(f"{config.run}: {config.method}, in {workdir}", train.describe(config, vlm))


def claim(config: ConfigDict, workdir: AnyPath, vlm: VLM) -> None:
    """Binds a workdir to the config that trains in it; another one is refused.

    Where config.json is lost or broken, the checkpoints say what the workdir is bound to.
    """
    mine, path = train.binding(config, vlm), workdir / "config.json"
    if config.run != "train" and config.get("batch_per_device", 0):
        del mine["batch_size"]  # that of these devices, which need not be those that trained
    steps, theirs = bound_to(workdir)
    try:
        held = json.loads(path.read_text("utf-8"))
        if not isinstance(held, dict):
            raise ValueError(f"a {type(held).__name__} in place of an object")
        theirs, lost = held, ""
    except FileNotFoundError:
        lost = "is missing"
    except (OSError, ValueError) as error:
        lost = f"cannot be read ({reason(error)})"
    if lost and not steps and "missing" not in lost:
        raise UserError(f"{path}: {lost}; delete it, or choose another --workdir")
    if lost and steps and theirs is None:
        raise UserError(
            f"{path}: {lost}, and the checkpoints beside it do not say what config they belong to; choose another"
            " --workdir"
        )
    if lost and config.run == "train" and not steps and (workdir / INSERT).exists():
        raise UserError(f"{path}: {lost}, and {workdir / INSERT} is of another run; choose another --workdir")
    if theirs is not None:
        entries.refuse_another(workdir, train.FORMER | theirs, mine)
    if lost and (config.run == "train" or steps):
        if steps:
            reporting.say(f"{path}: {lost}; written anew from the checkpoint of step {steps[-1]}")
        if jax.process_index() == 0:
            files.write_json(path, theirs or mine)
