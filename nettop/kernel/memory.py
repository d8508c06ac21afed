# SPDX-License-Identifier: Apache-2.0
"""How this process keeps its memory, and what the kernel holds for it."""

from __future__ import annotations

import ctypes
from pathlib import Path

_M_ARENA_MAX = -8
"""include/malloc.h of glibc."""


def share_one_arena() -> None:
    """Have all threads allocate from one heap: each further one would keep some megabytes of its own.

    Threads of nettop hardly ever allocate at the same time. Another C library than glibc has no such choice.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)


def locked_bytes(descriptor: int) -> int:
    """What the kernel holds for a program or a map of ours (`memlock` in fdinfo), in bytes.

    Raises OSError where it may not be seen.
    """
    for line in Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines():
        name, _, number = line.partition(":")
        if name == "memlock":
            return int(number)
    return 0
