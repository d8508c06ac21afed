# SPDX-License-Identifier: Apache-2.0
"""Connections that open, close and fail between two readings of the table: a ring of events, and exact totals."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np

from nettop.kernel import bpf, maps
from nettop.kernel.facts import Host
from nettop.kernel.hook_check import HookCheck
from nettop.kernel.iterator import Iterator, RowBuffer
from nettop.kernel.mechanisms import ChosenMechanisms
from nettop.kernel.processes import Processes
from nettop.kernel.program import Loader, Program
from nettop.kernel.ring import Ring
from nettop.probes.connections.ended import EndedSockets
from nettop.probes.connections.event_hooks import FOLLOWED, EventHooks
from nettop.probes.connections.event_records import (
    ACCEPT,
    CLOSE,
    CONNECTION_GROUP,
    EVENT,
    HOST_TOTALS,
    WRITERS,
    is_failure,
    set_reasons,
)
from nettop.probes.connections.failures import Failures
from nettop.probes.connections.socket_rows import MESSAGE, ROW, give_owners, has_process
from nettop.probes.connections.users import SocketUsers
from nettop.snapshots.arrays import joined, positions, take
from nettop.snapshots.connections import EVENTS, STILL_FOLLOWED
from nettop.snapshots.hooks import HookStatus
from nettop.snapshots.snapshot import Array, Rows, unknown_value

PENDING_MAX = 1 << 16
"""Accept events that may wait for their owner; beyond these the oldest are delivered without one."""

_COUNTED = ("connected", "accepted", "closed", "failed")
_CLOCK_TOLERANCE_NS = 5_000_000
_IN_BACKLOG_NS = 20_000_000
"""A younger connection may be about to be accepted: the next reading will show by whom."""
UNOWNED_MAX = 4096
"""Connections in accept queues that are watched until somebody accepts them."""
_READINGS_OF_TOTALS = 3
_FILLING = 0.125
_NO_EVENTS = np.zeros(0, EVENT)
_NO_ROW = np.dtype("u1")
"""Of the iterator that finds the followed process, which writes nothing."""


@dataclass(frozen=True, slots=True)
class EventsStatus:
    """What a snapshot says of the events: totals since the start and what they lack, losses, hooks, and gaps."""

    counts: dict[str, int]
    lost: dict[str, int]
    hooks: tuple[HookStatus, ...]
    gaps: dict[str, str] = field(default_factory=dict)


class ConnectionEvents:
    """The kernel's events with owners and names, each delivered once.

    An accepted connection has no owner yet when it opens. Its event waits for its end, or for the next reading of the
    table (`add_reading`), but no longer. With `followed`, a PID, only what that process and its later children connect
    to, fail to, and close is delivered. `shared` are the maps of the table's programs, where they share them. `chosen`
    names mechanisms in place of the best ones; with `check` each is verified.
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
        followed: int | None = None,
    ) -> None:
        self._program = program
        self._host = host
        self._maps = {**program.maps, **shared}
        self._ended = ended
        self._rows = np.zeros(0, ROW)
        self._unowned: Array = np.zeros(0, np.uint64)
        self._offset = self._lost = self._missed = self._gap = 0
        self._set_clock()  # before the first event, like everything that the programs read
        if followed is not None:
            with closing(Iterator(program.functions[FOLLOWED], _NO_ROW)) as find:
                find.read(RowBuffer())
        self._hooks = EventHooks(program, loader, chosen, check)
        self._ring = Ring(program.maps["events"], ring_bytes, EVENT)
        self._processes = Processes(host)
        self._groups: dict[int, str] = {}
        self._pending = self._ready = _NO_EVENTS
        self._next_id = 1
        self._previous_reading = 0
        self._followed = followed
        self.failures = Failures()
        self.users = SocketUsers(program.maps)

    def finish_hooks(self) -> None:
        """To be called when the hook check's last traffic has ended."""
        self._hooks.finish()

    def close(self) -> None:
        """Detach; a second call does nothing."""
        self._hooks.close()
        self._ring.close()
        self._program.close()

    def status(self) -> EventsStatus:
        """What a snapshot says of the events now."""
        if not self.works:
            return EventsStatus({}, {}, self._hooks.statuses, self._hooks.gaps)
        skipped = self._hooks.skipped()  # before the totals, so that it is never more than what was nested
        totals = self._counted()
        self._missed = max(self._missed, skipped - totals["nested"])
        lost = {
            "events": totals["dropped"] + totals["unmatched"] + self._missed,
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
            self._ended.expect_lost(self._still_open())
        uncounted = totals["unmatched"] + self._missed
        counts = {name: totals[name] for name in _COUNTED} | {"uncounted": uncounted} | self._count_followed()
        return EventsStatus(counts, lost, self._hooks.statuses, self._hooks.gaps)

    def _count_followed(self) -> dict[str, int]:
        """Count the followed processes that are there now; nothing where /proc has other PIDs than the kernel."""
        if self._followed is None or not self._host.in_initial_pid_namespace():
            return {}
        pids, _ = maps.read_all(self._program.maps["followed"], np.dtype("u4"), np.dtype("u1"))
        return {STILL_FOLLOWED: sum((self._host.proc / str(pid)).exists() for pid in pids.tolist())}

    def _counted(self) -> dict[str, int]:
        """What the programs added up since the start."""
        by_writer = [
            maps.read_per_cpu(self._program.maps["host"], writer, HOST_TOTALS)
            for writer in range(len(WRITERS))
        ]
        by_cpu = np.concatenate(by_writer)
        return {name: int(by_cpu[name].sum()) for name in HOST_TOTALS.names or ()}

    def _still_open(self) -> Array:
        """The ids of connections that have a record: an end takes it away, whether it is reported or not."""
        _, groups = maps.read_all(self._maps["connection_groups"], np.dtype("u4"), CONNECTION_GROUP)
        ids: Array = groups["cookies"].ravel()
        return ids

    def _count_lost(self) -> None:
        """Have what connections counted whose end was lost summed up with what has ended.

        An event on its way to the ring looks lost; hardly one is in each of some readings of the totals.
        """
        readings = []
        for _ in range(_READINGS_OF_TOTALS):
            counted = self._counted()
            self.collect()
            readings.append(self._ended.missing(counted))
        self._ended.add_lost({name: min(missing[name] for missing in readings) for name in readings[0]})

    @property
    def works(self) -> bool:
        """Whether this kernel reports what opens and ends."""
        return self._hooks.works

    # --- events -------------------------------------------------------------------------------------------

    def wakeups(self) -> tuple[int, ...]:
        """Descriptors that become readable when there are events."""
        return (self._ring.descriptor,) if self.works else ()

    def is_filling(self) -> bool:
        """Whether the ring may be full before long."""
        return self.works and self._ring.filled > _FILLING

    def begin_reading(self) -> int:
        """Take what the ring has before the table is read. Later events are newer than the time returned, which is wall
        time by the events' clock in ns."""
        self.collect()
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) + self._offset

    def _set_clock(self) -> None:
        """Give the programs the wall clock's offset, at the start and when somebody has set the clock since.

        Small corrections are ignored, so that the time at which a connection opened stays the same.
        """
        offset = _boot_to_wall_ns()
        if abs(offset - self._offset) > _CLOCK_TOLERANCE_NS:
            self._offset = offset
            bpf.set_element(self._maps["boot_to_wall"], bytes(4), offset.to_bytes(8, sys.byteorder))

    def collect(self) -> None:
        """Take what the ring has. Accept events without an owner wait, unless their connections have ended too."""
        new = self._ring.read()
        if not len(new):
            return
        set_reasons(new)
        self._give_last_owners(new)
        self.failures.add(take(new, np.flatnonzero(is_failure(new))))
        ends = np.flatnonzero(new["event"] >= CLOSE)
        ended = take(new, ends[np.argsort(new["id"][ends], kind="stable")])
        self._ended.add(ended)
        self._unowned = self._unowned[positions(self._unowned, ended["id"]) < 0]
        if self._followed is not None:
            new = new[(new["is_followed"] == 1) & (new["event"] != ACCEPT)]
        nameless = (new["event"] == ACCEPT) & ~has_process(new)
        waiting = joined(self._pending, take(new, np.flatnonzero(nameless)))
        at = positions(waiting["id"], ended["id"])
        give_owners(waiting, ended, at)
        is_ready = at >= 0
        is_ready[: max(0, len(waiting) - PENDING_MAX)] = True
        self._pending = take(waiting, np.flatnonzero(~is_ready))
        ready = take(waiting, np.flatnonzero(is_ready)), take(new, np.flatnonzero(~nameless))
        self._ready = joined(self._ready, *ready)

    def _give_last_owners(self, new: Array) -> None:
        """Give what has ended the owner that the last reading of the table found, unless somebody was seen to use it
        whom that reading did not."""
        ends = np.flatnonzero(new["event"] >= CLOSE)
        at = positions(new["id"][ends], self._rows["id"])
        ends, at = ends[at >= 0], at[at >= 0]
        is_final = (new["owner_source"][ends] == MESSAGE) & (self._rows["owner_source"][at] != MESSAGE)
        given = np.flatnonzero(~is_final)
        ended = take(new, ends[given])
        give_owners(ended, self._rows, at[given])
        new[ends[given]] = ended

    def add_reading(self, rows: Array, read_at: int, groups: Mapping[int, str]) -> None:
        """Give what waits the owners that a reading of the table found: `rows`, sorted by id.

        `read_at` is what `begin_reading` returned; `groups` are the control groups of the processes in it, by css_set.
        """
        began_at = read_at - self._offset  # the clock may have been set since
        self._set_clock()
        self._rows, self._groups = rows, dict(groups)
        waiting = self._pending
        for name in ("id", "holder"):
            give_owners(waiting, rows, positions(waiting[name], rows["id"]))
        is_ready = has_process(waiting) | (waiting["time"] < read_at - _IN_BACKLOG_NS)
        self._pending = waiting[~is_ready]
        self._ready = joined(self._ready, waiting[is_ready])
        # What is in a listener's queue has no owner yet, and not every reading walks those: watch it to its end.
        ids = np.concatenate([self._unowned, waiting["id"][is_ready & ~has_process(waiting)]])
        at = positions(ids, rows["id"])
        owned = at >= 0
        owned[owned] = has_process(rows[at[owned]])
        self._unowned = ids[~owned][-UNOWNED_MAX:]
        # An accept event may be under way to the ring when a reading begins, but not to the reading after that.
        owned_until = 0 if len(self._unowned) or len(self._pending) else self._previous_reading
        key, value = (n.to_bytes(size, sys.byteorder) for n, size in ((1, 4), (owned_until, 8)))
        bpf.set_element(self._program.maps["owned_until"], key, value)
        self._previous_reading = began_at

    def drain(self, taken_ns: int) -> Rows | None:
        """The events that are ready, in the order in which they happened; None when there are none."""
        self.collect()
        if not len(self._ready):
            return None
        events = take(self._ready, np.argsort(self._ready["time"], kind="stable"))
        self._ready = _NO_EVENTS
        self._processes.name_any(events, self._groups)
        events["reason"][events["event"] < CLOSE] = unknown_value(events["reason"].dtype)
        events["event_id"] = np.arange(self._next_id, self._next_id + len(events), dtype=np.uint64)
        # What this drain delivers was taken before the loss was known: the gap is behind it.
        self._next_id += len(events) + self._gap
        self._gap = 0
        return Rows(EVENTS, events, self._processes.texts(), taken_ns)


def _boot_to_wall_ns() -> int:
    """Wall time less boot time, from the quickest of a few pairs of readings."""
    pairs = []
    for _ in range(5):
        begun = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        wall = time.time_ns()
        took = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - begun
        pairs.append((took, wall - begun - took // 2))
    return min(pairs)[1]
