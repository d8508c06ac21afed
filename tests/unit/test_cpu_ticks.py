# SPDX-License-Identifier: Apache-2.0
"""Ticks of sampling clocks that are lost."""

from __future__ import annotations

from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettop.kernel.host.proc_files import CpuTimes
from nettop.probes.cpu.ticks import TickTimes

HZ, PERIOD_NS, SECOND_NS = 1000, 1_000_000, 1_000_000_000
STEP_NS = 10_000_000
"""The steps of idle time in /proc/stat."""


def after(readings: list[tuple[int, int, int]]) -> TickTimes:
    """Return the state after readings of one CPU: running and idle time in ns, and ticks, since the start."""
    ticks = TickTimes(HZ, 1)
    for running_ns, idle_ns, counted in [(0, 0, 0), *readings]:
        ticks.expect({0: running_ns}, {0: CpuTimes(softirq_ns=0, idle_ns=idle_ns)})
        ticks.count(np.array([counted]))
    return ticks


@pytest.mark.parametrize(("every", "stands_for"), [(1, 1.0), (2, 2.0), (100, 4.0)])
def test_the_others_stand_for_lost_ticks(every: int, stands_for: float) -> None:
    """If only every nth tick comes, each counts n times, up to a bound; the others are reported as missed."""
    ticks = after([(second * SECOND_NS, 0, second * HZ // every) for second in range(1, 6)])
    assert ticks.tick_ns[0] == pytest.approx(stands_for * PERIOD_NS)
    assert ticks.missed[0] == pytest.approx(5 * HZ - 5 * HZ // every, abs=1)


def test_what_happened_long_ago_counts_less() -> None:
    """Once all ticks come again, each soon stands for its period."""
    lost = [(second * SECOND_NS, 0, second * HZ // 2) for second in range(1, 6)]
    more = [((5 + second) * SECOND_NS, 0, 5 * HZ // 2 + second * HZ) for second in range(1, 21)]
    ticks = after(lost + more)
    assert ticks.tick_ns[0] == PERIOD_NS
    assert ticks.missed[0] == pytest.approx(5 * HZ // 2, abs=1)


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100)), min_size=1, max_size=50))
def test_idle_time_in_steps_makes_no_tick_missing(spans: list[tuple[int, int]]) -> None:
    """While all ticks come, no more are reported as missing than one step of idle time may hide."""
    busy = list(accumulate(busy for busy, _ in spans))
    idle = list(accumulate(idle for _, idle in spans))
    ticks = after(
        [
            ((at + rest) * PERIOD_NS, rest * PERIOD_NS // STEP_NS * STEP_NS, at)
            for at, rest in zip(busy, idle, strict=True)
        ]
    )
    assert ticks.missed[0] <= STEP_NS // PERIOD_NS


def test_a_cpu_counts_from_its_first_reading() -> None:
    """No ticks are expected for the time before a CPU's first reading."""
    ticks = TickTimes(HZ, 1)
    ticks.expect({0: 7 * SECOND_NS}, {0: CpuTimes(softirq_ns=0, idle_ns=0)})
    ticks.count(np.array([0]))
    assert (ticks.missed[0], ticks.tick_ns[0]) == (0, PERIOD_NS)
