# SPDX-License-Identifier: Apache-2.0
"""The socket table from BPF iterators: a walk over descriptors, and over hash tables where needed."""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from nettop.kernel import bpf_syscall as bpf
from nettop.kernel.bpf.iterator import Iterator
from nettop.kernel.bpf.program import Program
from nettop.kernel.host.facts import Host, SocketCounts
from nettop.kernel.host.processes import ProcessNames, outside_name
from nettop.kernel.net.entered_namespaces import shared_namespaces
from nettop.probes.connections import socket_rows
from nettop.process.clocks import monotonic_ns
from nettop.snapshots.arrays import Array, concatenate_rows, positions, take_rows
from nettop.snapshots.connections import KERNEL_OWNER, OUTSIDE

WALKS = OWNED, TCP_TABLE, UDP_TABLE = "bpf_iter__task_file", "bpf_iter__tcp", "bpf_iter__udp"

LIST_TIME_WAIT, LIST_WITH_FILE = 1, 2
_PATIENCE = 2
"""Consecutive walks that may find fewer sockets than the namespace counts before a search."""
_PATIENCE_AFTER_SEARCH = 60
"""The same after a search that did not find them."""

_PAUSE_PER_WALK = 100
"""Pause after a walk over a hash table, as a multiple of its duration: a walk takes 25 ms even when the table is empty.
This keeps walks below 1 % of a CPU."""

OWNED_MECHANISM, UNATTRIBUTED_MECHANISM = "iter/task_file", "iter/tcp + iter/udp"
_NO_ROWS = np.zeros(0, socket_rows.ROW)


@dataclass(frozen=True, slots=True)
class _Walk:
    """A walk over a namespace's hash tables: its rows, start, duration, and whether it `searched`, that is, listed all
    sockets with a file.

    `missed` is the number of sockets that the namespace counts but neither walk found; after `patience` more walks with
    misses, search for them.
    """

    rows: Array
    begun_ns: int
    took_ns: int
    searched: bool
    missed: int = 0
    patience: int = _PATIENCE


class SocketTable(socket_rows.SocketsReader):
    """The kernel's socket table, walked by BPF iterators."""

    def __init__(self, program: Program, host: Host) -> None:
        super().__init__(host, shared_namespaces(host))
        self.shared = program.maps
        self._program = program
        self._iterators = {name: Iterator(program.functions[name], socket_rows.ROW) for name in WALKS}
        self._walking = threading.Lock()
        self._last_walks: dict[int, _Walk] = {}

    @property
    def lost_namespaces(self) -> int:
        """Number of namespaces whose sockets are missing, except those that processes hold."""
        return self.namespaces.lost

    def list_all(self, all_rows: bool) -> None:
        """Choose whether to list TIME_WAIT sockets and search for every counted socket."""
        if all_rows != self._all_rows:
            self._last_walks = {}
        super().list_all(all_rows)

    def gaps(self) -> dict[str, str]:
        """Map the gaps in the table to their reasons."""
        return self.namespaces.gaps() | (OUTSIDE if self._has_outside else {})

    def close(self) -> None:
        """Detach, and leave every namespace."""
        for iterator in self._iterators.values():
            iterator.close()
        self._program.close()
        super().close()

    def read(self, before: Array, users: Array = socket_rows.NO_USERS) -> socket_rows.SocketReading:
        """Return all current sockets.

        `before` are the rows of the last refresh, `users` the users of sockets that several processes hold (USER).
        Namespaces whose hash tables were walked at that refresh are walked again while this thread walks the
        descriptors.
        """
        names = self.processes.begin()
        if not self.lists_unattributed:
            owned, taken_ns = self.read_owned(names, before, users)
            return socket_rows.SocketReading(owned, names, {}, taken_ns)
        with self.namespaces.lock:
            walks = self._begin_walks()
            try:
                owned, taken_ns = self.read_owned(names, before, users)
            finally:
                wait(walks.values())  # a walk may still read what would be closed
            walked = {inode: walk.result() for inode, walk in walks.items()}
            walked_rows, counts = self._read_unattributed(owned, taken_ns, walked)
        unattributed = socket_rows.exclude_owned(concatenate_rows(_NO_ROWS, *walked_rows), owned["id"])
        time_wait = unattributed["id"][unattributed["state"] == socket_rows.STATE["TIME_WAIT"]]
        if len(time_wait):
            owned = socket_rows.exclude_ids(owned, np.sort(time_wait))
        socket_rows.copy_owners(unattributed, owned, positions(unattributed["holder"], owned["id"]))
        names.name(unattributed)  # subflows, and orphans whose closing process is known
        unattributed["process"][unattributed["held_by"] == socket_rows.HELD_BY_KERNEL] = names.code(
            KERNEL_OWNER
        )
        if self._has_outside:
            held = (unattributed["held_by"] == socket_rows.HELD_BY_PROCESS) & ~socket_rows.has_process(
                unattributed
            )
            unattributed["process"][held] = names.code(outside_name())
        return socket_rows.SocketReading(socket_rows.merge(owned, unattributed), names, counts, taken_ns)

    def read_owned(self, names: ProcessNames, before: Array, users: Array) -> tuple[Array, int]:
        """Return a copy of the sockets that processes hold, sorted by id, each once and with its owner process.

        Also return the midpoint of the read, on the monotonic clock.
        """
        begun_ns = monotonic_ns()
        rows = self._iterators[OWNED].read()
        taken_ns = (begun_ns + monotonic_ns()) // 2
        names.name(rows)
        owners, shared = socket_rows.choose_owners(rows, before, users)
        self.held_by_several = take_rows(rows, shared)
        return take_rows(rows, owners), taken_ns

    # --- hash tables ----------------------------------------------------------------------------------

    def _read_unattributed(
        self, owned: Array, taken_ns: int, walks: Mapping[int, _Walk]
    ) -> tuple[list[Array], dict[str, int]]:
        """Return the rows of unattributed sockets in namespaces that count more sockets than are `owned`.

        Expensive walks run less often, and the rows of the last one are reused: `walk_age_ms` is their age.
        """
        owned_by_namespace = socket_rows.count_hashed(owned)
        self.namespaces.follow(owned_by_namespace.keys())
        last_walks: dict[int, _Walk] = {}
        time_wait = 0
        for inode, thread in self.namespaces.threads.items():
            stat = thread.submit(self._host.sockstat).result()
            time_wait += stat.time_wait
            counted = owned_by_namespace.get(inode, SocketCounts())
            if stat.tcp > counted.tcp or stat.udp > counted.udp or stat.time_wait or counted.half_open:
                last, walk = self._last_walks.get(inode), walks.get(inode)
                if walk or not last:
                    walk = walk or thread.submit(self._walk, 0 if self._has_outside else _PATIENCE).result()
                    missing = stat.tcp + stat.udp - counted.tcp - counted.udp
                    last = _count_missed(walk, missing, owned, last)
                last_walks[inode] = last
        self._last_walks = last_walks
        rows = [last.rows for last in last_walks.values()]
        return rows, {
            "time_wait": max(0, time_wait - sum(map(socket_rows.count_waiting_for_fin, rows))),
            "unlisted": sum(last.missed for last in last_walks.values()),
            "namespaces": len(self.namespaces.threads),
            **self.namespaces.counts(),
            "namespaces_walked": len(last_walks),
            "walk_age_ms": max(
                (max(0, taken_ns - last.begun_ns) // 1_000_000 for last in last_walks.values()), default=0
            ),
        }

    def _begin_walks(self) -> dict[int, Future[_Walk]]:
        """Start the walks that are due in namespaces that needed one at the last refresh."""
        pause_ns = _PAUSE_PER_WALK * sum(last.took_ns for last in self._last_walks.values())
        now_ns = monotonic_ns()
        return {
            inode: self.namespaces.threads[inode].submit(partial(self._walk, last.patience))
            for inode, last in self._last_walks.items()
            if inode in self.namespaces.threads and now_ns - last.begun_ns >= pause_ns
        }

    def _walk(self, patience: int) -> _Walk:
        """Walk both hash tables of the calling thread's namespace.

        With `all_rows`, or after too many consecutive walks with misses, also list all sockets with a file.
        """
        search = self._all_rows or patience <= 0
        bits = (LIST_TIME_WAIT if self._all_rows else 0) | (LIST_WITH_FILE if search else 0)
        with self._walking:
            bpf.set_element(self._program.maps["listed"], bytes(4), bits.to_bytes(4, sys.byteorder))
            begun_ns = monotonic_ns()
            tables = [self._iterators[name].read() for name in (TCP_TABLE, UDP_TABLE)]
            return _Walk(concatenate_rows(*tables), begun_ns, monotonic_ns() - begun_ns, search)


def _count_missed(walk: _Walk, missing: int, owned: Array, last: _Walk | None) -> _Walk:
    """Count the sockets of a namespace that both walks missed, beyond those that are `owned`.

    A few come and go between two readings. Those missed repeatedly are held by no visible process: they are in a
    message in flight, held by io_uring, or outside this PID namespace. Search for them; repeat the search on every walk
    while it finds the same socket twice.
    """
    rows = socket_rows.exclude_owned(walk.rows, owned["id"])
    missed = max(0, missing - sum(sum(counted[:2]) for counted in socket_rows.count_hashed(rows).values()))
    if walk.searched:
        ids = rows["id"][rows["held_by"] == socket_rows.HELD_BY_PROCESS]
        if last and last.searched:
            ids = ids[np.isin(ids, last.rows["id"])]
        patience = 0 if len(ids) else _PATIENCE_AFTER_SEARCH if missed else _PATIENCE
    else:
        patience = last.patience - 1 if last and missed else _PATIENCE - bool(missed)
    return replace(walk, rows=rows, missed=missed, patience=patience)
