"""Recorded sine-cosine position tables and their resized versions against ours."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import Tensor

from omnitrunk.models.layers.positions import interpolate, sincos_table
from tests.parity.folder import Check, Recorded
from tests.parity.report import Precision, Report

KEY = re.compile(r"pos_(\d+)x(\d+)_d(\d+)(?:_(bicubic|bilinear)_(\d+)x(\d+))?")
# The release computes frequencies and tables in float32, and so do we: the last bits of an angle of up to ten are 1e-6.
TOLERANCE = 3e-6


def find(files: Iterable[Recorded]) -> list[Check]:
    return [
        Check(files=(file.name,), run=lambda report, precision, file=file: compare(file, report, precision))
        for file in files
        if any(KEY.fullmatch(key) for key in file.content)
    ]


def compare(file: Recorded, report: Report, precision: Precision) -> None:
    for key, recorded in file.content.items():
        if match := KEY.fullmatch(key):
            tolerance = max(TOLERANCE, precision.forward)
            report.close(file.name, key, table(match), recorded[0].flatten(1).T, tolerance)
        else:
            report.not_covered(file.name, key)


def table(match: re.Match) -> Tensor:
    """Our rows (h * w, D) for one key."""
    height, width, dim = (int(number) for number in match.groups()[:3])
    rows = sincos_table(height, width, dim, faithful=True)
    if match[4] is None:
        return rows
    return interpolate(rows, (height, width), (int(match[5]), int(match[6])), match[4])
