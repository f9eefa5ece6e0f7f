"""Contenders in processes of their own."""

from __future__ import annotations

import os

import pytest

from omnitrunk.bench.worker import Worker


def echo(value, threads):
    """A contender that tells its process, its thread setting and what it was built with."""
    return lambda: {
        "process": os.getpid(), "value": value, "threads": int(os.environ["OMP_NUM_THREADS"]) == threads
    }  # fmt: skip


def failing_build():
    """Stands for a contender whose model cannot be built."""
    raise ValueError("no such size")


def failing_run():
    """A contender that fails when it is run."""
    return lambda: {"total": 1 / 0}


def test_workers_are_processes_of_their_own(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with Worker(echo, 1.0, 1, threads=1) as first, Worker(echo, 2.0, 3, threads=3) as second:
        answers = first(), second(), first()
    assert [answer["value"] for answer in answers] == [1.0, 2.0, 1.0]
    assert answers[0]["process"] == answers[2]["process"] not in (answers[1]["process"], os.getpid())
    assert all(answer["threads"] for answer in answers)
    assert "OMP_NUM_THREADS" not in os.environ


def test_a_worker_tells_why_it_failed():
    with pytest.raises(RuntimeError, match="no such size"):
        Worker(failing_build, threads=1)
    with Worker(failing_run, threads=1) as worker, pytest.raises(RuntimeError, match="ZeroDivisionError"):
        worker()
