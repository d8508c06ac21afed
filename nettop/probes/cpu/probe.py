# SPDX-License-Identifier: Apache-2.0
"""The CPU probe: hooks time the entry points of the network stack, samples show what CPUs do inside of it.

How system calls are timed depends on the kernel: if their functions cannot be hooked, their time is a share of the
samples. Softirqs and threads that poll devices are always timed exactly.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np

from nettop.errors import NettopError, SourceFailed, Unsupported
from nettop.kernel import maps, symbols
from nettop.kernel.facts import Host
from nettop.kernel.mechanisms import (
    NO_MECHANISM,
    ChosenMechanisms,
    Fallbacks,
    Mechanism,
    SwitchedOff,
    attach_best,
    check_chosen,
)
from nettop.kernel.perf_events import online_cpus
from nettop.kernel.proc_files import read_required
from nettop.kernel.proc_stat import CpuTimes, read_cpu_times
from nettop.kernel.program import Loader, Program, ProgramText
from nettop.probes.cpu import entries as cpu_entries
from nettop.probes.cpu import samples as cpu_samples
from nettop.probes.cpu.entries import EntryReading, EntryTimes, NapiThreads
from nettop.probes.cpu.processes import CALLS, FIRST_ID, SAMPLED_NS, ProcessTimes
from nettop.probes.cpu.samples import SampleReading, Samples
from nettop.snapshots.arrays import as_list
from nettop.snapshots.cpu import (
    CATEGORY_SHARES,
    CPUS,
    ENTRIES,
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
    TX_SOFTIRQ,
    VECTORS,
)
from nettop.snapshots.hooks import HookStatus
from nettop.snapshots.schema import Hook
from nettop.snapshots.snapshot import Array, Rows, Snapshot, unknown_value

SAMPLES = Fallbacks(HOOK_SAMPLES, (Mechanism("perf cpu-clock"),))
SYMBOLS = Fallbacks(HOOK_SYMBOLS, (Mechanism("/proc/kallsyms"),))
FALLBACKS = (*cpu_entries.FALLBACKS, SAMPLES, SYMBOLS)

_SOFTIRQ_WORK = (TX_SOFTIRQ, RX_SOFTIRQ, NAPI_THREADS)
"""The entry points that no process enters by its own calls."""
_UNKNOWN = unknown_value(np.dtype("u8"))
_NO_SAMPLES = "there are no samples"
_NO_SOFTIRQS = "nothing says when softirqs run"
_PREEMPTED = (
    "includes the time of threads that preempt softirqs (PREEMPT_RT): context switches are not hooked"
)


def make_probe() -> Cpu:
    """The probe of this lens."""
    return Cpu()


def program_text() -> ProgramText:
    """What the loader compiles for this lens: hooks and samples share the state of each CPU."""
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


class StatSoftirqs:
    """What /proc/stat counted as the time of softirqs since the start, by CPU: one that was offline may begin anew."""

    def __init__(self) -> None:
        self.ns: Counter[int] = Counter()
        self._before: dict[int, int] = {}

    def add(self, times: Mapping[int, CpuTimes]) -> None:
        """Add a reading; the first one of a CPU is its start."""
        for cpu, spent in times.items():
            self.ns[cpu] += max(0, spent.softirq_ns - self._before.get(cpu, spent.softirq_ns))
            self._before[cpu] = spent.softirq_ns


class Cpu:
    """The source of the CPU lens; see nettop.snapshots.source.Source."""

    def __init__(self, host: Host | None = None) -> None:
        self._host = host or Host()
        self._is_real_time = self._host.is_real_time()
        self._chosen: ChosenMechanisms = {}
        self._frequency_hz = int(FREQUENCY.default)
        self._program: Program | None = None
        self._times: EntryTimes | None = None
        self._samples: Samples | None = None
        self._hooks: dict[str, HookStatus] = {}
        self._began_ns = 0
        self._processes = ProcessTimes(self._host)
        self._napi_threads = NapiThreads(self._host.proc)
        self._stat_softirqs = StatSoftirqs()
        self._without_stat: dict[str, str] = {}
        self._stacks: Rows | None = None

    # --- start ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Compile, load and attach. Raises NettopError when this host or user cannot, UsageError for a chosen mechanism
        that does not exist."""
        check_chosen(FALLBACKS, self._chosen)
        self._host.require_bpf()
        loader = Loader()
        try:
            loader.request(program_text())
            self._program = loader.answer()
            self._times = EntryTimes(self._program)
            self._attach(loader)
            self._program.unload_all_but({*self._times.programs(), *cpu_samples.FUNCTIONS})
        finally:
            loader.close()
        stat = read_cpu_times(self._host.proc)
        self._stat_softirqs.add(stat)
        if not stat:
            try:
                read_required("/proc/stat", self._host.root)
            except Unsupported as error:
                self._without_stat = {"missed samples": f"not counted: {error.what}"}

    def _attach(self, loader: Loader) -> None:
        """Use the best mechanism for each hook. Samples come after the hooks, whose symbols they need to know."""
        times = self._attached
        attached = (
            attach_best(cpu_entries.SOFTIRQS, times.attach, self._chosen),
            attach_best(cpu_entries.THREADS, times.attach, self._chosen),
            attach_best(cpu_entries.SERVED, times.attach, self._chosen),
            attach_best(cpu_entries.SYSCALLS, partial(self._time_calls, loader), self._chosen),
            attach_best(SAMPLES, lambda _: self._sample(finds_calls=False), self._chosen),
            attach_best(SYMBOLS, self._require_symbols, self._chosen),
        )
        self._hooks = {hook.hook: hook for hook in attached}
        if self._samples is None or not self._is_available(HOOK_SOFTIRQS):
            why = _NO_SAMPLES if self._samples is None else _NO_SOFTIRQS
            times.detach(cpu_entries.SERVED.mechanisms[0].programs)  # nothing reads what they note
            refused = tuple((mechanism.name, why) for mechanism in cpu_entries.SERVED.mechanisms)
            self._hooks[HOOK_SERVED.name] = HookStatus(HOOK_SERVED.name, None, refused, HOOK_SERVED.fields)

    @property
    def _attached(self) -> EntryTimes:
        if self._times is None:
            raise SourceFailed("the CPU probe is not attached")
        return self._times

    def _is_available(self, hook: Hook) -> bool:
        return self._hooks[hook.name].mechanism is not None

    def _time_calls(self, loader: Loader, mechanism: Mechanism) -> None:
        if mechanism != cpu_entries.BY_SAMPLES:
            self._attached.hook_calls(mechanism, loader)
        elif self._chosen.get(HOOK_SAMPLES.name) == NO_MECHANISM:
            raise SwitchedOff(_NO_SAMPLES, f"leave out --mechanism {HOOK_SAMPLES.name}={NO_MECHANISM}")
        else:
            self._sample(finds_calls=True)

    def _sample(self, *, finds_calls: bool) -> None:
        """Begin to sample if that has not begun. Raises Unsupported, PermissionMissing or OSError."""
        if self._samples is not None:
            return
        assert self._program is not None
        samples = Samples(self._program, self._frequency_hz, self._host, finds_calls=finds_calls)
        try:
            samples.start()
        except BaseException:
            samples.close()
            raise
        self._samples, self._began_ns = samples, time.monotonic_ns()

    def _require_symbols(self, _: Mechanism) -> None:
        if not symbols.are_shown(self._host.proc):
            raise symbols.why_hidden(self._host.proc)

    # --- read -----------------------------------------------------------------------------------------------------

    def read(self, taken_ns: int) -> Snapshot:
        """The times since the start."""
        wall_ns, boot_ns = time.time_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self._follow_threads()
        times = self._attached.read(time.monotonic_ns())
        stat = read_cpu_times(self._host.proc)
        samples = self._samples.read(taken_ns, stat) if self._samples else None
        entry_ns = self._entry_ns(times, samples)
        cpus = self._cpu_rows(times, entry_ns, stat, taken_ns)
        tables = {CPUS.name: cpus, PROCESSES.name: self._process_rows(times, entry_ns, samples, taken_ns)}
        counts = {
            "network_ns": int(cpus.array["network_ns"].sum()),
            "cpus": len(cpus),
            "sampled_hz": self._frequency_hz,
            "ended_ns": int(self._processes.ended_ns.sum()),
        }
        lost = {**self._attached.lost(), "rows": self._processes.left_out}
        if samples is not None:
            tables |= {STACKS.name: samples.stacks, CATEGORY_SHARES.name: samples.categories}
            counts |= {"watched_ns": time.monotonic_ns() - self._began_ns, **samples.counts}
            lost |= samples.lost
            self._stacks = samples.stacks
        return Snapshot(
            lens=LENS.id,
            wall_ns=wall_ns,
            boot_ns=boot_ns,
            tables=tables,
            counts=counts,
            lost=lost,
            hooks=tuple(self._hooks[hook.name] for hook in LENS.hooks),
            gaps=self._gaps(entry_ns),
        )

    def _follow_threads(self) -> None:
        """Hook context switches only while threads poll devices, or may be switched out in hooked calls or softirqs."""
        hook = self._hooks[HOOK_NAPI_THREADS.name]
        hooks_calls = self._hooks[HOOK_SYSCALLS.name].mechanism not in (None, cpu_entries.BY_SAMPLES.name)
        if hook.mechanism is None or hooks_calls or self._is_real_time:
            return
        try:
            self._attached.watch_threads(wanted=self._napi_threads.exist())
        except (NettopError, OSError) as error:
            why = f"threads began to poll devices, and nettop has no right any more to hook context switches: {error}"
            self._hooks[hook.hook] = HookStatus(hook.hook, None, ((hook.mechanism, why),), hook.fields)

    def _entry_ns(self, times: EntryReading, samples: SampleReading | None) -> dict[int, Array]:
        """The time of each entry point by CPU; those are left out that this host cannot measure."""
        available = [
            *((TX_SOFTIRQ, RX_SOFTIRQ) if self._is_available(HOOK_SOFTIRQS) else ()),
            *((NAPI_THREADS,) if self._is_available(HOOK_NAPI_THREADS) else ()),
        ]
        entry_ns = {entry: times.entry_ns[:, entry] for entry in available}
        by_samples = self._hooks[HOOK_SYSCALLS.name].mechanism == cpu_entries.BY_SAMPLES.name
        by_entry = samples.entry_ns if by_samples and samples is not None else times.entry_ns
        for entry in CALLS if self._is_available(HOOK_SYSCALLS) else ():
            if entry != IO_WORKERS or not by_samples or self._is_available(HOOK_SYMBOLS):
                entry_ns[entry] = by_entry[:, entry]
        return entry_ns

    def _cpu_rows(
        self,
        times: EntryReading,
        entry_ns: Mapping[int, Array],
        stat: Mapping[int, CpuTimes],
        taken_ns: int,
    ) -> Rows:
        """A row for each CPU that is online."""
        self._stat_softirqs.add(stat)
        online = stat or online_cpus(self._host.root)
        cpus = np.array(sorted(cpu for cpu in online if cpu < maps.possible_cpus()), np.intp)
        array = np.zeros(len(cpus), CPUS.dtype)
        array["cpu"] = cpus
        for entry, column in TIME_OF.items():
            array[column] = entry_ns[entry][cpus] if entry in entry_ns else _UNKNOWN
        array["network_ns"] = sum(ns[cpus] for ns in entry_ns.values())
        for vector, name in enumerate(VECTORS):
            if f"{name}_ns" in CPUS.by_name:
                array[f"{name}_ns"] = times.vector_ns[cpus, vector]
        array["stat_softirq_ns"] = _UNKNOWN
        if stat:
            array["stat_softirq_ns"] = [self._stat_softirqs.ns[cpu] for cpu in as_list(cpus)]
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
            self._processes.add_softirqs(served_ns, int(times.entry_ns[:, _SOFTIRQ_WORK].sum()))
        rows, ended = self._processes.rows(taken_ns)
        if len(ended) and len(times.callers):
            self._attached.forget(times.callers[np.isin(times.callers["pid"], ended)])
        for entry in set(CALLS) - entry_ns.keys():
            rows.array[TIME_OF[entry]] = _UNKNOWN
        return rows

    def _gaps(self, entry_ns: Mapping[int, Array]) -> dict[str, str]:
        gaps = dict(self._without_stat)
        if self._is_real_time and not self._is_available(HOOK_NAPI_THREADS):
            gaps["softirqs"] = _PREEMPTED
        if self._attached.not_hooked:
            gaps["calls"] = f"not timed in {', '.join(self._attached.not_hooked)}"
        if missing := [name for entry, name in ENTRIES.items() if entry not in entry_ns]:
            gaps["network"] = f"the sum lacks {', '.join(missing)}"
        return gaps

    # --- the rest of a source -------------------------------------------------------------------------------------

    def set(self, option: str, value: object) -> None:
        """Before the start: `mechanisms` chosen in place of the best, `frequency` of the samples in Hz."""
        if option == "mechanisms":
            self._chosen = cast("ChosenMechanisms", value)
        if option == FREQUENCY.name:
            self._frequency_hz = cast("int", value)

    def describe(self, key: int) -> dict[str, str]:
        """For a stack its functions, one a line; for a process its command line."""
        if key >= FIRST_ID:
            return self._processes.describe(key)
        if self._stacks is None:
            return {}
        codes = self._stacks.array["stack"][self._stacks.array["id"] == key].tolist()
        return {"Stack": self._stacks.texts["stack"][codes[0]].replace(";", "\n")} if codes else {}

    def programs(self) -> Mapping[str, tuple[int, int]]:
        """What the programs cost; see nettop.snapshots.source.MeasuredSource."""
        return self._program.runs() if self._program else {}

    def kernel_bytes(self) -> int:
        """The kernel memory of the programs and their maps."""
        return self._program.kernel_bytes() if self._program else 0

    def close(self) -> None:
        """Detach; a second call does nothing."""
        for part in (self._samples, self._times, self._program):
            if part is not None:
                part.close()
        self._samples = self._times = self._program = None
