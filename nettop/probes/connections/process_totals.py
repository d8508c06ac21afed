# SPDX-License-Identifier: Apache-2.0
"""What each process moved: by the connections that it has, and by those that closed since nettop began."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from nettop.kernel import bpf, maps
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

FOLD_ABOVE = 1 << 13
"""Processes in the kernel's map from which on what it holds is taken out of it."""
KEPT_MAX = 1 << 14
"""Processes kept by name. Of more, those that moved the least become one row."""
_TRIES = 5
_OTHERS = "(others)"
_NOBODYS_ID, _OTHERS_ID = 0, 2**64 - 2

_PID_BITS = 22
_START_SHIFT = 24
"""A process's key: its PID behind its start in units of 2²⁴ ns, in which no PID comes round."""

_TOTAL = extended(PROCESSES.dtype, (("start_time", "u8"), ("css_set", "u8"), ("comm", "S16")))
_OWNER = ("start_time", "css_set", "comm", "pid")
_SUMMED = (*TOTALLED, "connections")
_BY_EVENTS = ("closed", "failed")
"""What nothing but the events can tell."""
_NONE = np.zeros(0, _TOTAL)


class ProcessTotals:
    """Totals by process: what has closed, out of the kernel's map, and what is open, out of the table.

    The map is emptied now and then: a generation that is written no more is taken out of it whole, so that not one
    increment is lost. A connection that the table has no more, but whose end nobody saw, is an orphan: the kernel
    still sends what its process left, so it counts as open.
    """

    def __init__(self, host: Host) -> None:
        self._program: Program | None = None
        self._processes = Processes(host)
        self._taken = _NONE
        self._generation = 0
        self._leaving = False
        self.ended = self._folded_at = 0
        self._open = _Open.none()
        self._just_ended: list[Array] = []
        self._is_reading = False

    def begin(self, program: Program) -> None:
        """Have what closes counted by the maps of this program."""
        self._program = program

    def move(self, ended: Array) -> None:
        """Give these connections, which ended without an owner that the programs knew, to those they have now."""
        theirs, nobodys = _of_events(ended), _of_events(ended)
        nobodys["id"], nobodys["pid"] = _NOBODYS_ID, unknown_value(nobodys["pid"].dtype)
        for name in TOTALLED:
            nobodys[name] = np.negative(nobodys[name])  # of unsigned numbers: the sum comes round
        self._taken = _added_up(np.concatenate([self._taken, theirs, nobodys]))

    def add(self, ended: Array) -> None:
        """Add connections that the programs have added to no process."""
        if len(ended):
            self._taken = _added_up(np.concatenate([self._taken, _of_events(ended)]))

    def end(self, ended: Array) -> None:
        """Take note of connections that have ended, out of the ring: they are open no more."""
        at = positions(ended["id"], self._open.ids)
        self._open.alive[at[at >= 0]] = False
        if self._is_reading:
            self._just_ended.append(ended["id"][at < 0])
        self.ended += len(ended)
        if self.ended - self._folded_at > FOLD_ABOVE // 2:
            self._folded_at = self.ended
            self._fold()

    def begin_reading(self) -> None:
        """From now to the next `rows` what ends may still stand in the table."""
        self._is_reading = True

    def forget_orphans(self) -> None:
        """Count on no end to come: some were lost."""
        self._open.may_be_orphans = False

    def rows(self, sockets: Array, closed: Array, groups: dict[int, str], taken_ns: int) -> Rows:
        """A row for each process that has connections among `sockets`, which are sorted by id, or had some of those
        `closed`.

        What nobody owned is one row without a PID.
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
        self._name_others(total)
        return Rows(PROCESSES, total, self._processes.texts(), taken_ns)

    def closed(self, collect: Callable[[], None]) -> Array:
        """What the connections had moved that had closed when `collect`, which takes the ring's events, last found
        none that ended.

        Under a storm of them that never comes; then a few count twice, until the next reading.
        """
        if self._program is None:
            return _NONE
        for _ in range(_TRIES):
            collect()
            before = self.ended
            keys, values = maps.read_all(self._program.maps["processes"], PROCESS, HOST_TOTALS)
            collect()
            if self.ended == before:
                break
        return np.concatenate([self._taken, _of_map(keys, values)])

    def _fold(self) -> None:
        """Keep room in the kernel's map: begin a generation when it is rather full, take the old one out later."""
        assert self._program is not None
        in_kernel = self._program.maps
        keys, values = maps.read_all(in_kernel["processes"], PROCESS, HOST_TOTALS)
        if self._leaving:
            old = keys["generation"] != self._generation
            self._taken = _bounded(_added_up(np.concatenate([self._taken, _of_map(keys[old], values[old])])))
            maps.delete_all(in_kernel["processes"], keys[old])
            self._leaving = False
        elif len(keys) > FOLD_ABOVE // 2:
            # What is being added to the old generation now is there at the next call.
            self._generation ^= 1
            self._leaving = True
            number = self._generation.to_bytes(4, sys.byteorder)
            bpf.set_element(in_kernel["generation"], bytes(4), number)

    def _name_others(self, total: Array) -> None:
        others = total["id"] == _OTHERS_ID
        if others.any():
            total["process"][others] = self._processes.code(safe_text(_OTHERS))


@dataclass(eq=False, slots=True)
class _Open:
    """Connections of processes: `ids` are the sockets', sorted, `rows` their totals, `alive` says which have not
    ended by what the ring told."""

    ids: Array
    rows: Array
    alive: Mask
    may_be_orphans: bool = True

    @classmethod
    def none(cls) -> _Open:
        """No connections."""
        return cls(np.zeros(0, np.uint64), _NONE, np.zeros(0, bool))

    @classmethod
    def of(cls, sockets: Array, before: _Open) -> _Open:
        """The connections in a table, and those of before that have gone from it without having ended.

        Rows of the table may be old: what ended since stays ended.
        """
        owned = sockets[_is_open(sockets)]
        now = np.ascontiguousarray(owned["id"])
        at = positions(now, before.ids)
        alive = (at < 0) | before.alive[at] if len(before.ids) else np.ones(len(now), bool)
        orphaned = before.alive & (positions(before.ids, now) < 0) & before.may_be_orphans
        ids = np.concatenate([now, before.ids[orphaned]])
        rows = np.concatenate([_of_sockets(owned), before.rows[orphaned]])
        order = np.argsort(ids, kind="stable")
        alive = np.concatenate([alive, np.ones(len(ids) - len(now), bool)])
        return cls(ids[order], rows[order], alive[order])


def _of_map(keys: Array, values: Array) -> Array:
    rows = _empty(len(keys))
    for name in _OWNER:
        rows[name] = keys[name]
    for name in TOTALLED:
        rows[name] = values[name]
    return _with_ids(rows)


def _of_events(ended: Array) -> Array:
    """A row for each connection that ended."""
    rows = _empty(len(ended))
    for name in (*_OWNER, *TOTALLED[2:]):
        rows[name] = ended[name]
    rows["failed"] = ended["event"] == FAIL
    rows["closed"] = ended["event"] == CLOSE
    return _with_ids(rows)


def _is_open(sockets: Array) -> Mask:
    """Which rows are connections of a process. One in CLOSE has been counted as closed already."""
    owned = (sockets["protocol"] == TCP) & known(sockets["pid"]) & known(sockets["bytes_sent"])
    is_open: Mask = owned & (sockets["state"] != STATE["LISTEN"]) & (sockets["state"] != STATE["CLOSE"])
    return is_open


def _of_sockets(sockets: Array) -> Array:
    """A row for each connection."""
    rows = _empty(len(sockets))
    for name in (*_OWNER, *TOTALLED[2:]):
        rows[name] = sockets[name]
    rows["connections"] = 1
    return _with_ids(rows)


def _empty(count: int) -> Array:
    rows = np.zeros(count, _TOTAL)
    for name in ("process", "cgroup", "container"):
        rows[name] = unknown_value(rows[name].dtype)
    return rows


def _with_ids(rows: Array) -> Array:
    start = rows["start_time"] >> np.uint64(_START_SHIFT)
    rows["id"] = np.where(known(rows["pid"]), start << np.uint64(_PID_BITS) | rows["pid"], _NOBODYS_ID)
    return rows


def _added_up(rows: Array) -> Array:
    """One row for each id, sorted by it: numbers summed, and who it is as the last of its rows says."""
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
    """At most KEPT_MAX rows: those that moved the least are one, of nobody in particular."""
    if len(rows) <= KEPT_MAX:
        return rows
    moved = rows["bytes_sent"] + rows["bytes_received"]
    moved[rows["id"] == _NOBODYS_ID] = unknown_value(moved.dtype)  # whose numbers may be less than none
    order = np.argsort(moved, kind="stable")
    few = rows[order[: len(rows) - KEPT_MAX]]
    few["id"], few["pid"] = _OTHERS_ID, unknown_value(few["pid"].dtype)
    few["comm"] = b""
    return _added_up(np.concatenate([few, rows[np.sort(order[len(rows) - KEPT_MAX :])]]))
