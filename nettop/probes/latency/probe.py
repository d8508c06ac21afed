# SPDX-License-Identifier: Apache-2.0
"""The latency probe: how long packets wait, from the kernel's receive stamps and between pairs of hooks."""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Mapping
from contextlib import ExitStack, closing
from functools import partial
from typing import cast

import numpy as np

from nettop.errors import NettopError, PermissionMissing, SourceFailed, Unsupported
from nettop.kernel import bpf, kprobes, maps
from nettop.kernel.facts import Host
from nettop.kernel.mechanisms import ChosenMechanisms, Mechanism, Refused, attach_best, check_chosen
from nettop.kernel.program import Loader, Program
from nettop.kernel.set_table import SetTable
from nettop.probes.latency.counts import CountsTable, no_counts
from nettop.probes.latency.programs import (
    FALLBACKS,
    FOLLOWED_MAX,
    PAIR,
    PAIR_KEY,
    PAIRS_MAX,
    SET_ENTRIES,
    SETTINGS,
    loaded_as,
    pair_sets,
    program_text,
)
from nettop.probes.latency.rows import (
    Counted,
    bucket_rows,
    pair_rows,
    protocol_rows,
    rtt_histograms,
    stage_of,
    stage_rows,
)
from nettop.snapshots.connections import LENS as CONNECTIONS
from nettop.snapshots.connections import SOCKETS
from nettop.snapshots.hooks import HookStatus
from nettop.snapshots.latency import (
    BUCKET_TABLE,
    IP,
    LENS,
    MEANINGS,
    ONE_IN,
    PAIR_TABLE,
    PAIRS_EVICTED,
    PROTOCOL_TABLE,
    RTT,
    SAMPLING,
    SOCKET_WAIT,
    STAGE_TABLE,
    STAGES,
    WIRE_APP,
    WIRE_SOCKET,
)
from nettop.snapshots.snapshot import Snapshot

FOLLOWED_PER_S = 10_000
"""Packets that are followed each second, in all stages, where nobody chose otherwise."""
FIRST_ONE_IN = 64
"""One packet in so many is followed until the rate of packets is known."""
ONE_IN_MAX = int(SAMPLING.maximum or 0)
_RATE_OVER_S = 0.05
"""A rate over less time, when Enter is pressed right after a tick, says little."""
_SO_TIMESTAMPNS = 35
_CHECK_TIMEOUT_S = 1.0


def make_probe() -> Latency:
    """The probe of this lens."""
    return Latency()


class Latency:
    """The source of the latency lens; see nettop.snapshots.source.Source.

    Options: see nettop.snapshots.latency; `table` names a table that somebody looks at: pairs are read only for theirs.
    """

    def __init__(
        self, host: Host | None = None, followed_max: int = FOLLOWED_MAX, pairs_max: int = PAIRS_MAX
    ) -> None:
        self._host = host or Host()
        self._followed_max, self._pairs_max = followed_max, pairs_max
        self._chosen: ChosenMechanisms = {}
        self._sampling, self._thinning = int(SAMPLING.default), 1
        self._one_in = self._sparing = FIRST_ONE_IN
        self._tables: set[str] = set()
        self._opened = ExitStack()
        self._program: Program | None = None
        self._attached: set[str] = set()
        self._statuses: dict[int, HookStatus] = {}
        self._counts: CountsTable | None = None
        self._pairs: SetTable | None = None
        self._rtts = rtt_histograms()
        self._rtts_taken_ns = self._seen = 0
        self._read_at_ns = time.monotonic_ns()

    # --- attaching ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Have the kernel stamp packets, load the programs and attach those that it accepts. Raises UsageError for an
        unknown mechanism."""
        check_chosen(FALLBACKS.values(), self._chosen)
        with ExitStack() as loading:
            try:
                loader = self._load(loading)
                attach = partial(self._attach, loader)
            except (Unsupported, PermissionMissing) as error:
                attach = partial(_refuse, error)
            for stage, fallbacks in FALLBACKS.items():
                self._statuses[stage] = attach_best(fallbacks, partial(attach, stage), self._chosen)
        if self._program is not None:
            self._program.unload_all_but([*map(loaded_as, self._attached)])
        self._write_settings()

    def _load(self, loading: ExitStack) -> Loader:
        """Load the programs; the loader goes on to open probes until `loading` is left."""
        self._host.require_bpf()
        loader = loading.enter_context(closing(Loader()))
        loader.request(program_text(self._followed_max, self._pairs_max))
        self._program = program = loader.answer()
        self._opened.callback(program.close)
        self._counts = CountsTable(program, self._followed_max)
        self._opened.callback(self._counts.close)
        sets, parts = pair_sets(self._pairs_max)
        self._pairs = SetTable(program.maps["pairs"], sets * parts * SET_ENTRIES, PAIR, PAIR_KEY)
        self._opened.callback(self._pairs.close)
        stamped = self._opened.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        stamped.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self._one_in = 1  # the check of a hook must not be passed over
        self._write_settings()
        return loader

    def _attach(self, loader: Loader, stage: int, mechanism: Mechanism) -> None:
        """Attach what a stage needs and has not been attached for another one."""
        for needed in (WIRE_SOCKET, WIRE_APP) if stage == SOCKET_WAIT else ():
            if needed not in self._measured():
                raise Refused(f"{STAGES[needed]} is not available")
        with ExitStack() as opened:
            new = [name for name in mechanism.programs if name not in self._attached]
            for name in new:
                for descriptor in self._open(loader, name):
                    opened.callback(os.close, descriptor)
            if stage == IP and self._counts is not None:
                _check_ip(self._counts)
            self._opened.push(opened.pop_all())
        self._attached.update(new)

    def _open(self, loader: Loader, name: str) -> list[int]:
        """Attach a program: the descriptors that hold it. Raises Unsupported or OSError."""
        functions, refused = self._loaded.functions, self._loaded.refused
        loaded = loaded_as(name)
        if loaded not in functions:
            raise Refused(refused[loaded]) if loaded in refused else kprobes.why_no_kprobes()
        if loaded == name:
            return [bpf.attach_tracing(functions[loaded])]
        with ExitStack() as opened:
            probes = list(loader.open_probes(name.partition("@")[2], at_return=False).values())
            for probe in probes:
                opened.callback(os.close, probe)
            for probe in probes:
                kprobes.run_at(probe, functions[loaded])
            opened.pop_all()
        return probes

    @property
    def _loaded(self) -> Program:
        if self._program is None:
            raise SourceFailed("the latency probe is not attached")
        return self._program

    def _measured(self) -> frozenset[int]:
        """The stages that have a mechanism."""
        return frozenset(stage for stage, status in self._statuses.items() if status.mechanism is not None)

    # --- sampling -----------------------------------------------------------------------------------------------

    def _write_settings(self) -> None:
        if self._program is None:
            return
        settings = np.zeros((), SETTINGS)
        # They differ by whole seconds, but are read one after the other.
        ahead_s = (time.clock_gettime_ns(time.CLOCK_TAI) - time.time_ns()) / 1e9
        settings["tai_ahead_ns"] = round(ahead_s) * 10**9
        settings["one_in"] = self._one_in
        bpf.set_element(self._program.maps["settings"], bytes(4), settings.tobytes())

    def _choose_one_in(self, seen: int, taken_ns: int) -> None:
        """Follow as many packets as was chosen, or few enough of those that came since the last reading. What stages
        saw grows by what each followed packet stands for, so it is known however few are followed."""
        elapsed_s = (taken_ns - self._read_at_ns) / 1e9
        if elapsed_s >= _RATE_OVER_S:
            rate = (seen - self._seen) / elapsed_s
            self._sparing = 1 << max(0, math.ceil(math.log2(max(1.0, rate / FOLLOWED_PER_S))))
            self._seen, self._read_at_ns = seen, taken_ns
        self._one_in = min((self._sampling or self._sparing) * self._thinning, ONE_IN_MAX)
        self._write_settings()

    def thin(self, factor: int) -> None:
        """Follow one packet in so many times as many; see nettop.snapshots.source.SamplingSource."""
        self._thinning = factor

    # --- reading ------------------------------------------------------------------------------------------------

    def read(self, taken_ns: int) -> Snapshot:
        """How long packets took since the start."""
        taken_ns = max(taken_ns, time.monotonic_ns())
        counts, waiting = self._counts.read() if self._counts else no_counts()
        one_in = self._one_in
        self._choose_one_in(int(counts["seen"].sum()), taken_ns)
        counted = Counted(counts, waiting, self._rtts, self._measured(), taken_ns)
        protocols = protocol_rows(counted)
        tables = {
            STAGE_TABLE.name: stage_rows(counted),
            PROTOCOL_TABLE.name: protocols,
            BUCKET_TABLE.name: bucket_rows(protocols),
        }
        totals = {ONE_IN: one_in} if self._counts else {}
        if self._pairs is not None and PAIR_TABLE.name in self._tables:
            tables[PAIR_TABLE.name] = pair_rows(self._pairs, taken_ns)
            evicted = maps.read_per_cpu(self._loaded.maps["evicted"], 0, np.dtype("u8"))
            totals[PAIRS_EVICTED] = int(evicted.sum())
        return Snapshot(
            lens=LENS.id,
            wall_ns=time.time_ns(),
            boot_ns=time.clock_gettime_ns(time.CLOCK_BOOTTIME),
            tables=tables,
            counts=totals,
            lost=self._lost(),
            hooks=tuple(self._statuses.values()),
        )

    def _lost(self) -> dict[str, int]:
        if self._program is None:
            return {}
        return {"skipped": sum(map(bpf.recursion_misses, self._program.functions.values()))}

    def join(self, snapshots: Mapping[str, Snapshot]) -> None:
        """Count the round-trip time of each connection at its lens's reading; see
        nettop.snapshots.source.JoiningSource."""
        snapshot = snapshots.get(CONNECTIONS.id)
        sockets = snapshot.tables.get(SOCKETS.name) if snapshot is not None else None
        if sockets is not None and sockets.taken_ns > self._rtts_taken_ns:
            self._rtts_taken_ns = sockets.taken_ns
            self._rtts += rtt_histograms(sockets)

    # --- the rest of a source -----------------------------------------------------------------------------------

    def set(self, option: str, value: object) -> None:
        """Change an option; see the class."""
        if option == "mechanisms":
            self._chosen = cast("ChosenMechanisms", value)
        elif option == "table":
            self._tables.add(str(value))
        elif option == SAMPLING.name:
            self._sampling = int(cast("int", value))

    def describe(self, key: int) -> dict[str, str]:
        """What the stage of this row measures, and by which mechanism."""
        stage = stage_of(key)
        if stage is None:
            return {}
        return {"Meaning": MEANINGS[stage], "Mechanism": str(self._statuses[stage])}

    def programs(self) -> Mapping[str, tuple[int, int]]:
        """What the programs cost; see nettop.snapshots.source.MeasuredSource."""
        return self._program.runs() if self._program else {}

    def kernel_bytes(self) -> int:
        """What programs and maps take of the kernel's memory."""
        return self._program.kernel_bytes() if self._program else 0

    def close(self) -> None:
        """Detach, and have packets stamped no more; a second call does nothing."""
        self._opened.close()
        self._program = self._counts = self._pairs = None


def _check_ip(counts: CountsTable) -> None:
    """Raise Refused unless a datagram over loopback is seen: a function may exist and never be called, where the
    compiler has inlined it."""
    before = counts.read()[0]["matched"][IP].sum()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
        own.settimeout(_CHECK_TIMEOUT_S)
        own.bind(("127.0.0.1", 0))
        try:
            own.sendto(b"n", own.getsockname())
            own.recv(1)
        except OSError as error:
            raise Refused(f"cannot be checked over loopback: {error}") from error
    if counts.read()[0]["matched"][IP].sum() == before:
        raise Refused("attached, but the hook never runs")


def _refuse(error: NettopError, stage: int, _: Mechanism) -> None:
    if stage != RTT:
        raise error
