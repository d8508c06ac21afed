# SPDX-License-Identifier: Apache-2.0
"""The sources of lenses on several hosts."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from nettop.hosts.hosts import HostRecording, Hosts
from nettop.hosts.merging import Moment, merge, merge_before, of_host, united, widened
from nettop.hosts.pairing import Pairing
from nettop.query.batches import concatenate_batches
from nettop.snapshots.findings import FINDINGS
from nettop.snapshots.hosts import HOST, LOST_HOST
from nettop.snapshots.row_ids import row_id
from nettop.snapshots.schema import Certainty, Lens, Severity
from nettop.snapshots.snapshot import Rows, Snapshot, rows_from
from nettop.snapshots.source import SourceOptions

LOST = "host lost"
"""The kind of the finding about a host without readings."""


class RemoteSource:
    """A source that reads a lens on several hosts; see nettop.snapshots.source.ReplayingSource."""

    _with_events = False

    def __init__(self, hosts: Hosts, lens: Lens) -> None:
        self._hosts = hosts
        self._lens = lens
        self._is_used = False
        self._pairing = Pairing(hosts.interval_s, hosts.clock)
        self._before: Snapshot | None = None

    def configure(self, options: SourceOptions) -> None:
        """Ignore the options: everything is recorded."""

    def start(self) -> None:
        """Have the lens recorded on every host; readings come later."""
        self._hosts.use(self._lens.id, with_events=self._with_events)
        self._is_used = True

    def leap(self) -> tuple[bool, Snapshot | None]:
        """Return that the last reading follows the one before, and what to compare it with, unless that is the last
        one: each host's reading before was merged into it."""
        return False, self._before

    def describe(self, key: int) -> dict[str, str]:  # noqa: ARG002 - there is nothing of any row
        """Return nothing: such details are read from the running kernel."""
        return {}

    def close(self) -> None:
        """Let the hosts end the recording."""
        if self._is_used:
            self._hosts.release(self._lens.id, with_events=self._with_events)
            self._is_used = False


class HostsSource(RemoteSource):
    """The source of a lens whose rows come from several hosts.

    Each reading of a host is compared with the one of that host that was shown before, however long ago that was.
    """

    _with_events = True

    def __init__(self, hosts: Hosts, lens: Lens) -> None:
        super().__init__(hosts, lens)
        self._shown: Snapshot | None = None
        self._lost: dict[str, str] = {}
        self._events: tuple[Rows, ...] = ()

    def read(self, taken_ns: int) -> Snapshot:
        """Return the newest readings of all hosts, merged; the same snapshot again until there is another.

        Raise SourceFailed if no host has any.
        """
        readings, lost = self._hosts.newest(self._lens.id), self._hosts.lost(self._lens.id)
        failure = self._hosts.failure(self._lens.id)
        if failure is not None and self._shown is None:
            raise failure
        causes = {host: link.cause for host, link in lost.items()}
        is_new = self._pairing.renew(readings)
        if self._shown is not None and not is_new and causes == self._lost:
            return self._shown
        pairs = self._pairing.pairs
        moment = Moment(time.time_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME), taken_ns)
        merged = merge(self._lens, pairs, moment)
        self._before = None if self._pairing.follows else merge_before(self._lens, pairs, moment)
        self._events = self._batches(self._hosts.take_events(self._lens.id))
        self._lost = causes
        self._shown = _with_lost(self._lens, merged, lost, moment)
        return self._shown

    def _batches(self, events: Mapping[str, list[Rows]]) -> tuple[Rows, ...]:
        """Return the events of all hosts, a batch for each table."""
        pairs, batches = self._pairing.pairs, []
        for table in self._lens.tables:
            pieces = [
                of_host(table, rows, host, pairs[host].now.missing if host in pairs else ())
                for host, batch in events.items()
                for rows in batch
                if rows.table.name == table.name
            ]
            if table.append and pieces:
                batches.append(concatenate_batches(table, pieces))
        return tuple(batches)

    def wakeups(self) -> tuple[int, ...]:
        """Return no descriptors: events come with the readings."""
        return ()

    def is_filling(self) -> bool:
        """Return False: nothing fills up."""
        return False

    def drain(self, taken_ns: int) -> tuple[Rows, ...]:  # noqa: ARG002 - they came with the readings
        """Return the events up to the last reading."""
        events, self._events = self._events, ()
        return events


def _with_lost(lens: Lens, merged: Snapshot, lost: Mapping[str, HostRecording], moment: Moment) -> Snapshot:
    """Name the hosts without readings: as gaps, and as findings before all others."""
    gaps = {**merged.gaps, **{host: f"{LOST_HOST}{link.cause}" for host, link in lost.items()}}
    table = lens.table(FINDINGS.name)
    if table is None or not lost:
        return replace(merged, gaps=gaps)
    found = rows_from(table, [_finding(*item, moment) for item in lost.items()], moment.taken_ns)
    pieces = [replace(found, array=widened(table, found.array)), merged.tables.get(table.name)]
    rows = united(table, [piece for piece in pieces if piece is not None])
    return replace(merged, gaps=gaps, tables={**merged.tables, table.name: rows})


def _finding(host: str, link: HostRecording, moment: Moment) -> dict[str, Any]:
    assert link.lost_at is not None
    lasted_ns = max(0, moment.taken_ns - round(link.lost_at * 1e9))
    return {
        HOST.name: host,
        "id": row_id(LOST, host),
        "rank": 0,
        "severity": Severity.PROBLEM.value,
        "certainty": Certainty.CERTAIN.value,
        "kind": LOST,
        "finding": f"{host}: no readings: {link.cause}",
        "since": moment.wall_ns - lasted_ns,
        "lasted": lasted_ns,
        "unseen": 0,
        "view": "findings",
        "filter": f'kind="{LOST}"',
        "advice": link.remedy,
    }
