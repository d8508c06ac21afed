# SPDX-License-Identifier: Apache-2.0
"""The control loop of --max-overhead: it chooses the interval and the sampling factor from shares of one CPU.

A share has two parts. The cost of readings falls as the interval grows. The cost of hooks, running them in the kernel
and draining their events, is fixed: a longer interval does not lower it. If no interval
helps, the governor has sources follow fewer packets.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

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
LARGEST_THINNING = 1 << 10
"""Maximum factor by which the sampling rate is reduced, whatever the cost."""


@dataclass(frozen=True, slots=True)
class OverheadLimit:
    """The current effect of --max-overhead; as text it is empty without an effect. `bound` is a share of one CPU."""

    bound: float
    interval_s: float
    chosen_s: float
    is_exceeded: bool = False
    """True if the cost is above the bound, and neither a longer interval nor fewer packets help."""
    thinning: int = 1
    """Factor by which the sampling rate is reduced."""

    def __str__(self) -> str:
        interval = f"interval {self.interval_s:.1f} s" if self.interval_s > self.chosen_s else ""
        thinning = f"following 1/{self.thinning} as many packets" if self.thinning > 1 else ""
        effect = ", ".join(filter(None, (interval, thinning)))
        option = f"--max-overhead {percent(self.bound)}"
        if self.is_exceeded:
            return f"{effect}{', and yet ' if effect else ''}{option} is exceeded"
        return f"{effect} for {option}" if effect else ""

    @property
    def state(self) -> str:
        """The text, or a message that the interval and the sampling rate are as chosen again."""
        option = f"--max-overhead {percent(self.bound)}"
        return str(self) or f"everything as chosen again (interval {self.interval_s:.1f} s), within {option}"


def percent(share: float) -> str:
    """Format a share of one CPU as in the option: `2%`, `0.5%`."""
    return f"{share * 100:.3g}%"


class Governor:
    """A controller that chooses the interval and `thinning` (see OverheadLimit) by the cost of recent intervals.

    `bound` is a share of one CPU.
    """

    def __init__(self, bound: float, interval_s: float) -> None:
        self.bound = bound
        self.interval_s = interval_s
        self.thinning = 1
        self._chosen_s = interval_s
        self._can_thin = False
        self._is_exceeded = False
        self._expensive: list[tuple[float, float]] = []
        self._cheap = 0

    def set_interval(self, interval_s: float) -> None:
        """Set the interval chosen by the user. It applies at once, unless the limit requires a longer one."""
        is_stretched = self.interval_s > self._chosen_s
        self._chosen_s = interval_s
        self.interval_s = max(self.interval_s, interval_s) if is_stretched else interval_s

    def allow_thinning(self, is_possible: bool) -> None:
        """Set whether any source can follow fewer packets; if none can, reset the factor."""
        self._can_thin = is_possible
        if not is_possible:
            self.thinning = 1

    def judge(self, elapsed_s: float, total: float, fixed: float) -> None:
        """Judge a period of `elapsed_s` in which nettop used the share `total`, of which hooks used `fixed`."""
        if total > self.bound:
            self._cheap = 0
            self._expensive = [*self._expensive[1 - EXPENSIVE_IN_A_ROW :], (total, fixed)]
            if len(self._expensive) == EXPENSIVE_IN_A_ROW or elapsed_s >= LONG_S:
                self._stretch(*min(self._expensive))
        else:
            self._expensive, self._is_exceeded = [], False
            self._shrink(total, fixed)

    def limit(self) -> OverheadLimit:
        """Return the current effect."""
        return OverheadLimit(self.bound, self.interval_s, self._chosen_s, self._is_exceeded, self.thinning)

    def _stretch(self, total: float, fixed: float) -> None:
        """Lengthen the interval as far as needed, or by one step if no interval is long enough.

        If hooks are the cause, follow fewer packets first.
        """
        spare, longest_s = AIM * self.bound - fixed, max(MAX_STRETCHED_S, self._chosen_s)
        is_longest = self.interval_s >= longest_s
        are_hooks_expensive = spare <= 0 or (is_longest and total - fixed < self.bound)
        thins = are_hooks_expensive and self._can_thin and self.thinning < LARGEST_THINNING
        self._is_exceeded = (spare <= 0 or is_longest) and not thins
        if thins:
            self.thinning *= 2
        elif not is_longest:
            factor = (total - fixed) / spare if spare > 0 else STEP
            steps = max(1, math.ceil(math.log(factor) / math.log(STEP) - 1e-9))
            self.interval_s = min(self.interval_s * STEP**steps, longest_s)
        self._expensive = []  # measured before this change

    def _shrink(self, total: float, fixed: float) -> None:
        """Take one step back after some cheap intervals, if the cost is expected to stay below the aim.

        Shorten the interval first. If it is as chosen, or a shorter one would cost too much, follow more packets.
        """
        shorter_s = max(self._chosen_s, self.interval_s / STEP)
        expected = fixed + (total - fixed) * self.interval_s / shorter_s
        shortens = self.interval_s > self._chosen_s and expected <= AIM * self.bound
        is_cheap = shortens or (self.thinning > 1 and total + fixed <= AIM * self.bound)
        self._cheap = self._cheap + 1 if is_cheap else 0
        if self._cheap >= CHEAP_IN_A_ROW:
            self._cheap = 0
            if shortens:
                self.interval_s = shorter_s
            else:
                self.thinning //= 2
