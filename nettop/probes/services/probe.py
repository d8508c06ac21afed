# SPDX-License-Identifier: Apache-2.0
"""The services probe: watch when data is sent, received and read on TCP connections, and UDP requests."""

from __future__ import annotations

import mmap
import time
from contextlib import ExitStack, closing
from functools import partial

import numpy as np

from nettop.kernel import bpf_syscall as bpf
from nettop.kernel.bpf import maps
from nettop.kernel.bpf.iterator import Iterator
from nettop.kernel.bpf.mechanisms import Mechanism, Refused, check_chosen
from nettop.kernel.bpf.program import Loader, Program, net_loader
from nettop.kernel.bpf.program_text import ProgramText
from nettop.kernel.bpf.set_table import SetTable
from nettop.kernel.host.facts import Host
from nettop.kernel.host.processes import Processes
from nettop.probes.probe import Probe, attach_program, loaded_as, skipped_runs
from nettop.probes.services import programs
from nettop.probes.services.rows import ProgramCounts, Withheld, client_rows, connection_rows, service_rows
from nettop.probes.services.slots import ServiceSlots
from nettop.probes.services.udp_programs import FALLBACKS as UDP_FALLBACKS
from nettop.probes.services.udp_programs import OPEN_REQUEST
from nettop.probes.services.udp_programs import program_text as udp_program_text
from nettop.probes.services.udp_requests import UdpRequests
from nettop.probes.services.usual import UsualTimes
from nettop.process.clocks import monotonic_ns
from nettop.snapshots import services as spec
from nettop.snapshots.arrays import Array
from nettop.snapshots.hooks import HookStatus
from nettop.snapshots.left_rows import ENDED, LeftRows
from nettop.snapshots.snapshot import Snapshot, clocks


def make_probe(host: Host | None = None) -> Services:
    """Return the probe of this lens."""
    return Services(host)


class Services(Probe):
    """The source of the services lens; see nettop.snapshots.source.Source.

    Clients are read only if their table is in use.
    """

    lens = spec.LENS

    def __init__(self, host: Host | None = None) -> None:
        super().__init__(host)
        self._program: Program | None = None
        self._udp: UdpRequests | None = None
        self._hooks: tuple[HookStatus, ...] = ()
        self._processes = Processes(self._host)
        self._usual = UsualTimes()
        self._is_by_namespace, self._searched = False, 0
        self._withheld = Withheld()
        self._ended = LeftRows(spec.SERVICES, "process", ENDED)

    # --- attaching ----------------------------------------------------------------------------------------------

    def texts(self) -> tuple[ProgramText, ...]:
        """Return the texts of the best mechanisms."""
        return programs.program_text(), udp_program_text()

    def start(self) -> None:
        """Attach the best mechanism. Raise UsageError for an unknown one."""
        check_chosen((programs.FALLBACKS, programs.UNOWNED, UDP_FALLBACKS), self._options.mechanisms)
        self._share_namespaces().enter()
        with closing(net_loader(self._host, needs_net=False)) as loader:
            calls = self._attach_best(programs.FALLBACKS, partial(self._attach, loader))
            unowned = self._attach_best(programs.UNOWNED, partial(self._walk_storage, calls))
            udp = self._attach_best(UDP_FALLBACKS, partial(self._attach_udp, loader, calls))
        self._hooks = (calls, unowned, udp)

    def _attach(self, loader: Loader, mechanism: Mechanism) -> None:
        """Load and attach the mechanism's programs, and start to watch existing connections."""
        self._host.require_bpf()
        with ExitStack() as opened:
            text = programs.program_text(mechanism in programs.BY_ADDRESS)
            loader.request(text)
            program = opened.enter_context(closing(loader.answer()))
            self._open_maps(program, opened)
            listeners, self._rows = self._open_walks(loader, text, program, opened)
            self._is_by_namespace = listeners is not self._rows
            # Whether a connection is served or used must be known before a call on it is seen.
            attach_program(program, loader, programs.CHANGES, opened)
            _set_phase(program, programs.LISTENERS_PHASE)
            listeners.read()
            for name in mechanism.programs:
                attach_program(program, loader, name, opened)
            _set_phase(program, programs.CONNECTIONS_PHASE)
            self._walk()
            _set_phase(program, programs.ROWS_PHASE)
            program.keep_only(
                [programs.CHANGES, programs.WALK, programs.ROWS, *map(loaded_as, mechanism.programs)]
            )
            self._opened.push(opened.pop_all())
        self._program = program
        self._programs.append(program)

    def _open_walks(
        self, loader: Loader, text: ProgramText, program: Program, opened: ExitStack
    ) -> tuple[Iterator, Iterator]:
        """Return the walks to listeners and to connections: the one over descriptors is both. Where the kernel passes
        none of its sockets to a helper, another finds listeners, and one over hash tables the connections."""

        def walk(function: int) -> Iterator:
            return opened.enter_context(closing(Iterator(function, programs.CONNECTION)))

        if programs.WALK in program.functions:
            both = walk(program.functions[programs.WALK])
            return both, both
        loader.request(programs.walks_text(text))
        functions = opened.enter_context(closing(loader.answer())).functions
        return walk(functions[programs.LISTENERS]), walk(functions[programs.HASHED])

    def _walk(self) -> Array:
        """Walk over the connections; hash tables are those of a namespace, and searched for at once in new ones."""
        if not self._is_by_namespace:
            return self._rows.read()
        before, self._searched = self._searched, int(np.frombuffer(self._whole, programs.TOTALS)[0]["taken"])
        inodes = np.frombuffer(self._services, programs.SERVICE)["netns"].tolist()
        new = frozenset(inodes) - {0} if self._searched != before else frozenset()
        return np.concatenate([*self.namespaces.run_in_each(self._rows.read, new).values()])

    def _walk_storage(self, calls: HookStatus, mechanism: Mechanism) -> None:
        """Read connections from socket storage instead of through descriptors. Raise Refused and OSError."""
        (name,) = mechanism.programs
        program = self._required(self._program, calls)
        if name not in program.functions:
            raise Refused(program.refused.get(name, "kprobes cannot use socket storage"))
        self._rows = Iterator(program.functions[name], programs.CONNECTION, program.maps["turns"])
        self._opened.callback(self._rows.close)
        self._is_by_namespace = False

    def _attach_udp(self, loader: Loader, calls: HookStatus, _: Mechanism) -> None:
        """Time UDP requests, with the tables of the program for TCP. Raise what UdpRequests raises."""
        self._required(self._program, calls)
        ports = (*spec.UDP_PORTS, *spec.parse_ports(self._options[spec.UDP_PORT]))
        self._udp = self._opened.enter_context(closing(UdpRequests(self._host, loader, ports)))
        self._programs.append(self._udp.program)

    def _open_maps(self, program: Program, opened: ExitStack) -> None:
        self._services, self._tallies, self._whole = (
            opened.enter_context(mmap.mmap(program.maps[name], count * dtype.itemsize))
            for name, dtype, count in (
                ("services", programs.SERVICE, programs.SERVICES_MAX),
                ("tallies", programs.TALLY, programs.SERVICES_MAX * programs.partitions()),
                ("whole", programs.TOTALS, 1),
            )
        )
        self._clients = SetTable(
            program.maps["clients"], programs.CLIENTS_MAX, programs.CLIENT, programs.CLIENT_KEY
        )
        opened.callback(self._clients.close)
        self._slots = ServiceSlots(program.maps, self._services, self._tallies)

    # --- reading ------------------------------------------------------------------------------------------------

    def read(self, taken_ns: int) -> Snapshot:
        """Return the response times since the start, and the requests that are waiting."""
        tables, ended, counts, lost = {}, {}, {}, {}
        if self._program is not None:
            counted, whole = self._read_counts(), np.frombuffer(self._whole, programs.TOTALS)[0].copy()
            taken_ns = counted.taken_ns
            self.namespaces.follow(frozenset())
            names = self._processes.begin()
            rows, left = (
                self.namespaces.with_names(row)
                for row in service_rows(counted, names, self._usual, self._withheld)
            )
            tables[spec.SERVICES.name] = services = rows
            ended[spec.SERVICES.name] = self._ended.add(left)
            if spec.CLIENTS.name in self._options.tables:
                tables[spec.CLIENTS.name] = client_rows(counted, services)
            for row in connection_rows(counted, services, names):
                tables[row.table.name] = self.namespaces.with_names(row)
            counts = {
                spec.CLIENTS_EVICTED: int(whole["evicted"]),
                spec.UNLISTED_FAILURES: int(whole["unlisted_failures"]),
            }
            lost = {
                "skipped calls": skipped_runs(self._program),
                "processes": self._processes.vanished,
                "unwatched": int(whole["unwatched"]),
                spec.UNTIMED: int(whole["untimed_requests"]),
                spec.WITHOUT_SLOT: int(whole["without_place"]),
                spec.WITHOUT_CLIENT: int(whole["without_client"]),
            }
        return Snapshot(
            spec.LENS.id,
            *clocks(taken_ns),
            tables=tables,
            ended=ended,
            counts=counts,
            lost=lost,
            hooks=self._required(self._hooks or None),
            gaps=self.namespaces.gaps(unseen=True) if self._is_by_namespace else {},
        )

    def _read_counts(self) -> ProgramCounts:
        """Return the counts, and the connections that are watched now."""
        now_ns, now_wall_ns = monotonic_ns(), time.time_ns()
        taken = int(np.frombuffer(self._whole, programs.TOTALS)[0]["taken"])
        count, parts = min(programs.FIRST_SLOT + taken, programs.SERVICES_MAX), programs.partitions()
        services = np.frombuffer(self._services, programs.SERVICE, count).copy()
        by_partition = np.frombuffer(self._tallies, programs.TALLY, count * parts).reshape(count, parts)
        tallies = maps.sum_last_axis(by_partition)
        del by_partition  # the mapping cannot be closed before
        requests = self._read_requests(tallies)
        connections = self._walk()
        # Several descriptors may lead to one connection, and the kernel goes on with a walk over socket storage by the
        # number of elements seen in a bucket (bpf_sk_storage_map_seq_find_next): new ones have it repeat others, and
        # for those that leave meanwhile it skips others until the next reading.
        connections = connections[np.unique(connections["id"], return_index=True)[1]]
        numbers = self._slots.numbers(count)
        used = np.concatenate([connections["service"], requests["service"]])
        left = self._slots.choose_leaving(services, tallies, used, taken=taken, now_ns=now_ns)
        self._slots.release(left)
        if self._udp is not None:
            self._udp.release(left)
        clients = self._clients.read()
        return ProgramCounts(
            services, numbers, tallies, numbers[left], clients, connections, requests, now_ns, now_wall_ns
        )

    def _read_requests(self, tallies: Array) -> Array:
        """Return the UDP requests that wait, and add to the tallies those that nobody answered."""
        if self._udp is None:
            return np.zeros(0, OPEN_REQUEST)
        requests = self._udp.read()
        tallies["unanswered"] += self._udp.unanswered[: len(tallies)]
        tallies["unanswered_ns"] += self._udp.unanswered_ns[: len(tallies)]
        return requests

    def describe(self, key: int) -> dict[str, str]:
        """Return the mechanism by which a service's requests are seen, and the last question to one of DNS."""
        if not self._hooks:
            return {}
        calls, _, udp = self._hooks
        slot = key % programs.SERVICES_MAX
        if self._udp is None or np.frombuffer(self._services, programs.SERVICE)[slot]["protocol"] != spec.UDP:
            return {"Mechanism": str(calls)}
        question = self._udp.last_question(slot)
        return {"Mechanism": str(udp)} | ({"Last question": question} if question else {})


def _set_phase(program: Program, phase: int) -> None:
    """Choose what the next walk over descriptors does."""
    bpf.set_element(program.maps["phase"], bytes(4), np.uint32(phase).tobytes())
