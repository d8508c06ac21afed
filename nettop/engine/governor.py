# SPDX-License-Identifier: Apache-2.0
"""How often to read so as to stay below --max-overhead, and how few packets to follow: arithmetic on shares of one CPU.

A share has two parts. What readings cost falls as their interval grows. What hooks cost, when the kernel runs them and
when their events are taken, is fixed: a longer interval does not lower it. Following fewer packets may, so that is done
where no interval helps.
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
LARGEST_THINNING = 1 << 10
"""At least one packet in so many times as many as chosen is followed, whatever that costs."""


@dataclass(frozen=True, slots=True)
class OverheadLimit:
    """What --max-overhead does now; as text it is empty while that is nothing. `bound` is a share of one CPU."""

    bound: float
    interval_s: float
    chosen_s: float
    is_exceeded: bool = False
    """The cost is above the bound, and neither a longer interval nor following fewer packets helps."""
    thinning: int = 1
    """One packet in so many times as many as chosen is followed."""

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
        """The text, or that everything is again as chosen."""
        option = f"--max-overhead {percent(self.bound)}"
        return str(self) or f"everything again as chosen (interval {self.interval_s:.1f} s), within {option}"


def percent(share: float) -> str:
    """A share of one CPU as the option has it: `2%`, `0.5%`."""
    return f"{share * 100:.3g}%"


class Governor:
    """Decides on the interval, and on how few packets to follow, from what the last intervals cost.

    `bound` is a share of one CPU, `thinning` as in OverheadLimit.
    """

    def __init__(self, bound: float, interval_s: float) -> None:
        self.bound = bound
        self.interval_s = interval_s
        self.thinning = 1
        self._chosen_s = interval_s
        self._can_thin = False
        self._is_exceeded = False
        self._dear: list[tuple[float, float]] = []
        self._cheap = 0

    def choose(self, interval_s: float) -> None:
        """The user wants another interval: it holds at once, unless the present one is longer for a reason."""
        is_stretched = self.interval_s > self._chosen_s
        self._chosen_s = interval_s
        self.interval_s = max(self.interval_s, interval_s) if is_stretched else interval_s

    def allow_thinning(self, is_possible: bool) -> None:
        """Say whether any source can follow fewer packets; when none can, nothing is thinned."""
        self._can_thin = is_possible
        if not is_possible:
            self.thinning = 1

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
        return OverheadLimit(self.bound, self.interval_s, self._chosen_s, self._is_exceeded, self.thinning)

    def _stretch(self, total: float, fixed: float) -> None:
        """Lengthen the interval as far as it takes, or by a step where no interval is long enough.

        Where that is for what hooks cost, follow fewer packets first.
        """
        spare, longest_s = AIM * self.bound - fixed, max(LONGEST_S, self._chosen_s)
        is_longest = self.interval_s >= longest_s
        are_hooks_dear = spare <= 0 or (is_longest and total - fixed < self.bound)
        thins = are_hooks_dear and self._can_thin and self.thinning < LARGEST_THINNING
        self._is_exceeded = (spare <= 0 or is_longest) and not thins
        if thins:
            self.thinning *= 2
        elif not is_longest:
            factor = (total - fixed) / spare if spare > 0 else STEP
            steps = max(1, math.ceil(math.log(factor) / math.log(STEP) - 1e-9))
            self.interval_s = min(self.interval_s * STEP**steps, longest_s)
        self._dear = []  # measured before

    def _shrink(self, total: float, fixed: float) -> None:
        """Take one step back after some cheap intervals, where the cost then stays below the aim.

        The interval comes first: where it is as chosen, or a shorter one would cost too much, follow more packets.
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
