# SPDX-License-Identifier: Apache-2.0
"""The connections probe: the kernel's socket table with owner processes, and the events between two readings of it.

The table comes from BPF iterators (socket_table.py), or from sock_diag and /proc (sock_diag_table.py) where iterators
are unavailable or not permitted.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from nettop.errors import NettopError, PermissionMissing, Unsupported, refusal
from nettop.kernel.bpf.mechanisms import DisabledByUser, Fallbacks, Mechanism, Refused, check_chosen
from nettop.kernel.bpf.program import Loader, Program
from nettop.kernel.bpf.program_text import ProgramText
from nettop.kernel.host.facts import Host
from nettop.kernel.host.privileges import FINDING_NAMESPACES, NOTHING
from nettop.kernel.host.processes import user_name
from nettop.kernel.net.entered_namespaces import shared_namespaces
from nettop.kernel.net.hook_check import HookCheck
from nettop.probes.connections import socket_rows
from nettop.probes.connections.bound import RowBound, rows_within
from nettop.probes.connections.ended import EndedSockets, mark_begun
from nettop.probes.connections.events import ConnectionEvents, EventsStatus
from nettop.probes.connections.groups import SocketGroups
from nettop.probes.connections.hooks import BY_MESSAGES, FALLBACKS, unavailable
from nettop.probes.connections.programs import events_text, table_text, udp_text
from nettop.probes.connections.sock_diag_table import SOCK_DIAG, DiagTable
from nettop.probes.connections.socket_table import OWNED_MECHANISM, UNATTRIBUTED_MECHANISM, WALKS, SocketTable
from nettop.probes.connections.udp import UDP_BY_MESSAGES, UDP_FALLBACKS, UdpTotals
from nettop.probes.probe import Probe
from nettop.process.clocks import monotonic_ns
from nettop.reading import has_data
from nettop.snapshots import connections as spec
from nettop.snapshots.arrays import Array, take_rows
from nettop.snapshots.hooks import HookStatus
from nettop.snapshots.services import LENS as SERVICES
from nettop.snapshots.snapshot import NOT_COMPLETE_YET, Ended, Frame, Rows, Snapshot, clocks, known, sum_of
from nettop.snapshots.source import SourceOptions

TABLES = Fallbacks(spec.HOOK_SOCKETS, (Mechanism(OWNED_MECHANISM, WALKS), Mechanism(SOCK_DIAG)))
_OPENED = Fallbacks(spec.HOOK_OPENED, (Mechanism(OWNED_MECHANISM),))
UNATTRIBUTED = Fallbacks(
    spec.HOOK_UNATTRIBUTED, (Mechanism(UNATTRIBUTED_MECHANISM, WALKS[1:]), Mechanism(SOCK_DIAG))
)


def make_probe(host: Host | None = None) -> Connections:
    """Return the probe of this lens."""
    return Connections(host)


class Connections(Probe):
    """The source of the connections lens; see nettop.snapshots.source.EventSource.

    Events and UDP counting are attached after the first table, so that it need not wait for their compilation. They are
    attached before it if it is not a table of sockets or starts an interval that must be complete. TIME_WAIT sockets
    are only counted unless all rows are wanted. Groups are counted from the first reading after everything has been
    attached.
    """

    lens = spec.LENS

    def __init__(self, host: Host | None = None) -> None:
        super().__init__(host)
        self._table: SocketTable | DiagTable | None = None
        self._loader: Loader | None = None
        self._attaching: Iterator[None] = iter(())
        self._events: ConnectionEvents | None = None
        self._check: HookCheck | None = None
        self._table_hooks: tuple[HookStatus, ...] = ()
        self._no_events: tuple[HookStatus, ...] = ()
        self._ended = EndedSockets()
        self._bound: RowBound | None = None
        self._groups = SocketGroups()
        self._udp: UdpTotals | None = None
        self._no_udp: tuple[HookStatus, ...] = ()
        self._services: Snapshot | None = None
        self._last = Rows(spec.SOCKETS, np.zeros(0, socket_rows.ROW), {}, 0)
        self._closed: Array = self._last.array  # with counters, which rows of sockets in CLOSE do not show
        self._whole_since_ns = 0

    @property
    def table(self) -> SocketTable | DiagTable:
        """The socket table. Raise SourceFailed before the start."""
        return self._table or self._required(None)

    def texts(self) -> tuple[ProgramText, ...]:
        """Return the texts of the table, events and UDP counting, and those that follow the processes of a command."""
        ring_bytes = spec.RING_SIZE.default
        return (
            table_text(),
            events_text(ring_bytes, None),
            udp_text(),
            events_text(ring_bytes, os.getpid()),
            udp_text(follows=True),
        )

    def start(self) -> None:
        """Attach the best mechanism for the table, and start compiling the events.

        Raise UsageError for an unknown mechanism, and NettopError if none works for the table.
        """
        check_chosen((TABLES, UNATTRIBUTED, _OPENED, *FALLBACKS, UDP_FALLBACKS), self._options.mechanisms)
        hook = self._attach_best(TABLES, self._take_table)
        if self._table is None:
            raise refusal(
                hook.code,
                f"no mechanism lists the sockets: {hook.why}",
                hook.remedy or "nettop doctor shows the cause",
            )
        unattributed = self._attach_best(UNATTRIBUTED, self._require_unattributed)
        self._table.lists_unattributed = unattributed.mechanism is not None
        self._table_hooks = (hook, unattributed, self._attach_best(_OPENED, self._require_opened))
        self._table.list_all(self._options.all_rows)
        if self._loader is None:
            self._request_events_alone()
        if self._check is not None:
            self._check.wait_until_entered()  # while nettop still has the privilege
        # What prevented the better table may prevent the events too: report both on the first screen.
        without_bpf = isinstance(self._table, DiagTable)
        options = self._options
        if without_bpf or options.whole or options.follow is not None or options.tables - {spec.SOCKETS.name}:
            for _ in self._attaching:
                pass

    def _take_table(self, mechanism: Mechanism) -> None:
        """Read the table by this mechanism, or raise the reason why it is unavailable."""
        if mechanism.name == SOCK_DIAG:
            self._table = DiagTable(self._host, shared_namespaces(self._host))
            return
        loader = self._start_loader()
        loader.request(table_text())
        loader.request(events_text(self._options[spec.RING_SIZE], self._options.follow))
        try:
            self._table = SocketTable(self._next_program(loader), self._host)
        except NettopError:
            self._stop_loading()
            raise

    def _require_unattributed(self, mechanism: Mechanism) -> None:
        """Raise Refused unless the mechanism is the one used for the table."""
        if isinstance(self.table, DiagTable) != (mechanism.name == SOCK_DIAG):
            raise Refused("the table uses another mechanism")

    def _require_opened(self, _: Mechanism) -> None:
        if isinstance(self.table, DiagTable):
            raise Refused("sock_diag does not report when a socket was opened")

    def _request_events_alone(self) -> None:
        """Start compiling the events without the walks, whose maps they otherwise share."""
        try:
            loader = self._start_loader()
            loader.request(events_text(self._options[spec.RING_SIZE], self._options.follow))
        except (Unsupported, PermissionMissing) as error:
            if self._options.follow is not None:
                raise
            self._no_events = unavailable(FALLBACKS, error)
            self._no_udp = unavailable((UDP_FALLBACKS,), error)

    def _start_loader(self) -> Loader:
        """Start the loader and the hook check, which is ready by the time the loader answers."""
        self._host.require_bpf()
        self._loader, self._check = Loader(), HookCheck()
        self._attaching = self._attach_rest(self._loader)
        return self._loader

    def _stop_loading(self) -> None:
        self._attaching = iter(())
        if self._loader is not None:
            self._loader.close()
            self._loader = None
            self._whole_since_ns = clocks(monotonic_ns())[1]
        if self._check is not None:
            self._check.close()
            self._check = None

    def _next_program(self, loader: Loader) -> Program:
        """Return the loader's next program, and remember it so that its cost is measured."""
        self._programs.append(loader.answer())
        return self._programs[-1]

    def _attach_rest(self, loader: Loader) -> Iterator[None]:
        """Attach the programs that are still compiling: wait for the loader's next response, attach, and yield.

        UDP counting is compiled only after the events: these may ask the loader for probes, for which no response may
        be pending.
        """
        self._attach_events(loader)
        try:
            if self._options[spec.COUNT_UDP] == "off":
                raise DisabledByUser("switched off by --udp off", "remove --udp off")
            events = self._events.hooks if self._events else None
            sets_owners = events is not None and events.has(BY_MESSAGES)
            follows = events is not None and self._options.follow is not None
            loader.request(udp_text(sets_owners=sets_owners, follows=follows))
            yield
            program = self._next_program(loader)
            self._udp = UdpTotals(program, loader=loader, chosen=self._options.mechanisms, check=self._check)
            if events and sets_owners and self._udp.hooks.has(UDP_BY_MESSAGES):
                events.detach(BY_MESSAGES)
        except NettopError as error:
            self._no_udp = unavailable((UDP_FALLBACKS,), error)
        for attached in (self._events, self._udp):
            if attached is not None:
                attached.hooks.finish()
        self._stop_loading()

    def _attach_events(self, loader: Loader) -> None:
        """Attach the events. If that fails, go on without them, except when following a command: they are all there is
        to report."""
        try:
            self._events = ConnectionEvents(
                self._next_program(loader),
                self.table.shared,
                self._ended,
                loader=loader,
                chosen=self._options.mechanisms,
                check=self._check,
                ring_bytes=self._options[spec.RING_SIZE],
                host=self._host,
                processes=self.table.processes,
                followed=self._options.follow,
            )
        except NettopError as error:
            if self._options.follow is not None:
                raise
            self._no_events = unavailable(FALLBACKS, error)

    def read(self, taken_ns: int) -> Snapshot:
        """Return all current sockets."""
        table, events = self.table, self._events
        read_at = events.begin_reading() if events else 0
        users = events.users.read() if events else socket_rows.NO_USERS
        rows, names, counts, taken_ns = table.read(self._last.array, users)
        if events:
            events.users.watch(table.held_by_several, rows)
        udp_ended = rows[:0]
        if self._udp:
            rows, udp_ended = self._udp.read(rows, self._last, names)
        socket_rows.infer_directions(rows)
        socket_rows.name_congestion_control(rows)
        for before in (self._last.array, self._closed):
            socket_rows.find_limits(rows, before, (taken_ns - self._last.taken_ns) / 1e3)
        self._closed = take_rows(rows, socket_rows.is_closed(rows))
        socket_rows.set_responses(rows, self._services)
        self._last = Rows(spec.SOCKETS, rows, names.texts(), taken_ns)
        if events:
            events.add_reading(rows, read_at)
        status = events.status() if events else EventsStatus({}, {}, self._no_events)
        if events and events.works:
            events.collect()  # connections that ended while the table was read
            rows = self._ended.follow(rows, names)
        mark_begun(rows)
        if table.lists_unattributed:
            counts["unattributed"] = int(np.count_nonzero(~known(rows["pid"]) & ~known(rows["process"])))
        bound = self._bound = self._bound or RowBound(rows_within(self._options[spec.MAX_MEMORY]))
        rows = bound.choose(rows)
        untracked = Counter(self._udp.untracked if self._udp else {})
        untracked.update(bound.sums)
        ended = self._ended.read(
            udp_ended, untracked, names, table.namespaces, taken_ns, without_row=bound.hidden
        )
        sockets = Rows(spec.SOCKETS, rows, names.texts(), taken_ns)
        tables, left = {spec.SOCKETS.name: table.namespaces.with_names(sockets)}, {spec.SOCKETS.name: ended}
        if spec.FAILURES.name in self._options.tables and events:
            tables[spec.FAILURES.name] = events.failures.rows(table.namespaces, taken_ns)
            left[spec.FAILURES.name] = events.failures.ended(table.namespaces, taken_ns)
        lost = {
            "namespaces": table.lost_namespaces,
            "processes": table.processes.vanished,
            spec.WITHOUT_LISTING: self._ended.not_listed,
            spec.WITHOUT_ROW: bound.found,
        }
        udp = self._udp.status() if self._udp else EventsStatus({}, {}, self._no_udp)
        snapshot = Snapshot(
            spec.LENS.id,
            *clocks(taken_ns),
            tables=tables,
            counts=counts | _sum_bytes(rows, ended) | status.counts | udp.counts,
            lost=lost | status.lost | udp.lost,
            hooks=(*self._table_hooks, *status.hooks, *udp.hooks),
            gaps=table.gaps() | status.gaps | udp.gaps,
            ended=left,
            complete_since_ns=NOT_COMPLETE_YET if self._loader is not None else self._whole_since_ns,
        )
        # Groups count from their start, so they start once everything has been attached.
        has_groups = spec.GROUPS.name in self._options.tables and self._loader is None
        return self._with_groups(snapshot) if has_groups else snapshot

    def join(self, frames: Mapping[str, Frame]) -> None:
        """See nettop.snapshots.source.JoiningSource."""
        frame = frames.get(SERVICES.id)
        self._services = None if frame is None else frame.now

    def _with_groups(self, snapshot: Snapshot) -> Snapshot:
        rows, ended = self._groups.read(snapshot, self._ended.events)
        return replace(
            snapshot,
            tables={**snapshot.tables, spec.GROUPS.name: rows},
            ended={**snapshot.ended, spec.GROUPS.name: ended},
            lost={**snapshot.lost, spec.WITHOUT_GROUP: self._groups.without_row},
        )

    def wakeups(self) -> tuple[int, ...]:
        """Return the descriptors of the event ring, and of the loader while its response is pending."""
        loading = (self._loader.descriptor,) if self._loader else ()
        return (*loading, *self._events.wakeups()) if self._events else loading

    def is_filling(self) -> bool:
        """Return whether the event ring may soon be full."""
        return self._events is not None and self._events.is_filling()

    def drain(self, taken_ns: int) -> tuple[Rows, ...]:
        """Return the events that became ready since the last call."""
        if self._loader is not None and has_data([self._loader.descriptor], 0):
            next(self._attaching, None)
        events = self._events.drain(taken_ns) if self._events else None
        return () if events is None else (self.table.namespaces.with_names(events),)

    def configure(self, options: SourceOptions) -> None:
        """Replace the options; most of them are read only at the start."""
        super().configure(options)
        self._groups.choose(options[spec.GROUP])
        if self._table is not None:
            self._table.list_all(options.all_rows)

    def describe(self, key: int) -> dict[str, str]:
        """Return the processes that hold the socket, as far as they are visible, and its user's name."""
        row = self._last.array[self._last.array["id"] == key]
        if not len(row):
            return {}
        descriptors = socket_rows.descriptors_of(row, self.table.held_by_several)
        if not descriptors and known(row["process"]).all() and not known(row["pid"]).any():
            owners = {"Held by": "a process that is not visible from here"}
        else:
            owners = self.table.processes.describe(descriptors)
        return owners | {"User": user_name(int(row["uid"][0]))}

    def capabilities(self) -> frozenset[int]:
        """Return the capabilities that reading needs; see nettop.snapshots.source.PrivilegedSource."""
        return FINDING_NAMESPACES if isinstance(self._table, DiagTable) else NOTHING

    def close(self) -> None:
        """Detach and leave every namespace; a second call is a no-op."""
        self._stop_loading()
        for part in (self._events, self._udp, self._table):
            if part is not None:
                part.close()
        self._events = self._udp = self._table = None


def _sum_bytes(rows: Array, ended: Ended) -> dict[str, int]:
    """Return the bytes sent and received by open sockets, and by those that ended since nettop started."""
    return {
        name: sum_of(rows[name]) + sum_of(ended.total.array[name])
        for name in ("bytes_sent", "bytes_received")
    }
