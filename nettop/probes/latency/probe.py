# SPDX-License-Identifier: Apache-2.0
"""The latency probe: how long packets wait, from the kernel's receive timestamps and between pairs of hooks."""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Mapping
from contextlib import ExitStack, closing
from functools import partial

import numpy as np

from nettop.errors import NettopError, PermissionMissing, Unsupported
from nettop.kernel import bpf_syscall as bpf
from nettop.kernel.bpf import maps
from nettop.kernel.bpf.mechanisms import Mechanism, Refused, check_chosen
from nettop.kernel.bpf.program import Loader, Program
from nettop.kernel.bpf.program_text import ProgramText
from nettop.kernel.bpf.set_table import SetTable, partition
from nettop.kernel.host.facts import Host
from nettop.probes.latency import programs
from nettop.probes.latency import rows as latency_rows
from nettop.probes.probe import Probe, attach_program, loaded_as, skipped_runs, sockets_of
from nettop.process.clocks import monotonic_ns
from nettop.snapshots import latency as spec
from nettop.snapshots.hooks import HookStatus
from nettop.snapshots.snapshot import Frame, Snapshot, clocks

FOLLOWED_PER_S = 10_000
"""Default number of packets to follow per second, in all stages together."""
FIRST_ONE_IN = 64
"""One packet in this many is followed until the packet rate is known."""
ONE_IN_MAX = int(spec.SAMPLING.maximum or 0)
_RATE_OVER_S = 0.05
"""The shortest time to measure a rate over: Enter may be pressed right after a tick."""
_SO_TIMESTAMPNS = 35
_CHECK_TIMEOUT_S = 1.0


def make_probe(host: Host | None = None) -> Latency:
    """Return the probe of this lens."""
    return Latency(host)


class Latency(Probe):
    """The source of the latency lens; see nettop.snapshots.source.Source.

    Pairs are read only if their table is in use.
    """

    lens = spec.LENS

    def __init__(
        self,
        host: Host | None = None,
        followed_max: int = programs.FOLLOWED_MAX,
        pairs_max: int = programs.PAIRS_MAX,
    ) -> None:
        super().__init__(host)
        self._followed_max, self._pairs_max = followed_max, pairs_max
        self._one_in = self._sparing = FIRST_ONE_IN
        self._program: Program | None = None
        self._attached: set[str] = set()
        self._statuses: dict[int, HookStatus] = {}
        self._counts: latency_rows.CountsTable | None = None
        self._pairs: SetTable | None = None
        self._rtts = np.zeros((programs.CLASSES, spec.BUCKETS.count), np.uint64)
        self._rtts_taken_ns = self._seen = 0
        self._read_at_ns = monotonic_ns()

    # --- attaching ----------------------------------------------------------------------------------------------

    def texts(self) -> tuple[ProgramText]:
        """Return the text of the lens."""
        return (programs.program_text(self._followed_max, self._pairs_max),)

    def start(self) -> None:
        """Make the kernel timestamp packets, load the programs and attach those that it accepts. Raise UsageError for
        an unknown mechanism."""
        check_chosen(programs.FALLBACKS.values(), self._options.mechanisms)
        with ExitStack() as loading:
            try:
                loader = self._load(loading)
                attach = partial(self._attach, loader)
            except (Unsupported, PermissionMissing) as error:
                attach = partial(_refuse, error)
            for stage, fallbacks in programs.FALLBACKS.items():
                self._statuses[stage] = self._attach_best(fallbacks, partial(attach, stage))
        if self._program is not None:
            self._program.keep_only([*map(loaded_as, self._attached)])
        self._write_settings()

    def _load(self, loading: ExitStack) -> Loader:
        """Load the programs; the loader stays available to open probes until `loading` exits."""
        self._host.require_bpf()
        loader = loading.enter_context(closing(Loader()))
        loader.request(programs.program_text(self._followed_max, self._pairs_max))
        self._program = program = self._opened.enter_context(closing(loader.answer()))
        self._programs.append(program)
        self._counts = self._opened.enter_context(
            closing(latency_rows.CountsTable(program, self._followed_max))
        )
        sets, parts = partition(self._pairs_max, programs.SET_ENTRIES)
        self._pairs = SetTable(
            program.maps["pairs"], sets * parts * programs.SET_ENTRIES, programs.PAIR, programs.PAIR_KEY
        )
        self._opened.callback(self._pairs.close)
        stamped = self._opened.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        stamped.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self._one_in = 1  # sampling must not skip the packet that checks a hook
        self._write_settings()
        return loader

    def _attach(self, loader: Loader, stage: int, mechanism: Mechanism) -> None:
        """Attach the programs that a stage needs, except those attached for another stage."""
        for needed in (spec.WIRE_SOCKET, spec.WIRE_APP) if stage == spec.SOCKET_WAIT else ():
            if needed not in self._measured():
                raise Refused(f"{spec.STAGES[needed]} is not available")
        with ExitStack() as opened:
            new = [name for name in mechanism.programs if name not in self._attached]
            for name in new:
                attach_program(self._required(self._program), loader, name, opened)
            if stage == spec.IP and self._counts is not None:
                _check_ip(self._counts)
            self._opened.push(opened.pop_all())
        self._attached.update(new)

    def _measured(self) -> frozenset[int]:
        """Return the stages that have a mechanism."""
        return frozenset(stage for stage, status in self._statuses.items() if status.mechanism is not None)

    # --- sampling -----------------------------------------------------------------------------------------------

    def _write_settings(self) -> None:
        if self._program is None:
            return
        settings = np.zeros((), programs.SETTINGS)
        # The clocks differ by whole seconds, but are read one after the other.
        ahead_s = (time.clock_gettime_ns(time.CLOCK_TAI) - time.time_ns()) / 1e9
        settings["tai_ahead_ns"] = round(ahead_s) * 10**9
        settings["one_in"] = self._one_in
        bpf.set_element(self._program.maps["settings"], bytes(4), settings.tobytes())

    def _choose_one_in(self, seen: int, taken_ns: int) -> None:
        """Set the sampling rate: the chosen one, or one low enough for the packets seen since the last reading. Each
        followed packet adds its weight to the stages' counts, so the rate of packets is known at any sampling rate."""
        elapsed_s = (taken_ns - self._read_at_ns) / 1e9
        if elapsed_s >= _RATE_OVER_S:
            rate = (seen - self._seen) / elapsed_s
            self._sparing = 1 << max(0, math.ceil(math.log2(max(1.0, rate / FOLLOWED_PER_S))))
            self._seen, self._read_at_ns = seen, taken_ns
        self._one_in = min(self._options[spec.SAMPLING] or self._sparing, ONE_IN_MAX)
        self._write_settings()

    # --- reading ------------------------------------------------------------------------------------------------

    def read(self, taken_ns: int) -> Snapshot:
        """Return the latencies since the start."""
        taken_ns = max(taken_ns, monotonic_ns())
        classes = self._counts.read() if self._counts else latency_rows.no_class_rows()
        one_in = self._one_in
        self._choose_one_in(int(classes["seen"].sum()), taken_ns)
        latency_rows.add_rtts(classes, self._rtts)
        protocols = latency_rows.protocol_rows(classes, self._measured(), taken_ns)
        tables = {
            spec.STAGE_TABLE.name: latency_rows.stage_rows(classes, self._measured(), taken_ns),
            spec.PROTOCOL_TABLE.name: protocols,
            spec.BUCKET_TABLE.name: latency_rows.bucket_rows(protocols),
        }
        totals = {spec.ONE_IN: one_in} if self._counts else {}
        if self._pairs is not None and spec.PAIR_TABLE.name in self._options.tables:
            tables[spec.PAIR_TABLE.name] = latency_rows.pair_rows(self._pairs, taken_ns)
            evicted = self._required(self._program).maps["evicted"]
            totals[spec.PAIRS_EVICTED] = int(maps.sum_per_cpu(evicted, 0))
        return Snapshot(
            spec.LENS.id,
            *clocks(taken_ns),
            tables=tables,
            counts=totals,
            lost={"skipped": skipped_runs(self._program)} if self._program else {},
            hooks=tuple(self._statuses.values()),
        )

    def join(self, frames: Mapping[str, Frame]) -> None:
        """Count the round-trip time of each connection once per reading of the connections lens; see
        nettop.snapshots.source.JoiningSource."""
        sockets = sockets_of(frames)
        if sockets is not None and sockets.taken_ns > self._rtts_taken_ns:
            self._rtts_taken_ns = sockets.taken_ns
            self._rtts += latency_rows.rtt_histograms(sockets)

    # --- the rest of a source -----------------------------------------------------------------------------------

    def describe(self, key: int) -> dict[str, str]:
        """Describe what the stage of a row measures, and by which mechanism."""
        stage = latency_rows.stage_of(key)
        if stage is None:
            return {}
        return {"Meaning": spec.MEANINGS[stage], "Mechanism": str(self._statuses[stage])}


def _check_ip(counts: latency_rows.CountsTable) -> None:
    """Raise Refused unless a datagram over loopback is seen. A function may exist and never be called because the
    compiler inlined it."""
    before = counts.read()["matched"][spec.IP].sum()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
        own.settimeout(_CHECK_TIMEOUT_S)
        own.bind(("127.0.0.1", 0))
        try:
            own.sendto(b"n", own.getsockname())
            own.recv(1)
        except OSError as error:
            raise Refused(f"cannot be checked over loopback: {error}") from error
    if counts.read()["matched"][spec.IP].sum() == before:
        raise Refused("attached, but the hook never runs")


def _refuse(error: NettopError, stage: int, _: Mechanism) -> None:
    if stage != spec.RTT:
        raise error
