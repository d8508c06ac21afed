# SPDX-License-Identifier: Apache-2.0
"""The CPU time that a tick of a sampling clock stands for.

While interrupts are disabled, or the hypervisor runs something else, ticks are lost. Those that are left stand for more
than the clock's period.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nettop.kernel.host.proc_files import CpuTimes
from nettop.snapshots.arrays import Array

_NS = 1_000_000_000
_REMEMBERED = 2000
"""Ticks of a CPU after which older ones count half."""
_TOLERATED = 0.01
"""Share of ticks that may be missing without correction: /proc/stat shows idle time in steps of 10 ms."""
_MOST = 4.0
"""A tick stands for at most this many periods."""


class TickTimes:
    """What a tick of each CPU stands for (`tick_ns`, float64 by CPU), and the ticks lost so far (`missed`)."""

    def __init__(self, frequency_hz: int, cpus: int) -> None:
        self._period_ns = _NS / frequency_hz
        self._busy_ns: dict[int, int] = {}
        self._expected, self._lately_expected = np.zeros(cpus), np.zeros(cpus)
        self._counted: Array = np.zeros(cpus)
        self._lately_counted: Array = np.zeros(cpus)
        self.missed: Array = np.zeros(cpus)
        self.tick_ns: Array = np.full(cpus, self._period_ns)

    def expect(self, running_ns: Mapping[int, int], times: Mapping[int, CpuTimes]) -> None:
        """Add the ticks expected since the last call; counting starts at the first call with a CPU.

        Clocks stop on an idle CPU on some kernels (seen on 6.18): ticks are expected only while a CPU is busy. Read
        `running_ns` before `times`, and both before the ticks: then none is expected that is still to come.
        """
        for cpu in running_ns.keys() & times.keys():
            busy_ns = running_ns[cpu] - times[cpu].idle_ns
            more_ns = busy_ns - self._busy_ns.setdefault(cpu, busy_ns)
            if more_ns > 0:  # idle time grows in steps: what it takes back was counted
                self._expected[cpu] += more_ns / self._period_ns
                self._lately_expected[cpu] += more_ns / self._period_ns
                self._busy_ns[cpu] = busy_ns

    def count(self, counted: Array) -> None:
        """Compare the ticks of busy CPUs so far (by CPU) with the expected ones."""
        self._lately_counted += counted - self._counted
        self._counted = counted.astype(float)
        periods = self._lately_expected / np.maximum(self._lately_counted, 1)
        self.tick_ns = self._period_ns * np.where(periods > 1 + _TOLERATED, np.minimum(periods, _MOST), 1)
        # A tick may be late, and counted at the next reading.
        self.missed = np.maximum(self.missed, np.floor(self._expected) - 1 - self._counted)
        is_old = self._lately_counted > _REMEMBERED
        self._lately_expected[is_old] /= 2
        self._lately_counted[is_old] /= 2
