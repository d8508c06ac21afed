# SPDX-License-Identifier: Apache-2.0
"""Connections that open, close and fail between two readings of the table: a ring of events, and exact totals."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np

from nettop.kernel import bpf_syscall as bpf
from nettop.kernel.bpf import maps
from nettop.kernel.bpf.iterator import Iterator
from nettop.kernel.bpf.mechanisms import ChosenMechanisms, Mechanism
from nettop.kernel.bpf.program import Loader, Program
from nettop.kernel.bpf.ring import Ring
from nettop.kernel.host.facts import Host
from nettop.kernel.host.proc_files import is_running
from nettop.kernel.host.processes import Processes, ProcessNames
from nettop.kernel.net.hook_check import HookCheck
from nettop.probes.connections import event_records
from nettop.probes.connections.ended import EndedSockets
from nettop.probes.connections.failures import Failures
from nettop.probes.connections.hooks import CHANGES, FALLBACKS, FOLLOW_HOOKS, FOLLOWED, Hooks
from nettop.probes.connections.socket_rows import MESSAGE, ROW, copy_owners, has_process
from nettop.probes.connections.users import SocketUsers
from nettop.process.clocks import boot_ns
from nettop.snapshots.arrays import Array, concatenate_rows, positions, take_rows
from nettop.snapshots.connections import CHILDREN, EVENTS, STILL_FOLLOWED
from nettop.snapshots.hooks import HookStatus
from nettop.snapshots.snapshot import Rows, mark_unknown

PENDING_MAX = 1 << 16
"""Maximum accept events that wait for their owner; above it, the oldest are delivered without one."""

_COUNTED = ("connected", "accepted", "closed", "failed")
_CLOCK_TOLERANCE_NS = 5_000_000
_IN_BACKLOG_NS = 20_000_000
"""A younger connection may not have been accepted yet; the next reading will show its owner."""
UNOWNED_MAX = 4096
"""Maximum connections in accept queues that are watched until a process accepts them."""
_TOTALS_READINGS = 3
_FILLING_SHARE = 0.125
_NO_EVENTS = np.zeros(0, event_records.EVENT)
_NO_ROW = np.dtype("u1")
"""Row type of the iterator that finds the followed process, which writes nothing."""


@dataclass(frozen=True, slots=True)
class EventsStatus:
    """State of the events for a snapshot: totals since the start, losses, hooks and gaps."""

    counts: dict[str, int]
    lost: dict[str, int]
    hooks: tuple[HookStatus, ...]
    gaps: dict[str, str] = field(default_factory=dict)


class ConnectionEvents:
    """Kernel events with owners and names, each delivered once.

    An accepted connection has no owner yet when it opens. The event waits for the connection's end or the next reading
    of the table (`add_reading`), whichever comes first. With `followed`, a PID, only connects, failures and closes of
    that process and its later children are delivered. `shared` are the maps shared with the table's programs, if any.
    `chosen` names mechanisms to use instead of the best ones; with `check`, each is verified.
    """

    def __init__(
        self,
        program: Program,
        shared: Mapping[str, int],
        ended: EndedSockets,
        *,
        loader: Loader,
        chosen: ChosenMechanisms,
        check: HookCheck | None,
        ring_bytes: int,
        host: Host,
        processes: Processes,
        followed: int | None = None,
    ) -> None:
        self._program = program
        self._host = host
        self._maps = {**program.maps, **shared}
        self._ended = ended
        self._rows = np.zeros(0, ROW)
        self._unowned: Array = np.zeros(0, np.uint64)
        self._offset = self._lost = self._missed = self._gap = 0
        self._set_clock()  # before the first event: the programs read it
        if followed is not None:
            with closing(Iterator(program.functions[FOLLOWED], _NO_ROW)) as find:
                find.read()
        self.hooks = Hooks(program, FALLBACKS, loader=loader, chosen=chosen, check=check)
        if followed is not None:
            self._follow_children()
        self._ring = Ring(program.maps["events"], ring_bytes, event_records.EVENT)
        self._processes = processes
        self._pending = _NO_EVENTS
        self._ready: list[Array] = []
        self._next_id = 1
        self._previous_reading = 0
        self._followed = followed
        self.failures = Failures()
        self.users = SocketUsers(program.maps)

    def _follow_children(self) -> None:
        try:
            self.hooks.attach(Mechanism("children", FOLLOW_HOOKS))
        except OSError as error:
            self.hooks.gaps[CHILDREN] = f"not followed: {error.strerror}"

    def close(self) -> None:
        """Detach; a second call is a no-op."""
        self.hooks.close()
        self._ring.close()

    def status(self) -> EventsStatus:
        """Return the current state of the events for a snapshot."""
        if not self.works:
            return EventsStatus({}, {}, self.hooks.statuses, self.hooks.gaps)
        skipped = _skipped(self._program)  # before the totals, so that it never exceeds `nested`
        totals = self._totals()
        self._missed = max(self._missed, skipped - totals["nested"])
        lost = {
            "events": totals["dropped"] + self._missed,
            "connection records": totals["untracked"],
            "followed processes": totals["unfollowed"],
        }
        newly_lost = lost["events"] - self._lost
        self._gap += newly_lost
        self._lost = lost["events"]
        if self._lost:
            self._count_lost()
        if newly_lost:
            self._unowned = self._unowned[:0]
            self._ended.expect_missed_ends(self._still_open())
        counts = {name: totals[name] for name in _COUNTED} | self._count_followed()
        counts["uncounted"] = self._missed
        return EventsStatus(counts, lost, self.hooks.statuses, self.hooks.gaps)

    def _count_followed(self) -> dict[str, int]:
        """Count the followed processes that still run; return nothing if the PIDs in /proc differ from the
        kernel's."""
        if self._followed is None or not self._host.in_initial_pid_namespace():
            return {}
        pids, _ = maps.read_all(self._program.maps["followed"], np.dtype("u4"), np.dtype("u1"))
        return {STILL_FOLLOWED: sum(is_running(self._host.proc, pid) for pid in pids.tolist())}

    def _totals(self) -> dict[str, int]:
        """Return the programs' totals since the start."""
        totals = [
            maps.sum_per_cpu(self._program.maps["host"], writer, event_records.HOST_TOTALS)
            for writer in range(len(event_records.WRITERS))
        ]
        return {
            name: sum(int(total[name]) for total in totals) for name in event_records.HOST_TOTALS.names or ()
        }

    def _still_open(self) -> Array:
        """Return the ids of connections that have a record: an end removes it, reported or not."""
        _, groups = maps.read_all(
            self._maps["connection_groups"], np.dtype("u4"), event_records.CONNECTION_GROUP
        )
        ids: Array = groups["cookies"].ravel()
        return ids

    def _count_lost(self) -> None:
        """Add the counters of connections whose end event was lost to the sum of ended connections.

        An event that is still on its way to the ring looks lost, but rarely in every one of several readings of the
        totals.
        """
        readings = []
        for _ in range(_TOTALS_READINGS):
            counted = self._totals()
            self.collect()
            readings.append(self._ended.missing(counted))
        self._ended.add_lost({name: min(missing[name] for missing in readings) for name in readings[0]})

    @property
    def works(self) -> bool:
        """Whether this kernel reports opens and ends."""
        return self.hooks.works

    # --- events -------------------------------------------------------------------------------------------

    def wakeups(self) -> tuple[int, ...]:
        """Return the file descriptors that become readable when there are events."""
        return (self._ring.descriptor,) if self.works else ()

    def is_filling(self) -> bool:
        """Return whether the ring may soon be full."""
        return self.works and self._ring.fill_ratio > _FILLING_SHARE

    def begin_reading(self) -> int:
        """Empty the ring before the table is read. Return the current wall time in ns, by the events' clock."""
        self.collect()
        return boot_ns() + self._offset

    def _set_clock(self) -> None:
        """Give the programs the wall clock's offset, at the start and whenever the clock was set.

        Small corrections are ignored, so that the time at which a connection opened does not change.
        """
        offset = _boot_to_wall_ns()
        if abs(offset - self._offset) > _CLOCK_TOLERANCE_NS:
            self._offset = offset
            bpf.set_element(self._maps["boot_to_wall"], bytes(4), offset.to_bytes(8, sys.byteorder))

    def collect(self) -> None:
        """Read the ring. An accept event without an owner waits, unless its connection has ended too."""
        new = self._ring.read()
        if not len(new):
            return
        event_records.set_reasons(new)
        self._assign_last_owners(new)
        self.failures.add(take_rows(new, event_records.is_failure(new)))
        ends = np.flatnonzero(new["event"] >= event_records.CLOSE)
        ended = take_rows(new, ends[np.argsort(new["id"][ends], kind="stable")])
        self._ended.add(ended)
        self._unowned = self._unowned[positions(self._unowned, ended["id"]) < 0]
        if self._followed is not None:
            new = take_rows(new, (new["is_followed"] == 1) & (new["event"] != event_records.ACCEPT))
        nameless = (new["event"] == event_records.ACCEPT) & ~has_process(new)
        waiting = concatenate_rows(self._pending, take_rows(new, nameless))
        at = positions(waiting["id"], ended["id"])
        copy_owners(waiting, ended, at)
        is_ready = at >= 0
        is_ready[: max(0, len(waiting) - PENDING_MAX)] = True
        self._pending = take_rows(waiting, ~is_ready)
        self._ready += [take_rows(waiting, is_ready), take_rows(new, ~nameless)]

    def _assign_last_owners(self, new: Array) -> None:
        """Give ended connections the owner found by the last reading of the table, unless a message showed another
        owner since."""
        at = positions(new["id"], self._rows["id"])
        at[new["event"] < event_records.CLOSE] = -1
        listed = np.flatnonzero(at >= 0)
        was_message = self._rows["owner_source"][at[listed]] == MESSAGE
        at[listed[(new["owner_source"][listed] == MESSAGE) & ~was_message]] = -1
        copy_owners(new, self._rows, at)

    def add_reading(self, rows: Array, read_at: int) -> None:
        """Give waiting events the owners found by a reading of the table: `rows`, sorted by id.

        `read_at` is the return value of `begin_reading`.
        """
        began_at = read_at - self._offset  # the clock may have been set meanwhile
        self._set_clock()
        self._rows = rows
        waiting = self._pending
        for name in ("id", "holder"):
            copy_owners(waiting, rows, positions(waiting[name], rows["id"]))
        is_ready = has_process(waiting) | (waiting["time"] < read_at - _IN_BACKLOG_NS)
        self._pending = take_rows(waiting, ~is_ready)
        self._ready.append(take_rows(waiting, is_ready))
        # A connection in an accept queue has no owner yet, and not every reading walks the queues: watch it to its
        # end.
        ids = np.concatenate([self._unowned, waiting["id"][is_ready & ~has_process(waiting)]])
        at = positions(ids, rows["id"])
        owned = at >= 0
        owned[owned] = has_process(rows)[at[owned]]
        self._unowned = ids[~owned][-UNOWNED_MAX:]
        # An accept event may be on its way to the ring when a reading begins, but not at the reading after that.
        owned_until = 0 if len(self._unowned) or len(self._pending) else self._previous_reading
        key, value = (n.to_bytes(size, sys.byteorder) for n, size in ((1, 4), (owned_until, 8)))
        bpf.set_element(self._program.maps["owned_until"], key, value)
        self._previous_reading = began_at

    def drain(self, taken_ns: int) -> Rows | None:
        """Return the events that are ready, in chronological order; None if there are none."""
        self.collect()
        ready = concatenate_rows(_NO_EVENTS, *self._ready)
        self._ready = []
        if not len(ready):
            return None
        events = take_rows(ready, np.argsort(ready["time"], kind="stable"))
        names = ProcessNames(self._processes)
        names.name_any(events)
        mark_unknown(events, ("reason",), events["event"] < event_records.CLOSE)
        events["event_id"] = np.arange(self._next_id, self._next_id + len(events), dtype=np.uint64)
        # These events were read before the loss was known: the gap follows them.
        self._next_id += len(events) + self._gap
        self._gap = 0
        return Rows(EVENTS, events, names.texts(), taken_ns)


def _skipped(program: Program) -> int:
    """Return how often the kernel skipped a program because it was already running on that CPU.

    Counts the first program for state changes, for which the nested one may have run, and those at the end of
    connect().
    """
    skipping = (name for name in program.functions if name == CHANGES or "_connect" in name)
    return sum(bpf.recursion_misses(program.functions[name]) for name in skipping)


def _boot_to_wall_ns() -> int:
    """Return wall time minus boot time, from the quickest of a few pairs of readings."""
    pairs = []
    for _ in range(5):
        begun = boot_ns()
        wall = time.time_ns()
        took = boot_ns() - begun
        pairs.append((took, wall - begun - took // 2))
    return min(pairs)[1]
