"""One device, eight fake ones and two processes train the same insert, and have the same answers."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.fixtures.golden_files import ROOT
from tests.fixtures.host_devices import host_devices
from tests.fixtures.small import write_vlm


def command(folder, workdir) -> list[str]:
    overrides = {"vlm": folder, "steps": 20, "batch_size": 8, "cache_images": 16, "log_every": 1}
    overrides |= {"eval_every": 10, "eval_subset": 3, "ema": 0.5, "save_every": 10}
    overrides |= {"eval.images": 5, "eval.batch_size": 1, "eval.context": "(2,)", "eval.context_images": 4}
    flags = [f"--config.{key}={value}" for key, value in overrides.items()]
    return [sys.executable, "main.py", "--config=configs/pin_flamingo.py:tiny", f"--workdir={workdir}", *flags]


def scalars(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / "scalars.jsonl").read_text().splitlines()]


def losses(workdir) -> list[float]:
    return [row["loss"] for row in scalars(workdir)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = write_vlm(tmp_path_factory.mktemp("vlm"))
    workdir = tmp_path_factory.mktemp("runs") / "alone"
    subprocess.run(command(folder, workdir), cwd=ROOT, check=True, capture_output=True)
    return folder, workdir


def same(a, b):
    np.testing.assert_allclose(losses(a), losses(b), rtol=1e-5)
    one, other = (load_file(w / "insert.safetensors") for w in (a, b))
    for key, value in one.items():
        np.testing.assert_allclose(value, other[key], atol=2e-4)  # Adam makes of a tiny gradient's sign a whole step
    one, other = (json.loads((w / "results.json").read_text()) for w in (a, b))
    assert [row.get("eval_mIoU") is not None for row in scalars(b)] == [i % 10 == 9 for i in range(20)]
    assert sorted(path.name for path in (b / "inserts").glob("*.safetensors")) == ["10.safetensors", "20.safetensors"]
    assert {json.loads((w / "best.json").read_text())["results"]["step"] for w in (a, b)} <= {10, 20}
    for row in ("raw", "2_context", "random", "constant"):  # these do not depend on the trained insert's last digits
        assert one[row] == other[row], row
    assert one["pin"]["queries"] == other["pin"]["queries"] == one["raw"]["queries"]
    np.testing.assert_allclose(one["pin"]["mIoU"], other["pin"]["mIoU"], atol=0.1)
    truths = [json.loads((w / "ground_truth.json").read_text()) for w in (a, b)]
    assert truths[0] == truths[1]


def test_eight_devices(alone, tmp_path):
    """And a trace is written: with JAX on CPUs alone, as a libtpu of another version ends the profiler's process."""
    folder, workdir = alone
    env = {**os.environ, "XLA_FLAGS": host_devices(8), "JAX_PLATFORMS": "cpu"}
    flags = ["--config.profile=(4,5)"]
    subprocess.run([*command(folder, tmp_path / "w"), *flags], cwd=ROOT, check=True, capture_output=True, env=env)
    same(workdir, tmp_path / "w")
    assert list((tmp_path / "w" / "profile").rglob("*.xplane.pb"))


def test_two_processes(alone, tmp_path):
    folder, workdir = alone
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    started = []
    for index in range(2):
        env = {**os.environ, "JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(index)}
        pipe = subprocess.PIPE
        started.append(
            subprocess.Popen(command(folder, tmp_path / "w"), cwd=ROOT, env=env, stdout=pipe, stderr=pipe, text=True)
        )
    for process in started:
        _, error = process.communicate(timeout=600)
        assert process.returncode == 0, error[-2000:]
    same(workdir, tmp_path / "w")


def test_pictures_that_the_devices_do_not_divide_are_filled_up(alone):
    """Each device encodes its own rows; of a batch that is not split every device would encode all."""
    folder, _ = alone
    program = (
        "import sys, numpy as np\n"
        "from pin_jax.runtime import sharding\n"
        "from pin_jax.vlm import load_vlm\n"
        "images = np.random.default_rng(0).integers(0, 255, (5, 160, 160, 3)).astype(np.uint8)\n"
        "mesh = sharding.make_mesh()\n"
        "rows = sharding.shard_rows(images, mesh)\n"
        "assert rows.shape[0] == 8 and {s.data.shape[0] for s in rows.addressable_shards} == {1}\n"
        "split, _ = load_vlm(sys.argv[1], mesh=mesh)\n"
        "alone, _ = load_vlm(sys.argv[1])\n"
        "np.testing.assert_allclose(split.encode(images), alone.encode(images), atol=2e-5)\n"
        "from pin_jax import PIN\n"
        "pins = [PIN.from_pretrained(sys.argv[1], mesh=m, eval={'decoder': 'greedy'}) for m in ({'data': 8}, None)]\n"
        "one, other = (pin.locate(list(images), pin.vlm.names[:3]) for pin in pins)\n"
        "assert one == other and len(one) == 5 and len(one[0]) == 3\n"
    )
    env = {**os.environ, "XLA_FLAGS": host_devices(8), "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", program, str(folder)], cwd=ROOT, check=True, env=env)


def test_a_batch_that_the_devices_do_not_divide(alone, tmp_path):
    folder, _ = alone
    env = {**os.environ, "XLA_FLAGS": host_devices(3)}
    done = subprocess.run(command(folder, tmp_path / "w"), cwd=ROOT, capture_output=True, text=True, env=env)
    assert done.returncode == 1 and "config.batch_size 8 is not a multiple of the 3 devices" in done.stderr
    assert "Traceback" not in done.stderr
