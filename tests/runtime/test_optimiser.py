"""Optimisation options: each does what its name says, and all of them off are Adam as it was."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from input_pipeline.errors import UserError
from pin_jax import train
from pin_jax.runtime.checkpoints import Checkpoints
from pin_jax.runtime.optimiser import OFF, averaged, learning_rate_at, optimiser

PARAMS = {"a": jnp.array([1.0, -2.0]), "b": jnp.array(3.0)}


def config_of(**changes) -> ConfigDict:
    return ConfigDict({"lr": 0.1, "schedule": "constant", "steps": 12} | changes)


def gradients(count: int) -> list[dict[str, jax.Array]]:
    rng = np.random.default_rng(0)
    return [jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype), PARAMS) for _ in range(count)]


def run(tx, grads) -> tuple[list, object]:
    """Parameters after each step, and the last state."""
    params, state, seen = PARAMS, tx.init(PARAMS), []
    for gradient in grads:
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        seen.append(params)
    return seen, state


def same(one, other):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), one, other)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_all_off_is_adam_with_the_state_that_older_checkpoints_hold(schedule):
    rate = 0.1 if schedule == "constant" else optax.cosine_decay_schedule(0.1, 12)
    for options in ({}, OFF):
        seen, state = run(optimiser(config_of(schedule=schedule, **options)), gradients(4))
        expected, adam = run(optax.adam(rate), gradients(4))
        jax.tree.map(np.testing.assert_array_equal, seen[-1], expected[-1])
        assert jax.tree.structure(state) == jax.tree.structure(adam)


def test_warm_up_rises_in_steps_and_hands_over_to_the_schedule():
    rates = [learning_rate_at(config_of(warmup=4), step) for step in (1, 2, 3, 5, 12)]
    np.testing.assert_allclose(rates, [0, 0.025, 0.05, 0.1, 0.1], atol=1e-7)
    short = config_of(warmup=100)  # a trial of fewer steps than the warm-up: a tenth of them
    assert [learning_rate_at(short, step) / short.lr for step in (1, 2, 12)] == pytest.approx([0, 1, 1])
    cosine = [learning_rate_at(config_of(warmup=4, schedule="cosine"), step) for step in (3, 5, 9, 13)]
    np.testing.assert_allclose(cosine, [0.05, 0.1, 0.05, 0], atol=1e-7)
    (first, *_), _ = run(optimiser(config_of(warmup=4)), gradients(1))
    same(first, PARAMS)


def test_clipping_bounds_all_gradients_together():
    large = [jax.tree.map(lambda g: 1000 * g, gradient) for gradient in gradients(3)]
    scaled = [optax.tree.scale(0.5 / optax.tree.norm(gradient), gradient) for gradient in large]
    same(run(optimiser(config_of(clip_norm=0.5)), large)[0], run(optimiser(config_of()), scaled)[0])


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_accumulated_batches_make_one_update(schedule):
    grads = gradients(6)
    seen, _ = run(optimiser(config_of(accumulate=2, schedule=schedule, warmup=2, clip_norm=0.5)), grads)
    pairs = [jax.tree.map(lambda a, b: (a + b) / 2, *grads[i : i + 2]) for i in (0, 2, 4)]
    by_step = [learning_rate_at(config_of(schedule=schedule, warmup=2), step) for step in (1, 3, 5)]
    halved = config_of(lr=1.0, clip_norm=0.5)
    tx = optax.chain(optimiser(halved), optax.scale_by_schedule(lambda i: jnp.array(by_step)[i]))
    same(seen[1::2], run(tx, pairs)[0])
    same(seen[2], seen[1])  # between updates nothing moves


def test_the_average_is_of_the_parameters_after_each_update():
    for every in (1, 2):
        config = config_of(ema=0.8, accumulate=every)
        seen, state = run(optimiser(config), gradients(8))
        same(seen, run(optimiser(config_of(accumulate=every)), gradients(8))[0])
        updated = seen[every - 1 :: every]
        weights = 0.8 ** np.arange(len(updated))[::-1]
        expected = jax.tree.map(lambda *xs, w=weights: np.average(np.stack(xs), 0, w), *updated)
        same(averaged(seen[-1], state, 0.8), expected)
    same(averaged(PARAMS, optimiser(config_of(ema=0.8)).init(PARAMS), 0.8), PARAMS)  # before any update
    same(averaged(PARAMS, optimiser(config_of()).init(PARAMS), 0.0), PARAMS)


def test_a_checkpoint_in_the_middle_of_an_update_goes_on_as_if_nothing_had_been(tmp_path):
    tx = optimiser(config_of(accumulate=3, ema=0.5, clip_norm=1.0, warmup=2, schedule="cosine"))
    grads, params, state = gradients(6), PARAMS, tx.init(PARAMS)
    for gradient in grads[:4]:  # one update, and a third of the next
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    checkpoints = Checkpoints(tmp_path, "identity", {})
    checkpoints.save(4, train.State(jnp.int32(4), params, state))
    checkpoints.wait()
    _, restored, *_ = checkpoints.restore(train.State(jnp.int32(0), PARAMS, tx.init(PARAMS)))
    checkpoints.close()
    ends = []
    for now, opt in ((params, state), (restored.trainable, restored.opt)):
        for gradient in grads[4:]:
            updates, opt = tx.update(gradient, opt, now)
            now = optax.apply_updates(now, updates)
        ends.append((now, averaged(now, opt, 0.5)))
    jax.tree.map(np.testing.assert_array_equal, *ends)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schedule": "linear"}, "constant or cosine"),
        ({"warmup": -1}, "config.warmup -1"),
        ({"accumulate": 5}, "config.accumulate 5"),
        ({"ema": 1.0}, "config.ema 1.0"),
    ],
)
def test_what_cannot_be(changes, words):
    with pytest.raises(UserError, match=words):
        optimiser(config_of(**changes))


def test_an_insert_that_hides_the_picture_is_said(capsys):
    assert not train._warn_of_size(5, {"insert_norm": 9.0, "token_norm": 1.0, "loss": 1.0})
    assert not train._warn_of_size(5, {"loss": 1.0})  # a method without an insert
    assert capsys.readouterr().out == ""
    assert train._warn_of_size(7, {"insert_norm": 30.0, "token_norm": 2.0, "loss": 1.0})
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith("step 7") and "15 times" in said and "config.lr" in said and "config.warmup" in said


def test_a_batch_for_each_device_that_has_rows_of_its_own():
    class Mesh:
        shape = {"data": 4, "fsdp": 2, "tensor": 3}

    assert train.global_batch(ConfigDict({"batch_size": 32, "batch_per_device": 0}), Mesh) == 32
    assert train.global_batch(ConfigDict({"batch_size": 32, "batch_per_device": 64}), Mesh) == 512
