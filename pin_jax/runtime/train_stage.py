"""The training loop of the small models: stages with phases of data, resumable from checkpoints."""

from __future__ import annotations

import functools
import pathlib
import time
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import optax
from ml_collections import ConfigDict

from pin_jax.runtime import reporting
from pin_jax.runtime.checkpoints import Checkpoints


@flax.struct.dataclass
class State:
    """Parameters and optimiser state of one stage."""

    params: Any
    opt: Any


def adamw(lr: float, steps: int) -> optax.GradientTransformation:
    """AdamW on a cosine of `steps` steps with a short warm-up; gradients clipped at norm 1."""
    schedule = optax.warmup_cosine_decay_schedule(0, lr, min(200, steps // 4 + 1), steps, 1e-5)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.02))


def train_stage(
    title: str,
    workdir: pathlib.Path,
    params: Any,
    tx: optax.GradientTransformation,
    loss_fn: Callable[[Any, Any, dict, jax.Array, Any], tuple[jax.Array, dict]],
    phases: list[tuple[int, Callable[[], Any], list]],
    config: ConfigDict,
    held: Any = None,
) -> Any:
    """Runs the phases of one stage, or goes on where its last checkpoint stands; returns the parameters.

    Args:
      params: where it begins; donated, so not to be used afterwards.
      loss_fn: (params, held, batch, rng, option) -> loss, metrics; compiled once for each option.
      phases: (steps, iterator factory, options) each; the options of loss_fn take turns.
      held: arrays that loss_fn reads and that do not train; arguments of the compiled step, not constants in it.
    """

    @functools.partial(jax.jit, donate_argnums=0, static_argnums=4)
    def step_fn(state: State, held: Any, batch: dict, rng: jax.Array, option: Any) -> tuple[State, dict]:
        grads, metrics = jax.grad(loss_fn, has_aux=True)(state.params, held, batch, rng, option)
        updates, opt = tx.update(grads, state.opt, state.params)
        return State(optax.apply_updates(state.params, updates), opt), metrics

    state = State(params, tx.init(params))
    checkpoints = Checkpoints(workdir, identity=title, keep=2)
    restored = checkpoints.restore(state)
    done = 0
    data_state = None
    if restored:
        done, state, data_state = restored
    total = sum(steps for steps, _, _ in phases)
    log = reporting.Log(workdir)
    begin, at = time.monotonic(), 0
    with reporting.progress(title, total, "step") as advance:
        for steps, make_iterator, options in phases:
            at += steps
            if done >= at:
                continue
            iterator = make_iterator()
            if data_state is not None and done > at - steps:
                iterator.set_state(data_state)
            for i in range(done + 1, at + 1):
                state, metrics = step_fn(state, held, next(iterator), jax.random.key(i - 1), options[i % len(options)])
                done = i
                if i % config.log_every == 0 or i == total:
                    values = {name: float(value) for name, value in metrics.items()}
                    log.scalars(i, seconds=time.monotonic() - begin, **values)
                    advance(i, " ".join(f"{k} {v:.3f}" for k, v in values.items()))
                if i % config.save_every == 0 or i == total:
                    checkpoints.save(i, state, iterator.get_state())
    checkpoints.wait()
    checkpoints.close()
    log.close()
    return state.params
