from __future__ import annotations

import os
import signal

import pytest

from omnitrunk.engine import checkpoint, signals
from omnitrunk.engine import train as loop
from omnitrunk.engine.signals import REQUEUE, StopRequest
from tests.engine.tiny import log_of, tiny, weights_of


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_run_goes_on_as_if_nothing_had_been(tmp_path, monkeypatch, seed, number):
    whole, stopped = tiny(tmp_path / "whole", run={"seed": seed}), tiny(tmp_path / "stopped", run={"seed": seed})
    assert loop.train(whole) == 0
    real, calls = loop.train_step, iter(range(1, 100))

    def train_step(*arguments, **options):
        if next(calls) == 5:
            os.kill(os.getpid(), number)
        return real(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", train_step)
        assert loop.train(stopped) == REQUEUE == 75
    assert checkpoint.read_state(checkpoint.find(tmp_path / "stopped"))["step"] == 5
    assert loop.train(stopped) == 0
    assert log_of(stopped) == log_of(whole)
    assert weights_of(stopped) == weights_of(whole)


def test_a_signal_in_the_last_step_is_a_finished_run(tmp_path, monkeypatch):
    config = tiny(tmp_path / "run", steps=3)
    monkeypatch.setattr(StopRequest, "requested", True, raising=False)
    monkeypatch.setattr(StopRequest, "__init__", lambda self: setattr(self, "_previous", {}))
    codes = [loop.train(config) for _ in range(3)]
    assert codes == [75, 75, 0]


def test_the_second_interrupt_is_immediate(monkeypatch):
    monkeypatch.setattr(signals, "SECOND_THOUGHT_S", 0.0)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_one_interrupt_delivered_twice_is_one():
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with StopRequest():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
