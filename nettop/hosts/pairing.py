# SPDX-License-Identifier: Apache-2.0
"""What is shown of several hosts: of each, its newest reading and the one that was shown before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from nettop.hosts.merging import Pair
from nettop.recording.reader import Reading
from nettop.snapshots.snapshot import Snapshot

_WAIT_INTERVALS = 1.75


class Pairing:
    """Pairs of readings, renewed once every host has a new one, so that what was counted is shown once and completely.

    A host that takes longer than others by most of an interval is not waited for: it shows its last pair again.
    """

    def __init__(self, interval_s: float, clock: Callable[[], float]) -> None:
        self.pairs: dict[str, Pair] = {}
        self.follows = False
        """True if every reading follows the one that was shown before."""
        self._wait_s = _WAIT_INTERVALS * interval_s
        self._clock = clock
        self._renewed_at = 0.0

    def renew(self, readings: Mapping[str, Reading]) -> bool:
        """Take the newest readings of all hosts; return whether there is something to show."""
        last, now = self.pairs, self._clock()
        new = {
            host
            for host, reading in readings.items()
            if host not in last or reading.now is not last[host].now
        }
        same_hosts = readings.keys() == last.keys()
        if same_hosts and new != readings.keys() and not (new and now - self._renewed_at >= self._wait_s):
            return False
        shown = {host: pair.now for host, pair in last.items()}
        self.pairs = {
            host: Pair(reading.now, _before(reading, shown.get(host))) if host in new else last[host]
            for host, reading in readings.items()
        }
        self.follows = shown == {host: pair.before for host, pair in self.pairs.items()}
        self._renewed_at = now
        return True


def _before(reading: Reading, shown: Snapshot | None) -> Snapshot | None:
    """Return what a reading is compared with; None for the first one of a command, also if another one came before."""
    return None if reading.before is None else shown or reading.before
