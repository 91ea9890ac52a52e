"""The loader: every record once, the same batches for any number of workers, resumable, sharded by process."""

import dataclasses
import json
import pathlib
import signal
import subprocess
import sys

import grain
import numpy as np
import pytest

from input_pipeline.loader import batches, pad_rows


class Numbers:
    """Records 0 ... n - 1."""

    def __init__(self, length: int):
        self.length = length

    def __len__(self):
        return self.length

    def __repr__(self):
        return f"Numbers({self.length})"

    def __getitem__(self, index):
        return {"i": np.int64(index)}


@dataclasses.dataclass(frozen=True)
class Noise(grain.transforms.RandomMap):
    """Adds a random number to a record."""

    def random_map(self, record, rng):
        return record | {"noise": rng.random()}


def take(iterator, count):
    return [{key: value.tolist() for key, value in next(iterator).items()} for _ in range(count)]


def records(batch_list, key="i"):
    return [i for batch in batch_list for i in batch[key]]


def test_every_epoch_holds_every_record_once_in_another_order():
    seen = records(take(batches(Numbers(12), [], 4, seed=1), 6))
    assert sorted(seen[:12]) == sorted(seen[12:]) == list(range(12))
    assert seen[:12] != seen[12:] and seen[:12] != list(range(12))
    assert records(take(batches(Numbers(12), [], 4, seed=2), 3)) != seen[:12]


def test_the_last_batch_is_kept_when_evaluating():
    out = list(batches(Numbers(10), [], 4, shuffle=False, epochs=1))
    assert [batch["i"].tolist() for batch in out] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


@pytest.mark.parametrize("threads", [0, 2])
def test_resuming_gives_the_batches_that_would_have_come(threads):
    def make():
        return batches(Numbers(50), [Noise()], 4, seed=3, threads=threads)

    iterator = make()
    take(iterator, 3)
    state = iterator.get_state()
    expected = take(iterator, 12)
    resumed = make()
    resumed.set_state(json.loads(json.dumps(state)))  # what a checkpoint does to it
    assert take(resumed, 12) == expected


def test_processes_share_the_records_and_the_noise():
    whole = take(batches(Numbers(12), [Noise()], 4, seed=5), 3)
    shards = [take(batches(Numbers(12), [Noise()], 2, seed=5, process=(p, 2)), 3) for p in range(2)]
    first, second = (set(records(shard)) for shard in shards)
    assert not first & second and first | second == set(range(12))
    for key in ("i", "noise"):  # record for record, what one process would have read
        woven = [value for pair in zip(*(records(shard, key) for shard in shards), strict=True) for value in pair]
        assert woven == records(whole, key)
    assert len(set(records(whole, "noise"))) == 12


@pytest.mark.parametrize("shuffle", [False, True])
def test_any_number_of_processes_goes_on_at_any_batch(shuffle):
    def read(process, size, start, count):
        given = batches(Numbers(10), [Noise()], size, seed=5, shuffle=shuffle, process=process, start=start)
        return sorted(value for batch in take(given, count) for value in batch["noise"])

    whole = take(batches(Numbers(10), [Noise()], 4, seed=5, shuffle=shuffle), 8)
    for start in (1, 3, 6):  # the set has two batches and a half
        wanted = sorted(value for batch in whole[start : start + 2] for value in batch["noise"])
        assert read((0, 1), 4, start, 2) == wanted
        assert sorted(read((0, 2), 2, start, 2) + read((1, 2), 2, start, 2)) == wanted


def test_uneven_shards_are_complete():
    shards = [list(batches(Numbers(11), [], 4, shuffle=False, epochs=1, process=(p, 3))) for p in range(3)]
    assert sorted(i for shard in shards for batch in shard for i in batch["i"].tolist()) == list(range(11))


def test_workers_end_with_a_process_that_is_killed():
    script = pathlib.Path(__file__).parents[1] / "fixtures" / "loader_workers.py"
    # They hold its output open, so that this would wait for them.
    out = subprocess.run([sys.executable, str(script), "killed"], capture_output=True, timeout=120)
    assert out.returncode == -signal.SIGKILL


def test_workers_change_nothing(tmp_path):
    root = pathlib.Path(__file__).parents[1] / "fixtures"
    out = subprocess.run(
        [sys.executable, str(root / "loader_workers.py")],
        cwd=root.parents[1],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert out.returncode == 0, out.stderr[-2000:]
    by_workers = json.loads(out.stdout.splitlines()[-1])
    assert sorted(by_workers) == ["0", "1", "2", "resumed", "signalled"]
    assert by_workers["signalled"] == 2  # and they went on: SIGTERM is for the run, which saves first
    assert len(by_workers["0"]) == 6 and by_workers["0"] == by_workers["1"] == by_workers["2"]
    assert by_workers["resumed"] == by_workers["0"][2:]


def test_pad_rows():
    np.testing.assert_array_equal(pad_rows(np.array([1, 2]), 4, -1), [1, 2, -1, -1])
    np.testing.assert_array_equal(pad_rows(np.array([[1, 2], [3, 4]]), 1), [[1, 2]])
