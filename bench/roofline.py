"""The roofline: each operation's arithmetic intensity against its rate, under the two walls of the machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from omnitrunk.bench.report import Row, pairs


def draw(table: Sequence[Row], rates: Mapping[str, float], path: Path) -> None:
    """Write a PNG: a dot for ours, a ring for the fastest peer, joined by a line; gray lines are the walls."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(11, 7), layout="constrained")
    alone = [row for row in table if row["direction"] in ("forward", "backward")]
    drawn = [(ours, peer) for ours, peer in pairs(alone) if ours["flop"] and ours["least_bytes"]]
    colors = dict(zip(sorted({ours["operation"] for ours, _ in drawn}), pyplot.cm.tab20.colors, strict=False))
    for ours, peer in drawn:
        color, intensity = colors[ours["operation"]], ours["flop"] / ours["least_bytes"]
        heights = [ours["flop"] / row["median"] / 1e9 for row in (ours, peer) if row is not None]
        axes.plot([intensity] * len(heights), heights, color=color, linewidth=1, zorder=2)
        marker = "o" if ours["direction"] == "forward" else "s"
        axes.plot(intensity, heights[0], marker, color=color, markersize=7, zorder=3)
        if peer is not None:
            axes.plot(intensity, heights[1], marker, color=color, markersize=7, markerfacecolor="white", zorder=3)
    _walls(axes, rates)
    for name, color in colors.items():
        axes.plot([], [], "o", color=color, label=name)
    axes.plot([], [], "o", color="black", label="forward"), axes.plot([], [], "s", color="black", label="backward")
    axes.plot([], [], "o", color="black", markerfacecolor="white", label="fastest peer")
    axes.set(xscale="log", yscale="log", xlabel="FLOP per byte that must move", ylabel="GFLOP/s")
    axes.set_title(f"{table[0]['device']}: measured rates under the walls of memory and arithmetic")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _walls(axes: object, rates: Mapping[str, float]) -> None:
    low, high = axes.get_xlim()
    points = [max(low, 1e-2), rates["flop_per_s"] / rates["bytes_per_s"], max(high, 1e3)]
    heights = [min(rates["flop_per_s"], point * rates["bytes_per_s"]) / 1e9 for point in points]
    axes.plot(points, heights, color="gray", linewidth=2, zorder=1)
