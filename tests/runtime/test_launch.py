"""Launchers are found by JAX itself; what cannot be is one line; processes end together, with one checkpoint."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest

from input_pipeline.errors import UserError
from pin_jax.runtime.processes import launch
from tests.fixtures.golden_files import ROOT
from tests.fixtures.host_devices import host_devices


def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def slurm(index: int) -> dict[str, str]:
    return {"SLURM_JOB_ID": "4242", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0",
            "SLURM_PROCID": str(index), "SLURM_STEP_NUM_NODES": "1"}  # fmt: skip


def open_mpi(index: int) -> dict[str, str]:
    return {"OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://127.0.0.1:34911", "OMPI_COMM_WORLD_SIZE": "2",
            "OMPI_COMM_WORLD_RANK": str(index), "OMPI_COMM_WORLD_LOCAL_RANK": "0"}  # fmt: skip


def variables(index: int) -> dict[str, str]:
    return {launch.COUNT: "2", launch.INDEX: str(index)}


def pair(workdir, what: str, named, second=None) -> list[subprocess.Popen]:
    """Two processes of `tests.fixtures.processes` that a launcher has named, two devices each.

    Args:
      second: the workdir of the second process, where it has another.
    """
    chosen = str(port())
    address = {launch.ADDRESS: f"127.0.0.1:{chosen}"} if named is variables else {"JAX_COORDINATOR_PORT": chosen}
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": host_devices(2)} | address
    command, pipe = [sys.executable, "-m", "tests.fixtures.processes"], subprocess.PIPE
    return [
        subprocess.Popen([*command, str(of), what], cwd=ROOT, env=env | named(i), stdout=pipe, stderr=pipe, text=True)
        for i, of in enumerate((workdir, second or workdir))
    ]


def ends(processes, timeout: float = 120) -> tuple[list[int], list[str], list[str]]:
    """Statuses, outputs and errors."""
    told = [process.communicate(timeout=timeout) for process in processes]
    return [process.returncode for process in processes], [out for out, _ in told], [error for _, error in told]


def until_it_works(process) -> None:
    for line in process.stdout:
        if line.strip() == "3":
            return
    raise AssertionError(process.stderr.read())


@pytest.mark.parametrize("named", [slurm, open_mpi], ids=["slurm", "open_mpi"])
def test_a_launcher_is_found(tmp_path, named):
    statuses, outputs, errors = ends(pair(tmp_path, "join", named))
    assert statuses == [0, 0], errors
    for index, output in enumerate(outputs):
        assert f"{index} of 2 processes" in output


def test_sigterm_to_one_saves_one_checkpoint_on_all(tmp_path):
    processes = pair(tmp_path / "w", "work", variables)
    until_it_works(processes[1])
    processes[1].send_signal(signal.SIGTERM)
    statuses, outputs, errors = ends(processes, 30)
    assert statuses == [143, 143], errors
    (step,) = (path.name for path in (tmp_path / "w" / "checkpoints").iterdir())
    assert f"saved {step}" in outputs[0]
    # The same command goes on, on one process with other devices: its sum is what four devices would have.
    alone = [sys.executable, "-m", "tests.fixtures.processes", str(tmp_path / "w"), "work"]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": host_devices(4)}
    process = subprocess.Popen(alone, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline().strip() == str(int(step) + 1)
    process.send_signal(signal.SIGTERM)
    (status,), (output,), (error,) = ends([process], 30)
    assert status == 143 and "saved" in output and not error, error


def test_a_workdir_that_is_not_shared_is_refused(tmp_path):
    """As a relative --workdir on two hosts: the same name, two folders."""
    statuses, _, errors = ends(pair(tmp_path / "a", "work", variables, tmp_path / "b"), 60)
    assert statuses == [1, 1], errors
    for index, (error, who) in enumerate(zip(errors, ("another process does", "this process does"), strict=True)):
        assert "is not shared between hosts" in error and who in error and "Traceback" not in error
        assert len(error.splitlines()) == 1, index
    assert not (tmp_path / "a").exists()


def test_a_process_that_was_killed_ends_the_other_with_one_line(tmp_path):
    statuses, _, errors = ends(pair(tmp_path / "w", "vanish", variables), 60)
    assert statuses == [1, -9], errors
    lines = [line for line in errors[0].splitlines() if line]
    assert len(lines) == 1 and lines[0].startswith("error: ") and "start the same command again on all" in lines[0]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({launch.INDEX: "abc", launch.COUNT: "2"}, "JAX_PROCESS_ID=abc: expected a whole number, 0 or above"),
        ({launch.INDEX: "-1", launch.COUNT: "2"}, "JAX_PROCESS_ID=-1"),
        ({launch.INDEX: "5", launch.COUNT: "2"}, "JAX_PROCESS_ID=5: expected under JAX_NUM_PROCESSES, 2"),
        ({launch.INDEX: "0", launch.COUNT: "0"}, "JAX_NUM_PROCESSES=0: expected a whole number, 1 or above"),
        ({launch.COUNT: "1e9"}, "JAX_NUM_PROCESSES=1e9"),
        ({launch.ADDRESS: "127.0.0.1"}, "JAX_COORDINATOR_ADDRESS=127.0.0.1: expected HOST:PORT"),
        ({launch.ADDRESS: "not an address:x"}, "expected HOST:PORT"),
        ({launch.ADDRESS: "a b:80"}, "expected HOST:PORT"),
        ({launch.ADDRESS: "host:70000"}, "expected HOST:PORT"),
    ],
)
def test_variables_that_cannot_be_are_one_line(monkeypatch, given, words):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as error:
        launch.start()
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({launch.ADDRESS: "host:80"}, "Number of processes must be defined"),
        ({launch.COUNT: "2", launch.INDEX: "0"}, "coordinator_address should be defined"),
        ({}, "one process (no launcher found)"),
    ],
    ids=["an address alone", "no address", "nothing"],
)
def test_what_jax_says_of_variables(given, words):
    """In a process of its own, as JAX starts once and first."""
    program = (
        "from input_pipeline.errors import UserError\n"
        "from pin_jax.runtime.processes import launch\n"
        "try:\n    launch.start()\n    print(launch.described())\n"
        "except UserError as error:\n    print(error)\n"
    )
    env = os.environ | {"JAX_PLATFORMS": "cpu"} | given
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and words in done.stdout, done.stderr[-2000:]
