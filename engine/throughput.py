"""How fast a run goes: the figures of a log step that depend on the clock."""

from __future__ import annotations

import torch

from omnitrunk.engine.hardware import peak_flop_per_s
from omnitrunk.engine.stopwatch import Stopwatch

ASIDE = ("evaluate", "checkpoint", "images")
"""Activities that are not training, and so count in no rate."""


class Throughput:
    """Rates between two log steps, over all processes."""

    def __init__(
        self, *, samples: float, tokens: float, flop: float, devices: int, device: torch.device, precision: str
    ) -> None:
        """A step takes `samples`; each has `tokens` visible tokens and costs `flop`, forward and backward."""
        self.watch = Stopwatch()
        self._samples, self._tokens, self._flop, self._device = samples, tokens, flop, device
        peak = peak_flop_per_s(device, precision)
        self._peak = None if peak is None else peak * devices
        self._data_wait = 0.0

    def lap(self, *, steps: int, left: int, data_wait: float) -> dict[str, float | None]:
        """The figures of the `steps` since the last call; `left` steps remain, and `data_wait` s were waited in all."""
        seconds = self.watch.lap()
        training = max(seconds["wall"] - sum(seconds.get(activity, 0.0) for activity in ASIDE), 1e-9)
        rate = steps * self._samples / training
        waited, self._data_wait = data_wait - self._data_wait, data_wait
        figures = {
            "seconds": training,
            "samples_per_s": rate,
            "visible_tokens_per_s": rate * self._tokens,
            "data_wait_percent": 100 * waited / training,
            "mfu": None if self._peak is None else rate * self._flop / self._peak,
            "eta_s": left * training / steps,
        }
        if self._device.type == "cuda":
            figures["memory_gb"] = torch.cuda.max_memory_allocated(self._device) / 1e9
        return figures
