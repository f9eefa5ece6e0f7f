from __future__ import annotations

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import torch
from omnitrunk.engine.host_memory import keep_freed
if sys.argv[1] == "keep" and not keep_freed():
    sys.exit("not glibc")
def step():
    return [torch.ones(6_000_000) for _ in range(6)]
held = [step() for _ in range(3)]  # more than a step takes
del held
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how):
    done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, timeout=120)
    if "not glibc" in done.stderr:
        pytest.skip("needs glibc's allocator")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_memory_of_the_step_before_is_used_again():
    """Twenty steps of 144 MB after a peak; where freed memory is given back, pages are mapped again and again."""
    assert faults("keep") < faults("leave") / 2
