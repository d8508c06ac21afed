# SPDX-License-Identifier: Apache-2.0
"""An interface's own counters, compared with their last reading and with the programs' counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

USED = (
    "rx_packets", "tx_packets", "rx_bytes", "tx_bytes", "rx_errors", "tx_errors", "rx_dropped", "tx_dropped",
    "rx_missed_errors",
)  # fmt: skip
"""The counters that nettop shows."""
_SETTLED_AFTER_NS = 500_000_000
"""A packet that the interface counted this long ago has reached the programs, or never will."""


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
