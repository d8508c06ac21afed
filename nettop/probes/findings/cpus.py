# SPDX-License-Identifier: Apache-2.0
"""Softirq time of each CPU, and how its receive backlog fares, from /proc/stat and softnet_stat."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from nettop.kernel.host.proc_files import TICK_NS, read_text
from nettop.kernel.net.net_counters import read_softnet
from nettop.snapshots.findings import CPUS
from nettop.snapshots.snapshot import Rows, unknown_value

_OF_CPU = re.compile(r"^cpu(\d+) (.*)$", re.MULTILINE)
_SOFTIRQ_AT = 6
"""Column of softirq time (proc_stat(5))."""


def read_cpus(proc: Path, taken_ns: int) -> Rows:
    """Return a row for each online CPU. The only one has no others to compare with."""
    times = {int(cpu): int(rest.split()[_SOFTIRQ_AT]) * TICK_NS for cpu, rest in _OF_CPU.findall(_stat(proc))}
    softnet = read_softnet(proc)
    rows = np.zeros(len(times), CPUS.dtype)
    total = sum(times.values())
    others = len(times) - 1
    for row, (cpu, softirq) in zip(rows, sorted(times.items()), strict=True):
        row["id"] = row["cpu"] = cpu
        row["softirq_ns"] = softirq
        row["elsewhere_ns"] = (
            (total - softirq) // others if others else unknown_value(CPUS.dtype["elsewhere_ns"])
        )
        if cpu in softnet:
            row["processed"], row["dropped"], row["squeezed"] = softnet[cpu]
    return Rows(CPUS, rows, {}, taken_ns)


def _stat(proc: Path) -> str:
    return read_text(proc / "stat")
