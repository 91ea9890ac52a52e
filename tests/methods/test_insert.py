"""The insert psi(S): its size, its sinusoid, its initialisation, and its gradient through a frozen Flamingo."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from input_pipeline.errors import UserError
from pin_jax.methods.pin import Pin, PositionalInsert, sinusoid
from pin_jax.models.interface import Inserts
from tests.fixtures import tiny
from tests.fixtures.tiny import random_params, run, skeleton


@pytest.mark.parametrize(("tokens", "width", "expected"), [(256, 1024, 1_217_280), (257, 1408, 1_512_576)])
def test_published_parameter_counts(tokens, width, expected):
    shapes = skeleton(PositionalInsert(tokens, width))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == expected
    assert jax.eval_shape(PositionalInsert(tokens, width).apply, {"params": shapes}).shape == (tokens, width)


def test_sinusoid():
    table = np.asarray(sinusoid(257))
    assert table.shape == (257, 64)
    for p, i in ((0, 0), (1, 0), (7, 3), (256, 31), (100, 16)):
        angle = p / 10000 ** (2 * i / 64)
        np.testing.assert_allclose(table[p, [2 * i, 2 * i + 1]], [math.sin(angle), math.cos(angle)], atol=2e-5)


def test_initialisation_is_torch_linear():
    params = PositionalInsert(16, 256, learned=True).init(jax.random.key(0))["params"]
    fan_ins = {"linear_0": 64, "linear_1": 512, "linear_2": 768}
    for name, fan_in in fan_ins.items():
        for leaf in ("kernel", "bias"):
            values, bound = np.asarray(params[name][leaf]), 1 / math.sqrt(fan_in)
            assert 0.97 * bound < np.abs(values).max() <= bound
            assert abs(values.std() / (bound / math.sqrt(3)) - 1) < 0.1  # uniform
    bound = math.sqrt(2 / (16 + 64))
    assert 0.97 * bound < np.abs(params["positions"]).max() <= bound


@pytest.mark.parametrize("learned", [False, True])
def test_forward_by_hand(learned):
    model = PositionalInsert(6, 5, hidden=(7, 8), channels=4, learned=learned)
    params = random_params(skeleton(model))
    x = np.asarray(params["positions"] if learned else sinusoid(6, 4), np.float64)
    for i in range(3):
        x = x @ np.asarray(params[f"linear_{i}"]["kernel"]) + np.asarray(params[f"linear_{i}"]["bias"])
        if i < 2:
            x = x / (1 + np.exp(-x))  # SiLU comes before the norm
            x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
            x = x * np.asarray(params[f"norm_{i}"]["scale"]) + np.asarray(params[f"norm_{i}"]["bias"])
    np.testing.assert_allclose(run(model)(params), x, rtol=1e-5, atol=1e-5)


def test_gradient_through_the_frozen_vlm_is_the_finite_difference():
    vlm, frozen = tiny.flamingo()
    insert = PositionalInsert(vlm.config.media_tokens, 16, hidden=(6, 5), channels=4)
    params = random_params(skeleton(insert))
    rng = np.random.default_rng(0)
    vision = rng.standard_normal((2, 1, 4, 16))
    ids = rng.integers(0, tiny.IMAGE, (2, 5))
    ids[:, 0] = tiny.IMAGE
    directions = [jax.tree.map(lambda a: rng.standard_normal(a.shape), params) for _ in range(3)]

    with jax.enable_x64(True):
        params, frozen, vision = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), (params, frozen, vision))

        @jax.jit
        @jax.value_and_grad
        def loss(params):
            inserts = Inserts(vision_output=insert.apply({"params": params}))
            logits = vlm.apply({"params": frozen}, None, ids, inserts=inserts, vision=vision)
            log_p = jax.nn.log_softmax(logits[:, :-1].astype(jnp.float64))
            return -jnp.take_along_axis(log_p, jnp.asarray(ids)[:, 1:, None], 2).mean()

        _, gradient = loss(params)
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
            assert np.abs(leaf).max() > 1e-6, path
        step = 1e-3  # logits are float32 by contract: their rounding, 1e-7 / step, bounds what can be seen
        for direction in directions:
            expected = sum(jnp.vdot(g, d) for g, d in zip(*map(jax.tree.leaves, (gradient, direction)), strict=True))
            ahead, _ = loss(jax.tree.map(lambda a, b: a + step * b, params, direction))
            behind, _ = loss(jax.tree.map(lambda a, b: a - step * b, params, direction))
            assert abs(expected) > 1e-2
            np.testing.assert_allclose((ahead - behind) / (2 * step), expected, rtol=5e-3, atol=5e-4)


def test_a_start_that_is_smaller():
    config = tiny.flamingo(1)[0].config
    whole, small = (Pin(config, hidden=(6, 5), start=start) for start in (1.0, 0.1))
    psi, less = (method.inserts(method.init(jax.random.key(0))).vision_output for method in (whole, small))
    np.testing.assert_allclose(less, 0.1 * np.asarray(psi), rtol=1e-5, atol=1e-7)
    with pytest.raises(UserError, match="config.method_options.start -0.5: expected a number from 0"):
        Pin(config, start=-0.5)
