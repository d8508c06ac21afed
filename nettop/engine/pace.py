# SPDX-License-Identifier: Apache-2.0
"""How often sources are read, and how many packets they follow: as chosen, or less for --max-overhead."""

from __future__ import annotations

import time

from nettop.engine.governor import Governor, OverheadLimit
from nettop.engine.own_cost import DRAIN, OwnCost, Reading

ATTACHED_AFTER_S = 3.0
"""What it costs to attach a lens, and to draw it first, is over by then and says nothing of what comes."""
SHORTEST_SPAN_S = 1.0
"""Costs are judged over no less time."""
_NEARLY = 0.9
"""Readings are not quite on time."""


class Pace:
    """The interval, and what keeps the cost below a bound (a share of one CPU), where there is one.

    All but `limit` and `interval_s` belongs to the sampler's thread.
    """

    def __init__(self, interval_s: float, cost: OwnCost, max_overhead: float | None = None) -> None:
        self._chosen_s = interval_s
        self._cost = cost
        self._governor = None if max_overhead is None else Governor(max_overhead, interval_s)
        self._since: Reading | None = None
        self._drained_ns = 0
        self._attached_ns = 0
        self.limit: OverheadLimit | None = None if self._governor is None else self._governor.limit()
        """What is done for the bound."""

    @property
    def interval_s(self) -> float:
        """Seconds between two readings."""
        return self._chosen_s if self._governor is None else self._governor.interval_s

    @property
    def thinning(self) -> int:
        """Sources that sample follow one packet in so many times as many as chosen."""
        return 1 if self._governor is None else self._governor.thinning

    def allow_thinning(self, is_possible: bool) -> None:
        """Say whether any attached source can follow fewer packets."""
        if self._governor is not None:
            self._governor.allow_thinning(is_possible)
            self.limit = self._governor.limit()

    def choose(self, interval_s: float) -> None:
        """The user wants another interval."""
        self._chosen_s = interval_s
        if self._governor is not None:
            self._governor.choose(interval_s)
            self.limit = self._governor.limit()

    def start(self) -> None:
        """Have programs measured, if there is a bound."""
        if self._governor is not None:
            self._cost.want_statistics()

    def stop(self) -> None:
        """Need that no more."""
        if self._governor is not None:
            self._cost.give_up_statistics()

    def ignore_attaching(self) -> None:
        """A lens attaches: what that costs is spent once, and no reason to do anything."""
        self._attached_ns = time.monotonic_ns() + int(ATTACHED_AFTER_S * 1e9)
        self._since = None

    def tick(self) -> None:
        """Measure the cost, and have the governor judge it once enough time has passed."""
        self._cost.take()
        governor, now = self._governor, self._cost.now
        if governor is None or now.at_ns < self._attached_ns:
            return
        since = self._since
        span_ns = max(SHORTEST_SPAN_S, _NEARLY * governor.interval_s) * 1e9
        if since is not None and now.at_ns - since.at_ns < span_ns:
            return
        # Draining is done as often as the kernel has events, so it is fixed.
        steps = self._cost.steps.all().items()
        drained_before_ns = self._drained_ns
        self._drained_ns = sum(step.time_ns for (_, name), step in steps if name == DRAIN)
        self._since = now
        if since is not None:
            elapsed_ns = now.at_ns - since.at_ns
            # Children that have ended were loaders: what attaching costs.
            own_ns = now.own_ns - since.own_ns
            programs_ns = now.programs_ns - since.programs_ns
            fixed_ns = programs_ns + min(own_ns, self._drained_ns - drained_before_ns)
            governor.judge(elapsed_ns / 1e9, (own_ns + programs_ns) / elapsed_ns, fixed_ns / elapsed_ns)
            self.limit = governor.limit()
