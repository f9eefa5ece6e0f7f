"""The table of a parity run: what was compared, how far apart it was, how far it may be."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Precision:
    """The number format of our side of the comparison and how far each kind of quantity may be off.

    The recorded tensors are float32 copies of a float64 run, so `forward` and `gradient` cannot go below their
    rounding; losses and norms were stored in float64.
    """

    dtype: torch.dtype
    forward: float
    loss: float
    gradient: float
    gradient_norm: float
    trained_norm: float


DOUBLE = Precision(dtype=torch.float64, forward=1e-6, loss=1e-9, gradient=1e-6, gradient_norm=1e-7, trained_norm=1e-7)
# The biases of attention's keys have no gradient, and AdamW makes full steps out of its rounding in float32.
SINGLE = Precision(dtype=torch.float32, forward=3e-5, loss=1e-5, gradient=1e-4, gradient_norm=1e-4, trained_norm=1e-2)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One comparison."""

    case: str
    tensor: str
    error: float
    tolerance: float

    @property
    def ok(self) -> bool:
        return self.error <= self.tolerance

    def __str__(self) -> str:
        verdict = "ok" if self.ok else "MISS"
        return f"{self.case:<28} {self.tensor:<62} {self.error:9.2e} {self.tolerance:9.2e}  {verdict}"


@dataclass
class Report:
    """Collects rows, and notes on recorded material that nothing compares yet."""

    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, case: str, tensor: str, error: float, tolerance: float) -> None:
        self.rows.append(Row(case=case, tensor=tensor, error=float(error), tolerance=tolerance))

    def equal(self, case: str, tensor: str, ours: Tensor, recorded: Tensor) -> None:
        """Integers: the error is the number of differing entries and must be zero."""
        same_shape = ours.shape == recorded.shape
        self.add(case, tensor, (ours != recorded).sum().item() if same_shape else float("inf"), 0.0)

    def close(self, case: str, tensor: str, ours: Tensor, recorded: Tensor, tolerance: float) -> None:
        """Values around one: the error of each entry is absolute below one and relative above."""
        self.add(case, tensor, _largest(ours, recorded, recorded.double().abs().clamp_min(1.0)), tolerance)

    def close_to_largest(self, case: str, tensor: str, ours: Tensor, recorded: Tensor, tolerance: float) -> None:
        """Values of any size: errors are relative to the largest recorded entry, so a gradient of 1e-4 counts too."""
        scale = recorded.double().nan_to_num().abs().amax().clamp_min(1e-12)
        self.add(case, tensor, _largest(ours, recorded, scale), tolerance)

    def not_covered(self, case: str, what: str) -> None:
        self.notes.append(f"{case:<28} {what}: not covered yet")

    @property
    def misses(self) -> list[Row]:
        return [row for row in self.rows if not row.ok]

    def summary(self) -> str:
        cases, rows, misses = len({row.case for row in self.rows}), len(self.rows), len(self.misses)
        return f"{rows} tensors in {cases} cases: {rows - misses} ok, {misses} MISS"


def _largest(ours: Tensor, recorded: Tensor, scale: Tensor) -> float:
    """The largest error in units of `scale`; a wrong shape, or NaN on one side only, is infinitely wrong."""
    defined = recorded.isfinite()
    if ours.shape != recorded.shape or not torch.equal(ours.isfinite(), defined):
        return float("inf")
    errors = (ours.detach().double() - recorded.double()).abs() / scale
    return errors[defined].max().item() if defined.any() else 0.0
