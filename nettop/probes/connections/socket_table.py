# SPDX-License-Identifier: Apache-2.0
"""The socket table by BPF iterators: a walk over descriptors, and walks over hash tables where they are needed."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from nettop.kernel import bpf
from nettop.kernel.entered_namespaces import shared_namespaces
from nettop.kernel.facts import Host
from nettop.kernel.iterator import Iterator, RowBuffer
from nettop.kernel.processes import Processes, outside_name
from nettop.kernel.program import Program
from nettop.probes.connections.socket_rows import (
    NO_USERS,
    ROW,
    STATE,
    Counted,
    Reading,
    choose_owners,
    count_hashed,
    count_waiting_for_fin,
    descriptors_of,
    give_owners,
    has_process,
    merge,
    unowned,
    without,
)
from nettop.snapshots.arrays import joined, positions, take
from nettop.snapshots.connections import KERNEL_OWNER, OUTSIDE
from nettop.snapshots.snapshot import Array

WALKS = OWNED, TCP_TABLE, UDP_TABLE = "bpf_iter__task_file", "bpf_iter__tcp", "bpf_iter__udp"

LIST_TIME_WAIT, LIST_WITH_FILE = 1, 2
_PATIENCE = 2
"""Walks in a row that may find fewer sockets than the namespace counts, before those are searched for."""
_PATIENCE_AFTER_SEARCH = 60
"""The same after a search that did not find them."""

_PAUSE_PER_WALK = 100
"""A walk over a hash table takes 25 ms even when it is empty. Pausing this many times as long as the last one took
keeps the walks below 1 % of a CPU."""

OWNED_MECHANISM, UNATTRIBUTED_MECHANISM = "iter/task_file", "iter/tcp + iter/udp"
_NO_ROWS = np.zeros(0, ROW)


@dataclass(frozen=True, slots=True)
class _Walk:
    """A walk over a namespace's hash tables: its rows, when it began, how long it took, and whether it `searched`, that
    is, listed all sockets that have a file.

    `missed` is how many sockets the namespace counts that neither walk found; after `patience` more walks that miss
    some they are searched for.
    """

    rows: Array
    begun_ns: int
    took_ns: int
    searched: bool
    missed: int = 0
    patience: int = _PATIENCE


class SocketTable:
    """The kernel's socket table: owned sockets, and others where it `lists_unattributed`."""

    def __init__(self, program: Program, host: Host) -> None:
        self.processes = Processes(host)
        self.namespaces = shared_namespaces(host.proc)
        self.lists_unattributed = True
        self._has_outside = not host.in_initial_pid_namespace()
        self._all_rows = False
        self._host = host
        self._program = program
        self._iterators = {name: Iterator(program.functions[name], ROW) for name in WALKS}
        self._owned_buffer, self._unattributed_buffer = RowBuffer(), RowBuffer()
        self._walking = threading.Lock()
        self._last_walks: dict[int, _Walk] = {}
        self.held_by_several = _NO_ROWS

    @property
    def lost_namespaces(self) -> int:
        """Namespaces whose sockets are missing, but those that processes hold."""
        return self.namespaces.lost

    def list_all(self, all_rows: bool) -> None:
        """List TIME_WAIT too, and search for every socket that is counted; or do not."""
        if all_rows != self._all_rows:
            self._all_rows = all_rows
            self._last_walks = {}

    @property
    def shared(self) -> Mapping[str, int]:
        """The maps that the events' programs share."""
        return self._program.maps

    def gaps(self) -> dict[str, str]:
        """What cannot be seen, by name, and why."""
        return self.namespaces.gaps() | (OUTSIDE if self._has_outside else {})

    def close(self) -> None:
        """Detach, and leave every namespace."""
        for iterator in self._iterators.values():
            iterator.close()
        self._program.close()
        self.namespaces.close()

    def descriptors(self, row: Array) -> list[tuple[int, int]]:
        """The (PID, descriptor) pairs that led to the socket of this single row when it was last read."""
        return descriptors_of(row, self.held_by_several)

    def read(self, before: Array, users: Array = NO_USERS) -> Reading:
        """Every socket that exists now.

        `before` are the rows of the last refresh, `users` who uses sockets that several processes hold (USER).
        Namespaces whose hash tables were walked then are walked again while this thread walks the descriptors.
        """
        if not self.lists_unattributed:
            owned, taken_ns = self.read_owned(before, users)
            return Reading(owned, {}, taken_ns)
        with self.namespaces.lock:
            walks = self._begin_walks()
            try:
                owned, taken_ns = self.read_owned(before, users)
            finally:
                wait(walks.values())  # nothing may be closed that a walk still reads
            walked = {inode: walk.result() for inode, walk in walks.items()}
            walked_rows, counts = self._read_unattributed(owned, taken_ns, walked)
        unattributed = unowned(joined(_NO_ROWS, *walked_rows), owned["id"])
        time_wait = unattributed["id"][unattributed["state"] == STATE["TIME_WAIT"]]
        if len(time_wait):
            owned = without(owned, np.sort(time_wait))
        give_owners(unattributed, owned, positions(unattributed["holder"], owned["id"]))
        self.processes.name(unattributed, more=True)  # subflows, and orphans, whose closer is known
        unattributed["process"][unattributed["is_kernels"] == 1] = self.processes.code(KERNEL_OWNER)
        if self._has_outside:
            held = (unattributed["has_file"] == 1) & ~has_process(unattributed)
            unattributed["process"][held] = self.processes.code(outside_name())
        return Reading(merge(owned, unattributed), counts, taken_ns)

    def read_owned(self, before: Array, users: Array = NO_USERS) -> tuple[Array, int]:
        """The sockets that processes hold, sorted by id, each once and with its owner process, a copy; and the middle
        of the time it took to read them, on the monotonic clock."""
        begun_ns = time.monotonic_ns()
        rows = self._iterators[OWNED].read(self._owned_buffer)
        taken_ns = (begun_ns + time.monotonic_ns()) // 2
        self.processes.name(rows)
        owners, shared = choose_owners(rows, before, users)
        self.held_by_several = take(rows, shared)
        return take(rows, owners), taken_ns

    # --- hash tables ----------------------------------------------------------------------------------

    def _read_unattributed(
        self, owned: Array, taken_ns: int, walks: Mapping[int, _Walk]
    ) -> tuple[list[Array], dict[str, int]]:
        """The rows of unattributed sockets, where a namespace counts more sockets than are `owned`.

        Where walks are expensive they are made less often, and the rows of the last one are used again: the count
        `walk_age_ms` says how old they are.
        """
        owned_by_namespace = count_hashed(owned)
        self.namespaces.follow(owned_by_namespace.keys())
        last_walks: dict[int, _Walk] = {}
        time_wait = 0
        for inode, thread in self.namespaces.threads.items():
            stat = thread.run(self._host.sockstat)
            time_wait += stat.time_wait
            counted = owned_by_namespace.get(inode, Counted())
            if stat.tcp > counted.tcp or stat.udp > counted.udp or stat.time_wait or counted.half_open:
                last, walk = self._last_walks.get(inode), walks.get(inode)
                if walk or not last:
                    walk = walk or thread.run(partial(self._walk, 0 if self._has_outside else _PATIENCE))
                    missing = stat.tcp + stat.udp - counted.tcp - counted.udp
                    last = _count_missed(walk, missing, owned, last)
                last_walks[inode] = last
        self._last_walks = last_walks
        rows = [last.rows for last in last_walks.values()]
        return rows, {
            "time_wait": max(0, time_wait - sum(map(count_waiting_for_fin, rows))),
            "unlisted": sum(last.missed for last in last_walks.values()),
            "namespaces": len(self.namespaces.threads),
            **self.namespaces.counts(),
            "namespaces_walked": len(last_walks),
            "walk_age_ms": max(
                (max(0, taken_ns - last.begun_ns) // 1_000_000 for last in last_walks.values()), default=0
            ),
        }

    def _begin_walks(self) -> dict[int, Future[_Walk]]:
        """Begin the walks that are due in namespaces that needed one at the last refresh."""
        pause_ns = _PAUSE_PER_WALK * sum(last.took_ns for last in self._last_walks.values())
        now_ns = time.monotonic_ns()
        return {
            inode: self.namespaces.threads[inode].submit(partial(self._walk, last.patience))
            for inode, last in self._last_walks.items()
            if inode in self.namespaces.threads and now_ns - last.begun_ns >= pause_ns
        }

    def _walk(self, patience: int) -> _Walk:
        """Walk both hash tables of the calling thread's namespace.

        With `all_rows`, or when too many walks in a row missed sockets, all sockets that have a file are listed too.
        """
        search = self._all_rows or patience <= 0
        bits = (LIST_TIME_WAIT if self._all_rows else 0) | (LIST_WITH_FILE if search else 0)
        with self._walking:
            bpf.set_element(self._program.maps["listed"], bytes(4), bits.to_bytes(4, sys.byteorder))
            begun_ns = time.monotonic_ns()
            tables = [
                self._iterators[name].read(self._unattributed_buffer).copy()
                for name in (TCP_TABLE, UDP_TABLE)
            ]
            return _Walk(joined(*tables), begun_ns, time.monotonic_ns() - begun_ns, search)


def _count_missed(walk: _Walk, missing: int, owned: Array, last: _Walk | None) -> _Walk:
    """Count what both walks missed of the sockets that a namespace has beyond those that are `owned`.

    A few come and go between two readings. Those that are missed again and again are held by no process that is
    visible from here: in a message under way, by io_uring, or outside this PID namespace. They are searched for, on
    every walk while that finds one twice.
    """
    rows = unowned(walk.rows, owned["id"])
    missed = max(0, missing - sum(sum(counted[:2]) for counted in count_hashed(rows).values()))
    if walk.searched:
        ids = rows["id"][rows["has_file"] == 1]
        if last and last.searched:
            ids = ids[np.isin(ids, last.rows["id"])]
        patience = 0 if len(ids) else _PATIENCE_AFTER_SEARCH if missed else _PATIENCE
    else:
        patience = last.patience - 1 if last and missed else _PATIENCE - bool(missed)
    return replace(walk, rows=rows, missed=missed, patience=patience)
