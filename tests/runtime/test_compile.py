"""Counting operations, and the run that compiles for a TPU slice that is not there."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from input_pipeline.errors import UserError
from pin_jax.models import layers
from pin_jax.models.vit import ViT
from pin_jax.programs import compile as compiling
from pin_jax.runtime import flops, topology
from pin_jax.weights import registry
from tests.fixtures import tiny_blip2
from tests.fixtures.golden_files import ROOT
from tests.fixtures.tiny import VISION

W, M, X = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((5, 8, 8), (8, 8), (3, 8)))
ONE = 2 * 3 * 8 * 8  # x @ w


def chain(x, ws, remat="none"):
    return layers.scan(lambda x, w: (jnp.tanh(x @ w), None), x, ws, unroll=False, remat=remat)[0]


@pytest.mark.parametrize(
    ("function", "args", "expected"),
    [
        (chain, (X, W), 5 * ONE),  # a scan counts as often as it runs
        (jax.jit(chain), (X, W), 5 * ONE),
        (jax.grad(lambda x, ws: chain(x, ws).sum()), (X, W), 2 * 5 * ONE),  # to the input only
        (jax.grad(lambda x, ws: chain(x, ws).sum(), argnums=(0, 1)), (X, W), 3 * 5 * ONE),
        (jax.grad(lambda x, ws: chain(x, ws, "full").sum()), (X, W), 3 * 5 * ONE),  # and again to recompute
        (jax.vmap(lambda x, w: x @ w, (0, None)), (jax.ShapeDtypeStruct((4, 3, 8), jnp.float32), M), 4 * ONE),
        (lambda x, w: jax.lax.while_loop(lambda c: c[0] < 9, lambda c: (c[0] + 1, c[1] @ w), (0, x))[1],
         (X, M), 7 * ONE),
        (lambda x, w: jax.lax.cond(x.sum() > 0, lambda: x @ w @ w, lambda: x @ w), (X, M), 2 * ONE),
        (lambda a, k: jax.lax.conv(a, k, (1, 1), "VALID"),
         (jax.ShapeDtypeStruct((2, 3, 6, 6), jnp.float32), jax.ShapeDtypeStruct((4, 3, 3, 3), jnp.float32)),
         2 * (2 * 4 * 4 * 4) * 3 * 3 * 3),
    ],
)  # fmt: skip
def test_operations(function, args, expected):
    assert flops.count_flops(function, *args, trips=7) == expected


def test_operations_of_a_tower_by_hand():
    pixels = jax.ShapeDtypeStruct((2, 28, 28, 3), jnp.float32)
    model = ViT(VISION)
    params = jax.eval_shape(model.init, jax.random.key(0), pixels)
    width, n = VISION.width, VISION.tokens
    block = 2 * n * (4 * width**2 + 2 * width * VISION.mlp) + 2 * 2 * n * n * width
    expected = 2 * (VISION.depth * block + 2 * VISION.grid**2 * 3 * VISION.patch**2 * width)
    assert flops.count_flops(model.apply, params, pixels) == expected


@pytest.mark.parametrize("name", ["v5e", "v9:2x2", "v5e:2", "v5e:ax2", "v5e:2x2x2x2", "v6e:32x16"])
def test_slices_that_do_not_exist(name):
    with pytest.raises(UserError, match="config.topology"):
        topology.describe(name)


def test_models_by_name(tmp_path):
    model, dtypes, frame = registry.architecture("Salesforce/blip2-flan-t5-xl", "published", remat="full")
    assert (model.config.lm.dtype, model.config.lm.remat, dtypes["vision"]) == ("bfloat16", "full", "float16")
    assert frame.encoder_decoder and frame.prefix.count("<image>") == 32
    with pytest.raises(UserError, match="no published model by that name"):
        registry.architecture("Salesforce/blip2-opt-2,7b", "float32", remat="none")


def test_recomputation_reaches_the_vision_encoder_too(tmp_path):
    """Methods that act inside the encoder keep all its activations otherwise."""
    for source in (
        "Salesforce/blip2-opt-2.7b",
        "openflamingo/OpenFlamingo-3B-vitl-mpt1b",
        str(tiny_blip2.write(tmp_path)),
    ):
        for remat in ("full", "none"):
            config = registry.architecture(source, "float32", remat=remat)[0].config
            rest = (config.qformer, config.lm) if hasattr(config, "qformer") else (config,)
            assert {part.remat for part in (config.vision, *rest)} == {remat}, source


@pytest.mark.parametrize(
    ("message", "bytes_"),
    [
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.5G of 15.75G hbm. Exceeded", 20.5 * 2**30),
        ("the total memory required for HLO temporaries (512.00M) exceeds available HBM (15.75G)", 2**29),
        ("INVALID_ARGUMENT: something else", None),
    ],
)
def test_what_xla_says_it_would_need(message, bytes_):
    assert compiling.asked_for(message) == bytes_


@pytest.mark.heavy
@pytest.mark.parametrize("slice_name", ["v5e:2x2", "v4:2x2x1", "v5p:2x2x1", "v6e:2x2"])
def test_a_slice_is_compiled_for(tmp_path, slice_name):
    pytest.importorskip("libtpu", reason="the TPU compiler; pip install libtpu")
    folder = tiny_blip2.write(tmp_path / "vlm")
    flags = {"vlm": folder, "run": "compile", "topology": slice_name, "batch_size": 16, "text_length": 24,
             "mesh.data": 1, "mesh.fsdp": 4, "eval.batch_size": 4}  # fmt: skip
    command = [sys.executable, "main.py", "--config=configs/pin_blip2.py:opt-2.7b", f"--workdir={tmp_path / 'w'}"]
    command += [f"--config.{key}={value}" for key, value in flags.items()]
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((tmp_path / "w" / "results.json").read_text())
    wanted = {"devices", "params", "global_batch", "hbm_per_device_bytes", "flops_per_step", "compile_seconds"}
    for key in ("compile", "compile_decode"):
        row = results[key]
        assert wanted | {"estimated_step_seconds"} <= row.keys()
        assert row["devices"] == 4 and row["params"] == 64_224
        assert 0 < row["frozen_per_device_bytes"] < row["hbm_per_device_bytes"] < math.inf
    assert results["compile"]["executed_flops_per_step"] > results["compile"]["flops_per_step"]


@pytest.mark.heavy
def test_axes_that_cut_a_side_of_the_slice_and_two_slices():
    pytest.importorskip("libtpu", reason="the TPU compiler; pip install libtpu")
    program = (
        "from pin_jax.runtime import sharding, topology\n"
        "for name, data, fsdp, tensor in (('v6e:4x8', 16, 2, 1), ('v4:4x4x4', 2, 32, 1), ('v5e:4x4', 2, 4, 2)):\n"
        "    devices, chip = topology.describe(name)\n"
        "    mesh = sharding.make_mesh({'data': data, 'fsdp': fsdp, 'tensor': tensor}, devices=devices)\n"
        "    assert mesh.devices.shape == (data, fsdp, tensor) and set(mesh.devices.flat) == set(devices), name\n"
        "    assert len(devices) == data * fsdp * tensor and chip is topology.CHIPS[name.split(':')[0]]\n"
        "from jax.experimental.topologies import get_topology_desc\n"
        "two = get_topology_desc(platform='tpu', topology_name='v5e:2x2', num_slices=2).devices\n"
        "try:\n"
        "    sharding.make_mesh({'data': 8}, devices=two)\n"
        "except sharding.UserError as error:\n"
        "    assert 'devices of 2 TPU slices' in str(error)\n"
        "else:\n"
        "    raise AssertionError('two slices were taken for one')\n"
    )
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
