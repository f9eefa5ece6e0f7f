"""Rows of `omnitrunk bench kernels` as text: a line of progress, a Markdown table, the rates behind the floors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from omnitrunk.bench.case import OURS

Row = Mapping[str, object]
HEAD = "operation | shape | dtype | pass | turns ours / peer | us [p10-p90] | floor us (wall) | of floor | GB/s"
HEAD += " | GFLOP/s | best peer | peer us | ours faster [p10-p90] | error ours / peer | peak MB ours / peer"


def markdown(table: Sequence[Row]) -> str:
    """One line for each operation, shape and pass: ours, its floor, and the fastest peer."""
    lines = [f"| {HEAD} |", "|---" * (HEAD.count("|") + 1) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(_line(*pair)) + " |" for pair in pairs(table))])


def pairs(table: Sequence[Row]) -> Iterator[tuple[Row, Row | None]]:
    """Our row and that of the fastest peer, for each operation, shape and pass."""
    groups: dict[tuple, list[Row]] = {}
    for row in table:
        groups.setdefault((row["operation"], row["shape"], row["direction"]), []).append(row)
    for rows in groups.values():
        ours = next(row for row in rows if row["contender"] == OURS)
        peers = [row for row in rows if row is not ours]
        yield ours, min(peers, key=lambda row: row["median"], default=None)


def _line(ours: Row, peer: Row | None) -> list[str]:
    seconds, turns = ours["median"], str(ours["turns"]) if peer is None else f"{ours['turns']} / {peer['turns']}"
    cells = [ours["operation"], ours["shape"], ours["dtype"], ours["direction"], turns, _times(ours)]
    cells += [f"{1e6 * ours['floor']:.1f} ({ours['wall']})", f"{100 * ours['floor'] / seconds:.0f} %"]
    cells += [f"{ours['least_bytes'] / seconds / 1e9:.1f}", f"{ours['flop'] / seconds / 1e9:.1f}"]
    if peer is None:
        return [*cells, "-", "-", "-", _error(ours["error"]), f"{ours['peak_bytes'] / 1e6:.1f}"]
    keys = ("ours_faster_median", "ours_faster_p10", "ours_faster_p90")
    cells += [peer["contender"], _times(peer), "{:.2f} [{:.2f}-{:.2f}]".format(*(peer[key] for key in keys))]
    cells.append(f"{_error(ours['error'])} / {_error(peer['error'])}")
    return [*cells, f"{ours['peak_bytes'] / 1e6:.1f} / {peer['peak_bytes'] / 1e6:.1f}"]


def _times(row: Row) -> str:
    return "{:.1f} [{:.1f}-{:.1f}]".format(*(1e6 * row[key] for key in ("median", "p10", "p90")))


def _error(value: float | None) -> str:
    return "exact" if value is None else f"{value:.1e}"


def progress(rows: Sequence[Row], elapsed: float) -> str:
    """A line for a case that is done."""
    parts = []
    for ours, peer in pairs(rows):
        versus = "" if peer is None else f", {peer['ours_faster_median']:.2f} x {peer['contender']}"
        parts.append(f"{ours['direction']} {1e6 * ours['median']:.0f} us{versus}")
    return f"{elapsed:6.1f} s  {rows[0]['operation']} {rows[0]['shape']}: {'; '.join(parts)}"


def rates(measured: Mapping[str, float], device: str) -> str:
    """The three rates that floors are computed from."""
    text = "Floors on this {}: {:.1f} GB/s, {:.1f} GFLOP/s, {:.2f} G exponentials/s, all measured at the start."
    return text.format(device, *(measured[key] / 1e9 for key in ("bytes_per_s", "flop_per_s", "exps_per_s")))
