# SPDX-License-Identifier: Apache-2.0
"""What is done to stay below --max-overhead: pure arithmetic on shares of one CPU; whoever calls it acts.

A share has two parts. What readings cost falls as their interval grows. What hooks cost, where the kernel meets them
and where their events are taken in, is fixed: they can only be left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

STEP = 1.5
"""The interval grows and shrinks by this factor, or a power of it."""
LONGEST_S = 60.0
AIM = 0.8
"""What is done brings the cost below this part of the bound. Nothing is done between here and the bound: that is
what keeps the interval still."""
EASY = 0.7
"""Below this part of the bound what was left out may come back."""
TWICE, LONG_S = 2, 5.0
"""One dear interval (a key pressed often, a busy machine) is none of the governor's business, unless it is long."""
CALM = 3
"""Cheap intervals before one step back is taken."""
PATIENCE_S, MOST_PATIENCE_S = 30.0, 3600.0
"""How long something stays left out. It doubles each time that it had to be left out again soon: what a hook costs is
known only while it is attached."""
_SOON_S = 600.0


class Order(Enum):
    """What the governor wants to be done."""

    NOTHING = "nothing"
    SHED = "shed"
    RESTORE = "restore"


@dataclass(frozen=True, slots=True)
class Restraint:
    """What is done for --max-overhead now. Its text is empty while nothing is.

    `bound` is a share of one CPU, `shed` is what was left out, in the order in which it was.
    """

    bound: float
    interval_s: float
    asked_s: float
    shed: tuple[str, ...] = ()
    at_its_end: bool = False
    """Nothing is left to be done, and it is not enough."""

    def __str__(self) -> str:
        done = [f"interval {self.interval_s:.1f} s"] if self.interval_s > self.asked_s else []
        done += [f"without {' and '.join(self.shed)}"] if self.shed else []
        words, option = ", ".join(done), f"--max-overhead {percent(self.bound)}"
        if self.at_its_end:
            return f"{words or 'nothing can be left out'}, and yet {option} is not kept"
        return f"{words} for {option}" if done else ""

    @property
    def told(self) -> str:
        """The text, also where nothing is done any more."""
        return (
            str(self)
            or f"interval {self.interval_s:.1f} s again, within --max-overhead {percent(self.bound)}"
        )


def percent(share: float) -> str:
    """A share of one CPU as the option has it: `2%`, `0.5%`."""
    return f"{share * 100:.3g}%"


class Governor:
    """Decides from one interval to the next."""

    def __init__(self, bound: float, asked_s: float) -> None:
        self.bound = bound
        self._interval_s = asked_s
        self._asked_s = asked_s
        self._nothing_to_shed = False
        self._longest_did_not_do = False
        self._is_fresh = False
        """What was left out has just come back: the next interval shows what it costs now."""
        self._on_trial = False
        """What was left out although the interval was the longest is there again: if it is too dear, lengthening the
        interval need not be tried once more."""
        self._dear: list[tuple[float, float]] = []
        self._calm = 0
        self._total = 0.0
        self._now_s = 0.0
        self._changed_s = 0.0
        self._restored_s = -math.inf
        self._patience_s = PATIENCE_S

    @property
    def interval_s(self) -> float:
        """The interval to keep."""
        return min(self._interval_s, LONG_S) if self._is_fresh else self._interval_s

    def ask(self, interval_s: float) -> None:
        """The user wants another interval: it holds at once, unless the present one is longer for a reason."""
        restrained = self._interval_s > self._asked_s
        self._asked_s = interval_s
        self._interval_s = max(self._interval_s, interval_s) if restrained else interval_s

    def look(self, elapsed_s: float, total: float, fixed: float, *, has_shed: bool = False) -> Order:
        """What to do after `elapsed_s` in which nettop took the share `total`, of which `fixed` is of its hooks.

        `has_shed` says that something is left out.
        """
        self._now_s += elapsed_s
        self._total = total
        if self._is_fresh:  # of an interval that was cut short only what is fixed says anything
            self._is_fresh = False
            return Order.SHED if fixed >= AIM * self.bound else Order.NOTHING
        if total > self.bound:
            self._calm = 0
            self._dear = [*self._dear[1 - TWICE :], (total, fixed)]
            is_so = len(self._dear) == TWICE or elapsed_s >= LONG_S
            return self._restrain(*min(self._dear)) if is_so else Order.NOTHING
        self._dear, self._nothing_to_shed = [], False
        return self._relax(total, fixed, has_shed=has_shed)

    def was_shed(self, *, done: bool) -> None:
        """SHED was carried out, or there was nothing to be left out."""
        self._nothing_to_shed = not done
        if not done:
            return
        self._longest_did_not_do = self._on_trial or self._interval_s >= self._longest_s
        self._on_trial = False
        soon = self._now_s - self._restored_s < max(_SOON_S, 4 * self._patience_s)
        self._patience_s = min(self._patience_s * 2, MOST_PATIENCE_S) if soon else PATIENCE_S
        self._change()

    def was_restored(self, *, done: bool) -> None:
        """RESTORE was carried out, or what was left out cannot be had again now."""
        self._restored_s = self._now_s if done else self._restored_s
        self._on_trial = done and self._longest_did_not_do
        self._is_fresh = done
        self._change()

    def restraint(self, shed: tuple[str, ...] = ()) -> Restraint:
        """What is done now; `shed` is left out."""
        at_its_end = self._nothing_to_shed and self._total > self.bound
        return Restraint(self.bound, self._interval_s, self._asked_s, shed, at_its_end)

    @property
    def _longest_s(self) -> float:
        return max(LONGEST_S, self._asked_s)

    def _restrain(self, total: float, fixed: float) -> Order:
        """Lengthen the interval as far as it takes; where that cannot be enough, leave something out."""
        left, longest = AIM * self.bound - fixed, self._longest_s
        can_lengthen = self._interval_s < longest
        if not self._nothing_to_shed and (self._on_trial or left <= 0 or not can_lengthen):
            return Order.SHED
        if can_lengthen:
            factor = (total - fixed) / left if left > 0 else STEP
            steps = max(1, math.ceil(math.log(factor) / math.log(STEP) - 1e-9))
            self._interval_s = min(self._interval_s * STEP**steps, longest)
            self._change()
        return Order.NOTHING

    def _relax(self, total: float, fixed: float, *, has_shed: bool) -> Order:
        """Take back the last steps, one after the other, once that is safe."""
        shorter = max(self._asked_s, self._interval_s / STEP)
        expected = fixed + (total - fixed) * self._interval_s / shorter
        if self._interval_s > self._asked_s and expected <= AIM * self.bound:
            self._calm += 1
            if self._calm >= CALM:
                self._interval_s = shorter
                self._change()
            return Order.NOTHING
        self._calm = 0
        self._on_trial = self._on_trial and self._now_s - self._restored_s < PATIENCE_S
        rested = self._now_s - self._changed_s >= self._patience_s
        return Order.RESTORE if has_shed and rested and total <= EASY * self.bound else Order.NOTHING

    def _change(self) -> None:
        """What was measured so far was measured before a change."""
        self._dear, self._calm, self._changed_s = [], 0, self._now_s
