# SPDX-License-Identifier: Apache-2.0
"""The connections probe: the kernel's socket table with owner processes, and the events between two readings of it.

The table comes from BPF iterators (socket_table.py); where these are not available, or not to this user, from
sock_diag and /proc (sock_diag_table.py).
"""

from __future__ import annotations

import select
import time
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from nettop.errors import NettopError, PermissionMissing, SourceFailed, Unsupported, refusal
from nettop.kernel.entered_namespaces import shared_namespaces
from nettop.kernel.facts import Host
from nettop.kernel.hook_check import HookCheck
from nettop.kernel.mechanisms import (
    ChosenMechanisms,
    Fallbacks,
    Mechanism,
    Refused,
    SwitchedOff,
    attach_best,
    check_chosen,
)
from nettop.kernel.privileges import LOOKING, NOTHING
from nettop.kernel.processes import user_name
from nettop.kernel.program import Loader, Program
from nettop.probes.connections.answers import put_answers
from nettop.probes.connections.ended import EndedSockets, mark_new
from nettop.probes.connections.event_hooks import FALLBACKS
from nettop.probes.connections.events import ConnectionEvents, EventsStatus
from nettop.probes.connections.groups import SocketGroups
from nettop.probes.connections.hooks import unavailable
from nettop.probes.connections.programs import events_text, table_text, udp_text
from nettop.probes.connections.sock_diag_table import SOCK_DIAG, DiagTable
from nettop.probes.connections.socket_rows import (
    NO_USERS,
    ROW,
    find_limits,
    infer_directions,
    name_congestion_control,
)
from nettop.probes.connections.socket_table import OWNED_MECHANISM, UNATTRIBUTED_MECHANISM, WALKS, SocketTable
from nettop.probes.connections.udp import UDP_FALLBACKS, UdpTotals
from nettop.snapshots.connections import (
    COUNT_UDP,
    FAILURES,
    GROUP,
    GROUPS,
    HOOK_OPENED,
    HOOK_SOCKETS,
    HOOK_UNATTRIBUTED,
    LENS,
    RING_SIZE,
    SOCKETS,
    WITHOUT_GROUP,
    WITHOUT_LISTING,
)
from nettop.snapshots.hooks import HookStatus
from nettop.snapshots.services import LENS as SERVICES
from nettop.snapshots.snapshot import NOT_WHOLE_YET, Array, Ended, Rows, Snapshot, known, sum_of
from nettop.snapshots.source import WHOLE

TABLES = Fallbacks(HOOK_SOCKETS, (Mechanism(OWNED_MECHANISM, WALKS), Mechanism(SOCK_DIAG)))
_OPENED = Fallbacks(HOOK_OPENED, (Mechanism(OWNED_MECHANISM),))
UNATTRIBUTED = Fallbacks(
    HOOK_UNATTRIBUTED, (Mechanism(UNATTRIBUTED_MECHANISM, WALKS[1:]), Mechanism(SOCK_DIAG))
)


def make_probe() -> Connections:
    """The probe of this lens."""
    return Connections()


class Connections:
    """The source of the connections lens; see nettop.snapshots.source.EventSource.

    The events and the counting of UDP are attached a moment after the start: the first table need not wait for their
    compilation, unless it is not of sockets or begins an interval that has to be whole. Options: `all_rows` lists
    TIME_WAIT sockets too, which are otherwise only counted; `table` names a table that somebody looks at; `whole`,
    `ring_size`, `udp`, `follow` (a PID) and `mechanisms` (see kernel.mechanisms) are read at the start.
    """

    def __init__(self, host: Host | None = None) -> None:
        self._host = host or Host()
        self._options: dict[str, object] = {}
        self._tables: set[str] = set()
        self._table: SocketTable | DiagTable | None = None
        self._loader: Loader | None = None
        self._events: ConnectionEvents | None = None
        self._check: HookCheck | None = None
        self._programs: list[Program] = []
        self._table_hooks: tuple[HookStatus, ...] = ()
        self._no_events: tuple[HookStatus, ...] = ()
        self._ended = EndedSockets()
        self._groups = SocketGroups()
        self._udp: UdpTotals | None = None
        self._no_udp: tuple[HookStatus, ...] = ()
        self._services: Snapshot | None = None
        self._last: Array = np.zeros(0, ROW)
        self._last_ns = 0
        self._whole_since_ns = 0

    @property
    def table(self) -> SocketTable | DiagTable:
        """The socket table. Raises SourceFailed before the start."""
        if self._table is None:
            raise SourceFailed("the connections probe is not attached")
        return self._table

    def start(self) -> None:
        """Attach the best mechanism for the table, and have the events compiled.

        Raises UsageError for an unknown mechanism, and NettopError where none works for the table.
        """
        check_chosen((TABLES, UNATTRIBUTED, _OPENED, *FALLBACKS, UDP_FALLBACKS), self._chosen)
        hook = attach_best(TABLES, self._take_table, self._chosen)
        if self._table is None:
            raise refusal(
                hook.code,
                f"no mechanism lists the sockets: {hook.why}",
                hook.remedy or "nettop doctor says what is in the way",
            )
        unattributed = attach_best(UNATTRIBUTED, self._require_unattributed, self._chosen)
        self._table.lists_unattributed = unattributed.mechanism is not None
        self._table_hooks = (hook, unattributed, attach_best(_OPENED, self._require_opened, self._chosen))
        self._table.list_all(bool(self._options.get("all_rows")))
        if self._loader is None:
            self._load_events_alone()
        if self._check is not None:
            self._check.wait_until_entered()  # while nettop has the privilege
        # What refused the better table may refuse the events too: then the first screen says so.
        is_alone = isinstance(self._table, DiagTable)
        if (
            is_alone
            or self._options.get(WHOLE)
            or self._followed is not None
            or self._tables - {SOCKETS.name}
        ):
            self._attach_all()

    def _take_table(self, mechanism: Mechanism) -> None:
        """Read the table by this mechanism, or raise why it is not available."""
        if mechanism.name == SOCK_DIAG:
            self._table = DiagTable(self._host, shared_namespaces(self._host.proc))
            return
        loader = self._begin_to_load()
        loader.request(table_text())
        loader.request(events_text(self._ring_bytes, self._followed))
        try:
            self._table = SocketTable(self._answer(loader), self._host)
        except NettopError:
            self._stop_loading()
            raise

    def _require_unattributed(self, mechanism: Mechanism) -> None:
        """Raise Refused for a mechanism that does not fit the one of the table."""
        if isinstance(self.table, DiagTable) != (mechanism.name == SOCK_DIAG):
            raise Refused("the table uses another mechanism")

    def _require_opened(self, _: Mechanism) -> None:
        if isinstance(self.table, DiagTable):
            raise Refused("sock_diag does not say when a socket was opened")

    def _load_events_alone(self) -> None:
        """Have the events compiled without the walks, whose tables they share otherwise."""
        try:
            loader = self._begin_to_load()
            loader.request(events_text(self._ring_bytes, self._followed, alone=True))
        except (Unsupported, PermissionMissing) as error:
            if self._followed is not None:
                raise
            self._no_events = unavailable(FALLBACKS, error)
            self._no_udp = unavailable((UDP_FALLBACKS,), error)

    def _begin_to_load(self) -> Loader:
        """Start the loader, and the hook check, which is ready by the time the loader answers."""
        self._host.require_bpf()
        self._loader, self._check = Loader(), HookCheck()
        return self._loader

    def _stop_loading(self) -> None:
        if self._loader is not None:
            self._loader.close()
            self._loader = None
            self._whole_since_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self._end_check()

    def _answer(self, loader: Loader) -> Program:
        """The loader's next program, remembered so that its cost is measured."""
        self._programs.append(loader.answer())
        return self._programs[-1]

    @property
    def _ring_bytes(self) -> int:
        return int(str(self._options.get(RING_SIZE.name, RING_SIZE.default)))

    @property
    def _followed(self) -> int | None:
        pid = self._options.get("follow")
        return None if pid is None else int(str(pid))

    @property
    def _chosen(self) -> ChosenMechanisms:
        chosen = self._options.get("mechanisms", {})
        assert isinstance(chosen, Mapping)
        return chosen

    def _attach_all(self) -> None:
        """Wait for what is still being compiled, and attach it."""
        while self._loader is not None:
            self._attach_next(self._loader)

    def _attach_next(self, loader: Loader) -> None:
        """Wait for the loader's next answer, and attach those programs."""
        if self._events or self._no_events:
            self._attach_udp(loader)
        else:
            self._attach_events(loader)

    def _attach_events(self, loader: Loader) -> None:
        """Wait for the events' programs and attach them; except for a command, nettop goes on without. Only then is the
        counting of UDP compiled: the events may ask the loader for probes, for which no answer may be pending."""
        try:
            program = self._answer(loader)
            self._events = ConnectionEvents(
                program,
                self.table.shared,
                self._ended,
                loader=loader,
                chosen=self._chosen,
                check=self._check,
                ring_bytes=self._ring_bytes,
                host=self._host,
                followed=self._followed,
            )
        except NettopError as error:
            if self._followed is not None:
                raise  # events are all there is to report of a command
            self._no_events = unavailable(FALLBACKS, error)
        try:
            if self._options.get(COUNT_UDP.name) == "off":
                raise SwitchedOff("switched off by --udp off", "leave out --udp off")
            loader.request(udp_text(follows=self._followed is not None and self._events is not None))
        except NettopError as error:
            self._no_udp = unavailable((UDP_FALLBACKS,), error)
            self._end_attaching()

    def _attach_udp(self, loader: Loader) -> None:
        """Wait for the programs that count UDP, and attach them; without them UDP is not counted."""
        try:
            program = self._answer(loader)
            self._udp = UdpTotals(program, loader=loader, chosen=self._chosen, check=self._check)
        except NettopError as error:
            self._no_udp = unavailable((UDP_FALLBACKS,), error)
        self._end_attaching()

    def _end_attaching(self) -> None:
        """Everything is attached that can be: the loader and the hook check are not needed any more."""
        for attached in (self._events, self._udp):
            if attached is not None:
                attached.finish_hooks()
        self._stop_loading()

    def _end_check(self) -> None:
        if self._check is not None:
            self._check.close()
            self._check = None

    def read(self, taken_ns: int) -> Snapshot:
        """Every socket there is now."""
        if GROUPS.name in self._tables:
            self._attach_all()  # groups have what was counted since they began
        table, events = self.table, self._events
        read_at = events.begin_reading() if events else 0
        users = events.users.read() if events else NO_USERS
        rows, counts, taken_ns = table.read(self._last, users)
        if events:
            events.users.watch(table.held_by_several, rows)
        udp_ended = rows[:0]
        if self._udp:
            rows, udp_ended = self._udp.read(rows, self._last, table.processes)
        infer_directions(rows)
        name_congestion_control(rows)
        find_limits(rows, self._last, (taken_ns - self._last_ns) / 1e3)
        put_answers(rows, self._services)
        self._last, self._last_ns = rows, taken_ns
        if events:
            events.add_reading(rows, read_at, table.processes.groups())
        status = events.status() if events else EventsStatus({}, {}, self._no_events)
        if events and events.works:
            events.collect()  # what has ended while the table was read
            rows = self._ended.follow(rows)
        untracked = self._udp.untracked if self._udp else {}
        ended = self._ended.read(udp_ended, untracked, table.processes, table.namespaces, taken_ns)
        mark_new(rows)
        if table.lists_unattributed:
            counts["unattributed"] = int(np.count_nonzero(~known(rows["pid"]) & ~known(rows["process"])))
        sockets = Rows(SOCKETS, rows, table.processes.texts(), taken_ns)
        tables, left = {SOCKETS.name: table.namespaces.with_names(sockets)}, {SOCKETS.name: ended}
        if FAILURES.name in self._tables and events:
            tables[FAILURES.name] = table.namespaces.with_names(events.failures.rows(taken_ns))
            left[FAILURES.name] = events.failures.ended(taken_ns)
        lost = {
            "namespaces": table.lost_namespaces,
            "processes": table.processes.vanished,
            WITHOUT_LISTING: self._ended.not_listed,
        }
        udp = self._udp.status() if self._udp else EventsStatus({}, {}, self._no_udp)
        snapshot = Snapshot(
            lens=LENS.id,
            wall_ns=time.time_ns(),
            boot_ns=time.clock_gettime_ns(time.CLOCK_BOOTTIME),
            tables=tables,
            counts=counts | _moved(rows, ended) | status.counts | udp.counts,
            lost=lost | status.lost | udp.lost,
            hooks=(*self._table_hooks, *status.hooks, *udp.hooks),
            gaps=table.gaps() | status.gaps | udp.gaps,
            ended=left,
            whole_since_ns=NOT_WHOLE_YET if self._loader is not None else self._whole_since_ns,
        )
        return self._with_groups(snapshot) if GROUPS.name in self._tables else snapshot

    def join(self, snapshots: Mapping[str, Snapshot]) -> None:
        """See nettop.snapshots.source.JoiningSource."""
        self._services = snapshots.get(SERVICES.id)

    def _with_groups(self, snapshot: Snapshot) -> Snapshot:
        rows, ended = self._groups.read(snapshot, self._ended.events)
        return replace(
            snapshot,
            tables={**snapshot.tables, GROUPS.name: rows},
            ended={**snapshot.ended, GROUPS.name: ended},
            lost={**snapshot.lost, WITHOUT_GROUP: self._groups.without_row},
        )

    def wakeups(self) -> tuple[int, ...]:
        """The ring of events, and the loader while its answer is awaited."""
        loading = (self._loader.descriptor,) if self._loader else ()
        return (*loading, *self._events.wakeups()) if self._events else loading

    def is_filling(self) -> bool:
        """Whether the ring of events may be full before long."""
        return self._events is not None and self._events.is_filling()

    def drain(self, taken_ns: int) -> tuple[Rows, ...]:
        """The events that have become ready since the last call."""
        if self._loader is not None and select.select([self._loader.descriptor], [], [], 0)[0]:
            self._attach_next(self._loader)
        events = self._events.drain(taken_ns) if self._events else None
        return () if events is None else (self.table.namespaces.with_names(events),)

    def set(self, option: str, value: object) -> None:
        """Change an option; see the class."""
        self._options[option] = value
        if option == "table":
            self._tables.add(str(value))
        if option == GROUP.name:
            self._groups.choose(str(value))
        if option == "all_rows" and self._table is not None:
            self._table.list_all(bool(value))

    def describe(self, key: int) -> dict[str, str]:
        """The processes that hold the socket, as far as they may be seen, and its user's name."""
        row = self._last[self._last["id"] == key]
        if not len(row):
            return {}
        descriptors = self.table.descriptors(row)
        if not descriptors and known(row["process"]).all() and not known(row["pid"]).any():
            owners = {"Held by": "a process that may not be looked at from here"}
        else:
            owners = self.table.processes.describe(descriptors)
        return owners | {"User": user_name(int(row["uid"][0]))}

    def rights(self) -> frozenset[int]:
        """What reading needs; see nettop.snapshots.source.PrivilegedSource."""
        return LOOKING if isinstance(self._table, DiagTable) else NOTHING

    def programs(self) -> Mapping[str, tuple[int, int]]:
        """What the programs cost; see nettop.snapshots.source.MeasuredSource."""
        return {name: runs for program in self._programs for name, runs in program.runs().items()}

    def kernel_bytes(self) -> int:
        """What the programs and their maps take of the kernel's memory."""
        return sum(program.kernel_bytes() for program in self._programs)

    def close(self) -> None:
        """Detach and leave every namespace; a second call does nothing."""
        self._stop_loading()
        if self._events is not None:
            self._events.close()
            self._events = None
        if self._udp is not None:
            self._udp.close()
            self._udp = None
        if self._table is not None:
            self._table.close()
            self._table = None


def _moved(rows: Array, ended: Ended) -> dict[str, int]:
    """What open sockets have sent and received, and those that ended since nettop began."""
    return {
        name: sum_of(rows[name]) + sum_of(ended.total.array[name])
        for name in ("bytes_sent", "bytes_received")
    }
