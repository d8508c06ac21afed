# SPDX-License-Identifier: Apache-2.0
"""Softirq time of each CPU, and how its receive backlog fares, from /proc/stat and softnet_stat."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from nettop.kernel.host.proc_files import read_cpu_times
from nettop.kernel.net.net_counters import read_softnet
from nettop.probes.findings.interrupts import DeviceQueue
from nettop.snapshots.findings import CPUS
from nettop.snapshots.snapshot import Rows, rows_from

_SOFTNET = ("processed", "dropped", "squeezed")


def read_cpus(proc: Path, queues: Mapping[int, DeviceQueue], taken_ns: int) -> Rows:
    """Return a row for each online CPU, with the queue that interrupts it most, if known. The only one has no others to
    compare with."""
    times = {cpu: spent.softirq_ns for cpu, spent in read_cpu_times(proc).items()}
    softnet = read_softnet(proc)
    total, others = sum(times.values()), len(times) - 1
    values = [
        {
            "id": cpu,
            "cpu": cpu,
            "softirq_ns": softirq,
            "elsewhere_ns": (total - softirq) // others if others else None,
            **dict(zip(_SOFTNET, softnet.get(cpu, (0, 0, 0)), strict=True)),
            **({"irq": queues[cpu].irq, "queue": queues[cpu].name} if cpu in queues else {}),
        }
        for cpu, softirq in times.items()
    ]
    return rows_from(CPUS, values, taken_ns)
