# SPDX-License-Identifier: Apache-2.0
"""What each process moved, over its open connections and over those that closed since nettop started."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from nettop.kernel import maps
from nettop.kernel.facts import Host
from nettop.kernel.processes import Processes
from nettop.kernel.program import Program
from nettop.kernel.rows import extended
from nettop.probes.connections.event_records import CLOSE, FAIL, HOST_TOTALS, PROCESS, TOTALLED
from nettop.probes.connections.socket_rows import STATE, TCP
from nettop.snapshots.arrays import Index, Mask, positions
from nettop.snapshots.connections import PROCESSES
from nettop.snapshots.safe_text import safe_text
from nettop.snapshots.snapshot import Array, Rows, known, unknown_value

ENTRIES_MAX = 1 << 13
"""Processes in the kernel's map; above half of that the entries of processes that have ended are taken out."""
KEPT_MAX = 1 << 14
"""Ended processes kept by name. Beyond these, those that moved the least become one row."""
_ATTEMPTS = 5
_UNATTRIBUTED_ID, _OTHERS_ID = 0, 2**64 - 2

_PID_BITS = 22
_START_SHIFT = 24
"""A process's key: its PID behind its start in units of 2²⁴ ns, within which no PID is used twice."""

_TOTAL = extended(
    PROCESSES.dtype, (("start_time", "u8"), ("css_set", "u8"), ("comm", "S16"), ("cgroup_id", "u4"))
)
_OWNER = ("start_time", "css_set", "comm", "pid")
_SUMMED = (*TOTALLED, "connections")
_BY_EVENTS = ("closed", "failed")
"""Known from the events alone."""
_NONE = np.zeros(0, _TOTAL)
_RAW_PROCESS = f"V{PROCESS.itemsize}"


class ProcessTotals:
    """Totals by process: what has closed, from the kernel's map, and what is open, from the table.

    A connection that has left the table, but whose end was not reported, is an orphan: the kernel still sends what its
    process left, so it counts as open.
    """

    def __init__(self, host: Host) -> None:
        self._program: Program | None = None
        self._host = host
        self._processes = Processes(host)
        self._kept = _NONE  # closed connections that are not in the kernel's map
        self._ended_keys: Array = np.zeros(0, PROCESS)  # in the kernel's map, of processes that have ended
        self.ended = self._checked_at = 0
        self._open = _Open(np.zeros(0, np.uint64), _NONE, np.zeros(0, bool))
        self._just_ended: list[Array] = []
        self._is_reading = False

    def begin(self, program: Program) -> None:
        """Count what closes by the maps of this program."""
        self._program = program

    def move(self, ended: Array) -> None:
        """Move these connections, which the programs counted as unattributed, to the owners they have now."""
        owned, unattributed = _of_events(ended), _of_events(ended)
        unattributed["id"], unattributed["pid"] = _UNATTRIBUTED_ID, unknown_value(unattributed["pid"].dtype)
        for name in TOTALLED:  # unsigned: the sum wraps around to the difference
            unattributed[name] = np.negative(unattributed[name])
        self._kept = _added_up(np.concatenate([self._kept, owned, unattributed]))

    def add(self, ended: Array) -> None:
        """Add connections that the programs have added to no process."""
        if len(ended):
            self._kept = _added_up(np.concatenate([self._kept, _of_events(ended)]))

    def end(self, ended: Array) -> None:
        """Connections have ended, as the ring says: they are not open any more."""
        at = positions(ended["id"], self._open.ids)
        self._open.alive[at[at >= 0]] = False
        if self._is_reading:
            self._just_ended.append(ended["id"][at < 0])
        self.ended += len(ended)
        if self.ended - self._checked_at > ENTRIES_MAX // 2:
            self._checked_at = self.ended
            self._make_room()

    def begin_reading(self) -> None:
        """From now to the next `rows`, connections that end may still be in the table."""
        self._is_reading = True

    def forget_orphans(self) -> None:
        """Expect no more ends of orphans: some events were lost."""
        self._open.may_be_orphans = False

    def rows(self, sockets: Array, closed: Array, groups: dict[int, str], taken_ns: int) -> Rows:
        """A row for each process with connections among `sockets`, which are sorted by id, or among those `closed`.

        Unattributed connections are one row without a PID.
        """
        self._open = _Open.of(sockets, self._open)
        for ids in self._just_ended:
            at = positions(ids, self._open.ids)
            self._open.alive[at[at >= 0]] = False
        self._just_ended, self._is_reading = [], False
        total = _added_up(np.concatenate([closed, self._open.rows[self._open.alive]]))
        if self._program is None:
            for name in _BY_EVENTS:
                total[name] = unknown_value(total[name].dtype)
        self._processes.name(total, groups)
        others = total["id"] == _OTHERS_ID
        if others.any():
            total["process"][others] = self._processes.code(safe_text("(others)"))
        return Rows(PROCESSES, total, self._processes.texts(), taken_ns)

    def closed(self, collect: Callable[[], None]) -> Array:
        """What closed connections had moved, at a moment in which `collect`, which takes the ring's events, found no
        end that is not in it.

        Under a storm of connections there may be no such moment; then a few count twice, until the next reading.
        """
        if self._program is None:
            return _NONE
        for _ in range(_ATTEMPTS):
            collect()
            before = self.ended
            keys, values = maps.read_all(self._program.maps["processes"], PROCESS, HOST_TOTALS)
            closed: Array = np.concatenate([self._kept, _of_map(keys, values)])
            collect()
            if self.ended == before:
                break
        return closed

    def _make_room(self) -> None:
        """Take the entries of processes that have ended out of the kernel's map when that is rather full.

        Only those that had ended at the last check too: by now their orphans have closed as well, as a rule. A later
        one makes a new entry; only a connection whose numbers are being added while its entry is taken is missed.
        Linux before 5.14 leaves the entries there; what a full map has no room for is added from the ring.
        """
        assert self._program is not None
        table = self._program.maps["processes"]
        keys, _ = maps.read_all(table, PROCESS, HOST_TOTALS)
        pids = [int(name) for name in os.listdir(self._host.proc) if name.isdigit()]
        ended = keys[known(keys["pid"]) & ~np.isin(keys["pid"], pids)]
        gone = ended[np.isin(ended.view(_RAW_PROCESS), self._ended_keys.view(_RAW_PROCESS))]
        self._ended_keys = ended
        if len(keys) > ENTRIES_MAX // 2:
            values, taken = maps.read_each(table, gone, HOST_TOTALS, delete=True)
            self._kept = _bounded(
                _added_up(np.concatenate([self._kept, _of_map(gone[taken], values[taken])]))
            )


@dataclass(eq=False, slots=True)
class _Open:
    """Connections of processes: `ids` are the sockets', sorted, `rows` their totals, `alive` says which have not ended
    according to the ring."""

    ids: Array
    rows: Array
    alive: Mask
    may_be_orphans: bool = True

    @classmethod
    def of(cls, sockets: Array, before: _Open) -> _Open:
        """The connections in a table, and earlier ones that have left it without having ended.

        Rows of the table may be old: what has ended since stays ended.
        """
        owned = (sockets["protocol"] == TCP) & known(sockets["pid"]) & known(sockets["bytes_sent"])
        # One in CLOSE has been counted as closed already.
        owned = sockets[owned & ~np.isin(sockets["state"], (STATE["LISTEN"], STATE["CLOSE"]))]
        now = np.ascontiguousarray(owned["id"])
        at = positions(now, before.ids)
        alive = (at < 0) | before.alive[at] if len(before.ids) else np.ones(len(now), bool)
        orphaned = before.alive & (positions(before.ids, now) < 0) & before.may_be_orphans
        ids = np.concatenate([now, before.ids[orphaned]])
        rows = np.concatenate([_of_connections(owned, connections=1), before.rows[orphaned]])
        order = np.argsort(ids, kind="stable")
        alive = np.concatenate([alive, np.ones(len(ids) - len(now), bool)])
        return cls(ids[order], rows[order], alive[order])


def _of_map(keys: Array, values: Array) -> Array:
    return _totals(
        len(keys), {name: keys[name] for name in _OWNER} | {name: values[name] for name in TOTALLED}
    )


def _of_connections(rows: Array, **more: Array | int) -> Array:
    """A row for each connection."""
    return _totals(len(rows), {name: rows[name] for name in (*_OWNER, *TOTALLED[2:])} | more)


def _of_events(ended: Array) -> Array:
    """A row for each connection that ended."""
    return _of_connections(ended, failed=ended["event"] == FAIL, closed=ended["event"] == CLOSE)


def _totals(count: int, columns: Mapping[str, Array | int]) -> Array:
    """Rows with these columns and an id; other numbers are 0, other texts unknown."""
    rows = np.zeros(count, _TOTAL)
    for name in ("process", "cgroup", "container"):
        rows[name] = unknown_value(rows[name].dtype)
    for name, values in columns.items():
        rows[name] = values
    start = rows["start_time"] >> np.uint64(_START_SHIFT)
    rows["id"] = np.where(known(rows["pid"]), start << np.uint64(_PID_BITS) | rows["pid"], _UNATTRIBUTED_ID)
    return rows


def _added_up(rows: Array) -> Array:
    """One row for each id, sorted by it: numbers summed, the process as in the last of its rows."""
    if not len(rows):
        return rows
    order: Index = np.argsort(rows["id"], kind="stable")
    rows = rows[order]
    starts = np.flatnonzero(np.append(True, rows["id"][1:] != rows["id"][:-1]))
    sums: Array = rows[np.append(starts[1:], len(rows)) - 1]
    for name in _SUMMED:
        sums[name] = np.add.reduceat(rows[name], starts)
    return sums


def _bounded(rows: Array) -> Array:
    """At most KEPT_MAX rows: the processes that moved the least become one row, `(others)`."""
    if len(rows) <= KEPT_MAX:
        return rows
    moved = rows["bytes_sent"] + rows["bytes_received"]
    moved[rows["id"] == _UNATTRIBUTED_ID] = unknown_value(moved.dtype)  # whose numbers may be below zero
    order = np.argsort(moved, kind="stable")
    few = rows[order[: len(rows) - KEPT_MAX]]
    few["id"], few["pid"] = _OTHERS_ID, unknown_value(few["pid"].dtype)
    few["comm"] = b""
    return _added_up(np.concatenate([few, rows[np.sort(order[len(rows) - KEPT_MAX :])]]))
