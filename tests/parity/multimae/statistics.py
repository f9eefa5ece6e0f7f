"""Two-sample tests for integer counts: how unlikely is it that two sets of draws come from one distribution?"""

from __future__ import annotations

import torch
from torch import Tensor

LEAST_EXPECTED = 10.0


def surprise(first: Tensor, second: Tensor) -> float:
    """-log10 of the p-value of the two-sample chi-square test on histograms (bins,) of equally many draws.

    Neighbouring bins are merged until both samples together hold `2 * LEAST_EXPECTED` draws in each, which the
    chi-square approximation needs. Press et al., "Numerical Recipes", 3rd edition, section 14.3.2.
    """
    if first.shape != second.shape or first.sum() != second.sum():
        return float("inf")
    first, second = _merged(first.double(), second.double())
    statistic = ((first - second).square() / (first + second)).sum()
    freedom = torch.tensor(len(first) - 1, dtype=torch.float64)
    if freedom == 0:
        return 0.0
    p_value = torch.special.gammaincc(freedom / 2, statistic / 2)
    return -p_value.clamp_min(1e-300).log10().item()


def _merged(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Both histograms over the same coarser bins; what is left over at the end joins the last bin."""
    bins = [torch.zeros(2, dtype=torch.float64)]
    for pair in torch.stack([first, second], dim=1):
        if bins[-1].sum() >= 2 * LEAST_EXPECTED:
            bins.append(torch.zeros_like(pair))
        bins[-1] = bins[-1] + pair
    if len(bins) > 1 and bins[-1].sum() < 2 * LEAST_EXPECTED:
        bins[-2] = bins[-2] + bins.pop()
    return torch.stack(bins).unbind(1)


def mean_distance(first: tuple[float, float], second: tuple[float, float], draws: int) -> float:
    """Distance of two means in standard errors of their difference; each sample is (mean, standard deviation)."""
    error = ((first[1] ** 2 + second[1] ** 2) / draws) ** 0.5
    return abs(first[0] - second[0]) / max(error, 1e-12)
