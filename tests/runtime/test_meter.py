"""What the training loop says of itself, and the batches ahead of it."""

from __future__ import annotations

import itertools
import time

import pytest

from input_pipeline.errors import UserError
from pin_jax.runtime import meter, reporting
from pin_jax.runtime.prefetch import prefetched


def test_batches_come_in_order_and_ahead():
    made = []

    def make() -> int:
        made.append(len(made))
        return made[-1]

    with prefetched(make, 2) as take:
        assert [take() for _ in range(5)] == list(range(5))
        while len(made) < 7:  # two more are made while nobody asks
            time.sleep(0.001)
        time.sleep(0.02)
        assert len(made) == 7


def test_what_goes_wrong_comes_at_its_place():
    batches = iter([1, 2, UserError("a broken picture"), 4])

    def make() -> int:
        found = next(batches, 0)
        if isinstance(found, UserError):
            raise found
        return found

    with pytest.raises(UserError, match="a broken picture"), prefetched(make) as take:
        assert [take(), take()] == [1, 2]
        take()


def test_a_window_leaves_out_what_was_before_it(monkeypatch):
    now = itertools.count(0.0, 1.0)
    monkeypatch.setattr(meter.time, "monotonic", lambda: next(now))
    window = meter.Meter()  # 0
    window.count(1000)
    window.restart()  # 1
    assert meter.Meter().read() == {}  # 2, 3, 4
    with window.waiting():  # 5, 6
        pass
    window.count(12)
    assert window.read() == {"images_per_second": 12 / 6, "data_wait": 1 / 6}  # 7


@pytest.mark.parametrize("steps", [(5,), (5, 4), (0, 3)])
def test_traces_that_cannot_be(tmp_path, steps):
    with pytest.raises(UserError, match="config.profile.*first and the last"):
        meter.Profile(steps, tmp_path)


def test_lines_of_progress_come_by_the_clock(monkeypatch, capsys):
    clock = itertools.count(0.0, 10.0)
    monkeypatch.setattr(reporting.time, "monotonic", lambda: next(clock))
    with reporting.progress("training", 100, "image", every=25) as advance:
        for done in (10, 20, 30, 40, 50, 100):
            advance(done, f"loss {done}")
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "training: 30 of 100 images, 1 images/s, ETA 70 s, loss 30",  # the rate is that since the first report
        "training: 100 of 100 images, 2 images/s, ETA 0 s, loss 100",
    ]
    with reporting.progress("", 100, "image") as advance:
        advance(100)
    assert capsys.readouterr().out == ""
