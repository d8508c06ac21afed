# SPDX-License-Identifier: Apache-2.0
"""The counters of an interface itself, compared with those of its last reading and with what the programs saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

USED = (
    "rx_packets", "tx_packets", "rx_bytes", "tx_bytes", "rx_errors", "tx_errors", "rx_dropped", "tx_dropped",
    "rx_missed_errors",
)  # fmt: skip
"""The counters that are shown."""
_SETTLED_AFTER_NS = 500_000_000
"""A packet that the interface counted so long ago has reached the programs, or never will."""


class OwnCounters:
    """What an interface has counted itself since nettop first saw it.

    Where a counter goes back, drivers have reset all of them, or it is another interface in the same place: they begin
    anew, and what they counted since the last reading is unknown.
    """

    def __init__(self, statistics: Mapping[str, int]) -> None:
        self._first = self._last = statistics

    def add(self, statistics: Mapping[str, int]) -> bool:
        """Take a reading; return whether the counters go on from the one before."""
        goes_on = all(statistics.get(name, 0) >= self._last.get(name, 0) for name in USED)
        if not goes_on:
            self._first = statistics
        self._last = statistics
        return goes_on

    def grown(self, names: Sequence[str]) -> int:
        """Return what these counters have counted together, by the last reading."""
        return sum(self._last.get(name, 0) - self._first.get(name, 0) for name in names)


class UnseenPackets:
    """Packets that an interface received, by its own counter, and that no program saw.

    They are at least so many: of aggregates the interface may count one where the programs count each segment. A packet
    may wait between the two counters, and some devices update theirs once a second, so the programs' count is compared
    with an earlier one of the interface.
    """

    def __init__(self) -> None:
        self.count: int | None = None
        """None before a comparison."""
        self._first: int | None = None
        self._earlier: tuple[int, int] | None = None

    def add(self, at_ns: int, received: int, seen: int, *, is_last: bool = False) -> int:
        """Take a reading: packets `received` by the interface's counter, and `seen` since the program was attached.

        After the `last` one no packet is on its way. Returns by how much the count grew.
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
