# SPDX-License-Identifier: Apache-2.0
"""What ended between two readings of the table, so that each byte is in a row and in the totals."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nettop.kernel.entered_namespaces import Namespaces
from nettop.kernel.processes import Processes
from nettop.probes.connections.event_records import EVENT, FAIL
from nettop.probes.connections.socket_rows import NOT_OPEN, ROW, STATE, TCP, merge
from nettop.snapshots.arrays import Mask, joined, positions, take
from nettop.snapshots.connections import DIRECTIONS, NOT_LISTED, SOCKETS
from nettop.snapshots.schema import BEGAN, Kind
from nettop.snapshots.snapshot import LISTED_READINGS, Array, Ended, Rows, known, sum_of, unknown_value

LISTED_MAX = 1 << 16
"""Rows that a reading lists; what is beyond that is in the sum alone."""
LISTED_NS = 120 * 10**9
"""It goes on to be listed for so long, as far as all that is listed has room: a frontend may pause, or average."""

COUNTERS = tuple(field.name for field in SOCKETS.fields if field.kind is Kind.COUNTER)
_SEEN = [number for number, name in DIRECTIONS.items() if not name.endswith("?")]
_NO_EVENTS, _NO_ROWS = np.zeros(0, EVENT), np.zeros(0, ROW)


class EndedSockets:
    """Follows sockets to their end, and sums up what they had counted by then.

    A connection that has left the table without having ended is an orphan, for which the kernel still sends, or held
    where no descriptor leads to it: its row stays, in an unknown state. `events` are the ends since the last reading.
    """

    def __init__(self) -> None:
        self.events: Array = _NO_EVENTS
        self._new: list[Array] = []
        self._open: Array = _NO_ROWS
        self._still_open: Array | None = None
        self._dead: Array = np.zeros(0, np.uint64)
        self._of_events, self._of_others, self._missing, self._lost = (
            dict.fromkeys(COUNTERS, 0) for _ in range(4)
        )
        self._listed: tuple[Rows, ...] = ()
        self._count = 0
        self.not_listed = 0
        """Connections that ended, more than a reading lists."""

    def add(self, events: Array) -> None:
        """Connections have ended."""
        self._new.append(events)
        _add_up(self._of_events, events)

    def missing(self, counted: Mapping[str, int]) -> dict[str, int]:
        """What the programs `counted` of all that ended, and no event has brought."""
        return {name: counted[name] - self._of_events[name] for name in COUNTERS if name in counted}

    def add_lost(self, missing: Mapping[str, int]) -> None:
        """What connections had counted whose events were lost, in all since the start, joins the sum with the next
        `follow`."""
        self._missing |= missing

    def expect_lost(self, still_open: Array) -> None:
        """Some events were lost: connections may have ended. `still_open` are the ids of those that have not; of what
        ends after they were read the events are yet to be added."""
        self._still_open = still_open

    def follow(self, rows: Array) -> Array:
        """The rows of the table, and those that have left it without having ended; all sorted by id.

        Those that have ended since they were read, some of them by an older walk, are taken out. Where a process still
        holds a socket in CLOSE, its counters are unknown: they are among those of what has ended.
        """
        events = joined(_NO_EVENTS, *self._new)
        self.events, self._new = take(events, np.argsort(events["id"], kind="stable")), []
        orphans = take(self._open, np.flatnonzero(positions(self._open["id"], rows["id"]) < 0))
        orphans["state"] = unknown_value(orphans["state"].dtype)
        rows = merge(rows, orphans)
        dead = np.union1d(self.events["id"], self._dead)
        rows, self._dead = _without_open(rows, dead)
        rows, lost = _without_open(rows, self._unreported(rows))
        self._dead = np.union1d(self._dead, lost)
        closed = (rows["protocol"] == TCP) & (rows["state"] == STATE["CLOSE"])
        for name in COUNTERS:
            rows[name][closed] = unknown_value(rows[name].dtype)
        self._open = take(rows, np.flatnonzero(_is_open(rows)))
        return rows

    def _unreported(self, rows: Array) -> Array:
        """The ids of open connections whose end was lost. What they had counted joins the sum at once: the totals of
        the programs, which have it too, may have been read a moment before."""
        lost = rows[:0]
        if self._still_open is not None:
            may_have_ended = _is_open(rows) & (known(rows["opened_at"]) | ~known(rows["state"]))
            lost = take(rows, np.flatnonzero(may_have_ended & ~np.isin(rows["id"], self._still_open)))
            self._still_open = None
        _add_up(self._lost, lost)
        self._lost = {name: max(self._lost[name], self._missing[name]) for name in COUNTERS}
        return lost["id"]

    def read(
        self,
        others: Array,
        untracked: Mapping[str, int],
        processes: Processes,
        namespaces: Namespaces,
        taken_ns: int,
    ) -> Ended:
        """What has ended up to this reading: the connections, and the rows of `others` (ROW).

        `untracked` is what was counted, in all since the start, without belonging to any row.
        """
        _add_up(self._of_others, others)
        self.not_listed += max(0, len(self.events) - LISTED_MAX)
        rows = merge(_rows_of(self.events[-LISTED_MAX:]), others)
        rows["state"] = STATE["CLOSE"]
        processes.name_any(rows, processes.groups(), more=True)
        listed = namespaces.with_names(Rows(SOCKETS, rows, processes.texts(), taken_ns))
        self._listed = _recent((*self._listed, listed), taken_ns)
        self._count += len(self.events) + len(others)
        total = np.full(ROW.itemsize, 0xFF, np.uint8).view(ROW)
        total["id"] = 0
        total["process"] = processes.code(NOT_LISTED)
        for name in COUNTERS:
            total[name] = (
                self._of_events[name] + self._of_others[name] + self._lost[name] + untracked.get(name, 0)
            )
        sum_of_all = namespaces.with_names(Rows(SOCKETS, total, processes.texts(), taken_ns))
        return Ended(self._listed, sum_of_all, self._count)


def _recent(listed: tuple[Rows, ...], now_ns: int) -> tuple[Rows, ...]:
    """Return the newest readings that are listed: the last ones, and others while they are young and have room."""
    kept, size = [], 0
    for at, rows in enumerate(reversed(listed)):
        size += len(rows)
        if at >= LISTED_READINGS and (now_ns - rows.taken_ns > LISTED_NS or size > LISTED_MAX):
            break
        kept.append(rows)
    return tuple(reversed(kept))


def _add_up(sums: dict[str, int], rows: Array) -> None:
    for name in COUNTERS:
        sums[name] += sum_of(rows[name])


def mark_new(rows: Array) -> None:
    """Mark the connections whose counters were at 0 when nettop first saw them: it saw them begin, so that their
    direction is not inferred, from their SYN on."""
    is_tcp = rows["protocol"] == TCP
    rows[BEGAN][is_tcp] = np.isin(rows["direction"][is_tcp], _SEEN)


def _is_open(rows: Array) -> Mask:
    """Which rows are of connections that will have an end."""
    has_numbers = (rows["protocol"] == TCP) & known(rows["bytes_sent"])
    is_open: Mask = has_numbers & ~np.isin(rows["state"], NOT_OPEN)
    return is_open


def _without_open(rows: Array, ended: Array) -> tuple[Array, Array]:
    """The rows without the open connections among them that have `ended` (ids, sorted), and the ids of those."""
    is_dead = _is_open(rows) & (positions(rows["id"], ended) >= 0)
    return take(rows, np.flatnonzero(~is_dead)), rows["id"][is_dead]


def _rows_of(events: Array) -> Array:
    """The rows at the beginning of events; one of a failure began with its connect(), if that was seen."""
    raw = np.ascontiguousarray(events).view(np.uint8).reshape(len(events), EVENT.itemsize)
    rows: Array = raw[:, : ROW.itemsize].copy().view(ROW).ravel()
    rows[BEGAN] = known(rows["opened_at"]) | (events["event"] == FAIL) & known(events["duration_us"])
    return rows
