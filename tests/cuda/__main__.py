"""`python -m tests.cuda show` prints what every CUDA kernel takes; `write` makes it the budget of the tests."""

from __future__ import annotations

import sys

from tests.cuda import resources

if sys.argv[1:] not in (["show"], ["write"]):
    raise SystemExit("usage: python -m tests.cuda show|write")
if resources.nvcc() is None:
    raise SystemExit("nvcc not found: install the CUDA toolkit, or set CUDA_HOME")
table = resources.measure()
for architecture, kernels in table.items():
    for name, used in kernels.items():
        print(f"{architecture:7} {name:42}", *(f"{key} {value:5}" for key, value in used.items()))
if sys.argv[1] == "write":
    resources.write(table)
