"""Memory of the host that is freed stays with the process, so that the next step finds it mapped.

glibc gives large blocks back to the kernel at once, and every step asks for them again: each of their pages then costs
a page fault, which on CPUs took a fifth of a small model's step (bench/LOG.md). A run needs the same memory in every
step, so nothing is wasted by keeping it.
"""

from __future__ import annotations

import ctypes
import sys

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3
"""Parameters of mallopt(3)."""
LARGEST = 32 << 20
"""Bytes from which on blocks still come from the kernel; glibc takes no greater limit."""
AHEAD = 64 << 20
"""Bytes that the heap grows by at a time."""
NEVER = 2**31 - 1


def keep_freed() -> bool:
    """Change the allocator of this process; False where it is not glibc's, and nothing changes."""
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not (hasattr(library, "gnu_get_libc_version") and hasattr(library, "mallopt")):
        return False
    settings = {MMAP_THRESHOLD: LARGEST, TRIM_THRESHOLD: NEVER, TOP_PAD: AHEAD}
    return all(library.mallopt(name, value) == 1 for name, value in settings.items())
