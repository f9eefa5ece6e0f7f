"""Runs that die: a process of its own forks a run again and again and kills it, until one gets through.

Called as `python -m tests.engine.crashing CONFIG.toml SEED`. It prints how each attempt ended. Forked, an attempt costs
a fraction of what importing torch again would.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time

import nvidia.dali.fn  # noqa: F401  (imported here, no child has to)

from omnitrunk.engine import durable
from omnitrunk.engine import train as loop
from omnitrunk.engine.config import load

ATTEMPTS = 30


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_call(module, name, number):
    """Replace a function by one that kills the process in its call of this number, counted from 1."""
    real, calls = getattr(module, name), iter(range(1, 10**9))

    def call(*arguments, **options):
        if next(calls) == number:
            die()
        return real(*arguments, **options)

    setattr(module, name, call)


def attempt(config, plan):
    kind, number = plan
    if kind == "step":
        die_in_call(loop, "train_step", number)
    elif kind == "save":
        die_in_call(durable, "sync", number)  # also in the middle of what a run writes first and of its log
    return loop.train(config)


def fork(config, plan):
    """Run one attempt in a child; "done", "killed" or its exit code."""
    child = os.fork()
    if child == 0:
        os._exit(attempt(config, plan))
    if plan[0] == "time":
        time.sleep(plan[1])
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return "killed"
    return "done" if os.WEXITSTATUS(status) == 0 else f"exit code {os.WEXITSTATUS(status)}"


def main():
    config, chance = load(sys.argv[1]), random.Random(int(sys.argv[2]))
    for number in range(ATTEMPTS):
        kinds = [("step", chance.randint(1, 9)), ("save", chance.randint(1, 16)), ("time", chance.uniform(0.1, 0.6))]
        plan = kinds[number % 3] if number < ATTEMPTS - 1 else ("whole", 0)
        outcome = fork(config, plan)
        print(f"{plan[0]} {plan[1]}: {outcome}", flush=True)
        if outcome != "killed":
            sys.exit(outcome != "done")


if __name__ == "__main__":
    main()
