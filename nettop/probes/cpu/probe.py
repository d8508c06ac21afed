# SPDX-License-Identifier: Apache-2.0
"""The CPU probe: hooks time the entry points of the network stack, samples tell what CPUs do inside of it.

How system calls are timed depends on the kernel. Where none of their functions can be hooked, samples tell their time
too: a share of the clock's ticks. Softirqs and threads that poll devices are always timed exactly.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np

from nettop.errors import NettopError, SourceFailed
from nettop.kernel import maps
from nettop.kernel.facts import Host
from nettop.kernel.mechanisms import (
    NO_MECHANISM,
    ChosenMechanisms,
    Fallbacks,
    Mechanism,
    Refused,
    attach_best,
    check_chosen,
)
from nettop.kernel.proc_stat import CpuTimes, read_cpu_times
from nettop.kernel.program import Loader, Program, ProgramText
from nettop.kernel.symbols import are_shown
from nettop.probes.cpu import entries as cpu_entries
from nettop.probes.cpu import samples as cpu_samples
from nettop.probes.cpu.entries import EntryReading, EntryTimes, NapiThreads
from nettop.probes.cpu.processes import FIRST_ID, ProcessTimes
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
    RX_SOFTIRQ,
    RX_SYSCALLS,
    STACKS,
    TIME_OF,
    TX_SOFTIRQ,
    TX_SYSCALLS,
    VECTORS,
)
from nettop.snapshots.own_cost import LEFT_OUT
from nettop.snapshots.snapshot import Array, HookStatus, Rows, Snapshot, unknown_value

SAMPLES = Fallbacks(HOOK_SAMPLES, (Mechanism("perf cpu-clock"),))
SYMBOLS = Fallbacks(HOOK_SYMBOLS, (Mechanism("/proc/kallsyms"),))
FALLBACKS = (*cpu_entries.FALLBACKS, SAMPLES, SYMBOLS)

_CALLS = (TX_SYSCALLS, RX_SYSCALLS, IO_WORKERS)
_NOT_CALLED = (TX_SOFTIRQ, RX_SOFTIRQ, NAPI_THREADS)
"""The entry points that no process enters."""
_UNKNOWN = unknown_value(np.dtype("u8"))
_NO_SYMBOLS = "the kernel hides its symbols: sysctl kernel.kptr_restrict=2, or no CAP_SYSLOG"
_NO_SAMPLES = "there are no samples"
_ONLY_ASKED_FOR = "it halves the speed of every short system call: --mechanism syscalls=raw_syscalls takes it"
_NO_SOFTIRQS = "nothing tells when softirqs run"
_WITH_OTHERS = "timed with threads that came between, which are not seen: this kernel is for real time"
_FIELDS = {point.name: point.fields for point in LENS.hooks}
_BY_TICKS = {cpu_entries.BY_SAMPLES: _CALLS, cpu_entries.RAW_SYSCALLS: (IO_WORKERS,)}
"""The entry points of which, by such a way to system calls, no hook tells: workers make none."""
_THE_SAMPLES, _THE_CALLS = "the samples", "the hooks at system calls"
_OF_SAMPLES = (HOOK_SAMPLES.name, HOOK_SERVED.name)


def make_probe() -> Cpu:
    """The probe of this lens."""
    return Cpu()


def program_text() -> ProgramText:
    """What the loader compiles for this lens: hooks and samples see the same state of a CPU."""
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


class Cpu:
    """The source of the CPU lens; see nettop.snapshots.source.Source."""

    def __init__(self, host: Host | None = None) -> None:
        self._host = host or Host()
        self._is_real_time = self._host.is_real_time()
        self._asked: ChosenMechanisms = {}
        self._frequency_hz = int(FREQUENCY.default)
        self._program: Program | None = None
        self._times: EntryTimes | None = None
        self._samples: Samples | None = None
        self._by_ticks: tuple[int, ...] = ()
        self._hooks: dict[str, HookStatus] = {}
        self._left_out: list[str] = []
        self._read_ns = self._watched_ns = 0
        self._processes = ProcessTimes(self._host)
        self._napi_threads = NapiThreads(self._host.proc)
        self._stat_at_start: dict[int, CpuTimes] = {}
        self._stacks: Rows | None = None

    # --- start ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Compile, load and attach. Raises NettopError when this host or user cannot, UsageError for a way that
        there is not."""
        check_chosen(FALLBACKS, self._asked)
        self._host.require_bpf()
        loader = Loader()
        try:
            loader.ask(program_text())
            self._program = loader.answer()
            self._times = EntryTimes(self._program)
            self._climb(loader)
            self._program.unload_all_but({*self._times.programs(), *cpu_samples.FUNCTIONS})
        finally:
            loader.close()
        self._stat_at_start = read_cpu_times(self._host.proc)

    def _climb(self, loader: Loader) -> None:
        """Take the best ways. Samples come behind the hooks, whose own symbols they are to know."""
        times = self._attached
        take_calls = partial(self._take_calls, loader)
        climbed = (
            attach_best(cpu_entries.SOFTIRQS, times.attach, self._asked),
            attach_best(cpu_entries.THREADS, times.attach, self._asked),
            attach_best(cpu_entries.SERVED, times.attach, self._asked),
            attach_best(cpu_entries.SYSCALLS, take_calls, self._asked),
            attach_best(SAMPLES, self._take_samples, self._asked),
            attach_best(SYMBOLS, self._need_symbols, self._asked),
        )
        by_hook = {hook.hook: hook for hook in climbed}
        if self._samples is None or by_hook[HOOK_SOFTIRQS.name].mechanism is None:
            why = _NO_SAMPLES if self._samples is None else _NO_SOFTIRQS
            by_hook[HOOK_SERVED.name] = self._serve_nobody(why)
        self._hooks = {point.name: by_hook[point.name] for point in LENS.hooks}

    def _serve_nobody(self, why: str) -> HookStatus:
        """Nobody looks at what these programs note, or they note nothing."""
        self._attached.detach(cpu_entries.SERVED.mechanisms[0].programs)
        refused = tuple((way.name, why) for way in cpu_entries.SERVED.mechanisms)
        return HookStatus(HOOK_SERVED.name, None, refused, HOOK_SERVED.fields)

    @property
    def _attached(self) -> EntryTimes:
        if self._times is None:
            raise SourceFailed("the CPU probe is not attached")
        return self._times

    def _take_calls(self, loader: Loader, way: Mechanism) -> None:
        if way == cpu_entries.RAW_SYSCALLS and HOOK_SYSCALLS.name not in self._asked:
            raise Refused(_ONLY_ASKED_FOR)
        if way != cpu_entries.BY_SAMPLES:
            self._attached.hook_calls(way, loader)
        elif self._asked.get(HOOK_SAMPLES.name) == NO_MECHANISM:
            raise Refused(_NO_SAMPLES)
        else:
            self._sample(way.programs, tells_calls=True)
        self._by_ticks = _BY_TICKS.get(way, ())

    def _take_samples(self, _: Mechanism) -> None:
        assert self._program is not None
        if self._samples is None:
            may_tell = cpu_samples.BY_TICKS in self._program.functions
            self._sample((), tells_calls=bool(self._by_ticks) and may_tell)

    def _sample(self, programs: Iterable[str], *, tells_calls: bool) -> None:
        """Begin to sample. Raises Refused, PermissionMissing or OSError."""
        assert self._program is not None
        for name in programs:
            if name not in self._program.functions:
                raise Refused(self._program.refused[name])
        samples = Samples(self._program, self._frequency_hz, self._host, tells_calls=tells_calls)
        try:
            samples.attach()
        except BaseException:
            samples.close()
            raise
        self._samples, self._read_ns = samples, time.monotonic_ns()

    def _need_symbols(self, _: Mechanism) -> None:
        if not are_shown(self._host.proc):
            raise Refused(_NO_SYMBOLS)

    # --- read -----------------------------------------------------------------------------------------------------

    def read(self, taken_ns: int) -> Snapshot:
        """The times since the start."""
        wall_ns, boot_ns = time.time_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self._follow_threads()
        times = self._attached.read(time.monotonic_ns())
        stat = read_cpu_times(self._host.proc)
        samples = self._samples.read(taken_ns, stat) if self._samples else None
        self._count_watched(time.monotonic_ns())
        cpus = self._cpus(times, samples, stat, taken_ns)
        network_ns = int(cpus.array["network_ns"].sum())
        tables = {CPUS.name: cpus, "processes": self._process_rows(times, samples, taken_ns)}
        if samples is not None:
            tables |= {STACKS.name: samples.stacks, CATEGORY_SHARES.name: samples.categories}
            self._stacks = samples.stacks
        return Snapshot(
            lens=LENS.id,
            wall_ns=wall_ns,
            boot_ns=boot_ns,
            tables=tables,
            counts=self._counts(network_ns, cpus, samples),
            lost=self._lost(samples),
            hooks=tuple(map(self._hook_now, self._hooks.values())),
            gaps=self._gaps(times, samples),
        )

    def _count_watched(self, now_ns: int) -> None:
        """Count the time in which the samples were not left out: that changes right after a reading."""
        self._watched_ns += 0 if _THE_SAMPLES in self._left_out else now_ns - self._read_ns
        self._read_ns = now_ns

    def _follow_threads(self) -> None:
        """See threads change only while some of them poll devices, or may wait in hooked calls or in softirqs."""
        hook = self._hooks[HOOK_NAPI_THREADS.name]
        if hook.mechanism is None or self._hooks_calls or self._is_real_time:
            return
        try:
            self._attached.watch_threads(wanted=self._napi_threads.are_here())
        except (NettopError, OSError) as error:
            refused = (
                (hook.mechanism, f"threads began to poll devices, and nettop may not look any more: {error}"),
            )
            self._hooks[hook.hook] = HookStatus(hook.hook, None, refused, hook.fields)

    def _cpus(
        self, times: EntryReading, samples: SampleReading | None, stat: Mapping[int, CpuTimes], taken_ns: int
    ) -> Rows:
        """A row for each CPU that is on."""
        on = np.array(sorted(cpu for cpu in stat if cpu < maps.possible_cpus()), np.intp)
        array = np.zeros(len(on), CPUS.dtype)
        array["cpu"] = on
        for entry, column in TIME_OF.items():
            spent = self._entry_times(entry, times, samples)
            array[column] = _UNKNOWN if spent is None else spent[on]
            array["network_ns"] += 0 if spent is None else spent[on]
        for vector, name in enumerate(VECTORS):
            if f"{name}_ns" in CPUS.by_name:
                array[f"{name}_ns"] = times.vector_ns[on, vector]
        none = CpuTimes(0, 0)
        array["stat_softirq_ns"] = [
            stat[cpu].softirq_ns - self._stat_at_start.get(cpu, none).softirq_ns for cpu in as_list(on)
        ]
        return Rows(CPUS, array, {}, taken_ns)

    def _entry_times(self, entry: int, times: EntryReading, samples: SampleReading | None) -> Array | None:
        """The times of an entry point by CPU; None where nothing tells them."""
        way = self._way(entry)
        if way is None:
            return None
        if entry in self._by_ticks:
            return samples.entry_ns[:, entry] if samples and self._ticks_tell(entry) else None
        return times.entry_ns[:, entry]

    def _ticks_tell(self, entry: int) -> bool:
        """Whether the samples tell of an entry point where hooks do not; of workers it is their stacks that do."""
        by_name = entry != IO_WORKERS or self._hooks[HOOK_SYMBOLS.name].mechanism is not None
        return by_name and self._samples is not None and self._samples.tells_calls

    def _way(self, entry: int) -> str | None:
        fallbacks = (
            cpu_entries.SYSCALLS
            if entry in _CALLS
            else cpu_entries.THREADS
            if entry == NAPI_THREADS
            else cpu_entries.SOFTIRQS
        )
        return self._hooks[fallbacks.hook.name].mechanism

    def _process_rows(self, times: EntryReading, samples: SampleReading | None, taken_ns: int) -> Rows:
        self._processes.begin()
        self._processes.add_exact(times.callers, times.spent)
        if samples is not None:
            self._processes.add_sampled(samples.process_ns, self._by_ticks)
        if self._way(RX_SOFTIRQ) is not None:
            served_ns = samples.served_ns if samples is not None else {}
            self._processes.add_softirqs(served_ns, int(times.entry_ns[:, _NOT_CALLED].sum()))
        rows, ended = self._processes.rows(taken_ns)
        pids = [process.pid for process in ended]
        if pids and len(times.callers):
            self._attached.forget(times.callers[np.isin(times.callers["tgid"], pids)])
        if pids and self._samples is not None:
            self._samples.forget(pids)
        for entry in (one for one in self._by_ticks if not self._ticks_tell(one)):
            rows.array[TIME_OF[entry]] = _UNKNOWN
        return rows

    def _counts(self, network_ns: int, cpus: Rows, samples: SampleReading | None) -> dict[str, int]:
        return {
            "network_ns": network_ns,
            "cpus": len(cpus),
            "frequency_hz": self._frequency_hz,
            "ended_ns": self._processes.ended.total(),
        } | ({"watched_ns": self._watched_ns, **samples.counts} if samples else {})

    def _lost(self, samples: SampleReading | None) -> dict[str, int]:
        return (
            self._attached.lost() | {"rows": self._processes.left_out} | dict(samples.lost if samples else {})
        )

    def _gaps(self, times: EntryReading, samples: SampleReading | None) -> dict[str, str]:
        missed = self._attached.not_hooked
        missing = {
            name
            for hook in map(self._hook_now, self._hooks.values())
            if not hook.mechanism
            for name in hook.fields
        }
        untold = [
            ENTRIES[one]
            for one, name in TIME_OF.items()
            if name in missing or self._entry_times(one, times, samples) is None
        ]
        found = {
            "softirqs": _WITH_OTHERS if self._is_real_time and self._way(NAPI_THREADS) is None else None,
            "calls": f"not timed where they pass {', '.join(missed)}" if missed else None,
            "network": f"summed up without {', '.join(untold)}" if untold else None,
        }
        return {name: why for name, why in found.items() if why is not None}

    # --- costing less ---------------------------------------------------------------------------------------------

    def shed(self) -> str | None:
        """Leave out the samples, then the hooks at system calls; see nettop.snapshots.source.SheddingSource."""
        if self._samples is not None and _THE_SAMPLES not in self._left_out:
            self._samples.detach()
            self._left_out.append(_THE_SAMPLES)
        elif self._hooks_calls and _THE_CALLS not in self._left_out:
            self._attached.unhook_calls()
            self._left_out.append(_THE_CALLS)
        else:
            return None
        return self._left_out[-1]

    def restore(self) -> str | None:
        """Attach again what was left out last."""
        if not self._left_out:
            return None
        try:
            if self._left_out[-1] == _THE_SAMPLES:
                assert self._samples is not None
                self._samples.attach()
            else:
                self._attached.hook_calls(self._way_of_calls())
        except (NettopError, OSError):
            return None
        return self._left_out.pop()

    @property
    def _hooks_calls(self) -> bool:
        """Whether system calls are timed by hooks."""
        return self._hooks[HOOK_SYSCALLS.name].mechanism not in (None, cpu_entries.BY_SAMPLES.name)

    def _way_of_calls(self) -> Mechanism:
        return next(
            way
            for way in cpu_entries.SYSCALLS.mechanisms
            if way.name == self._hooks[HOOK_SYSCALLS.name].mechanism
        )

    def _hook_now(self, hook: HookStatus) -> HookStatus:
        """How the point is had; what is left out keeps its numbers, which only do not grow."""
        by_samples = hook.hook in _OF_SAMPLES or hook.mechanism == cpu_entries.BY_SAMPLES.name
        by_calls = hook.hook == HOOK_SYSCALLS.name and not by_samples
        if (by_samples and _THE_SAMPLES in self._left_out) or (by_calls and _THE_CALLS in self._left_out):
            return HookStatus(hook.hook, None, ((str(hook.mechanism), LEFT_OUT),), _FIELDS[hook.hook])
        return hook

    # --- the rest of a source -------------------------------------------------------------------------------------

    def set(self, option: str, value: object) -> None:
        """Before the start: `ways` that are asked for in place of the best, `frequency` of the samples in Hz."""
        if option == "mechanisms":
            self._asked = cast("ChosenMechanisms", value)
        if option == FREQUENCY.name:
            self._frequency_hz = cast("int", value)

    def describe(self, key: int) -> dict[str, str]:
        """For a stack its functions, one a line; for a process its command line."""
        if key >= FIRST_ID:
            return self._processes.describe(key)
        rows = self._stacks
        if rows is None:
            return {}
        at = int(np.searchsorted(rows.array["id"], key))
        if at == len(rows) or rows.array["id"][at] != key:
            return {}
        return {"Stack": rows.texts["stack"][rows.array["stack"][at]].replace(";", "\n")}

    def programs(self) -> Mapping[str, tuple[int, int]]:
        """What the programs cost; see nettop.snapshots.source.MeasuredSource."""
        return self._program.runs() if self._program else {}

    def kernel_bytes(self) -> int:
        """What the programs and their maps take of the kernel's memory."""
        return self._program.kernel_bytes() if self._program else 0

    def close(self) -> None:
        """Detach; a second call does nothing."""
        for part in (self._samples, self._times, self._program):
            if part is not None:
                part.close()
        self._samples = self._times = self._program = None
