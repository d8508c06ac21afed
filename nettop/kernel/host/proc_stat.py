# SPDX-License-Identifier: Apache-2.0
"""CPU times from /proc/stat (fs/proc/stat.c, proc(5)); most kernels count them in timer ticks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from nettop.kernel.host.proc_files import read_text

TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
"""Unit of times in /proc, in ns."""


class CpuTimes(NamedTuple):
    """A CPU's times since boot, in ns. `idle_ns` is the time in which nothing ran: idle, waiting for I/O, or stolen by
    the hypervisor."""

    softirq_ns: int
    idle_ns: int


def read_cpu_times(proc: Path) -> dict[int, CpuTimes]:
    """Read the times of online CPUs by number; empty if the file cannot be read."""
    times: dict[int, CpuTimes] = {}
    for line in read_text(proc / "stat").splitlines():
        name, *numbers = line.split()
        if name.startswith("cpu") and name != "cpu":
            _, _, _, idle, iowait, _, softirq, steal, *_ = (int(ticks) * TICK_NS for ticks in numbers)
            times[int(name.removeprefix("cpu"))] = CpuTimes(softirq, idle + iowait + steal)
    return times
