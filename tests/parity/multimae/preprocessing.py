"""Recorded pre-processing against ours: depth standardization of pretraining."""

from __future__ import annotations

from collections.abc import Iterable

from omnitrunk.models.layers.standardize import robust_standardize
from tests.parity.folder import Check, Recorded
from tests.parity.report import Precision, Report

INPUT, OUTPUT = "depth.in", "depth.pretrain_standardised"


def find(files: Iterable[Recorded]) -> list[Check]:
    return [
        Check(files=(file.name,), run=lambda report, precision, file=file: compare(file, report, precision))
        for file in files
        if {INPUT, OUTPUT} <= file.content.keys()
    ]


def compare(file: Recorded, report: Report, precision: Precision) -> None:
    pixels = file.content[INPUT].to(precision.dtype).permute(0, 2, 3, 1).contiguous()
    ours = robust_standardize(pixels).permute(0, 3, 1, 2)
    report.close(file.name, OUTPUT, ours, file.content[OUTPUT], precision.forward)
    for key in sorted(file.content.keys() - {INPUT, OUTPUT}):
        report.not_covered(file.name, f"{key} (fine-tuning)")
