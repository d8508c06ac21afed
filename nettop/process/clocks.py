# SPDX-License-Identifier: Apache-2.0
"""The kernel's own clocks, those of BPF programs, packets and process starts.

In a time namespace (time_namespaces(7): `unshare --time`, a container restored by CRIU), the clocks of a process are
ahead of them by an offset.
"""

from __future__ import annotations

import os
import time
from functools import cache
from pathlib import Path

_PROCESS = Path("/proc/self")
_NS = 1_000_000_000


def monotonic_ns() -> int:
    """Return the time of the kernel's CLOCK_MONOTONIC."""
    return time.monotonic_ns() - offset_ns("monotonic")


def monotonic_s() -> float:
    """Return `monotonic_ns` in seconds."""
    return monotonic_ns() / _NS


def boot_ns() -> int:
    """Return the time of the kernel's CLOCK_BOOTTIME."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) - offset_ns("boottime")


@cache
def offset_ns(clock: str) -> int:
    """Return how far this process's clock, `monotonic` or `boottime`, is ahead of the kernel's."""
    try:
        # The file has the offsets of future children, which may be given another namespace (`unshare` without --fork).
        if os.readlink(_PROCESS / "ns/time") != os.readlink(_PROCESS / "ns/time_for_children"):
            return 0
        offsets = (_PROCESS / "timens_offsets").read_text().splitlines()
    except OSError:
        return 0  # before Linux 5.6, or without CONFIG_TIME_NS
    return next(int(s) * _NS + int(ns) for name, s, ns in map(str.split, offsets) if name == clock)
