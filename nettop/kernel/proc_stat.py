# SPDX-License-Identifier: Apache-2.0
"""What /proc/stat says of CPUs (fs/proc/stat.c, proc(5)): of most of it no more than what ticks happened to meet."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
"""The unit of times in /proc, in ns."""


class CpuTimes(NamedTuple):
    """How a CPU has spent its time since boot, in ns. `rested_ns` is when nothing ran on it: it was idle, waited for a
    device, or was taken away by a hypervisor."""

    busy_ns: int
    softirq_ns: int
    rested_ns: int


def read_cpu_times(proc: Path) -> dict[int, CpuTimes]:
    """The CPUs that are on, by number; none where the file cannot be read."""
    try:
        lines = (proc / "stat").read_text().splitlines()
    except OSError:
        return {}
    found: dict[int, CpuTimes] = {}
    for line in lines:
        name, *numbers = line.split()
        if name.startswith("cpu") and name != "cpu":
            user, nice, system, idle, waiting, irq, softirq, stolen, *_ = (
                int(one) * TICK_NS for one in numbers
            )
            busy = user + nice + system + irq + softirq
            found[int(name.removeprefix("cpu"))] = CpuTimes(busy, softirq, idle + waiting + stolen)
    return found
