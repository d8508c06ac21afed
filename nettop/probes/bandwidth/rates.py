# SPDX-License-Identifier: Apache-2.0
"""An interface's past rates: over the last minute, and since nettop started counting it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

_STEP_NS = 900_000_000
"""Readings closer than this belong to one second."""
_MINUTE_NS = 60_000_000_000
_NS = 1_000_000_000


class ByteTotals(NamedTuple):
    """Cumulative bytes received and sent at a point in time, in ns."""

    at_ns: int
    received: int
    sent: int


class Summary(NamedTuple):
    """Average rate and peak one-second rate, each (received, sent) in bytes/s."""

    average: tuple[float, float]
    peak: tuple[float, float]


@dataclass
class RateHistory:
    """Rates of an interface over time. Peaks shorter than a second, or than an interval, are averaged out."""

    first: ByteTotals | None = None
    peak: tuple[float, float] = (0.0, 0.0)
    minute: deque[ByteTotals] = field(default_factory=deque)

    def add(self, now: ByteTotals) -> None:
        """Add a reading of the counters."""
        if self.first is None:
            self.first = now
        if self.minute:
            last = self.minute[-1]
            if now.at_ns - last.at_ns < _STEP_NS:
                return
            rates = _rates(last, now)
            self.peak = (max(self.peak[0], rates[0]), max(self.peak[1], rates[1]))
        self.minute.append(now)
        while self.minute[0].at_ns < now.at_ns - _MINUTE_NS:
            self.minute.popleft()

    def since_start(self) -> Summary | None:
        """Summarize all readings; None before the second one."""
        if self.first is None or not self.minute or self.minute[-1].at_ns == self.first.at_ns:
            return None
        return Summary(_rates(self.first, self.minute[-1]), self.peak)

    def last_minute(self) -> Summary | None:
        """Summarize the last minute; None before the second reading."""
        if len(self.minute) < 2:
            return None
        readings = list(self.minute)
        pairs = [_rates(*pair) for pair in pairwise(readings)]
        received, sent = zip(*pairs, strict=True)
        return Summary(_rates(readings[0], readings[-1]), (max(received), max(sent)))


def _rates(before: ByteTotals, now: ByteTotals) -> tuple[float, float]:
    seconds = (now.at_ns - before.at_ns) / _NS
    return (now.received - before.received) / seconds, (now.sent - before.sent) / seconds
