# SPDX-License-Identifier: Apache-2.0
"""How this process allocates memory, and what the kernel allocates for it."""

from __future__ import annotations

import ctypes
from pathlib import Path

_M_ARENA_MAX = -8
"""include/malloc.h of glibc."""


def share_one_arena() -> None:
    """Have all threads allocate from one arena: each further one would keep some megabytes.

    nettop's threads hardly ever allocate at the same time. C libraries other than glibc have no such option.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)


def locked_bytes(descriptor: int) -> int:
    """The kernel memory of a program or map of ours (`memlock` in fdinfo), in bytes.

    Raises OSError where it may not be read.
    """
    for line in Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines():
        name, _, number = line.partition(":")
        if name == "memlock":
            return int(number)
    return 0
