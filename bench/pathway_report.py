"""What joining did for each target, as a table and a plot: accuracies, each compared with the same seed alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Row = Mapping[str, Any]
BASELINE = "alone"


def accuracies(rows: Sequence[Row], target: str) -> dict[str, dict[int, float]]:
    """Arm -> seed -> top-1 in percent, in the order of the rows."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        if row["target"] == target:
            found.setdefault(row["arm"], {})[row["seed"]] = 100 * row["top1"]
    return found


def gains(found: Mapping[str, Mapping[int, float]], arm: str) -> np.ndarray:
    """Points of accuracy that an arm has more than the target alone, seed by seed."""
    return np.array([found[arm][seed] - found[BASELINE][seed] for seed in found[arm] if seed in found[BASELINE]])


def interval(values: np.ndarray) -> float:
    """Standard error of the mean over seeds; nan for a single one."""
    return float(values.std(ddof=1) / len(values) ** 0.5) if len(values) > 1 else float("nan")


def markdown(rows: Sequence[Row]) -> str:
    """A line for each target and arm."""
    head = "| target | joined with | top-1, mean and deviation over seeds | gain over alone, mean and standard error |"
    lines = [f"{head} mean absolute scale | seeds |", "|---" * 6 + "|"]
    for target in dict.fromkeys(row["target"] for row in rows):
        found = accuracies(rows, target)
        for arm, by_seed in found.items():
            values, gain = np.array(list(by_seed.values())), gains(found, arm)
            spread = f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else ""
            scales = [
                row["mean_scale"]
                for row in rows
                if (row["target"], row["arm"]) == (target, arm) and "mean_scale" in row
            ]
            lines.append(
                f"| {target} | {arm} | {values.mean():.1f}{spread} | "
                + ("-" if arm == BASELINE else f"{gain.mean():+.1f} ± {interval(gain):.1f}")
                + f" | {f'{np.mean(scales):.4f}' if scales else '-'} | {len(values)} |"
            )
    return "\n".join(lines)


def draw(rows: Sequence[Row], path: Path) -> None:
    """Write a PNG: a panel for each target, a line for each arm; small dots are seeds, bars are standard errors."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    targets = list(dict.fromkeys(row["target"] for row in rows))
    figure, panels = pyplot.subplots(
        1, len(targets), figsize=(4.2 * len(targets), 4.6), layout="constrained", squeeze=False
    )
    for axes, target in zip(panels[0], targets, strict=True):
        found = accuracies(rows, target)
        joined = [arm for arm in found if arm != BASELINE]
        for height, arm in enumerate(reversed(joined)):
            gain = gains(found, arm)
            control = arm in ("itself", "random") or arm.endswith("reversed")
            color = "#8a8a8a" if control else "#1f6fb4"
            axes.plot(gain, [height] * len(gain), ".", color=color, alpha=0.45, markersize=7)
            axes.errorbar(gain.mean(), height, xerr=interval(gain), fmt="o", color=color, capsize=4)
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_yticks(range(len(joined)), list(reversed(joined)))
        alone = np.array(list(found[BASELINE].values()))
        shots = next(row["shots"] for row in rows if row["target"] == target)
        axes.set_title(f"{target}: alone {alone.mean():.1f} %, {shots or 'all'} samples a class", fontsize=11)
        axes.set_xlabel("points of top-1 gained")
        axes.grid(axis="x", alpha=0.3)
    figure.suptitle(
        f"Targets joined with other models, {rows[0]['steps']} steps; blue: other modalities, gray: controls",
        fontsize=11,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
