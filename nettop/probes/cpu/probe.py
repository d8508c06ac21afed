# SPDX-License-Identifier: Apache-2.0
"""The CPU probe: samples show what CPUs do inside the network stack, and samples or hooks time its entry points.

By default, times are a share of the samples: hooks at every softirq, switch of threads and system call would cost more
than the clock does. With `--times exact`, hooks time what this kernel can hook.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np

from nettop.errors import Unsupported
from nettop.kernel.bpf import maps, symbols
from nettop.kernel.bpf.mechanisms import (
    NO_MECHANISM,
    DisabledByUser,
    Fallbacks,
    Mechanism,
    Refused,
    check_chosen,
)
from nettop.kernel.bpf.perf_events import online_cpus
from nettop.kernel.bpf.program import Loader, Program
from nettop.kernel.bpf.program_text import ProgramText
from nettop.kernel.host.facts import Host
from nettop.kernel.host.proc_files import CpuTimes, read_cpu_times, read_required
from nettop.probes.cpu import entries as cpu_entries
from nettop.probes.cpu import samples as cpu_samples
from nettop.probes.cpu.entries import EntryReading, EntryTimes
from nettop.probes.cpu.processes import CALLS, FIRST_ID, SAMPLED_NS, ProcessTimes
from nettop.probes.cpu.samples import SampleReading, Samples
from nettop.probes.cpu.stacks import IN_HOOK
from nettop.probes.probe import Probe
from nettop.process.clocks import monotonic_ns
from nettop.snapshots.arrays import Array, as_list
from nettop.snapshots.cpu import (
    CATEGORY_SHARES,
    CPUS,
    ENTRIES,
    EXACT_TIMES,
    FREQUENCY,
    HOOK_NAPI_THREADS,
    HOOK_SAMPLES,
    HOOK_SERVED,
    HOOK_SOFTIRQS,
    HOOK_SYMBOLS,
    HOOK_SYSCALLS,
    IO_WORKERS,
    LENS,
    NAPI_THREADS,
    PROCESSES,
    RX_SOFTIRQ,
    STACKS,
    TIME_OF,
    TIMES,
    TX_SOFTIRQ,
    VECTORS,
)
from nettop.snapshots.hooks import HookStatus
from nettop.snapshots.schema import Hook
from nettop.snapshots.snapshot import Rows, Snapshot, clocks, unknown_value

SAMPLES = Fallbacks(HOOK_SAMPLES, (Mechanism("perf cpu-clock"),))
SYMBOLS = Fallbacks(HOOK_SYMBOLS, (Mechanism("/proc/kallsyms"),))
FALLBACKS = (*cpu_entries.FALLBACKS, SAMPLES, SYMBOLS)

_SOFTIRQ_WORK = (TX_SOFTIRQ, RX_SOFTIRQ, NAPI_THREADS)
"""Entry points that no process enters through its own calls."""
_ENTRIES_OF = {
    HOOK_SOFTIRQS.name: (TX_SOFTIRQ, RX_SOFTIRQ),
    HOOK_NAPI_THREADS.name: (NAPI_THREADS,),
    HOOK_SYSCALLS.name: CALLS,
}
"""The entry points that each hook times."""
_UNKNOWN = unknown_value(np.dtype("u8"))
_NO_SAMPLES = "there are no samples"
_NO_SOFTIRQS = "softirqs are not hooked"
_IN_HOOKS_SHOWN = 0.01
"""Share of other tracers' hooks in the time of softirqs above which they are mentioned."""
_PREEMPTED = (
    "includes the time of threads that preempt softirqs (PREEMPT_RT): context switches are not hooked"
)


def make_probe(host: Host | None = None) -> Cpu:
    """Return the probe of this lens."""
    return Cpu(host)


def program_text() -> ProgramText:
    """Return the programs of this lens: hooks and samples share the state of each CPU."""
    functions = {**cpu_entries.functions(), **cpu_samples.FUNCTIONS}
    return ProgramText(
        sources=(*cpu_entries.SOURCES, str(Path(__file__).with_name("samples.bpf.c"))),
        header=cpu_entries.header() + cpu_samples.header(),
        slices=(*cpu_entries.SLICES, *cpu_samples.SLICES),
        functions=functions,
        maps=(*cpu_entries.MAPS, *cpu_samples.MAPS),
        defines={**cpu_entries.defines(), **cpu_samples.defines()},
        optional=tuple(functions),
        needs=cpu_entries.NEEDS,
    )


# --- the source ---------------------------------------------------------------------------------------------------


class Cpu(Probe):
    """The source of the CPU lens; see nettop.snapshots.source.Source."""

    lens = LENS

    def __init__(self, host: Host | None = None) -> None:
        super().__init__(host)
        self._is_real_time = self._host.is_real_time()
        self._frequency_hz = FREQUENCY.default
        self._program: Program | None = None
        self._times: EntryTimes | None = None
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
        return (program_text(),)

    # --- start ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Compile, load and attach. Raises NettopError if the host or the user's rights do not allow it, UsageError for
        an unknown mechanism."""
        check_chosen(FALLBACKS, self._options.mechanisms)
        self._frequency_hz = self._options[FREQUENCY]
        self._host.require_bpf()
        with closing(Loader()) as loader:
            loader.request(program_text())
            self._program = self._opened.enter_context(closing(loader.answer()))
            self._programs.append(self._program)
            self._times = self._opened.enter_context(closing(EntryTimes(self._program)))
            self._attach(loader)
            self._program.keep_only({*self._times.programs(), *cpu_samples.FUNCTIONS})
        stat = read_cpu_times(self._host.proc)
        self._stat_at_first = {cpu: spent.softirq_ns for cpu, spent in stat.items()}
        if not stat:
            try:
                read_required("/proc/stat", self._host.root)
            except Unsupported as error:
                self._without_stat = {"missed samples": f"not counted: {error.what}"}

    def _attach(self, loader: Loader) -> None:
        """Use the best mechanism for each hook. Samples come after the hooks, because they need the hooks' symbols."""
        times = self._attached
        best = partial(cpu_entries.in_order, exact=self._options[TIMES] == EXACT_TIMES)
        served = self._attach_best(cpu_entries.SERVED, partial(times.attach, loader))
        softirqs = self._attach_best(best(cpu_entries.SOFTIRQS), partial(self._time_softirqs, loader))
        attached = (
            served,
            softirqs,
            self._attach_best(best(cpu_entries.THREADS), partial(self._time_threads, loader, softirqs)),
            self._attach_best(best(cpu_entries.SYSCALLS), partial(self._time_calls, loader)),
            self._attach_best(SAMPLES, lambda _: self._sample(cpu_samples.BY_HOOKS)),
            self._attach_best(SYMBOLS, lambda _: self._require_symbols()),
        )
        self._hooks = {hook.hook: hook for hook in attached}
        if self._samples is None or not self._is_available(HOOK_SOFTIRQS):
            why = _NO_SAMPLES if self._samples is None else _NO_SOFTIRQS
            times.detach(cpu_entries.SERVED.mechanisms[0].programs)  # their records would not be read
            refused = tuple((mechanism.name, why) for mechanism in cpu_entries.SERVED.mechanisms)
            self._hooks[HOOK_SERVED.name] = HookStatus(HOOK_SERVED.name, None, refused, HOOK_SERVED.fields)

    @property
    def _attached(self) -> EntryTimes:
        return self._required(self._times)

    def _is_available(self, hook: Hook) -> bool:
        return self._hooks[hook.name].mechanism is not None

    def _time_softirqs(self, loader: Loader, mechanism: Mechanism) -> None:
        if mechanism != cpu_entries.BY_SAMPLES:
            self._attached.attach(loader, mechanism)
            return
        self._require_symbols()  # only its stack tells which softirq it is
        self._sample(cpu_samples.ALONE)

    def _time_threads(self, loader: Loader, softirqs: HookStatus, mechanism: Mechanism) -> None:
        if mechanism != cpu_entries.BY_SAMPLES:
            self._attached.attach(loader, mechanism)
        elif not self._are_softirqs_sampled():
            raise Refused(dict(softirqs.refused).get(mechanism.name, "softirqs are hooked"))

    def _are_softirqs_sampled(self) -> bool:
        return self._samples is not None and self._samples.function == cpu_samples.ALONE

    def _time_calls(self, loader: Loader, mechanism: Mechanism) -> None:
        if mechanism != cpu_entries.BY_SAMPLES:
            self._attached.hook_calls(loader, mechanism)
        else:
            self._sample(cpu_samples.BY_TICKS)

    def _sample(self, function: str) -> None:
        """Start sampling unless it has started. Raises Unsupported, PermissionMissing or OSError."""
        if self._options.mechanisms.get(HOOK_SAMPLES.name) == NO_MECHANISM:
            raise DisabledByUser(_NO_SAMPLES, f"remove --mechanism {HOOK_SAMPLES.name}={NO_MECHANISM}")
        if self._samples is not None:
            return
        assert self._program is not None
        samples = Samples(self._program, self._frequency_hz, self._host, function)
        try:
            samples.start()
        except BaseException:
            samples.close()
            raise
        self._opened.callback(samples.close)
        self._samples, self._began_ns = samples, monotonic_ns()

    def _require_symbols(self) -> None:
        if not symbols.are_shown(self._host.proc, self._host.kept):
            raise symbols.why_hidden(self._host.proc)

    # --- read -----------------------------------------------------------------------------------------------------

    def read(self, taken_ns: int) -> Snapshot:
        """Return the times since the start."""
        times = self._attached.read(monotonic_ns())
        running_ns = self._samples.running_ns() if self._samples else {}
        stat = read_cpu_times(self._host.proc)
        samples = self._samples.read(taken_ns, running_ns, stat) if self._samples else None
        entry_ns = self._entry_ns(times, samples)
        by_samples = samples is not None and self._are_softirqs_sampled()
        vector_ns = samples.vector_ns if samples is not None and by_samples else times.vector_ns
        cpus = self._cpu_rows(vector_ns, entry_ns, stat, taken_ns)
        tables = {CPUS.name: cpus, PROCESSES.name: self._process_rows(times, entry_ns, samples, taken_ns)}
        counts = {
            "network_ns": int(cpus.array["network_ns"].sum()),
            "cpus": len(cpus),
            "sampled_hz": self._frequency_hz,
        }
        lost = {**self._attached.lost(), "rows": self._processes.dropped}
        if samples is not None:
            tables |= {STACKS.name: samples.stacks, CATEGORY_SHARES.name: samples.categories}
            counts |= {"watched_ns": monotonic_ns() - self._began_ns, **samples.counts}
            lost |= samples.lost
            self._stacks = samples.stacks
        return Snapshot(
            LENS.id,
            *clocks(taken_ns),
            tables=tables,
            ended={PROCESSES.name: self._processes.ended(taken_ns)},
            counts=counts,
            lost=lost,
            hooks=tuple(self._hooks[hook.name] for hook in LENS.hooks),
            gaps=self._gaps(entry_ns, vector_ns),
        )

    def _entry_ns(self, times: EntryReading, samples: SampleReading | None) -> dict[int, Array]:
        """Return the time of each entry point by CPU, except those that this host cannot measure."""
        entry_ns = {}
        for hook, entries in _ENTRIES_OF.items():
            by_samples = self._hooks[hook].mechanism == cpu_entries.BY_SAMPLES.name
            by_entry = samples.entry_ns if by_samples and samples is not None else times.entry_ns
            for entry in entries if self._hooks[hook].mechanism else ():
                if entry != IO_WORKERS or not by_samples or self._is_available(HOOK_SYMBOLS):
                    entry_ns[entry] = by_entry[:, entry]
        return entry_ns

    def _cpu_rows(
        self,
        vector_ns: Array,
        entry_ns: Mapping[int, Array],
        stat: Mapping[int, CpuTimes],
        taken_ns: int,
    ) -> Rows:
        """Return a row for each CPU that is online."""
        online = stat or online_cpus(self._host.root)
        cpus = np.array(sorted(cpu for cpu in online if cpu < maps.possible_cpus()), np.intp)
        array = np.zeros(len(cpus), CPUS.dtype)
        array["cpu"] = cpus
        for entry, column in TIME_OF.items():
            array[column] = entry_ns[entry][cpus] if entry in entry_ns else _UNKNOWN
        array["network_ns"] = sum(ns[cpus] for ns in entry_ns.values())
        for vector, name in enumerate(VECTORS):
            if f"{name}_ns" in CPUS.by_name:
                array[f"{name}_ns"] = vector_ns[cpus, vector]
        array["stat_softirq_ns"] = _UNKNOWN
        if stat:
            spent_ns = {cpu: stat[cpu].softirq_ns for cpu in as_list(cpus)}
            self._stat_at_first = spent_ns | self._stat_at_first
            array["stat_softirq_ns"] = [max(0, ns - self._stat_at_first[cpu]) for cpu, ns in spent_ns.items()]
        return Rows(CPUS, array, {}, taken_ns)

    def _process_rows(
        self,
        times: EntryReading,
        entry_ns: Mapping[int, Array],
        samples: SampleReading | None,
        taken_ns: int,
    ) -> Rows:
        self._processes.begin()
        self._processes.add_exact(times.callers, times.spent)
        if samples is not None:
            self._processes.add_sampled(samples.call_ns)
        if self._is_available(HOOK_SOFTIRQS):
            served_ns = samples.served_ns if samples is not None else np.zeros(0, SAMPLED_NS)
            total_ns = sum(int(entry_ns[entry].sum()) for entry in _SOFTIRQ_WORK if entry in entry_ns)
            self._processes.add_softirqs(served_ns, total_ns)
        rows, ended = self._processes.rows(taken_ns), self._processes.exited()
        if len(ended) and len(times.callers):
            self._attached.forget(times.callers[np.isin(times.callers["pid"], ended)])
        for entry in set(CALLS) - entry_ns.keys():
            rows.array[TIME_OF[entry]] = _UNKNOWN
        return rows

    def _gaps(self, entry_ns: Mapping[int, Array], vector_ns: Array) -> dict[str, str]:
        gaps = dict(self._without_stat)
        of_network = [entry_ns[entry].sum() for entry in (TX_SOFTIRQ, RX_SOFTIRQ) if entry in entry_ns]
        in_hooks = int(vector_ns[:, IN_HOOK:].sum()) / max(1, int(vector_ns.sum() + sum(of_network)))
        if in_hooks > _IN_HOOKS_SHOWN:
            gaps["hooks"] = (
                f"tracers hook softirqs: {in_hooks:.0%} of the time is their hooks', and in no column"
            )
        if self._is_real_time and not self._is_available(HOOK_NAPI_THREADS):
            gaps["softirqs"] = _PREEMPTED
        if self._attached.not_hooked:
            gaps["calls"] = f"not timed in {', '.join(self._attached.not_hooked)}"
        if missing := [name for entry, name in ENTRIES.items() if entry not in entry_ns]:
            gaps["network"] = f"the sum lacks {', '.join(missing)}"
        return gaps

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
        self._samples = self._times = self._program = None
