# SPDX-License-Identifier: Apache-2.0
"""The kernel's tick, the unit of jiffies."""

from __future__ import annotations

import time

_CLOCK_MONOTONIC_COARSE = 6


def us_per_tick() -> int:
    """Return the microseconds in a jiffy, 1,000,000 / CONFIG_HZ: the resolution of coarse clocks
    (kernel/time/posix-timers.c)."""
    return round(time.clock_getres(_CLOCK_MONOTONIC_COARSE) * 1e6)
