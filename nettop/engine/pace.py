# SPDX-License-Identifier: Apache-2.0
"""The pace of sources: how often they are read and how many packets they follow, as chosen or limited by
--max-overhead."""

from __future__ import annotations

import time

from nettop.engine.governor import Governor, OverheadLimit
from nettop.engine.own_cost import DRAIN, OwnCost, Reading

ATTACHED_AFTER_S = 3.0
"""Seconds after which the one-off cost of attaching a lens and drawing it first is over."""
SHORTEST_SPAN_S = 1.0
"""Shortest time over which costs are judged."""
_SPAN_TOLERANCE = 0.9
"""Tolerance for readings that are slightly early."""


class Pace:
    """The interval and the sampling factor, adjusted to stay below a bound (a share of one CPU) if there is one.

    Everything except `limit` and `interval_s` belongs to the sampler's thread.
    """

    def __init__(self, interval_s: float, cost: OwnCost, max_overhead: float | None = None) -> None:
        self._chosen_s = interval_s
        self._cost = cost
        self._governor = None if max_overhead is None else Governor(max_overhead, interval_s)
        self._since: Reading | None = None
        self._drained_ns = 0
        self._attached_ns = 0
        self.limit: OverheadLimit | None = None if self._governor is None else self._governor.limit()
        """The current effect of the bound."""

    @property
    def interval_s(self) -> float:
        """Seconds between two readings."""
        return self._chosen_s if self._governor is None else self._governor.interval_s

    @property
    def thinning(self) -> int:
        """The factor by which sampling sources reduce their sampling rate."""
        return 1 if self._governor is None else self._governor.thinning

    def allow_thinning(self, is_possible: bool) -> None:
        """Set whether any attached source can follow fewer packets."""
        if self._governor is not None:
            self._governor.allow_thinning(is_possible)
            self.limit = self._governor.limit()

    def set_interval(self, interval_s: float) -> None:
        """Set the interval chosen by the user."""
        self._chosen_s = interval_s
        if self._governor is not None:
            self._governor.set_interval(interval_s)
            self.limit = self._governor.limit()

    def start(self) -> None:
        """Enable BPF statistics if there is a bound."""
        if self._governor is not None:
            self._cost.acquire_statistics()

    def stop(self) -> None:
        """Release the BPF statistics."""
        if self._governor is not None:
            self._cost.release_statistics()

    def ignore_attaching(self) -> None:
        """Ignore the cost of the next seconds: attaching a lens is a one-off cost."""
        self._attached_ns = time.monotonic_ns() + int(ATTACHED_AFTER_S * 1e9)
        self._since = None

    def tick(self) -> None:
        """Measure the cost, and pass it to the governor once enough time has passed."""
        self._cost.take()
        governor, now = self._governor, self._cost.now
        if governor is None or now.at_ns < self._attached_ns:
            return
        since = self._since
        span_ns = max(SHORTEST_SPAN_S, _SPAN_TOLERANCE * governor.interval_s) * 1e9
        if since is not None and now.at_ns - since.at_ns < span_ns:
            return
        # How often events are drained depends on the kernel, not on the interval, so that cost is fixed.
        steps = self._cost.steps.all().items()
        drained_before_ns = self._drained_ns
        self._drained_ns = sum(step.time_ns for (_, name), step in steps if name == DRAIN)
        self._since = now
        if since is not None:
            elapsed_ns = now.at_ns - since.at_ns
            # Child processes were loaders, which are part of the cost of attaching.
            own_ns = now.own_ns - since.own_ns
            programs_ns = now.programs_ns - since.programs_ns
            fixed_ns = programs_ns + min(own_ns, self._drained_ns - drained_before_ns)
            governor.judge(elapsed_ns / 1e9, (own_ns + programs_ns) / elapsed_ns, fixed_ns / elapsed_ns)
            self.limit = governor.limit()
