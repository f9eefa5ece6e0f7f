"""What a run says: a line on the console and in log.jsonl per log step, and TensorBoard events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from omnitrunk.engine import durable
from omnitrunk.engine.jsonlines import JsonLines
from omnitrunk.engine.progress import ProgressBar
from omnitrunk.engine.stopwatch import duration

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch.utils.tensorboard import SummaryWriter

FIGURES = ("lr", "grad_norm", "skipped", "faulty_samples")
"""Entries of a record that are no losses."""


@dataclass(frozen=True, kw_only=True)
class LogConfig:
    """How often a run reports, and where."""

    every: int = 10
    """Steps between reports: console, log.jsonl, TensorBoard."""
    images_every: int = 0
    """Steps between sheets of reconstructions in samples/ and TensorBoard; 0 draws none."""
    tensorboard: bool = True
    """Write TensorBoard events into the run folder."""

    def __post_init__(self) -> None:
        if self.every < 1 or self.images_every < 0:
            raise ValueError(
                f"log.every = {self.every} must be 1 or more and log.images_every = {self.images_every} 0 or more"
            )


class RunLog:
    """The sinks of one run. Only the main process has any; on the others every call does nothing."""

    def __init__(self, folder: Path, config: LogConfig, *, step: int, steps: int, is_main: bool) -> None:
        """Continue the logs of `folder` at `step` of `steps`: what they say about later steps is dropped."""
        self._folder = folder
        self._steps = steps
        self._is_main = is_main
        if is_main:
            self._bar = ProgressBar(steps)
            self._lines = JsonLines(folder / "log.jsonl", step)
            # A run that ended within its last evaluation makes it again.
            self._evaluations = JsonLines(folder / "evaluation.jsonl", step - (step == steps))
            self._board = _tensorboard(folder, step) if config.tensorboard else None

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def say(self, line: str) -> None:
        """A line on the console alone."""
        if self._is_main:
            self._bar.print(line)

    def progress(self, step: int) -> None:
        """Move the bar of a terminal."""
        if self._is_main:
            self._bar.draw(step)

    def write(
        self, record: Mapping[str, Any], timing: Mapping[str, float | None], scales: Mapping[str, Sequence[float]]
    ) -> None:
        """One log step: `record` has step, loss, one entry per task and FIGURES; `timing` depends on the clock.

        `scales` are those of models.pathway: for each joined layer a number for each auxiliary model.
        """
        if not self._is_main:
            return
        joined = {"scales": dict(scales)} if scales else {}
        self._lines.write({**record, **joined, "time": dict(timing)})
        self._bar.print(console_line(record, timing, self._steps))
        self._scalars({name: value for name, value in record.items() if name != "step"}, record["step"])
        self._scalars({f"time/{name}": value for name, value in timing.items()}, record["step"])
        named = {f"pathway {i}/{layer}": scale for layer, row in scales.items() for i, scale in enumerate(row)}
        self._scalars(named, record["step"])

    def write_evaluation(self, step: int, scores: Mapping[str, float]) -> None:
        """Scores of one evaluation, each between 0 and 1."""
        if not self._is_main:
            return
        self._evaluations.write({"step": step, **scores})
        self._bar.print(f"step {step}  " + "  ".join(f"{name} {100 * score:.2f}%" for name, score in scores.items()))
        self._scalars({f"evaluation/{name}": score for name, score in scores.items()}, step)

    def write_sheet(self, step: int, sheet: Image) -> None:
        """A sheet of reconstructions, or a picture of the pathways, to samples/ and TensorBoard."""
        if not self._is_main:
            return
        path = self._folder / "samples" / f"step-{step:08d}.png"
        path.parent.mkdir(exist_ok=True)
        sheet.save(durable.aside(path), format="png")
        durable.aside(path).rename(path)
        if self._board:
            self._board.add_image("samples", np.asarray(sheet), step, dataformats="HWC")

    def sync(self) -> None:
        """Wait until everything said so far is on the disk: a checkpoint must not be ahead of its log."""
        if self._is_main:
            self._lines.sync()
            self._evaluations.sync()
            if self._board:
                self._board.flush()

    def close(self) -> None:
        """Close all files."""
        if self._is_main:
            self._lines.close()
            self._evaluations.close()
            if self._board:
                self._board.close()

    def _scalars(self, values: Mapping[str, float | None], step: int) -> None:
        for name, value in values.items():
            if self._board and value is not None:
                self._board.add_scalar(name, value, step)


def console_line(record: Mapping[str, Any], timing: Mapping[str, float | None], steps: int) -> str:
    """The report of one log step in one line."""
    losses = {name: value for name, value in record.items() if name not in ("step", *FIGURES)}
    parts = [f"step {record['step']}/{steps}"]
    parts += [f"{name} {'-' if value is None else f'{value:.4f}'}" for name, value in losses.items()]
    parts += [f"lr {record['lr']:.2e}", f"{timing['samples_per_s']:.1f} samples/s"]
    parts += [f"{timing['visible_tokens_per_s']:.0f} tokens/s", f"data wait {timing['data_wait_percent']:.1f}%"]
    parts += [f"MFU {'n/a' if timing['mfu'] is None else format(timing['mfu'], '.1%')}"]
    parts += [f"{name.replace('_', ' ')} {record[name]}" for name in FIGURES[2:] if record[name]]
    return "  ".join([*parts, f"ETA {duration(timing['eta_s'])}"])


def _tensorboard(folder: Path, step: int) -> SummaryWriter:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(
            f"log.tensorboard = true needs `pip install tensorboard` ({error}), or set it to false"
        ) from error
    return SummaryWriter(str(folder), purge_step=step + 1)
