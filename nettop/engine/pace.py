# SPDX-License-Identifier: Apache-2.0
"""The pace of readings: the chosen interval, or a longer one that keeps nettop's cost below --max-overhead.

A cost is a share of one CPU and has two parts. The cost of readings falls as the interval grows. The cost of hooks,
running them in the kernel and draining their events, is fixed: a longer interval does not lower it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from nettop.engine.own_cost import DRAIN, CpuReading, OwnCost
from nettop.process.clocks import monotonic_ns

STEP = 1.5
"""Factor by which the interval grows (or by a power of it) and shrinks."""
MAX_STRETCHED_S = 60.0
AIM = 0.8
"""A longer interval aims for a cost below this part of the bound. Between this and the bound nothing changes, which
keeps the interval stable."""
EXPENSIVE_IN_A_ROW, LONG_S = 2, 5.0
"""Expensive intervals in a row that trigger a change. A single one, as caused by many key presses or a busy machine,
triggers it only if it is at least `LONG_S` seconds long."""
CHEAP_IN_A_ROW = 3
"""Cheap intervals in a row before one step back."""
ATTACHED_AFTER_S = 3.0
"""Seconds after which the one-off cost of attaching a lens and drawing it first is over."""
SHORTEST_SPAN_S = 1.0
"""Shortest time over which costs are judged."""
_SPAN_TOLERANCE = 0.9
"""Tolerance for readings that are slightly early."""


@dataclass(frozen=True, slots=True)
class OverheadLimit:
    """The current effect of --max-overhead; as text it is empty without an effect. `bound` is a share of one CPU."""

    bound: float
    interval_s: float
    chosen_s: float
    is_exceeded: bool = False
    """True if the cost is above the bound, and a longer interval does not help."""

    def __str__(self) -> str:
        effect = f"interval {self.interval_s:.1f} s" if self.interval_s > self.chosen_s else ""
        option = f"--max-overhead {percent(self.bound)}"
        if self.is_exceeded:
            return f"{effect}{', and yet ' if effect else ''}{option} is exceeded"
        return f"{effect} for {option}" if effect else ""

    @property
    def state(self) -> str:
        """The text, or a message that the interval is as chosen again."""
        option = f"--max-overhead {percent(self.bound)}"
        return str(self) or f"everything as chosen again (interval {self.interval_s:.1f} s), within {option}"


def percent(share: float) -> str:
    """Format a share of one CPU as in the option: `2%`, `0.5%`."""
    return f"{share * 100:.3g}%"


class Pace:
    """The seconds between two readings, adjusted to keep the measured cost below `bound`, if there is one.

    Everything except `limit` and `interval_s` belongs to the sampler's thread.
    """

    def __init__(self, interval_s: float, cost: OwnCost, bound: float | None = None) -> None:
        self.bound = bound
        self.interval_s = self._chosen_s = interval_s
        self._cost = cost
        self._is_exceeded = False
        self._expensive: list[tuple[float, float]] = []
        self._cheap = 0
        self._judged: tuple[CpuReading, int] | None = None
        """The reading that the next judgement starts from, and the time spent draining until then."""
        self._attached_ns = 0

    @property
    def limit(self) -> OverheadLimit | None:
        """The current effect of the bound."""
        if self.bound is None:
            return None
        return OverheadLimit(self.bound, self.interval_s, self._chosen_s, self._is_exceeded)

    def set_interval(self, interval_s: float) -> None:
        """Set the interval chosen by the user. It applies at once, unless the bound requires a longer one."""
        is_stretched = self.interval_s > self._chosen_s
        self._chosen_s = interval_s
        self.interval_s = max(self.interval_s, interval_s) if is_stretched else interval_s

    def ignore_attaching(self) -> None:
        """Ignore the cost of the next seconds: attaching a lens is a one-off cost."""
        self._attached_ns = monotonic_ns() + int(ATTACHED_AFTER_S * 1e9)
        self._judged = None

    def tick(self) -> None:
        """Measure the cost, and judge it once enough time has passed."""
        self._cost.take()
        now = self._cost.now
        if self.bound is None or now.at_ns < self._attached_ns:
            return
        # How often events are drained depends on the kernel, not on the interval, so that cost is fixed.
        drained_ns = sum(step.time_ns for (_, name), step in self._cost.steps.all().items() if name == DRAIN)
        if self._judged is not None:
            before, drained_before_ns = self._judged
            elapsed_ns = now.at_ns - before.at_ns
            if elapsed_ns < max(SHORTEST_SPAN_S, _SPAN_TOLERANCE * self.interval_s) * 1e9:
                return
            # Child processes were loaders, which are part of the cost of attaching.
            own_ns, programs_ns = now.own_ns - before.own_ns, now.programs_ns - before.programs_ns
            fixed_ns = programs_ns + min(own_ns, drained_ns - drained_before_ns)
            self.judge(elapsed_ns / 1e9, (own_ns + programs_ns) / elapsed_ns, fixed_ns / elapsed_ns)
        self._judged = now, drained_ns

    def judge(self, elapsed_s: float, total: float, fixed: float) -> None:
        """Judge a period of `elapsed_s` in which nettop used the share `total`, of which hooks used `fixed`."""
        bound = math.inf if self.bound is None else self.bound
        if total > bound:
            self._cheap = 0
            self._expensive = [*self._expensive[1 - EXPENSIVE_IN_A_ROW :], (total, fixed)]
            if len(self._expensive) == EXPENSIVE_IN_A_ROW or elapsed_s >= LONG_S:
                self._stretch(*min(self._expensive), aim=AIM * bound)
        else:
            self._expensive, self._is_exceeded = [], False
            self._shrink(total, fixed, aim=AIM * bound)

    def _stretch(self, total: float, fixed: float, *, aim: float) -> None:
        """Lengthen the interval as far as needed, or by one step if no interval is long enough."""
        spare, longest_s = aim - fixed, max(MAX_STRETCHED_S, self._chosen_s)
        is_longest = self.interval_s >= longest_s
        self._is_exceeded = spare <= 0 or is_longest
        if not is_longest:
            factor = (total - fixed) / spare if spare > 0 else STEP
            steps = max(1, math.ceil(math.log(factor) / math.log(STEP) - 1e-9))
            self.interval_s = min(self.interval_s * STEP**steps, longest_s)
        self._expensive = []  # measured before this change

    def _shrink(self, total: float, fixed: float, *, aim: float) -> None:
        """Shorten the interval by a step after some cheap intervals, if the cost is expected to stay below the aim."""
        shorter_s = max(self._chosen_s, self.interval_s / STEP)
        expected = fixed + (total - fixed) * self.interval_s / shorter_s
        is_cheap = self.interval_s > self._chosen_s and expected <= aim
        self._cheap = self._cheap + 1 if is_cheap else 0
        if self._cheap >= CHEAP_IN_A_ROW:
            self._cheap = 0
            self.interval_s = shorter_s
