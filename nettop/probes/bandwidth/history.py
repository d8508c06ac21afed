# SPDX-License-Identifier: Apache-2.0
"""The past of an interface: the growth of its own counters, the packets that the programs did not see, its rates."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

OWN_COUNTERS = {
    "drops_received": ("rx_dropped", "rx_missed_errors"),
    "drops_sent": ("tx_dropped",),
    "errors": ("rx_errors", "tx_errors"),
    "packets_received": ("rx_packets",),
    "bytes_received": ("rx_bytes",),
    "packets_sent": ("tx_packets",),
    "bytes_sent": ("tx_bytes",),
}
"""The columns that show an interface's own counters, and the counters that each of them adds up."""
USED = tuple(name for parts in OWN_COUNTERS.values() for name in parts)
_SETTLED_AFTER_NS = 500_000_000
"""A packet that the interface counted this long ago has reached the programs, or never will."""
_STEP_NS = 900_000_000
"""Readings closer than this belong to one second."""
_MINUTE_NS = 60_000_000_000
_NS = 1_000_000_000

Rates = tuple[float, ...]
"""Bytes received and sent per second."""


class OwnCounters:
    """The growth of an interface's own counters since nettop first saw it.

    If a counter decreases, the driver has reset all of them or the interface was replaced: they start over, and their
    growth since the last reading is unknown.
    """

    def __init__(self, statistics: Mapping[str, int]) -> None:
        self._first = self._last = statistics

    def add(self, statistics: Mapping[str, int]) -> bool:
        """Add a reading; return False if the counters were reset since the last one."""
        continues = all(statistics.get(name, 0) >= self._last.get(name, 0) for name in USED)
        if not continues:
            self._first = statistics
        self._last = statistics
        return continues

    def growth(self, names: Sequence[str]) -> int:
        """Return the summed growth of these counters as of the last reading."""
        return sum(self._last.get(name, 0) - self._first.get(name, 0) for name in names)


class UnseenPackets:
    """Packets that an interface counted as received but that no program saw.

    The count is a lower bound: an interface may count an aggregate once where the programs count each segment. A packet
    may be queued between the two counters, and some devices update theirs once a second, so the programs' count is
    compared with an earlier one of the interface.
    """

    def __init__(self) -> None:
        self.count: int | None = None
        """None before the first comparison."""
        self._first: int | None = None
        self._earlier: tuple[int, int] | None = None

    def add(self, at_ns: int, received: int, seen: int, *, is_last: bool = False) -> int:
        """Add a reading: packets `received` by the interface's counter, and `seen` since the program was attached.

        Return the growth of the count. After the last reading (`is_last`) no packet is in flight.
        """
        if self._earlier is None:
            self._earlier = at_ns, received
        earlier_ns, earlier = self._earlier
        if is_last:
            earlier = received
        elif at_ns - earlier_ns < _SETTLED_AFTER_NS:
            return 0
        self._earlier = at_ns, received
        if self._first is None:
            self._first = received
            return 0
        before = self.count or 0
        self.count = max(before, earlier - self._first - seen)
        return self.count - before


class ByteTotals(NamedTuple):
    """Cumulative bytes received and sent at a point in time, in ns."""

    at_ns: int
    received: int
    sent: int


class RateHistory:
    """Rates of an interface over time. Peaks shorter than a second, or than an interval, are averaged out."""

    def __init__(self) -> None:
        self.minute: deque[ByteTotals] = deque()
        self._first: ByteTotals | None = None
        self._peak: Rates = (0.0, 0.0)

    def add(self, now: ByteTotals) -> None:
        """Add a reading of the counters."""
        if self._first is None:
            self._first = now
        elif now.at_ns - self.minute[-1].at_ns < _STEP_NS:
            return
        else:
            self._peak = _highest([self._peak, _rates(self.minute[-1], now)])
        self.minute.append(now)
        while self.minute[0].at_ns < now.at_ns - _MINUTE_NS:
            self.minute.popleft()

    def since_start(self) -> tuple[Rates, Rates] | None:
        """Return the average and the peak of all readings; None before the second one."""
        if self._first is None or self.minute[-1] is self._first:
            return None
        return _rates(self._first, self.minute[-1]), self._peak

    def last_minute(self) -> tuple[Rates, Rates] | None:
        """Return the average and the peak of the last minute; None before the second reading."""
        if len(self.minute) < 2:
            return None
        peak = _highest([_rates(*pair) for pair in pairwise(self.minute)])
        return _rates(self.minute[0], self.minute[-1]), peak


def _rates(before: ByteTotals, now: ByteTotals) -> Rates:
    seconds = (now.at_ns - before.at_ns) / _NS
    return (now.received - before.received) / seconds, (now.sent - before.sent) / seconds


def _highest(rates: Sequence[Rates]) -> Rates:
    return tuple(map(max, zip(*rates, strict=True)))
