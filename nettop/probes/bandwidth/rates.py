# SPDX-License-Identifier: Apache-2.0
"""What an interface's rates were: the last minute, and since nettop counts it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

_STEP_NS = 900_000_000
"""Readings closer than this belong to one second."""
_MINUTE_NS = 60_000_000_000
_NS = 1_000_000_000


class Moved(NamedTuple):
    """Bytes received and sent by a moment, which is given in ns."""

    at_ns: int
    received: int
    sent: int


class Summary(NamedTuple):
    """Average and highest rate of a second, in bytes/s, received and sent."""

    average: tuple[float, float]
    peak: tuple[float, float]


@dataclass
class RateHistory:
    """Follows the counters of an interface. It does not see what is shorter than a second, or than an interval."""

    first: Moved | None = None
    peak: tuple[float, float] = (0.0, 0.0)
    minute: deque[Moved] = field(default_factory=deque)

    def add(self, now: Moved) -> None:
        """The counters of a reading."""
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
        """Of all that was counted; None before the second reading."""
        if self.first is None or not self.minute or self.minute[-1].at_ns == self.first.at_ns:
            return None
        return Summary(_rates(self.first, self.minute[-1]), self.peak)

    def last_minute(self) -> Summary | None:
        """Of the last minute; None before the second reading."""
        if len(self.minute) < 2:
            return None
        readings = list(self.minute)
        pairs = [_rates(*pair) for pair in pairwise(readings)]
        received, sent = zip(*pairs, strict=True)
        return Summary(_rates(readings[0], readings[-1]), (max(received), max(sent)))


def _rates(before: Moved, now: Moved) -> tuple[float, float]:
    seconds = (now.at_ns - before.at_ns) / _NS
    return (now.received - before.received) / seconds, (now.sent - before.sent) / seconds
