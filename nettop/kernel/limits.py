# SPDX-License-Identifier: Apache-2.0
"""Limits of this process: the files that it may have open, and the arenas that it allocates memory from."""

from __future__ import annotations

import ctypes
import resource
from contextlib import suppress

_M_ARENA_MAX = -8
"""include/malloc.h of glibc."""


def raise_open_files() -> None:
    """Raise the soft limit to the hard one: the usual 1,024 are meant for programs that use select(2)."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):  # then the limit stays
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def share_one_arena() -> None:
    """Have all threads allocate from one arena: each further one would keep some megabytes.

    nettop's threads hardly ever allocate at the same time. C libraries other than glibc have no such option.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
