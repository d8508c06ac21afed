# SPDX-License-Identifier: Apache-2.0
"""The kernel's socket table as the connections probe reads it: two walks, and when the second one is made."""

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
from nettop.kernel.facts import Host
from nettop.kernel.iterator import Iterator, RowBuffer
from nettop.kernel.namespaces import shared_namespaces
from nettop.kernel.processes import Processes
from nettop.kernel.program import Program
from nettop.probes.connections.socket_rows import (
    ROW,
    Counted,
    choose_owners,
    count_hashed,
    count_waiting_for_fin,
    descriptors_of,
    merge,
    without,
)
from nettop.snapshots.arrays import joined, take
from nettop.snapshots.connections import HIDDEN_OWNER, OUTSIDE
from nettop.snapshots.snapshot import Array

WALKS = HELD, TCP_TABLE, UDP_TABLE = "bpf_iter__task_file", "bpf_iter__tcp", "bpf_iter__udp"

LIST_TIME_WAIT, LIST_WITH_FILE, LIST_WANTED = 1, 2, 4
WANTED_MAX = 10_240
_PATIENCE = 2
"""Walks after which a namespace may count more sockets than were found, before those are searched for."""
_PATIENCE_AFTER_SEARCH = 60
"""The same after a search that did not explain the count."""

_REST_PER_WALK = 100
"""A walk over a hash table takes 25 ms even when it is empty. Resting this many times as long as the last one
took keeps the walks below 1 % of a CPU."""

OWNED_MECHANISM, UNATTRIBUTED_MECHANISM = "iter/task_file", "iter/tcp + iter/udp"
_NO_ROWS = np.zeros(0, ROW)


@dataclass(frozen=True, slots=True)
class _Walk:
    """A walk through a namespace's hash tables: its rows, when it was made, what it took, and whether it
    listed all sockets that have a file."""

    rows: Array
    taken_ns: int
    took_ns: int
    searched: bool


@dataclass(frozen=True, slots=True)
class _Found:
    """What the last walk through a namespace gave.

    `missed` is how many sockets the namespace counts that neither walk found; after `patience` more walks
    with such a miss they are searched for.
    """

    walk: _Walk
    missed: int
    patience: int


class SocketTable:
    """The kernel's socket table, walked in its two ways: the second one where it `lists_unattributed`."""

    def __init__(self, program: Program, host: Host) -> None:
        self.processes = Processes(host)
        self.namespaces = shared_namespaces(host.proc)
        self.lists_unattributed = True
        self._has_outside = not host.in_initial_pid_namespace()
        self._all_rows = False
        self._host = host
        self._program = program
        self._iterators = {name: Iterator(program.functions[name], ROW) for name in WALKS}
        self._held, self._unheld = RowBuffer(), RowBuffer()
        self._walking = threading.Lock()
        self._found: dict[int, _Found] = {}
        self._shared = _NO_ROWS
        self._wanted: set[int] = set()

    def list_all(self, all_rows: bool) -> None:
        """List TIME_WAIT too, and search for every socket that is counted; or do not."""
        if all_rows != self._all_rows:
            self._all_rows = all_rows
            self._found = {}

    @property
    def clock(self) -> int | None:
        """The map of what the programs add to boot time to have wall time."""
        return self._program.maps["boot_to_wall"]

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
        """The (PID, descriptor) pairs that led to the socket of this one row when it was last read."""
        return descriptors_of(row, self._shared)

    def read(self, before: Array, taken_ns: int) -> tuple[Array, dict[str, int]]:
        """Every socket there is now, sorted by id, and counts of what is not listed.

        `before` are the rows of the last refresh. Namespaces that needed the second walk then are walked while
        this thread walks the descriptors.
        """
        if not self.lists_unattributed:
            return self.read_held(before), {}
        with self.namespaces.lock:
            walks = self._begin_walks(taken_ns)
            try:
                held = self.read_held(before)
            finally:
                wait(walks.values())  # nobody may close what a walk still reads
            walked = {inode: walk.result() for inode, walk in walks.items()}
            walked_rows, counts = self._read_unheld(held, taken_ns, walked)
        unheld = without(joined(_NO_ROWS, *walked_rows), held["id"])
        self.processes.name(unheld, more=True)  # orphans, whose closer is known
        if self._has_outside:
            unheld["process"][unheld["has_file"] == 1] = self.processes.code(HIDDEN_OWNER)
        return merge(held, unheld), counts

    def read_held(self, before: Array) -> Array:
        """The sockets that processes hold, sorted by id, each with its one owner; an own copy.

        Who owned a socket in the rows `before` goes on to own it.
        """
        found = self._iterators[HELD].read(self._held)
        self.processes.name(found)
        owners, shared = choose_owners(found, before)
        self._shared = take(found, shared)
        return take(found, owners)

    # --- the second walk ----------------------------------------------------------------------------------

    def _read_unheld(
        self, held: Array, taken_ns: int, walks: Mapping[int, _Walk]
    ) -> tuple[list[Array], dict[str, int]]:
        """The rows of what no descriptor holds, where a namespace counts more sockets than were `held`.

        Where walks are dear they are made less often, and the rows of the last one stand in: the count
        `walk_age_ms` says for how long.
        """
        held_by = count_hashed(held)
        self.namespaces.follow(held_by.keys())
        found: dict[int, _Found] = {}
        time_wait = 0
        for inode, thread in self.namespaces.threads.items():
            stat = thread.run(self._host.sockstat)
            time_wait += stat.time_wait
            there = held_by.get(inode, Counted())
            if stat.tcp > there.tcp or stat.udp > there.udp or stat.time_wait or there.half_open:
                last = self._found.get(inode)
                walk = walks.get(inode) or (
                    last.walk if last else thread.run(partial(self._walk, taken_ns, _PATIENCE))
                )
                missing = stat.tcp + stat.udp - there.tcp - there.udp
                found[inode] = last if last and walk is last.walk else self._judge(walk, missing, held, last)
        self._found = found
        rows = [one.walk.rows for one in found.values()]
        return rows, {
            "time_wait": max(0, time_wait - sum(map(count_waiting_for_fin, rows))),
            "unlisted": sum(one.missed for one in found.values()),
            "namespaces": len(self.namespaces.threads),
            "namespaces_walked": len(found),
            "walk_age_ms": max(
                ((taken_ns - one.walk.taken_ns) // 1_000_000 for one in found.values()), default=0
            ),
        }

    def _begin_walks(self, taken_ns: int) -> dict[int, Future[_Walk]]:
        """Begin the walks that are due in namespaces that needed one at the last refresh."""
        rest_ns = _REST_PER_WALK * sum(found.walk.took_ns for found in self._found.values())
        return {
            inode: self.namespaces.threads[inode].submit(partial(self._walk, taken_ns, found.patience))
            for inode, found in self._found.items()
            if inode in self.namespaces.threads and taken_ns - found.walk.taken_ns >= rest_ns
        }

    def _walk(self, taken_ns: int, patience: int) -> _Walk:
        """Walk both hash tables of the calling thread's namespace.

        When everything is asked for, or patience with what is missed has ended, all sockets that have a file
        are listed too.
        """
        search = self._all_rows or patience <= 0
        with self._walking:
            self._list(search)
            begun = time.monotonic_ns()
            tables = [self._iterators[name].read(self._unheld).copy() for name in (TCP_TABLE, UDP_TABLE)]
            return _Walk(joined(*tables), taken_ns, time.monotonic_ns() - begun, search)

    def _judge(self, walk: _Walk, missing: int, held: Array, last: _Found | None) -> _Found:
        """Count what both walks missed of the sockets that a namespace has beyond those that are `held`.

        A few come and go between two readings. What goes on to be missed is held by no process that can be
        seen from here: a message under way, io_uring, a process outside this PID namespace. A search finds
        those once; from then on they are wanted in every walk.
        """
        rows = without(walk.rows, held["id"])
        missed = max(0, missing - sum(sum(counted[:2]) for counted in count_hashed(rows).values()))
        if walk.searched:
            self._want(set(rows["id"][rows["has_file"] == 1].tolist()))
        patience = last.patience if last else _PATIENCE
        if walk.searched or not missed:
            patience = _PATIENCE_AFTER_SEARCH if walk.searched and missed else _PATIENCE
        else:
            patience -= 1
        return _Found(replace(walk, rows=rows), missed, patience)

    def _list(self, search: bool) -> None:
        """Tell the programs what to list beyond sockets without a file."""
        bits = (LIST_TIME_WAIT if self._all_rows else 0) | (LIST_WITH_FILE if search else 0)
        bits |= LIST_WANTED if self._wanted else 0
        bpf.set_element(self._program.maps["listed"], bytes(4), bits.to_bytes(4, sys.byteorder))

    def _want(self, ids: set[int]) -> None:
        """Have these sockets listed by every walk. What does not fit is missed, and searched for again."""
        wanted = self._program.maps["wanted"]
        if len(self._wanted | ids) > WANTED_MAX:
            for old in self._wanted:
                bpf.delete_element(wanted, old.to_bytes(8, sys.byteorder))
            self._wanted = set()
        for new in sorted(ids - self._wanted)[:WANTED_MAX]:
            bpf.set_element(wanted, new.to_bytes(8, sys.byteorder), b"\1")
            self._wanted.add(new)
