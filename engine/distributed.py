"""The processes of a run: one alone, or several started by torchrun, each holding the whole model.

NCCL carries tensors between GPUs and gloo between CPUs. A gloo group of its own carries what the processes must agree
on (stop now, the save failed), so that agreement never waits for a device.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

PATIENCE = timedelta(minutes=30)
"""How long a process waits for the gradients of the others: what hangs is noticed after it."""
ALONE = timedelta(hours=24)
"""How long the others wait for what the main process does alone: Kinetics-400, 12 views of each clip, takes hours."""


@dataclass(frozen=True, kw_only=True)
class World:
    """This process among the processes of the run. `control` is the gloo group for agreement, None when alone."""

    rank: int
    size: int
    device: torch.device
    control: dist.ProcessGroup | None = None

    @property
    def is_main(self) -> bool:
        """Whether this process is the one that writes files."""
        return self.rank == 0

    def say(self, line: str) -> None:
        """Print a line, once for all processes."""
        if self.is_main:
            print(line, flush=True)

    def sum(self, values: Tensor) -> Tensor:
        """`values` summed over the processes, in place, on its own device."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def same_everywhere(self, value: object) -> bool:
        """Whether every process holds an equal `value` (anything that pickles)."""
        if self.size == 1:
            return True
        values = [None] * self.size
        dist.all_gather_object(values, value, group=self.control)
        return all(other == values[0] for other in values)

    def on_main(self, work: Callable[[], None]) -> None:
        """Run `work` on the main process while the others wait. Where it fails, every process raises."""
        failure = None
        if self.is_main:
            try:
                work()
            except Exception as error:
                failure = error
        if self.size > 1:
            verdict = [None if failure is None else str(failure)]
            dist.broadcast_object_list(verdict, src=0, group=self.control)
            if not self.is_main and verdict[0] is not None:
                raise RuntimeError(f"rank {self.rank} stops because rank 0 failed: {verdict[0]}")
        if failure is not None:
            raise failure


class Vote:
    """Has any process raised its flag? Asked once a step by all; the answer is one step old, so that nobody waits."""

    def __init__(self, world: World) -> None:
        self._control = world.control
        self._ballot: Tensor | None = None
        self._counting: dist.Work | None = None

    def cast(self, flag: bool) -> bool:
        """Send this process's flag, and return what all agreed on in the last call (alone: the flag itself)."""
        if self._control is None:
            return flag
        agreed = self.close()
        self._ballot = torch.tensor([int(flag)])
        self._counting = dist.all_reduce(self._ballot, dist.ReduceOp.MAX, group=self._control, async_op=True)
        return agreed

    def close(self) -> bool:
        """Wait for the vote on its way, and return its result."""
        if self._counting is None:
            return False
        self._counting.wait()
        self._counting = None
        return bool(self._ballot.item())


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """The device that `run.device` means here: "auto" takes a GPU where there is one. ValueError if it is missing."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    if name == "cuda" and torch.cuda.device_count() <= local_rank:
        found = torch.cuda.device_count()
        raise ValueError(
            f'run.device = "cuda" needs GPU number {local_rank} but {found} were found; use "auto" or "cpu"'
        )
    return torch.device("cuda", local_rank)


@contextlib.contextmanager
def world_of(device: str) -> Iterator[World]:
    """Join the processes that torchrun started (or be alone), and take everything down again at the end."""
    if "WORLD_SIZE" not in os.environ:
        yield World(rank=0, size=1, device=choose_device(device))
        return
    here = choose_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if here.type == "cuda":
        torch.cuda.set_device(here)
        dist.init_process_group("nccl", timeout=PATIENCE, device_id=here)
    else:
        dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        control = dist.new_group(backend="gloo", timeout=ALONE) if dist.get_world_size() > 1 else None
        yield World(rank=dist.get_rank(), size=dist.get_world_size(), device=here, control=control)
    finally:
        dist.destroy_process_group()
