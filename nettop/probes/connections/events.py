# SPDX-License-Identifier: Apache-2.0
"""What happens to connections between two readings of the table: a ring of events, and exact totals."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from nettop.kernel import bpf, maps
from nettop.kernel.facts import Host
from nettop.kernel.hook_check import HookCheck
from nettop.kernel.mechanisms import ChosenMechanisms
from nettop.kernel.processes import Processes
from nettop.kernel.program import Loader, Program
from nettop.kernel.ring import Ring
from nettop.probes.connections.event_hooks import EventHooks
from nettop.probes.connections.event_records import (
    ACCEPT,
    CLOSE,
    EVENT,
    HOST_TOTALS,
    TELLERS,
    is_failure,
    set_reasons,
)
from nettop.probes.connections.failures import Failures
from nettop.probes.connections.process_totals import ProcessTotals
from nettop.probes.connections.socket_rows import ROW
from nettop.snapshots.arrays import Index, Mask, joined, positions, take
from nettop.snapshots.connections import EVENTS
from nettop.snapshots.snapshot import Array, HookStatus, Rows, known, unknown_value

PENDING_MAX = 1 << 16
"""Accepted connections that may wait for their owner; more than these are told without it."""

_COUNTED = ("connected", "accepted", "closed", "failed")
_CLOCK_TOLERANCE_NS = 5_000_000
_IN_BACKLOG_NS = 20_000_000
"""So young a connection may be about to be accepted: the next reading will know by whom."""
UNOWNED_MAX = 4096
"""Connections in accept queues that are followed until somebody accepts them."""
_OWNER = ("pid", "start_time", "css_set", "comm", "owner_source")
_NO_EVENTS = np.zeros(0, EVENT)


@dataclass(frozen=True, slots=True)
class Told:
    """What a snapshot says of the events: exact totals since the start, what is missing, which hooks tell, and
    what could not be done otherwise."""

    counts: dict[str, int]
    lost: dict[str, int]
    hooks: tuple[HookStatus, ...]
    gaps: dict[str, str] = field(default_factory=dict)


class ConnectionEvents:
    """Events as the kernel tells them, with owners and names, each once.

    An accepted connection belongs to nobody when it opens. Its event waits for its end, or for the next reading
    of the table (`settle`), but no longer. With `followed`, a PID, only what that process and those that it
    begins connect to, fail to, and close is told. `clock` is the map that turns boot time into wall time, None for
    the program's own. `asked` names ways in place of the best ones; in `room` each is
    tried out.
    """

    def __init__(
        self,
        program: Program,
        clock: int | None,
        totals: ProcessTotals,
        *,
        loader: Loader,
        asked: ChosenMechanisms,
        room: HookCheck | None,
        ring_bytes: int,
        host: Host,
        followed: int | None = None,
    ) -> None:
        self._program = program
        self._clock = program.maps["boot_to_wall"] if clock is None else clock
        self._totals = totals
        self._rows = np.zeros(0, ROW)
        self._unowned: Array = np.zeros(0, np.uint64)
        self._offset = self._lost = self._missed = 0
        self._set_clock()  # as all that the programs read, before the first event
        if followed is not None:
            bpf.set_element(program.maps["followed"], followed.to_bytes(4, sys.byteorder), b"\1")
        self._hooks = EventHooks(program, loader, asked, room)
        self._ring = Ring(program.maps["events"], ring_bytes, EVENT)
        self._processes = Processes(host)
        self._groups: dict[int, str] = {}
        self._pending = self._ready = _NO_EVENTS
        self._next_id = 1
        self._readings = 0
        self._followed = followed
        self.failures = Failures()
        totals.begin(program)

    def shed(self) -> str | None:
        """Leave out what costs the most, and say what; None when nothing is left."""
        return self._hooks.shed()

    def restore(self) -> str | None:
        """Attach again what was left out last, and say what; None where there is nothing, or the kernel refuses."""
        return self._hooks.restore()

    def close(self) -> None:
        """Detach; a second call does nothing."""
        self._hooks.close()
        self._ring.close()
        self._program.close()

    def told(self) -> Told:
        """What a snapshot says of the events now."""
        if not self._hooks.works:
            self._totals.forget_orphans()
            return Told({}, {}, self._hooks.hooks(), self._hooks.gaps)
        skipped = (
            self._hooks.skipped()
        )  # before the totals, so that it is never more than what was stood in for
        host = self._program.maps["host"]
        parts = [maps.read_per_cpu(host, teller, HOST_TOTALS) for teller in range(len(TELLERS))]
        totals = {name: sum(int(by_cpu[name].sum()) for by_cpu in parts) for name in HOST_TOTALS.names or ()}
        self._missed = max(self._missed, skipped - totals["stood_in"])
        lost = {
            "events": totals["dropped"] + totals["untold"] + self._missed,
            "lives": totals["untracked"],
            "process totals": totals["uncredited"],
            "failure groups": self.failures.lost,
            "followed processes": totals["unfollowed"],
        }
        if lost["events"] != self._lost:
            self._lost = lost["events"]
            self._totals.forget_orphans()
            self._unowned = self._unowned[:0]
        return Told({name: totals[name] for name in _COUNTED}, lost, self._hooks.hooks(), self._hooks.gaps)

    # --- events -------------------------------------------------------------------------------------------

    def wakeups(self) -> tuple[int, ...]:
        """Descriptors that become readable when there are events."""
        return (self._ring.descriptor,) if self._hooks.works else ()

    def begin_reading(self) -> int:
        """Take what the ring has before the table is read; what comes later is newer than the time returned, wall
        time by the events' clock."""
        self.collect()
        return self.now()

    def now(self) -> int:
        """Wall time by the events' clock."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) + self._offset

    def _set_clock(self) -> None:
        """Tell the programs what the wall clock says, at the start and when somebody has set it since.

        Small corrections are left out, so that a connection's opening goes on to be what it was.
        """
        offset = _boot_to_wall_ns()
        if abs(offset - self._offset) > _CLOCK_TOLERANCE_NS:
            self._offset = offset
            bpf.set_element(self._clock, bytes(4), offset.to_bytes(8, sys.byteorder))

    def collect(self) -> None:
        """Take what the ring has. Accepted connections without an owner wait, unless they have ended too."""
        came = self._ring.read()
        if not len(came):
            return
        set_reasons(came)
        self._totals.add(came[came["is_uncredited"] == 1])
        self._own_by_table(came)
        self.failures.add(came[is_failure(came)])
        ended = _sorted_by_id(came[came["event"] >= CLOSE])
        self._totals.end(ended)
        self._unowned = self._unowned[positions(self._unowned, ended["id"]) < 0]
        if self._followed is not None:
            came = came[(came["is_followed"] == 1) & (came["event"] != ACCEPT)]
        nameless = (came["event"] == ACCEPT) & ~known(came["pid"])
        waiting = joined(self._pending, came[nameless])
        at = positions(waiting["id"], ended["id"])
        _give_owners(waiting, ended, at)
        told = at >= 0
        told[: max(0, len(waiting) - PENDING_MAX)] = True
        self._pending = waiting[~told]
        self._ready = joined(self._ready, waiting[told], came[~nameless])

    def _own_by_table(self, came: Array) -> None:
        """Give what ended without an owner the one that the last reading of the table found."""
        ownerless = np.flatnonzero((came["event"] >= CLOSE) & ~known(came["pid"]))
        if len(ownerless):
            ended = came[ownerless]
            _give_owners(ended, self._rows, positions(ended["id"], self._rows["id"]))
            came[ownerless] = ended
            self._totals.move(ended[known(ended["pid"])])

    def settle(self, rows: Array, read_at: int, groups: Mapping[int, str]) -> None:
        """Give what waits the owners that a reading of the table found: `rows`, sorted by id.

        `read_at` is what `begin_reading` said; `groups` are the control groups of the processes in it, by css_set.
        """
        self._set_clock()
        self._rows, self._groups = rows, dict(groups)
        waiting = self._pending
        _give_owners(waiting, rows, positions(waiting["id"], rows["id"]))
        told = known(waiting["pid"]) | (waiting["time"] < read_at - _IN_BACKLOG_NS)
        self._pending = waiting[~told]
        self._ready = joined(self._ready, waiting[told])
        self._note_reading(waiting["id"][told])

    def _note_reading(self, accepted: Array) -> None:
        """Tell the programs that the table was read, and whether accepted connections still have no owner.

        Those wait in a queue of their listener, which not every reading walks: they are followed to their end.
        """
        self._readings += 1
        ids = np.concatenate([self._unowned, accepted])
        at = positions(ids, self._rows["id"])
        owned = at >= 0
        owned[owned] = known(self._rows["pid"][at[owned]])
        self._unowned = ids[~owned][-UNOWNED_MAX:]
        waiting = len(self._unowned) + len(self._pending)
        for index, number in ((0, self._readings), (2, waiting)):
            key, value = (n.to_bytes(size, sys.byteorder) for n, size in ((index, 4), (number, 8)))
            bpf.set_element(self._program.maps["readings"], key, value)

    def drain(self, taken_ns: int) -> Rows | None:
        """The events that can be told now, in the order in which they happened; None when there are none."""
        self.collect()
        if not len(self._ready):
            return None
        events = take(self._ready, np.argsort(self._ready["time"], kind="stable"))
        self._ready = _NO_EVENTS
        self._name(events)
        events["reason"][events["event"] < CLOSE] = unknown_value(events["reason"].dtype)
        events["event_id"] = np.arange(self._next_id, self._next_id + len(events), dtype=np.uint64)
        self._next_id += len(events)
        return Rows(EVENTS, events, self._processes.texts(), taken_ns)

    def _name(self, events: Array) -> None:
        """Set the texts of the rows that have an owner."""
        owned = np.flatnonzero(known(events["pid"]))
        order = owned[np.lexsort((events["start_time"][owned], events["pid"][owned]))]
        rows = take(events, order)
        self._processes.name(rows, self._groups)
        for name in ("process", "cgroup", "container"):
            events[name][order] = rows[name]


def _boot_to_wall_ns() -> int:
    """Wall time less boot time, by the quickest of a few pairs of readings."""
    pairs = []
    for _ in range(5):
        begun = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        wall = time.time_ns()
        took = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - begun
        pairs.append((took, wall - begun - took // 2))
    return min(pairs)[1]


def _give_owners(events: Array, owned: Array, at: Index) -> None:
    """Copy the owners of the rows `owned` at these positions (−1: none) to the events."""
    found: Mask = at >= 0
    found[found] = known(owned["pid"][at[found]])
    for name in _OWNER:
        events[name][found] = owned[name][at[found]]


def _sorted_by_id(rows: Array) -> Array:
    return take(rows, np.argsort(rows["id"], kind="stable"))
