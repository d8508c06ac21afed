# SPDX-License-Identifier: Apache-2.0
"""How this process keeps its memory."""

from __future__ import annotations

import ctypes

_M_ARENA_MAX = -8
"""include/malloc.h of glibc."""


def share_one_arena() -> None:
    """Have all threads allocate from one heap: each further one would keep some megabytes of its own.

    Threads of nettop hardly ever allocate at the same time. Another C library than glibc has no such choice.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
