# SPDX-License-Identifier: Apache-2.0
"""What CPUs do inside the network stack, met by a clock many times a second.

A program at each CPU's clock counts where a tick meets network work, under the stack of kernel functions. Nothing is
emptied but a whole generation of stacks, once its map fills up; so a stack that was met before costs a reading no more
than a look at its count.
"""

from __future__ import annotations

import ctypes
import platform
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nettop.errors import Unsupported
from nettop.kernel import bpf, maps
from nettop.kernel.btf import Slice
from nettop.kernel.facts import Host
from nettop.kernel.iterator import Iterator, RowBuffer
from nettop.kernel.perf_events import Clocks, online_cpus
from nettop.kernel.proc_stat import CpuTimes, read_cpu_times
from nettop.kernel.program import Program
from nettop.kernel.rows import row_header
from nettop.kernel.symbols import Symbols
from nettop.probes.cpu.calls import CALL, CALLS_MAX, put_calls
from nettop.probes.cpu.stacks import (
    CALL_BY_STACK,
    THREAD_BY_STACK,
    Folded,
    Folder,
    StackRows,
    categories_not_available,
)
from nettop.snapshots.arrays import as_list, positions
from nettop.snapshots.cpu import CATEGORY_OF, ENTRIES
from nettop.snapshots.snapshot import Array, Rows

BY_HOOKS, BY_TICKS, HOLDERS = "sample__entries", "sample__calls", "bpf_iter__task_file"
"""The clock's program, where hooks tell of system calls or where its ticks have to; and who holds which socket."""
_BPF_PROG_TYPE_PERF_EVENT, _BPF_PROG_TYPE_TRACING = 7, 26
FUNCTIONS: Mapping[str, int] = {
    BY_HOOKS: _BPF_PROG_TYPE_PERF_EVENT,
    BY_TICKS: _BPF_PROG_TYPE_PERF_EVENT,
    HOLDERS: _BPF_PROG_TYPE_TRACING,
}
MAPS = ("stacks", "counted", "served", "sampled", "generation", "calls")
SLICES = (Slice("bpf_iter_meta", {"seq": "seq"}, {}),)

SAMPLED = np.dtype(
    [(name, "u8") for name in ("ticks", "samples", "uncounted", "collisions", "failed", "no_room")]
)
"""What the program counts on each CPU: ticks; those in network work; those that no key had room for; and those without
a stack: another one has its hash, the walk failed, or there was no room."""

_COUNTED = np.dtype([("stack", "u8"), ("samples", "u8"), ("tgid", "u4"), ("cpu", "u2"), ("entry", "u2")])
_SERVED = np.dtype([("samples", "u8")])
_HOLDER = np.dtype([("socket", "u8"), ("tgid", "u4"), ("padding", "u4")])
_STACK_DEPTH = 127
"""As deep as the kernel walks unasked (sysctl kernel.perf_event_max_stack)."""
_STACK = np.dtype([("addresses", "u8", (_STACK_DEPTH,))])

_NO_STACK = 0
_GENERATION = np.uint64(1)
"""The bit of each key that says to which generation it belongs."""
_ELSEWHERE, _WITHOUT_STACK = -1, -2
"""In place of a row: no network work after all, and nobody knows where."""

_STACKS_PER_CPU, _STACKS_MAX = 2048, 8192
_COUNTED_PER_CPU, _COUNTED_MAX = 8192, 1 << 17
_CROWDED = 2
"""A generation is emptied once one in so many of the places of a map is taken."""
_LOOK_AGAIN_NS = 30_000_000_000
"""So long symbols are believed to be all: BPF programs come and go, and say so nowhere else."""
_TRUSTED_NS = 5_000_000_000
"""For so long a socket's address is believed to be that of the same socket."""
_WALK_SHARE = 100
"""Looking up who holds sockets takes one in so many nanoseconds at most."""
_MEMBARRIER, _MEMBARRIER_GLOBAL = {"x86_64": 324, "aarch64": 283}.get(platform.machine(), -1), 1
_NS = 1_000_000_000
_PROGRAM, _PROGRAM_BYTES = "[bpf]", 1 << 14
"""What stands behind a BPF program's name in kallsyms; few of them are longer."""
_libc = ctypes.CDLL(None, use_errno=True)


def defines() -> dict[str, int]:
    """The numbers that reach the program by -D. Places go by the number of CPUs."""
    cpus = 1 << (maps.possible_cpus() - 1).bit_length()
    counted_max = min(_COUNTED_MAX, _COUNTED_PER_CPU * cpus)
    return {
        "STACK_DEPTH": _STACK_DEPTH,
        "STACKS_MAX": min(_STACKS_MAX, _STACKS_PER_CPU * cpus),
        "COUNTED_MAX": counted_max,
        "SERVED_MAX": counted_max,
        "CALLS_MAX": CALLS_MAX,
        "NO_STACK": _NO_STACK,
        "CALL_BY_STACK": CALL_BY_STACK,
        "THREAD_BY_STACK": THREAD_BY_STACK,
    }


def header() -> str:
    """C text in front of cpu_samples.bpf.c."""
    rows = {"sampled": SAMPLED, "call": CALL, "holder": _HOLDER, "counted": _COUNTED, "stack": _STACK}
    return "".join(row_header(name, dtype) for name, dtype in rows.items())


# --- what is read ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, slots=True)
class SampleReading:
    """What the samples tell since the start. Times are in ns of CPU time: samples × the clock's period. Ticks that were
    missed are told, and are in no time.

    `entry_ns`, by CPU and entry point, and `process_ns`, by process and entry point, also hold samples without a stack.
    `served_ns` is the time of softirqs by the process that holds the socket they served. `counts` are the samples of
    all rows, those among them that have an address without a name, ticks that turned out to be `elsewhere` than in
    network work, and all ticks; `lost` names what no row has.
    """

    stacks: Rows
    categories: Rows
    entry_ns: Array
    process_ns: Mapping[int, Mapping[int, int]]
    served_ns: Mapping[int, int]
    counts: Mapping[str, int]
    lost: Mapping[str, int]


class Growing:
    """A hash map of counts that only grow, until those of a generation are emptied."""

    def __init__(self, map_fd: int, dtype: np.dtype[Any]) -> None:
        """`dtype`: that of the map's values, with their `samples`."""
        self._map, self._dtype = map_fd, dtype
        self._keys: Array = np.zeros(0, np.uint64)
        self._samples: Array = self._keys

    def added(self) -> tuple[Array, Array, Array]:
        """The keys whose counts grew since the last reading, their values, and by how much they grew."""
        keys, values = maps.read_all(self._map, self._keys.dtype, self._dtype)
        order = np.argsort(keys)
        keys, values = keys[order], values[order]
        at = positions(keys, self._keys)
        grown = values["samples"].copy()
        grown[at >= 0] -= self._samples[at[at >= 0]]
        self._keys, self._samples = keys, values["samples"]
        has_grown = grown > 0
        return keys[has_grown], values[has_grown], grown[has_grown]

    def used(self, generation: int) -> int:
        """How many keys the generation had at the last reading."""
        return int(np.count_nonzero(_are_of(generation, self._keys)))

    def empty(self, generation: int) -> None:
        """Delete what the generation had at the last reading."""
        gone = _are_of(generation, self._keys)
        maps.delete_all(self._map, self._keys[gone])
        self._keys, self._samples = self._keys[~gone], self._samples[~gone]


def _are_of(generation: int, keys: Array) -> Array:
    of_it: Array = keys & _GENERATION == generation
    return of_it


class Times:
    """What a tick of each CPU stands for, in ns, and how many there should have been.

    Clocks rest with an idle CPU on some kernels (seen on 6.18), and with one that a hypervisor has taken away, so the
    time in which CPUs rested expects none.
    """

    def __init__(self) -> None:
        cpus = maps.possible_cpus()
        self.per_tick = np.zeros(cpus)
        self.expected = np.zeros(cpus)
        """How many ticks there should have been."""
        self._read = np.zeros(cpus)
        self._rested = np.zeros(cpus)

    def begin(self, running: Mapping[int, int], times: Mapping[int, CpuTimes]) -> None:
        """Forget how long clocks ran before, and how long CPUs rested."""
        for cpu, at in running.items():
            self._note(cpu, at, times)

    def read(self, running: Mapping[int, int], times: Mapping[int, CpuTimes], frequency_hz: int) -> None:
        """Learn how long the clocks have run, and for how much of that their CPUs rested."""
        for cpu, at in running.items():
            read, rested = self._read[cpu], self._rested[cpu]
            self._note(cpu, at, times)
            busy_ns = max(0.0, at - read - (self._rested[cpu] - rested))
            self.expected[cpu] += busy_ns * frequency_hz / _NS
            self.per_tick[cpu] = _NS / frequency_hz

    def _note(self, cpu: int, at: int, times: Mapping[int, CpuTimes]) -> None:
        self._read[cpu] = at
        if cpu in times:
            self._rested[cpu] = times[cpu].idle_ns

    @property
    def mean_ns(self) -> float:
        """What a tick stands for, of all CPUs that have ticked."""
        ticking = self.per_tick[self.per_tick > 0]
        return float(ticking.mean()) if len(ticking) else 0.0


class Owners:
    """Which process holds a socket, by its address (struct sock): the first of those that do."""

    def __init__(self, program: int | None) -> None:
        self._holders = Iterator(program, _HOLDER) if program is not None else None
        self._buffer = RowBuffer()
        self._found: dict[int, int | None] = {}
        self._asked_ns = self._next_ns = 0

    def find(self, sockets: Iterable[int]) -> dict[int, int | None]:
        """The process of each socket, None for what nobody holds. What cannot be asked now is left out."""
        wanted, now_ns = set(sockets), time.monotonic_ns()
        if self._holders is None:
            return dict.fromkeys(wanted)
        if now_ns - self._asked_ns > _TRUSTED_NS:
            self._found = {}
        if wanted - self._found.keys() and now_ns >= self._next_ns:
            self._ask(self._holders, wanted)
        return {socket: self._found[socket] for socket in wanted & self._found.keys()}

    def _ask(self, holders: Iterator, wanted: set[int]) -> None:
        self._asked_ns = time.monotonic_ns()
        rows = holders.read(self._buffer)
        sockets, first = np.unique(rows["socket"], return_index=True)
        asked = np.fromiter(wanted, np.uint64, len(wanted))
        at = positions(asked, sockets)
        tgids = rows["tgid"][first]
        self._found |= {
            socket: int(tgids[place]) if place >= 0 else None
            for socket, place in zip(as_list(asked), as_list(at), strict=True)
        }
        now_ns = time.monotonic_ns()
        self._next_ns = now_ns + _WALK_SHARE * (now_ns - self._asked_ns)

    def close(self) -> None:
        """Detach; a second call does nothing."""
        if self._holders is not None:
            self._holders.close()


class Kept:
    """What the kernel keeps of the ticks in network work, in two generations: stacks, and counts under them."""

    def __init__(self, map_fds: Mapping[str, int], limits: Mapping[str, int]) -> None:
        self._maps, self._limits = map_fds, limits
        self._counted = Growing(map_fds["counted"], _COUNTED)
        self._served = Growing(map_fds["served"], _SERVED)
        self._generation = 0
        self._stacks: dict[int, bytes] = {}

    def counted(self) -> tuple[Array, Array, Array]:
        """Keys whose counts grew, their values (_COUNTED), and by how much; `stack` has their stacks."""
        keys, values, samples = self._counted.added()
        self._read([one for one in set(values["stack"].tolist()) - self._stacks.keys() if one != _NO_STACK])
        return keys, values, samples

    def stack(self, key: int) -> bytes | None:
        """The addresses of a stack, leaf first; None where there is none."""
        return self._stacks.get(key)

    def served(self) -> tuple[Array, Array]:
        """Addresses of sockets that softirqs were met to serve, and how often."""
        keys, _, samples = self._served.added()
        return keys & ~_GENERATION, samples

    def is_crowded(self) -> bool:
        """Whether so much is kept that the other generation is to take over."""
        used = {
            "COUNTED_MAX": self._counted.used(self._generation),
            "SERVED_MAX": self._served.used(self._generation),
            "STACKS_MAX": len(self._stacks),
        }
        return any(taken > self._limits[name] // _CROWDED for name, taken in used.items())

    def turn(self) -> int:
        """Have ticks go to the other generation; gives the one that they have left for good."""
        left, self._generation = self._generation, 1 - self._generation
        now = self._generation.to_bytes(4, sys.byteorder)
        bpf.set_element(self._maps["generation"], bytes(4), now)
        _libc.syscall(_MEMBARRIER, _MEMBARRIER_GLOBAL, 0, 0)  # ticks that had begun have ended
        return left

    def empty(self, generation: int) -> None:
        """Forget all of a generation that ticks have left, stacks that no count leads to too."""
        self._counted.empty(generation)
        self._served.empty(generation)
        keys, _ = maps.read_all(self._maps["stacks"], np.dtype(np.uint64), _STACK)
        maps.delete_all(self._maps["stacks"], keys[_are_of(generation, keys)])
        self._stacks = {key: stack for key, stack in self._stacks.items() if key & 1 != generation}

    def _read(self, new: list[int]) -> None:
        keys = np.array(new, np.uint64)
        read, found = maps.read_each(self._maps["stacks"], keys, _STACK)
        stacks = read["addresses"]
        stacks[:, 1:] -= (
            stacks[:, 1:] > 0
        )  # they are where functions go on, behind a call that may be their last
        depths = as_list(np.count_nonzero(stacks, axis=1))
        for at in as_list(np.flatnonzero(found)):
            self._stacks[new[at]] = stacks[at, : depths[at]].tobytes()


# --- the sampling ---------------------------------------------------------------------------------------------


class Samples:
    """The clocks of all CPUs and what they met, from `attach` to `close`."""

    def __init__(self, program: Program, frequency_hz: int, host: Host, *, tells_calls: bool = False) -> None:
        """`tells_calls`: no hook tells when system calls on sockets run, so the ticks have to.

        Raises Unsupported where the kernel does not take the program for that.
        """
        self.tells_calls = tells_calls
        self._function = BY_TICKS if tells_calls else BY_HOOKS
        if self._function not in program.functions:
            raise Unsupported(program.refused[self._function])
        self._program, self._host, self.frequency_hz = program, host, frequency_hz
        self._clocks: Clocks | None = None
        self._kept = Kept(program.maps, defines())
        self._owners = Owners(program.functions.get(HOLDERS))
        self._times = Times()
        self._symbols = Symbols(host.proc, CATEGORY_OF)
        self._symbols_ns = 0
        self._missed = np.zeros(maps.possible_cpus())
        self._folder = Folder(self._function_at)
        self._rows = StackRows()
        self._not_here: dict[int, str] = {}
        self._places: dict[int, int] = {}
        self._entry_ns = np.zeros((maps.possible_cpus(), 1 + len(ENTRIES)))
        self._process_ns: defaultdict[int, defaultdict[int, float]] = defaultdict(lambda: defaultdict(float))
        self._told: defaultdict[int, Counter[int]] = defaultdict(Counter)
        self._unowned: defaultdict[int, float] = defaultdict(float)
        self._served_ns: defaultdict[int, float] = defaultdict(float)
        self._elsewhere = 0

    def attach(self) -> None:
        """Look at every CPU from now on. Raises PermissionMissing, Unsupported, or OSError."""
        if self._clocks is None:
            self._clocks = Clocks(self._program.functions[self._function], self.frequency_hz)
            self._times.begin(self._clocks.running_ns(), read_cpu_times(self._host.proc))
            self._learn_symbols()  # the programs that this one was loaded with are among them
            put_calls(self._program.maps["calls"])
        self._clocks.start()

    def detach(self) -> None:
        """Look at none until it is attached again; what was met stays."""
        if self._clocks is not None:
            self._clocks.stop()

    def set_frequency(self, frequency_hz: int) -> None:
        """Look so often in a second from now on."""
        self.frequency_hz = frequency_hz
        if self._clocks is not None:
            self._clocks.set_frequency(frequency_hz)

    def read(self, taken_ns: int, cpus: Mapping[int, CpuTimes]) -> SampleReading:
        """What was met since the start, with what CPUs have done until now. Raises OSError."""
        self._learn_symbols()
        here = self._read_ticks(cpus)
        self._count()
        self._count_served()
        if self._kept.is_crowded():
            self._turn()
        self._name_owners()
        return SampleReading(
            stacks=self._rows.stacks(taken_ns),
            categories=self._rows.categories(self._not_here, taken_ns),
            entry_ns=self._entry_ns.astype(np.uint64),
            process_ns={tgid: _whole(times) for tgid, times in self._process_ns.items()},
            served_ns=_whole(self._served_ns),
            counts={
                "samples": self._rows.samples,
                "unresolved": self._rows.unresolved,
                "elsewhere": self._elsewhere,
                "ticks": int(here["ticks"].sum()),
            },
            lost=self._lost(here),
        )

    def forget(self, tgids: Iterable[int]) -> None:
        """Drop the times of processes that have ended; what has such a number later begins at 0."""
        for tgid in tgids:
            self._process_ns.pop(tgid, None)
            self._served_ns.pop(tgid, None)

    def close(self) -> None:
        """Stop the clocks; a second call does nothing."""
        if self._clocks is not None:
            self._clocks.close()
            self._clocks = None
        self._owners.close()

    # --- a reading ------------------------------------------------------------------------------------------------

    def _read_ticks(self, cpus: Mapping[int, CpuTimes]) -> Array:
        """What each CPU counts; the time that the clocks have run is read before."""
        running = self._clocks.running_ns() if self._clocks else {}
        here = maps.read_per_cpu(self._program.maps["sampled"], 0, SAMPLED)
        self._times.read(running, cpus, self.frequency_hz)
        return here

    def _count(self) -> None:
        """Count what was met under its row, its CPU and entry point, and its process."""
        keys, met, samples = self._kept.counted()
        at = self._places_of(keys, met)
        times = samples * self._times.per_tick[met["cpu"]]
        has_row = at >= 0
        self._rows.add(at[has_row], samples[has_row], times[has_row])
        self._elsewhere += int(samples[at == _ELSEWHERE].sum())
        entries = np.where(has_row, self._rows.entries_of(at), met["entry"])
        told = (at != _ELSEWHERE) & (entries <= len(ENTRIES))
        np.add.at(self._entry_ns, (met["cpu"][told], entries[told]), times[told])
        of_processes = told & (met["tgid"] > 0)
        for tgid, entry, time_ns in zip(
            *(one[of_processes].tolist() for one in (met["tgid"], entries, times)), strict=True
        ):
            self._process_ns[tgid][entry] += time_ns

    def _places_of(self, keys: Array, met: Array) -> Array:
        """The row of each key, by what was met under it; _ELSEWHERE, or _WITHOUT_STACK."""
        told = keys.tolist()
        new = [at for at, key in enumerate(told) if key not in self._places]
        names = ("stack", "cpu", "entry", "tgid")
        parts = list(zip(*(met[name][new].tolist() for name in names), strict=True))
        folded = [self._fold(stack, entry, tgid) for stack, _, entry, tgid in parts]
        for at, (_, cpu, _, tgid), one in zip(new, parts, folded, strict=True):
            self._places[told[at]] = self._place(one, cpu, tgid)
        return np.fromiter(map(self._places.__getitem__, told), np.intp, len(told))

    def _fold(self, key: int, entry: int, tgid: int) -> Folded | None:
        """A stack that was not met there before; None where there is none."""
        stack = self._kept.stack(key)
        if stack is None:
            return None
        folded = self._folder.fold(stack, entry)
        if entry == CALL_BY_STACK != folded.entry:
            self._told[tgid][folded.entry] += 1
        return folded

    def _place(self, folded: Folded | None, cpu: int, tgid: int) -> int:
        if folded is None:
            return _WITHOUT_STACK
        if folded.entry == CALL_BY_STACK:  # what goes with all that a process has done in such calls
            ((entry, _),) = self._told[tgid].most_common(1) or [(0, 0)]
            folded = folded._replace(entry=entry)
        return self._rows.place(cpu, folded) if folded.entry else _ELSEWHERE

    def _count_served(self) -> None:
        """Note which sockets softirqs served, and for how long."""
        for socket, samples in zip(*(one.tolist() for one in self._kept.served()), strict=True):
            self._unowned[socket] += samples * self._times.mean_ns

    def _turn(self) -> None:
        """Have ticks go to the other generation, read the one that they have left for the last time, and empty it."""
        left = self._kept.turn()
        self._count()
        self._count_served()
        self._kept.empty(left)
        self._places = {key: at for key, at in self._places.items() if key & 1 != left}
        self._told.clear()

    def _name_owners(self) -> None:
        """Charge the time of softirqs to who holds the sockets that they served."""
        for socket, tgid in self._owners.find(self._unowned).items():
            time_ns = self._unowned.pop(socket)
            if tgid is not None:
                self._served_ns[tgid] += time_ns

    def _lost(self, here: Array) -> dict[str, int]:
        clocks = self._clocks.cpus if self._clocks else ()
        # A tick that is late is counted by the next reading: of what may be on its way nothing is lost.
        missed = np.floor(self._times.expected) - 1 - here["ticks"]
        self._missed = np.maximum(self._missed, missed)
        return {
            "ticks": int(self._missed.sum()),
            "walks": int(here["failed"].sum()),
            "collisions": int(here["collisions"].sum()),
            "stacks": int((here["no_room"] + here["uncounted"]).sum()),
            "not_kept": self._rows.not_kept,
            "cpus": len(set(online_cpus(self._host.root)) - set(clocks)) if clocks else 0,
        }

    def _learn_symbols(self) -> None:
        """Read the kernel's functions if that was not done yet, or if modules came or went since."""
        if self._symbols.refresh():
            self._symbols_ns = time.monotonic_ns()
            self._folder.forget()
            self._not_here = categories_not_available(self._symbols.present)

    def _function_at(self, address: int) -> str | None:
        site = self._symbols.find(address)
        if (site is None or site[0].endswith(_PROGRAM)) and self._may_have_changed():
            self._symbols = Symbols(self._host.proc, CATEGORY_OF)
            self._symbols.refresh()
            site = self._symbols.find(address)
        return None if site is None or _is_far(*site) else site[0]

    def _may_have_changed(self) -> bool:
        """Whether to look again for programs that were loaded since: it costs some 0.1 s."""
        now_ns = time.monotonic_ns()
        is_due = now_ns - self._symbols_ns > _LOOK_AGAIN_NS
        self._symbols_ns = now_ns if is_due else self._symbols_ns
        return is_due


def _whole(times: Mapping[int, float]) -> dict[int, int]:
    return {key: int(time_ns) for key, time_ns in times.items()}


def _is_far(name: str, behind: int) -> bool:
    """Programs come and go: one that is not among the symbols stands behind another one that is."""
    return name.endswith(_PROGRAM) and behind >= _PROGRAM_BYTES
