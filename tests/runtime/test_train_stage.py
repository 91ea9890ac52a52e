"""The loop of the small models: phases in order, options by turns; what is held stays; it goes on where it stopped."""

from __future__ import annotations

import itertools
import json

import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from pin_jax.runtime.train_stage import train_stage

CONFIG = ConfigDict({"log_every": 1, "save_every": 2})


class Counting:
    """Batches 0, 1, 2, ..."""

    def __init__(self, start: int):
        self.count = itertools.count(start)
        self.at = start

    def __next__(self):
        self.at += 1
        return {"x": jnp.float32(self.at - 1)}

    def get_state(self) -> bytes:
        return json.dumps(self.at).encode()

    def set_state(self, state: bytes) -> None:
        self.at = json.loads(state)


def loss(params, held, batch, rng, option):
    """With plain descent at a rate of 1 the parameters sum what the loss is multiplied by."""
    del rng
    steps = jnp.stack([held["unit"], batch["x"], jnp.float32(option == "b")])
    return -(params * steps).sum(), {"x": batch["x"]}


def phases(second: int):
    return [(3, lambda: Counting(0), ["a", "b"]), (second, lambda: Counting(100), ["b"])]


def test_phases_and_options_take_turns_and_it_goes_on(tmp_path):
    tx, held = optax.sgd(1.0), {"unit": jnp.float32(2.0)}
    whole = train_stage("a stage", tmp_path / "whole", jnp.zeros(3), tx, loss, phases(2), CONFIG, held)
    # 5 steps; batches 0, 1, 2 and 100, 101; steps 1 and 3 have option b of the first phase, then both.
    np.testing.assert_array_equal(whole, [10, 0 + 1 + 2 + 100 + 101, 2 + 2])
    train_stage("a stage", tmp_path / "parts", jnp.zeros(3), tx, loss, phases(1), CONFIG, held)
    again = train_stage("a stage", tmp_path / "parts", jnp.zeros(3), tx, loss, phases(2), CONFIG, held)
    np.testing.assert_array_equal(again, whole)
