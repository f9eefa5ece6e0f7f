from __future__ import annotations

import os

import pytest

# One thread in this process and in every one that a test starts: sums come out the same, and small models run faster.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def seed() -> int:
    """A fresh seed for every test, printed when it fails; OMNITRUNK_TEST_SEED repeats one."""
    value = int(os.environ.get("OMNITRUNK_TEST_SEED") or int.from_bytes(os.urandom(4), "little"))
    print(f"OMNITRUNK_TEST_SEED={value}")
    return value
