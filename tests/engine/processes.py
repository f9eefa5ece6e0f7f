"""Two processes of one run, set up as torchrun sets them up: the environment names the rank and where to meet.

Called as `python -m tests.engine.processes JOB...`; jobs run one after the other and print a line of exit codes each.
A job is CONFIG.toml, or CONFIG.toml:SIGNAL:RANK:STEP, where the process of that rank gets the signal in that step. All
are forked from one parent, which imports torch once.
"""

from __future__ import annotations

import os
import signal
import socket
import sys

import torch._dynamo  # noqa: F401  (DistributedDataParallel needs it; imported here, no child has to)

from omnitrunk.engine import train as loop
from omnitrunk.engine.config import load

SIZE = 2


def free_port():
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        return place.getsockname()[1]


def signal_in_step(number, step):
    real, calls = loop.train_step, iter(range(1, 10**9))

    def train_step(*arguments, **options):
        if next(calls) == step:
            os.kill(os.getpid(), number)
        return real(*arguments, **options)

    loop.train_step = train_step


def child(config, rank, port, shot):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(SIZE), MASTER_PORT=str(port))
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    if shot and int(shot[1]) == rank:
        signal_in_step(signal.Signals[shot[0]], int(shot[2]))
    return loop.train(config)


def pair(path, *shot):
    config, port, children = load(path), free_port(), []
    for rank in range(SIZE):
        process = os.fork()
        if process == 0:
            code = 1
            try:
                code = child(config, rank, port, shot)
            finally:
                sys.stdout.flush()
                os._exit(code)
        children.append(process)
    return [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in children]


if __name__ == "__main__":
    for job in sys.argv[1:]:
        print("codes", *pair(*job.split(":")), flush=True)
