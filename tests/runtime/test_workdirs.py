"""A workdir: one run at a time, a dead one's lock taken over, found out before the work where it cannot be written."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from input_pipeline.errors import UserError
from pin_jax.runtime.processes import workdirs
from tests.fixtures.golden_files import ROOT

HOLD = """
import sys, time
from pin_jax.runtime.processes import workdirs
with workdirs.claimed(sys.argv[1]):
    print("here", flush=True)
    time.sleep(60)
"""


def hold(folder):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "here\n"
    return process


def test_a_second_run_is_refused_and_a_dead_one_is_followed(tmp_path, capsys):
    process = hold(tmp_path / "w")
    with pytest.raises(UserError, match=rf"workdir .*: a run on .* \(pid {process.pid}, since .*\) is running in it"):
        with workdirs.claimed(tmp_path / "w"):
            raise AssertionError
    process.kill()
    process.communicate()
    with workdirs.claimed(tmp_path / "w") as workdir:
        said = " ".join(capsys.readouterr().out.split())
        assert f"pid {process.pid}" in said and "ended without a word; its lock is taken over" in said
        assert json.loads((workdir / workdirs.HOLDER).read_text())["host"]
        (workdir / "results.json").write_text("{}")
    with workdirs.claimed(tmp_path / "w"):
        assert not capsys.readouterr().out  # the one before ended by itself


def test_a_run_that_wrote_nothing_leaves_no_folder(tmp_path):
    with pytest.raises(UserError, match="no such model"):
        with workdirs.claimed(tmp_path / "new"):
            raise UserError("no such model")
    assert not (tmp_path / "new").exists()
    (tmp_path / "made by hand").mkdir()
    with workdirs.claimed(tmp_path / "made by hand"):
        pass
    assert not list((tmp_path / "made by hand").iterdir())
    with workdirs.claimed(tmp_path / "new"):
        (tmp_path / "new" / "a").write_text("")
    assert (tmp_path / "new" / "a").exists()


def test_what_cannot_be_a_workdir_is_refused_first(tmp_path):
    (tmp_path / "file").write_text("")
    for folder, words in ((tmp_path / "file", "move away what stands there"), ("/proc", "/proc/.lock: cannot be")):
        with pytest.raises(UserError, match=words):
            with workdirs.claimed(folder):
                raise AssertionError
    with pytest.raises(UserError, match="--workdir is empty"):
        workdirs.named(" ")
    assert str(workdirs.named("gs://bucket/runs/a")) == "gs://bucket/runs/a"
