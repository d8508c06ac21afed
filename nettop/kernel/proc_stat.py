# SPDX-License-Identifier: Apache-2.0
"""CPU times from /proc/stat (fs/proc/stat.c, proc(5)); on most kernels they are counted in timer ticks, not timed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from nettop.kernel.proc_files import read_text

TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
"""The unit of times in /proc, in ns."""


class CpuTimes(NamedTuple):
    """How a CPU has spent its time since boot, in ns. `idle_ns` is when nothing ran on it: it was idle, waited for a
    device, or was taken away by the hypervisor."""

    softirq_ns: int
    idle_ns: int


def read_cpu_times(proc: Path) -> dict[int, CpuTimes]:
    """The CPUs that are online, by number; none where the file cannot be read."""
    times: dict[int, CpuTimes] = {}
    for line in read_text(proc / "stat").splitlines():
        name, *numbers = line.split()
        if name.startswith("cpu") and name != "cpu":
            _, _, _, idle, iowait, _, softirq, steal, *_ = (int(ticks) * TICK_NS for ticks in numbers)
            times[int(name.removeprefix("cpu"))] = CpuTimes(softirq, idle + iowait + steal)
    return times
