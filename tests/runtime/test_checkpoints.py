"""Checkpoints: what was changed on disk is found before it is used; another structure or config is refused."""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from input_pipeline.errors import UserError
from pin_jax.runtime.checkpoints import BROKEN, DIGESTS, Checkpoints, bound_to
from tests.fixtures.golden_files import ROOT

CONFIG = {"seed": 0, "lr": 0.1}


def state(value: float = 0.0, width: int = 200):
    return {
        "trainable": {"kernel": jnp.full((30, width), float(value)), "bias": jnp.full(width, float(value))},
        "step": jnp.int32(7),
    }


def saved(folder, steps=(1, 2), config=CONFIG):
    checkpoints = Checkpoints(folder, "weights", config)
    for step in steps:
        checkpoints.save(step, state(step), {"next_index": step})
    checkpoints.wait()
    checkpoints.close()
    return folder


def restored(folder, into=None, identity="weights", config=CONFIG):
    checkpoints = Checkpoints(folder, identity, config)
    try:
        return checkpoints.restore(state() if into is None else into)
    finally:
        checkpoints.close()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("whole"))


def test_the_newest_comes_back(whole):
    step, found, data = restored(whole)
    assert step == 2 and data == {"next_index": 2} and float(found["trainable"]["kernel"].sum()) == 30 * 200 * 2
    assert bound_to(whole) == ([1, 2], CONFIG)


def test_one_flipped_bit_in_any_file_is_found(tmp_path, capsys):
    saved(tmp_path)
    newest = tmp_path / "checkpoints" / "2"
    files = [path for path in newest.rglob("*") if path.is_file() and "commit" not in path.name]
    assert len(files) >= 8
    for path in files:
        content = path.read_bytes()
        changed = bytearray(content)
        changed[len(changed) // 2] ^= 1
        path.write_bytes(changed)
        step, found, _ = restored(tmp_path)
        said = " ".join(capsys.readouterr().out.split())
        if path.name == "_CHECKPOINT_METADATA" and step == 2:  # a digit of when it was written
            assert not said
        else:
            assert step == 1 and "checkpoint 2 in" in said and "is broken" in said, path.name
            (tmp_path / BROKEN / "2").rename(newest)
        assert float(found["trainable"]["bias"][0]) == step, path.name
        path.write_bytes(content)
    assert restored(tmp_path)[0] == 2


def test_a_file_that_is_gone_is_found(tmp_path, capsys):
    saved(tmp_path)
    (tmp_path / "checkpoints" / "2" / "state" / "manifest.ocdbt").unlink()
    assert restored(tmp_path)[0] == 1
    assert "manifest.ocdbt is missing" in " ".join(capsys.readouterr().out.split())
    assert names(tmp_path / BROKEN) == ["2"] and names(tmp_path / "checkpoints") == ["1"]
    (tmp_path / "checkpoints" / "1" / "state" / "manifest.ocdbt").unlink()
    with pytest.raises(UserError, match="none can be read"):
        restored(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"into": state(width=100)}, r"another structure: trainable/bias float32\[200\] there, float32\[100\] here"),
        ({"into": {**state(), "more": jnp.zeros(2)}}, r"more missing there, float32\[2\] here"),
        ({"into": {**state(), "step": jnp.float32(0)}}, r"step int32\[\] there, float32\[\] here"),
        ({"identity": "others"}, "belong to frozen weights weights, not to others"),
        ({"config": CONFIG | {"seed": 1}}, "belongs to another config: seed 0 there, 1 here"),
    ],
)
def test_another_state_is_refused_and_left_where_it_is(whole, capfd, changes, words):
    with pytest.raises(UserError, match=words):
        restored(whole, **changes)
    assert names(whole) == ["checkpoints"] and names(whole / "checkpoints") == ["1", "2"]
    assert not any(capfd.readouterr())


def test_checkpoints_of_earlier_versions_come_back(tmp_path):
    manager = ocp.CheckpointManager(tmp_path / "checkpoints")
    meta = {"identity": "weights", "data": {"bytes": '{"next_index": 3}'}}
    args = ocp.args.Composite(state=ocp.args.StandardSave(state(3)), meta=ocp.args.JsonSave(meta))
    manager.save(3, args=args)
    manager.close()
    step, found, data = restored(tmp_path)
    assert step == 3 and data == b'{"next_index": 3}'
    np.testing.assert_array_equal(found["trainable"]["kernel"], state(3)["trainable"]["kernel"])
    assert bound_to(tmp_path) == ([3], None)


def test_a_config_with_entries_that_came_later_is_the_same(tmp_path):
    saved(tmp_path, (1,))
    assert restored(tmp_path, config=CONFIG | {"warmup": 0})[0] == 1


def test_every_checkpoint_has_its_digests(whole):
    for step in ("1", "2"):
        folder = whole / "checkpoints" / step
        listed = json.loads((folder / DIGESTS).read_text())["sha256"]
        assert {"meta/metadata", "state/_METADATA", "state/manifest.ocdbt"} <= listed.keys()
        assert all((folder / name).is_file() for name in listed)


def test_a_full_disk_is_found_before_orbax_writes(tmp_path):
    saved(tmp_path, (1,))
    checkpoints = Checkpoints(tmp_path, "weights", CONFIG)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # looks to a program as a full disk does
    try:
        with pytest.raises(UserError, match="checkpoint 2 in .*; free disk space .* step 1 is intact"):
            checkpoints.save(2, state(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path / "checkpoints") == ["1"]
    checkpoints.save(2, state(2))  # with room again it goes on
    checkpoints.wait()
    checkpoints.close()
    assert restored(tmp_path)[0] == 2


FAILS = """
import resource, sys
from input_pipeline.errors import UserError
from pin_jax.runtime.processes import launch
from pin_jax.runtime.checkpoints import Checkpoints
from tests.runtime.test_checkpoints import state
Checkpoints._reserve = lambda self, step, size: None  # a disk that fills afterwards
checkpoints = Checkpoints(sys.argv[1], "weights")
resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
try:
    checkpoints.save(1, state(1.5))
    checkpoints.wait()
except UserError as error:
    launch.leave(f"error: {error}")
"""


def test_a_write_that_fails_half_way_ends_the_run_at_once(tmp_path):
    """Orbax's threads would keep the process for minutes, or for ever."""
    command = [sys.executable, "-c", FAILS, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: checkpoint 1 in") and "cannot be written" in last


def test_a_file_where_the_folder_goes(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(UserError, match="checkpoints: cannot be made .*move away what stands there"):
        Checkpoints(tmp_path, "weights")
