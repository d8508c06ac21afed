# SPDX-License-Identifier: Apache-2.0
"""Connections that ended between two readings of the table. Each of their bytes is in a row and in the totals."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nettop.kernel.host.processes import ProcessNames
from nettop.kernel.net.entered_namespaces import Namespaces
from nettop.probes.connections import socket_rows
from nettop.probes.connections.event_records import EVENT, FAIL
from nettop.snapshots.arrays import Array, Mask, concatenate_rows, delete_rows, positions, take_rows
from nettop.snapshots.connections import DIRECTIONS, NOT_KEPT, NOT_LISTED, SOCKETS
from nettop.snapshots.schema import BEGAN, Kind
from nettop.snapshots.snapshot import LISTED_READINGS, Ended, Rows, known, mark_unknown, sum_of

LISTED_MAX = 1 << 16
"""Maximum rows listed per reading; the rest are only in the sum."""
LISTED_NS = 120 * 10**9
"""Time for which ended rows stay listed if there is room: a frontend may pause or average."""

COUNTERS = tuple(field.name for field in SOCKETS.fields if field.kind is Kind.COUNTER)
_SEEN = [number for number, name in DIRECTIONS.items() if not name.endswith("?")]
_NO_EVENTS, _NO_ROWS = np.zeros(0, EVENT), np.zeros(0, socket_rows.ROW)
_NO_IDS = _NO_ROWS["id"]


class EndedSockets:
    """Sockets that ended, and the sum of their counters.

    A connection that left the table without an end event is an orphan, for which the kernel still sends, or is held
    without a file descriptor. Its row stays, with an unknown state. `events` are the ends since the last reading.
    """

    def __init__(self) -> None:
        self.events: Array = _NO_EVENTS
        self._new: list[Array] = []
        self._last = Rows(SOCKETS, _NO_ROWS, {}, 0)
        self._still_open: Array | None = None
        self._dead: Array = np.zeros(0, np.uint64)
        self._of_events, self._of_others, self._missing, self._lost = (
            dict.fromkeys(COUNTERS, 0) for _ in range(4)
        )
        self._listed: tuple[Rows, ...] = ()
        self._count = 0
        self.not_listed = 0
        """Ended connections beyond the maximum that a reading lists."""

    def add(self, events: Array) -> None:
        """Add the events of connections that ended."""
        self._new.append(events)
        _add_up(self._of_events, events)

    def missing(self, counted: Mapping[str, int]) -> dict[str, int]:
        """Return the programs' counters of ended connections (`counted`) minus those that events reported."""
        return {name: counted[name] - self._of_events[name] for name in COUNTERS if name in counted}

    def add_lost(self, missing: Mapping[str, int]) -> None:
        """Queue the counters of connections whose events were lost, cumulative since the start, for the sum at the next
        `follow`."""
        self._missing |= missing

    def expect_missed_ends(self, still_open: Array) -> None:
        """Expect ends without an event, because some events were lost.

        `still_open` are the ids of the connections that were open. Events of connections that end later are yet to be
        added.
        """
        self._still_open = still_open

    def follow(self, rows: Array, names: ProcessNames) -> Array:
        """Return the rows of the table and the orphans, sorted by id.

        Connections that ended after an older walk read them are removed. The counters of a socket that a process still
        holds in CLOSE become unknown: the sum of ended connections includes them.
        """
        events = concatenate_rows(_NO_EVENTS, *self._new)
        self.events, self._new = take_rows(events, np.argsort(events["id"], kind="stable")), []
        gone = socket_rows.exclude_ids(self._last.array, rows["id"])
        orphans = take_rows(gone, _is_open(gone))
        names.adopt(orphans, self._last.texts)
        mark_unknown(orphans, ("state",))
        rows = socket_rows.merge(rows, orphans)
        dead = np.union1d(self.events["id"], self._dead)
        rows, self._dead = _without_open(rows, dead)
        rows, lost = _without_open(rows, self._unreported(rows))
        self._dead = np.union1d(self._dead, lost)
        mark_unknown(rows, COUNTERS, np.flatnonzero(socket_rows.is_closed(rows)))
        self._last = Rows(SOCKETS, rows, names.texts(), 0)
        return rows

    def _unreported(self, rows: Array) -> Array:
        """Return the ids of open connections whose end event was lost.

        Their counters join the sum at once: the programs' totals, which include them, may have been read just before.
        """
        lost = rows[:0]
        if self._still_open is not None:
            may_have_ended = _is_open(rows) & (known(rows["opened_at"]) | ~known(rows["state"]))
            lost = take_rows(rows, may_have_ended & ~np.isin(rows["id"], self._still_open))
            self._still_open = None
        _add_up(self._lost, lost)
        self._lost = {name: max(self._lost[name], self._missing[name]) for name in COUNTERS}
        return lost["id"]

    def read(
        self,
        others: Array,
        untracked: Mapping[str, int],
        names: ProcessNames,
        namespaces: Namespaces,
        taken_ns: int,
        *,
        without_row: Array = _NO_IDS,
    ) -> Ended:
        """Return the connections that ended before this reading, and the rows of `others` (ROW).

        `untracked` holds counters, cumulative since the start, that belong to no row, among them those of the open
        sockets `without_row` (sorted ids).
        """
        _add_up(self._of_others, others)
        self.not_listed += max(0, len(self.events) - LISTED_MAX)
        rows = socket_rows.exclude_ids(
            socket_rows.merge(_rows_of(self.events[-LISTED_MAX:]), others), without_row
        )
        rows["state"] = socket_rows.STATE["CLOSE"]
        names.name_any(rows)
        self._count += len(self.events) + len(others)
        total = np.full(socket_rows.ROW.itemsize, 0xFF, np.uint8).view(socket_rows.ROW)
        total["id"] = 0
        total["process"] = names.code(NOT_KEPT if len(without_row) else NOT_LISTED)
        for name in COUNTERS:
            counted = self._of_events[name] + self._of_others[name] + self._lost[name]
            total[name] = max(0, counted + untracked.get(name, 0))
        listed, sum_of_all = (
            namespaces.with_names(Rows(SOCKETS, array, names.texts(), taken_ns)) for array in (rows, total)
        )
        self._listed = _recent((*self._listed, listed), taken_ns)
        return Ended(self._listed, sum_of_all, self._count)


def _recent(listed: tuple[Rows, ...], now_ns: int) -> tuple[Rows, ...]:
    """Return the newest listed readings: always the last LISTED_READINGS, and earlier ones for LISTED_NS if there is
    room."""
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


def mark_begun(rows: Array) -> None:
    """Mark connections whose counters were 0 when nettop first saw them: it saw them open, from the SYN on, so their
    direction is not inferred."""
    is_tcp = rows["protocol"] == socket_rows.TCP
    rows[BEGAN][is_tcp] = np.isin(rows["direction"][is_tcp], _SEEN)


def _is_open(rows: Array) -> Mask:
    """Return a mask of the rows of connections that will still end."""
    has_numbers = (rows["protocol"] == socket_rows.TCP) & known(rows["bytes_sent"])
    is_open: Mask = has_numbers & ~np.isin(rows["state"], socket_rows.UNCONNECTED_STATES)
    return is_open


def _without_open(rows: Array, ended: Array) -> tuple[Array, Array]:
    """Remove open connections with an id in `ended` (sorted) from the rows; return the rest and the removed ids."""
    at = positions(ended, rows["id"])
    at = at[at >= 0]
    dead = at[_is_open(take_rows(rows, at))]
    return delete_rows(rows, dead) if len(dead) else rows, rows["id"][dead]


def _rows_of(events: Array) -> Array:
    """Return the row part of events. A failed connection began at its connect(), if that was seen."""
    raw = np.ascontiguousarray(events).view(np.uint8).reshape(len(events), EVENT.itemsize)
    rows: Array = raw[:, : socket_rows.ROW.itemsize].copy().view(socket_rows.ROW).ravel()
    rows[BEGAN] = known(rows["opened_at"]) | (events["event"] == FAIL) & known(events["duration_us"])
    return rows
