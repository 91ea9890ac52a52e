"""SIGTERM to one process: at once, or where it is asked for; what was there before comes back."""

from __future__ import annotations

import os
import signal

import pytest

from pin_jax.runtime.processes import preemption


def ask():
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_run_ends_at_once_with_143():
    before = signal.getsignal(signal.SIGTERM)
    closed = []
    with pytest.raises(SystemExit) as ended:
        with preemption.ends_at_once():
            try:
                ask()
                raise AssertionError
            finally:
                closed.append(True)
    assert ended.value.code == 143 and closed and signal.getsignal(signal.SIGTERM) is before


def test_a_loop_that_saves_is_asked_first():
    with preemption.ends_at_once():
        within = signal.getsignal(signal.SIGTERM)
        with preemption.waits():
            assert not preemption.reached()
            ask()
            assert preemption.reached()
            preemption.check()  # of an evaluation within training: the loop around it saves first
        assert signal.getsignal(signal.SIGTERM) is within
        assert not preemption.reached()  # it has been answered
        with pytest.raises(preemption.Preempted):
            ask()
