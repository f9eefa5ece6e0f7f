"""Sums that stay on the device between two log steps, read by the host once per log step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from omnitrunk.engine.distributed import World


class Meters:
    """Running sums of the losses and the gradient norm over a window of steps, and counts of what went wrong.

    Skipped steps are counted and left out of the means. Sums are float64: a few hundred float32 losses of similar size
    add up exactly, so a window cut in two by a checkpoint gives the same mean.
    """

    def __init__(self, tasks: Sequence[str], world: World) -> None:
        """`tasks` are the output tasks, in the order of the log."""
        self.tasks = (*tasks, "loss")
        self._world = world
        self._skipped = self._faulty = 0
        # [loss per task..., total loss, gradient norm; how many steps counted for each of these; skipped steps]
        named = len(self.tasks) + 1
        self._window = torch.zeros(2 * named + 1, dtype=torch.float64, device=world.device)
        # Losses add up over the processes. The norm and the steps are the same on all, so the main one brings them.
        share = [1.0] * len(self.tasks) + [float(world.is_main)] * (named + 2)
        self._share = torch.tensor(share, dtype=torch.float64, device=world.device)
        self._there: dict[tuple[bool, ...], Tensor] = {}

    def add(self, losses: Mapping[str, Tensor], grad_norm: Tensor, skipped: Tensor) -> None:
        """One step: losses of this process (scalars that add up to the global ones), gradient norm, whether skipped.

        Tasks that took no part in the step have no loss.
        """
        skipped = skipped.reshape(1).double()
        nothing = torch.zeros_like(losses["loss"])
        values = torch.stack([*(losses.get(task, nothing) for task in self.tasks), grad_norm.reshape(())]).double()
        there = self._flags(tuple(task in losses for task in self.tasks))
        counted = torch.where(skipped > 0, 0.0, torch.cat([values, there]))
        self._window += self._share * torch.cat([counted, skipped])

    def read(self, faulty: int) -> dict[str, float | int | None]:
        """The means of the window (None where no step counted) and the counts of the run; empties the window.

        `faulty` counts the replaced samples of this process since it started. Every process calls it; the figures are
        right on the main one.
        """
        values, faulty = self._gather(faulty)
        *sums, skipped = values
        self._window.zero_()
        self._skipped += int(skipped)
        totals, counts = sums[: len(sums) // 2], sums[len(sums) // 2 :]
        means = [total / count if count else None for total, count in zip(totals, counts, strict=True)]
        named = dict(zip((*self.tasks, "grad_norm"), means, strict=True))
        return {**named, "skipped": self._skipped, "faulty_samples": faulty}

    def state(self, faulty: int) -> dict[str, Any]:
        """What a checkpoint keeps. Every process calls it, and the window moves to the main one."""
        values, faulty = self._gather(faulty)
        if self._world.is_main:
            self._window.copy_(torch.tensor(values, dtype=torch.float64))
        else:
            self._window.zero_()
        return {"window": values, "skipped": self._skipped, "faulty": faulty}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from `state()`."""
        if self._world.is_main:
            self._window.copy_(torch.tensor(state["window"], dtype=torch.float64))
        self._skipped, self._faulty = state["skipped"], state["faulty"]

    def _flags(self, there: tuple[bool, ...]) -> Tensor:
        """1 for every task that is there and for the norm; made once, as the device would be waited for."""
        if there not in self._there:
            flags = torch.tensor([*there, True], dtype=torch.float64)
            self._there[there] = flags.to(self._window.device, non_blocking=True)
        return self._there[there]

    def _gather(self, faulty: int) -> tuple[list[float], int]:
        """The window and the faulty samples of all processes: the one read of a log step."""
        packed = torch.cat([self._window, torch.full_like(self._window[:1], faulty)])
        *values, faults = self._world.sum(packed).tolist()
        return values, self._faulty + int(faults)
