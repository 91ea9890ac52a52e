"""A tiny BLIP-2 trains the same insert on one device, on eight fake ones in any mesh, and in two processes of four."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from tests.fixtures import tiny_blip2
from tests.fixtures.golden_files import ROOT
from tests.fixtures.host_devices import host_devices

# The run, and afterwards: are the frozen weights what they were, and where do they stand?
PROGRAM = """
import json, os, pathlib, signal, sys
import jax, numpy as np
jax.config.update("jax_default_matmul_precision", "highest")
from pin_jax.runtime.processes import launch, preemption, workdirs
launch.start()
from input_pipeline.errors import UserError
from pin_jax import train
from pin_jax.programs import pin
from pin_jax.runtime import reporting, sharding
from pin_jax.vlm import load_vlm
from tests.fixtures.tiny_blip2 import config_for
folder, workdir, changes = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), json.loads(sys.argv[3])
sizes, stop = changes.pop("mesh"), changes.pop("stop_after", 0)
config = config_for(folder, **changes)
config.mesh.update(sizes)
kept = {}
def train_and_keep(config, workdir, vlm, train=train.train):
    kept["vlm"] = vlm
    return train(config, workdir, vlm)
train.train = train_and_keep
def stop_there(self, step, scalars=reporting.Log.scalars, **values):
    scalars(self, step, **values)
    if step == stop:
        os.kill(os.getpid(), signal.SIGTERM)
reporting.Log.scalars = stop_there
try:
    with launch.watched(), preemption.ends_at_once(), workdirs.claimed(workdir):
        pin.run(config, workdir)
except UserError as error:
    sys.exit(f"error: {error}")
vlm = kept["vlm"]
fresh, params = load_vlm(folder)
places = sharding.shardings(params, vlm.mesh)
for before, after, place in zip(*(jax.tree.leaves(t) for t in (params, vlm.params, places)), strict=True):
    assert after.sharding == place
    before = np.asarray(before)
    for shard in after.addressable_shards:
        assert np.asarray(shard.data).tobytes() == np.ascontiguousarray(before[shard.index]).tobytes()
for device in jax.local_devices():
    held = sum(s.data.nbytes for leaf in jax.tree.leaves(vlm.params) for s in leaf.addressable_shards
               if s.device == device)
    assert held == sharding.bytes_per_device(params, places)
"""


def start(folder, workdir, changes, devices=1, process=None) -> subprocess.Popen:
    env = {**os.environ, "XLA_FLAGS": host_devices(devices), "JAX_PLATFORMS": "cpu"}
    env["PYTHONPATH"] = str(ROOT)
    if process is not None:
        address, count, index = process
        env |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count), "JAX_PROCESS_ID": str(index)}
    command = [sys.executable, "-c", PROGRAM, str(folder), str(workdir), json.dumps(changes)]
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(*started: subprocess.Popen, status: int = 0) -> None:
    for process in started:
        _, error = process.communicate(timeout=900)
        assert process.returncode == status, error[-3000:]


def losses(workdir) -> list[float]:
    return [json.loads(line)["loss"] for line in (workdir / "scalars.jsonl").read_text().splitlines()]


# A rate at which rounding does not grow: Adam makes of a tiny gradient's sign a whole step.
STEPS = {"steps": 20, "save_every": 10, "questions_per_image": 2, "lr": 2e-4}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tiny_blip2.write(tmp_path_factory.mktemp("vlm"))
    workdir = tmp_path_factory.mktemp("runs") / "alone"
    finish(start(folder, workdir, STEPS | {"mesh": {}}))
    curve = losses(workdir)
    assert len(curve) == 20 and max(curve) - min(curve) > 0.01
    return folder, workdir


@pytest.mark.heavy  # test_devices has eight devices too, on the Flamingo
def test_eight_devices(alone, tmp_path):
    folder, workdir = alone
    finish(start(folder, tmp_path / "w", STEPS | {"mesh": {"data": 2, "fsdp": 2, "tensor": 2}}, devices=8))
    np.testing.assert_allclose(losses(workdir), losses(tmp_path / "w"), rtol=1e-5)


@pytest.mark.heavy  # test_devices has two processes too, on the Flamingo
def test_two_processes_of_four(alone, tmp_path):
    folder, workdir = alone
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    changes = STEPS | {"mesh": {"data": 2, "fsdp": 4}}
    finish(*(start(folder, tmp_path / "w", changes, devices=4, process=(address, 2, i)) for i in range(2)))
    np.testing.assert_allclose(losses(workdir), losses(tmp_path / "w"), rtol=1e-5)
    one, other = (json.loads((w / "results.json").read_text()) for w in (workdir, tmp_path / "w"))
    assert one["raw"]["mIoU"] == pytest.approx(other["raw"]["mIoU"])  # decoded on the mesh as on one device


@pytest.mark.heavy
def test_resumed_on_another_mesh(alone, tmp_path):
    folder, workdir = alone
    finish(
        start(folder, tmp_path / "w", STEPS | {"mesh": {"fsdp": 4, "data": 1}, "stop_after": 10}, devices=4), status=143
    )
    assert len(losses(tmp_path / "w")) == 10
    finish(start(folder, tmp_path / "w", STEPS | {"mesh": {"data": 2}}, devices=2))
    np.testing.assert_allclose(losses(workdir), losses(tmp_path / "w"), rtol=1e-5)


def test_what_a_mesh_does_not_divide(alone, tmp_path):
    folder, _ = alone
    process = start(folder, tmp_path / "w", STEPS | {"batch_size": 12, "mesh": {"fsdp": 8, "data": 1}}, devices=8)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 1 and "config.batch_size 12 is not a multiple of the 8 devices" in error
    assert "Traceback" not in error
