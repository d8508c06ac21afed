# SPDX-License-Identifier: Apache-2.0
"""How often to read so as to stay below --max-overhead: pure arithmetic on shares of one CPU.

A share has two parts. What readings cost falls as their interval grows. What hooks cost, when the kernel runs them and
when their events are taken, is fixed: a longer interval does not lower it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

STEP = 1.5
"""The interval grows and shrinks by this factor, or a power of it."""
LONGEST_S = 60.0
AIM = 0.8
"""A longer interval brings the cost below this part of the bound. Between here and the bound nothing changes, which
keeps the interval still."""
DEAR_IN_A_ROW, LONG_S = 2, 5.0
"""One dear interval (a key pressed often, a busy machine) changes nothing, unless it is long."""
CHEAP_IN_A_ROW = 3
"""Cheap intervals before one step back is taken."""


@dataclass(frozen=True, slots=True)
class OverheadLimit:
    """What --max-overhead does now; as text it is empty while that is nothing. `bound` is a share of one CPU."""

    bound: float
    interval_s: float
    chosen_s: float
    is_exceeded: bool = False
    """The cost is above the bound, and a longer interval does not help."""

    def __str__(self) -> str:
        interval = f"interval {self.interval_s:.1f} s" if self.interval_s > self.chosen_s else ""
        option = f"--max-overhead {percent(self.bound)}"
        if self.is_exceeded:
            return f"{interval}{', and yet ' if interval else ''}{option} is exceeded"
        return f"{interval} for {option}" if interval else ""

    @property
    def state(self) -> str:
        """The text, or that the interval is again the chosen one."""
        option = f"--max-overhead {percent(self.bound)}"
        return str(self) or f"interval {self.interval_s:.1f} s again, within {option}"


def percent(share: float) -> str:
    """A share of one CPU as the option has it: `2%`, `0.5%`."""
    return f"{share * 100:.3g}%"


class Governor:
    """Decides on the interval from what the last ones cost. `bound` is a share of one CPU."""

    def __init__(self, bound: float, interval_s: float) -> None:
        self.bound = bound
        self.interval_s = interval_s
        self._chosen_s = interval_s
        self._is_exceeded = False
        self._dear: list[tuple[float, float]] = []
        self._cheap = 0

    def choose(self, interval_s: float) -> None:
        """The user wants another interval: it holds at once, unless the present one is longer for a reason."""
        is_stretched = self.interval_s > self._chosen_s
        self._chosen_s = interval_s
        self.interval_s = max(self.interval_s, interval_s) if is_stretched else interval_s

    def judge(self, elapsed_s: float, total: float, fixed: float) -> None:
        """Judge `elapsed_s` in which nettop took the share `total`, of which `fixed` is of its hooks."""
        if total > self.bound:
            self._cheap = 0
            self._dear = [*self._dear[1 - DEAR_IN_A_ROW :], (total, fixed)]
            if len(self._dear) == DEAR_IN_A_ROW or elapsed_s >= LONG_S:
                self._stretch(*min(self._dear))
        else:
            self._dear, self._is_exceeded = [], False
            self._shrink(total, fixed)

    def limit(self) -> OverheadLimit:
        """What is done now."""
        return OverheadLimit(self.bound, self.interval_s, self._chosen_s, self._is_exceeded)

    def _stretch(self, total: float, fixed: float) -> None:
        """Lengthen the interval as far as it takes, or by a step where no interval is long enough."""
        spare, longest_s = AIM * self.bound - fixed, max(LONGEST_S, self._chosen_s)
        self._is_exceeded = spare <= 0 or self.interval_s >= longest_s
        if self.interval_s < longest_s:
            factor = (total - fixed) / spare if spare > 0 else STEP
            steps = max(1, math.ceil(math.log(factor) / math.log(STEP) - 1e-9))
            self.interval_s = min(self.interval_s * STEP**steps, longest_s)
            self._dear = []  # measured with the interval before

    def _shrink(self, total: float, fixed: float) -> None:
        """Take one step back after some cheap intervals, where the cost then stays below the aim."""
        shorter_s = max(self._chosen_s, self.interval_s / STEP)
        expected = fixed + (total - fixed) * self.interval_s / shorter_s
        is_cheap = self.interval_s > self._chosen_s and expected <= AIM * self.bound
        self._cheap = self._cheap + 1 if is_cheap else 0
        if self._cheap >= CHEAP_IN_A_ROW:
            self.interval_s, self._cheap = shorter_s, 0
