# SPDX-License-Identifier: Apache-2.0
"""The services probe: watches when data is sent, received and read on TCP connections."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Mapping
from contextlib import ExitStack, closing
from functools import partial
from typing import cast

import numpy as np

from nettop.errors import SourceFailed
from nettop.kernel import bpf, kprobes
from nettop.kernel.entered_namespaces import Namespaces, shared_namespaces
from nettop.kernel.facts import Host
from nettop.kernel.iterator import Iterator, RowBuffer
from nettop.kernel.mechanisms import ChosenMechanisms, Mechanism, Refused, attach_best, check_chosen
from nettop.kernel.processes import Processes
from nettop.kernel.program import Loader
from nettop.kernel.set_table import SetTable
from nettop.probes.services.places import Places
from nettop.probes.services.programs import (
    BY_ADDRESS,
    CHANGES,
    CLIENT,
    CLIENT_KEY,
    CLIENTS_MAX,
    CONNECTION,
    CONNECTIONS_PHASE,
    FALLBACKS,
    FIRST_PLACE,
    LISTENERS_PHASE,
    ROWS,
    ROWS_PHASE,
    SERVICE,
    SERVICES_MAX,
    TALLY,
    WALK,
    WHOLE,
    loaded_as,
    partitions,
    program_text,
)
from nettop.probes.services.rows import (
    Counted,
    Withheld,
    client_rows,
    connection_rows,
    service_rows,
    waiting_rows,
)
from nettop.probes.services.usual import UsualTimes
from nettop.snapshots.hooks import HookStatus
from nettop.snapshots.left_rows import ENDED, LeftRows
from nettop.snapshots.services import (
    CLIENTS,
    CLIENTS_EVICTED,
    CONNECTIONS,
    LENS,
    SERVICES,
    UNLISTED_FAILURES,
    WAITING,
    WITHOUT_CLIENT,
    WITHOUT_PLACE,
)
from nettop.snapshots.snapshot import Array, Snapshot


def make_probe() -> Services:
    """The probe of this lens."""
    return Services()


class Watch:
    """The programs that watch connections, attached until this is closed."""

    def __init__(self, loader: Loader, mechanism: Mechanism) -> None:
        """Load what the mechanism needs, attach it, and begin to watch the connections that exist. Raises NettopError
        or OSError."""
        self._by_address = mechanism in BY_ADDRESS
        self._opened = ExitStack()
        with ExitStack() as opened:
            loader.request(program_text(self._by_address))
            self.program = program = loader.answer()
            opened.callback(program.close)
            self._services = self._mapped(opened, "services", SERVICE, SERVICES_MAX)
            self._tallies = self._mapped(opened, "tallies", TALLY, SERVICES_MAX * partitions())
            self._whole = self._mapped(opened, "whole", WHOLE, 1)
            self._clients = SetTable(program.maps["clients"], CLIENTS_MAX, CLIENT, CLIENT_KEY)
            opened.callback(self._clients.close)
            self._buffer = RowBuffer()
            walk = Iterator(program.functions[WALK], CONNECTION)
            opened.callback(walk.close)
            self._rows = walk
            if not self._by_address:
                self._rows = Iterator(program.functions[ROWS], CONNECTION, program.maps["turns"])
                opened.callback(self._rows.close)
            self._places = Places(program.maps, self._services, self._tallies)
            # Which end serves has to be known of a connection before a call on it is seen.
            self._attach(opened, loader, CHANGES)
            self._walk(walk, LISTENERS_PHASE)
            for name in mechanism.programs:
                self._attach(opened, loader, name)
            self._walk(walk, CONNECTIONS_PHASE)
            self._set_phase(ROWS_PHASE)
            attached = [loaded_as(name) for name in mechanism.programs]
            program.unload_all_but([CHANGES, WALK, ROWS, *attached])
            self._opened.push(opened.pop_all())

    def _mapped(self, opened: ExitStack, name: str, dtype: np.dtype[np.void], count: int) -> mmap.mmap:
        memory = mmap.mmap(self.program.maps[name], count * dtype.itemsize)
        opened.callback(memory.close)
        return memory

    def _walk(self, walk: Iterator, phase: int) -> None:
        self._set_phase(phase)
        walk.read(self._buffer)

    def _set_phase(self, phase: int) -> None:
        bpf.set_element(self.program.maps["phase"], bytes(4), np.uint32(phase).tobytes())

    def _attach(self, opened: ExitStack, loader: Loader, name: str) -> None:
        """Attach a program. Raises Unsupported or OSError."""
        loaded = loaded_as(name)
        if loaded not in self.program.functions:
            raise Refused(self.program.refused[loaded])
        if loaded == name:
            opened.callback(os.close, bpf.attach_tracing(self.program.functions[loaded]))
            return
        probes = loader.open_probes(name.partition("@")[2], at_return=False).values()
        for probe in probes:
            opened.callback(os.close, probe)
        for probe in probes:
            kprobes.run_at(probe, self.program.functions[loaded])

    def read(self) -> Counted:
        """What was counted, and the connections that are watched now."""
        taken = int(self.whole()["taken"][0])
        count = min(FIRST_PLACE + taken, SERVICES_MAX)
        parts = partitions()
        services = np.frombuffer(self._services, SERVICE, count).copy()
        each = np.frombuffer(self._tallies, TALLY, count * parts).reshape(count, parts)
        tallies = np.zeros(count, TALLY)
        for name in TALLY.names or ():
            tallies[name] = each[name].sum(axis=1)
        del each
        connections = self._rows.read(self._buffer).copy()
        # A descriptor that several processes hold leads to the same connection.
        if self._by_address:
            connections = connections[np.unique(connections["id"], return_index=True)[1]]
        now_ns = time.monotonic_ns()
        numbers = self._places.numbers(count)
        left = self._places.leaving(services, tallies, connections["service"], taken=taken, now_ns=now_ns)
        self._places.give_back(left)
        return Counted(
            services,
            numbers,
            tallies,
            numbers[left],
            self._clients.read(),
            connections,
            now_ns,
            time.time_ns(),
        )

    def whole(self) -> Array:
        """What is counted of all services together: one WHOLE."""
        return np.frombuffer(self._whole, WHOLE, 1).copy()

    def close(self) -> None:
        """Detach; a second call does nothing."""
        self._opened.close()


class Services:
    """The source of the services lens; see nettop.snapshots.source.Source.

    Options: `table` names a table that somebody looks at: clients are read only for theirs.
    """

    def __init__(self, host: Host | None = None) -> None:
        self._host = host or Host()
        self._chosen: ChosenMechanisms = {}
        self._tables: set[str] = set()
        self._watch: Watch | None = None
        self._status: HookStatus | None = None
        self._processes = Processes(self._host)
        self._usual = UsualTimes()
        self._withheld = Withheld()
        self._ended = LeftRows(SERVICES, "process", ENDED)
        self._namespaces: Namespaces | None = None

    def start(self) -> None:
        """Attach the best mechanism. Raises UsageError for an unknown one."""
        check_chosen((FALLBACKS,), self._chosen)
        self._namespaces = shared_namespaces(self._host.proc)
        self._namespaces.enter()
        with closing(Loader()) as loader:
            self._status = attach_best(FALLBACKS, partial(self._attach, loader), self._chosen)

    def _attach(self, loader: Loader, mechanism: Mechanism) -> None:
        self._host.require_bpf()
        self._watch = Watch(loader, mechanism)

    def read(self, taken_ns: int) -> Snapshot:  # noqa: ARG002 - the reading has a time of its own
        """How long requests waited since the start, and those that wait now."""
        if self._status is None or self._namespaces is None:
            raise SourceFailed("the services probe is not attached")
        tables, ended, counts, lost = {}, {}, {}, {}
        if self._watch is not None:
            counted, whole = self._watch.read(), self._watch.whole()
            self._namespaces.follow(frozenset())
            rows, left = (
                self._namespaces.with_names(each)
                for each in service_rows(counted, self._processes, self._usual, self._withheld)
            )
            tables[SERVICES.name] = services = rows
            ended[SERVICES.name] = self._ended.add(left)
            if CLIENTS.name in self._tables:
                tables[CLIENTS.name] = client_rows(counted, services)
            connections = connection_rows(counted, services, self._processes)
            tables[CONNECTIONS.name] = connections = self._namespaces.with_names(connections)
            tables[WAITING.name] = waiting_rows(connections)
            counts = {
                CLIENTS_EVICTED: int(whole["evicted"][0]),
                UNLISTED_FAILURES: int(whole["unlisted_failures"][0]),
            }
            lost = {
                "skipped calls": sum(map(bpf.recursion_misses, self._watch.program.functions.values())),
                "unwatched": int(whole["unwatched"][0]),
                WITHOUT_PLACE: int(whole["without_place"][0]),
                WITHOUT_CLIENT: int(whole["without_client"][0]),
            }
        return Snapshot(
            lens=LENS.id,
            wall_ns=time.time_ns(),
            boot_ns=time.clock_gettime_ns(time.CLOCK_BOOTTIME),
            tables=tables,
            ended=ended,
            counts=counts,
            lost=lost,
            hooks=(self._status,),
        )

    def set(self, option: str, value: object) -> None:
        """Change an option; see the class."""
        if option == "mechanisms":
            self._chosen = cast("ChosenMechanisms", value)
        elif option == "table":
            self._tables.add(str(value))

    def describe(self, key: int) -> dict[str, str]:  # noqa: ARG002 - the same for every row
        """By which mechanism calls are seen."""
        return {"Mechanism": str(self._status)} if self._status is not None else {}

    def programs(self) -> Mapping[str, tuple[int, int]]:
        """What the programs cost; see nettop.snapshots.source.MeasuredSource."""
        return self._watch.program.runs() if self._watch else {}

    def kernel_bytes(self) -> int:
        """What programs and maps take of the kernel's memory."""
        return self._watch.program.kernel_bytes() if self._watch else 0

    def close(self) -> None:
        """Detach; a second call does nothing."""
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        if self._namespaces is not None:
            self._namespaces.close()
            self._namespaces = None
