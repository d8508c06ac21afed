# SPDX-License-Identifier: Apache-2.0
"""The CPU probe: samples show what CPUs do inside the network stack, and for how long.

Hooks at every softirq, switch of threads and system call would cost more than the clock does, and would count as time
of what they measure.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import closing

import numpy as np

from nettop.errors import Unsupported
from nettop.kernel import bpf_syscall as bpf
from nettop.kernel.bpf import maps, symbols
from nettop.kernel.bpf.mechanisms import Fallbacks, Mechanism, Refused, check_chosen
from nettop.kernel.bpf.perf_events import online_cpus
from nettop.kernel.bpf.program import Loader, Program
from nettop.kernel.bpf.program_text import ProgramText
from nettop.kernel.host.facts import Host
from nettop.kernel.host.proc_files import CpuTimes, read_cpu_times, read_required
from nettop.probes.cpu import samples as cpu_samples
from nettop.probes.cpu.processes import FIRST_ID, ProcessTimes
from nettop.probes.cpu.samples import SampleReading, Samples
from nettop.probes.cpu.stacks import IN_HOOK
from nettop.probes.probe import Probe, skipped_runs
from nettop.process.clocks import monotonic_ns
from nettop.snapshots.arrays import Array, as_list
from nettop.snapshots.cpu import (
    CATEGORY_SHARES,
    CPUS,
    FREQUENCY,
    HOOK_SAMPLES,
    HOOK_SERVED,
    LENS,
    NAPI_THREADS,
    PROCESSES,
    RX_SOFTIRQ,
    STACKS,
    TIME_OF,
    TX_SOFTIRQ,
    VECTORS,
)
from nettop.snapshots.hooks import HookStatus
from nettop.snapshots.snapshot import Rows, Snapshot, clocks, mark_unknown

SAMPLES = Fallbacks(HOOK_SAMPLES, (Mechanism("perf cpu-clock"),))
SERVED = Fallbacks(
    HOOK_SERVED,
    (
        Mechanism("tp_btf/tcp_probe + sk_data_ready", ("tp_btf__tcp_probe", "tp_btf__sk_data_ready")),
        Mechanism("tp_btf/tcp_probe", ("tp_btf__tcp_probe",)),
    ),
)
"""Every TCP segment passes tcp_probe; sk_data_ready wakes readers of a socket (since 6.3)."""
FALLBACKS = (SAMPLES, SERVED)

_SOFTIRQ_WORK = (TX_SOFTIRQ, RX_SOFTIRQ, NAPI_THREADS)
"""Entry points that no process enters through its own calls."""
_IN_HOOKS_SHOWN = 0.01
"""Share of tracers' hooks in the time of softirqs above which they are mentioned."""


def make_probe(host: Host | None = None) -> Cpu:
    """Return the probe of this lens."""
    return Cpu(host)


class Cpu(Probe):
    """The source of the CPU lens; see nettop.snapshots.source.Source."""

    lens = LENS

    def __init__(self, host: Host | None = None) -> None:
        super().__init__(host)
        self._frequency_hz = FREQUENCY.default
        self._program: Program | None = None
        self._samples: Samples | None = None
        self._hooks: dict[str, HookStatus] = {}
        self._began_ns = 0
        self._processes = ProcessTimes(self._host)
        self._stat_at_first: dict[int, int] = {}
        """Softirq time in /proc/stat at the first reading with a CPU."""
        self._without_stat: dict[str, str] = {}
        self._stacks: Rows | None = None

    def texts(self) -> tuple[ProgramText]:
        """Return the text of the lens."""
        return (cpu_samples.program_text(),)

    # --- start ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Compile, load and attach. Raise NettopError if the host or the user's rights do not allow it, UsageError for
        an unknown mechanism."""
        check_chosen(FALLBACKS, self._options.mechanisms)
        self._frequency_hz = self._options[FREQUENCY]
        self._host.require_bpf()
        self._program = self._opened.enter_context(closing(Loader().load(cpu_samples.program_text())))
        self._programs.append(self._program)
        attached = (
            self._attach_best(SAMPLES, lambda _: self._sample()),
            self._attach_best(SERVED, self._watch_sockets),
        )
        self._hooks = {hook.hook: hook for hook in attached}
        stat = read_cpu_times(self._host.proc)
        self._stat_at_first = {cpu: spent.softirq_ns for cpu, spent in stat.items()}
        if not stat:
            try:
                read_required("/proc/stat", self._host.root)
            except Unsupported as error:
                self._without_stat = {"missed samples": f"not counted: {error.what}"}

    def _sample(self) -> None:
        """Start sampling. Raise Unsupported, PermissionMissing or OSError."""
        if not symbols.are_shown(self._host.proc, self._host.kept):  # only a stack tells which softirq it is
            raise symbols.why_hidden(self._host.proc)
        samples = Samples(self._required(self._program), self._frequency_hz, self._host)
        try:
            samples.start()
        except BaseException:
            samples.close()
            raise
        self._opened.callback(samples.close)
        self._samples, self._began_ns = samples, monotonic_ns()

    def _watch_sockets(self, mechanism: Mechanism) -> None:
        """Attach the hooks that see which socket a softirq serves. Raise Unsupported or OSError."""
        program = self._required(self._program)
        if self._samples is None:
            raise Refused("there are no samples")
        if refused := [program.refused[name] for name in mechanism.programs if name in program.refused]:
            raise Refused(refused[0])
        for name in mechanism.programs:
            self._opened.callback(os.close, bpf.attach_tracing(program.functions[name]))

    # --- read -----------------------------------------------------------------------------------------------------

    def read(self, taken_ns: int) -> Snapshot:
        """Return the times since the start."""
        program = self._required(self._program)
        running_ns = self._samples.running_ns() if self._samples else {}
        stat = read_cpu_times(self._host.proc)
        samples = self._samples.read(taken_ns, running_ns, stat) if self._samples else None
        cpus = self._cpu_rows(samples, stat, taken_ns)
        tables = {CPUS.name: cpus, PROCESSES.name: self._process_rows(samples, taken_ns)}
        counts = {"cpus": len(cpus), "sampled_hz": self._frequency_hz}
        lost = {"recursion": skipped_runs(program), "rows": self._processes.dropped}
        gaps = dict(self._without_stat)
        if samples is not None:
            tables |= {STACKS.name: samples.stacks, CATEGORY_SHARES.name: samples.categories}
            counts |= {
                "network_ns": int(samples.entry_ns.sum()),
                "watched_ns": monotonic_ns() - self._began_ns,
                **samples.counts,
            }
            lost |= samples.lost
            gaps |= _tracers(samples)
            self._stacks = samples.stacks
        return Snapshot(
            LENS.id,
            *clocks(taken_ns),
            tables=tables,
            ended={PROCESSES.name: self._processes.ended(taken_ns)},
            counts=counts,
            lost=lost,
            hooks=tuple(self._hooks[hook.name] for hook in LENS.hooks),
            gaps=gaps,
        )

    def _cpu_rows(self, samples: SampleReading | None, stat: Mapping[int, CpuTimes], taken_ns: int) -> Rows:
        """Return a row for each CPU that is online."""
        online = stat or online_cpus(self._host.root)
        cpus = np.array(sorted(cpu for cpu in online if cpu < maps.possible_cpus()), np.intp)
        array = np.zeros(len(cpus), CPUS.dtype)
        array["cpu"] = cpus
        mark_unknown(array, [field for field in CPUS.dtype.names or () if field != "cpu"])
        if samples is not None:
            _set_times(array, samples.entry_ns[cpus], samples.vector_ns[cpus])
        if stat:
            spent_ns = {cpu: stat[cpu].softirq_ns for cpu in as_list(cpus)}
            self._stat_at_first = spent_ns | self._stat_at_first
            array["stat_softirq_ns"] = [max(0, ns - self._stat_at_first[cpu]) for cpu, ns in spent_ns.items()]
        return Rows(CPUS, array, {}, taken_ns)

    def _process_rows(self, samples: SampleReading | None, taken_ns: int) -> Rows:
        self._processes.begin()
        if samples is not None:
            self._processes.add_calls(samples.call_ns)
            total_ns = int(samples.entry_ns[:, _SOFTIRQ_WORK].sum())
            self._processes.add_softirqs(samples.served_ns, total_ns)
        return self._processes.rows(taken_ns)

    # --- the rest of a source -------------------------------------------------------------------------------------

    def describe(self, key: int) -> dict[str, str]:
        """Return a stack's functions, one per line, or a process's command line."""
        if key >= FIRST_ID:
            return self._processes.describe(key)
        if self._stacks is None:
            return {}
        codes = self._stacks.array["stack"][self._stacks.array["id"] == key].tolist()
        return {"Stack": self._stacks.texts["stack"][codes[0]].replace(";", "\n")} if codes else {}

    def close(self) -> None:
        """Detach; a second call is a no-op."""
        super().close()
        self._samples = self._program = None


def _set_times(array: Array, entry_ns: Array, vector_ns: Array) -> None:
    """Set the times of the rows of CPUs, by entry point and by softirq."""
    for entry, column in TIME_OF.items():
        array[column] = entry_ns[:, entry]
    array["network_ns"] = entry_ns.sum(axis=1)
    for vector, name in enumerate(VECTORS):
        if f"{name}_ns" in CPUS.by_name:
            array[f"{name}_ns"] = vector_ns[:, vector]


def _tracers(samples: SampleReading) -> dict[str, str]:
    """Return a gap if tracers' hooks take a part of the softirqs' time."""
    of_network = samples.entry_ns[:, (TX_SOFTIRQ, RX_SOFTIRQ)].sum()
    share = int(samples.vector_ns[:, IN_HOOK].sum()) / max(1, int(samples.vector_ns.sum() + of_network))
    if share <= _IN_HOOKS_SHOWN:
        return {}
    return {"hooks": f"tracers hook softirqs: {share:.0%} of the time is their hooks', and in no column"}
