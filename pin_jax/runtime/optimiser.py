"""The optimiser of a run: Adam; and, where asked for, warm-up, clipping, accumulation and an average of parameters."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from input_pipeline.errors import UserError

# What a config without these entries means; workdirs from before they existed are bound to these values.
OFF = {"warmup": 0, "clip_norm": 0.0, "accumulate": 1, "ema": 0.0}
SCHEDULES = ("constant", "cosine")


class AverageState(NamedTuple):
    """Of `average_of_parameters`: updates so far int32, and the moving average before its correction."""

    updates: jax.Array
    average: Any


def warmup_steps(config: ConfigDict) -> int:
    """Steps in which the learning rate rises: config.warmup, or a tenth of a run that is no longer than that.

    A config's warm-up is meant for its own number of steps, and a trial of a few must not fail for it.
    """
    warmup = config.get("warmup", 0)
    return warmup if warmup < config.steps else config.steps // 10


def learning_rate(config: ConfigDict) -> optax.ScalarOrSchedule:
    """The learning rate by step: up from zero in `warmup_steps`, then constant or on a cosine to zero.

    Raises:
      UserError: an unknown schedule; a warm-up below zero.
    """
    warmup = warmup_steps(config)
    if config.schedule not in SCHEDULES:
        raise UserError(f"config.schedule {config.schedule!r}: expected {' or '.join(SCHEDULES)}")
    if warmup < 0:
        raise UserError(f"config.warmup {warmup}: expected 0 or more steps")
    if config.schedule == "constant":
        return optax.warmup_constant_schedule(0.0, config.lr, warmup) if warmup else config.lr
    if warmup:
        return optax.warmup_cosine_decay_schedule(0.0, config.lr, warmup, config.steps)
    return optax.cosine_decay_schedule(config.lr, config.steps)


def learning_rate_at(config: ConfigDict, step: int) -> float:
    """The learning rate of step 1, 2, ...; of several that make one update, that of the first."""
    rate, every = learning_rate(config), config.get("accumulate", 1)
    return float(rate((step - 1) // every * every) if callable(rate) else rate)  # pyright: ignore[reportArgumentType]


def optimiser(config: ConfigDict) -> optax.GradientTransformation:
    """Adam without weight decay.

    A step is one batch of config.batch_size images. With config.accumulate > 1 the gradients of so many batches are
    averaged and make one update; schedule and warm-up count steps all the same.

    Raises:
      UserError: entries that cannot be together.
    """
    options = {name: config.get(name, value) for name, value in OFF.items()}
    every, rate = options["accumulate"], learning_rate(config)
    if every < 1 or config.steps % every:
        raise UserError(
            f"config.accumulate {every}: config.steps {config.steps} is no multiple of it, so that the last batches"
            " would be thrown away; choose another"
        )
    if every > 1 and callable(rate):
        of_step = rate
        rate = lambda updates: of_step(updates * every)  # noqa: E731 (a schedule is a function)
    parts: list[optax.GradientTransformation] = [optax.adam(rate)]
    if options["clip_norm"]:
        parts.insert(0, optax.clip_by_global_norm(options["clip_norm"]))
    if options["ema"]:
        parts.append(average_of_parameters(options["ema"]))
    tx = parts[0] if len(parts) == 1 else optax.chain(*parts)
    return optax.MultiSteps(tx, every).gradient_transformation() if every > 1 else tx


def average_of_parameters(decay: float) -> optax.GradientTransformationExtraArgs:
    """Leaves updates as they are, and keeps an exponential moving average of what they make of the parameters.

    The last of a chain. The average begins at zero and is corrected when it is read, as Adam's moments are: the
    parameters before the first update have no part in it.

    Raises:
      UserError: a decay that is not from 0 to under 1.
    """
    if not 0 <= decay < 1:
        raise UserError(f"config.ema {decay}: expected a decay from 0 (no average) to under 1, for example 0.999")

    def init(params: Any) -> AverageState:
        return AverageState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))

    def update(updates: Any, state: AverageState, params: Any = None, **_: Any) -> tuple[Any, AverageState]:
        new = optax.apply_updates(params, updates)
        average = optax.incremental_update(new, state.average, 1 - decay)
        return updates, AverageState(state.updates + 1, average)

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


def averaged(params: Any, opt: Any, decay: float) -> Any:
    """The average of the parameters that a state of `optimiser` keeps; the parameters themselves where it keeps none.

    Args:
      params: the parameters. opt: the optimiser's state. decay: config.ema.
    """
    kept = [x for x in jax.tree.leaves(opt, is_leaf=_is_average) if _is_average(x)]
    if not kept:
        return params
    (state,) = kept
    weight = 1 - decay**state.updates
    return jax.tree.map(lambda x, now: jnp.where(state.updates > 0, x / weight, now), state.average, params)


def _is_average(x: Any) -> bool:
    return isinstance(x, AverageState)
