# SPDX-License-Identifier: Apache-2.0
"""Samples of what CPUs do inside the network stack.

A clock on each CPU runs a BPF program many times a second. If the CPU is doing network work the program counts the
tick under the stack of kernel functions, in maps that keep growing until they are half full. So a stack that is known
already costs a reading no more than a look at its count.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nettop.errors import Unsupported
from nettop.kernel import maps
from nettop.kernel.btf import Slice
from nettop.kernel.facts import Host
from nettop.kernel.iterator import Iterator, RowBuffer
from nettop.kernel.perf_events import Clocks, online_cpus
from nettop.kernel.proc_stat import CpuTimes, read_cpu_times
from nettop.kernel.program import Program
from nettop.kernel.rows import row_header
from nettop.kernel.symbols import Symbols
from nettop.probes.cpu.calls import CALL, CALLS_MAX, put_calls
from nettop.probes.cpu.processes import SAMPLED_NS
from nettop.probes.cpu.stacks import (
    CALL_BY_STACK,
    THREAD_BY_STACK,
    Folded,
    Folder,
    StackRows,
    categories_not_available,
)
from nettop.snapshots.arrays import as_list, growth, positions
from nettop.snapshots.cpu import CATEGORY_OF, ENTRIES, RX_SOFTIRQ
from nettop.snapshots.snapshot import Array, Rows

BY_HOOKS, BY_TICKS, OWNERS = "sample__entries", "sample__calls", "bpf_iter__task_file"
"""The clock's program, if hooks mark system calls or if the tick has to look for them; and the walk over sockets."""
_BPF_PROG_TYPE_PERF_EVENT, _BPF_PROG_TYPE_TRACING = 7, 26
FUNCTIONS: Mapping[str, int] = {
    BY_HOOKS: _BPF_PROG_TYPE_PERF_EVENT,
    BY_TICKS: _BPF_PROG_TYPE_PERF_EVENT,
    OWNERS: _BPF_PROG_TYPE_TRACING,
}
MAPS = ("stacks", "counted", "served", "sampled", "calls")
SLICES = (Slice("bpf_iter_meta", {"seq": "seq"}, {}),)

SAMPLED = np.dtype(
    [(name, "u8") for name in ("ticks", "samples", "uncounted", "collisions", "failed", "map_full")]
)
"""What the program counts on each CPU: ticks; those in network work; of these those that the map `counted` had no room
for; and those without a stack: another one has its hash, it could not be walked, or the map was full."""

_COUNTED = np.dtype([("stack", "u8"), ("samples", "u8"), ("pid", "u4"), ("cpu", "u2"), ("entry", "u2")])
_SERVED = np.dtype([("samples", "u8")])
_OWNER = np.dtype([("socket", "u8"), ("pid", "u4"), ("padding", "u4")])
_STACK_DEPTH = 127
"""The kernel's default (sysctl kernel.perf_event_max_stack)."""
_STACK = np.dtype([("addresses", "u8", (_STACK_DEPTH,))])

_NO_STACK = 0
_ELSEWHERE, _WITHOUT_STACK = -1, -2
"""Instead of a row: not in network work after all, or without a stack."""

_STACKS_PER_CPU, _STACKS_MAX = 2048, 8192
_COUNTED_PER_CPU, _COUNTED_MAX = 8192, 1 << 17
_FULL = 0.5
"""The maps are emptied once this share of one of them is used."""
_LOOK_AGAIN_NS = 30_000_000_000
"""Symbols are read again after this time at the earliest: nothing announces new BPF programs."""
_TRUSTED_NS = 5_000_000_000
"""After this time the address of a socket may be that of another one."""
_WALK_SHARE = 100
"""The walk over sockets takes at most one nanosecond in this many."""
_NS = 1_000_000_000
_PROGRAM, _PROGRAM_BYTES = "[bpf]", 1 << 14
"""The suffix of a BPF program in kallsyms, and a size that few of them exceed."""


def defines() -> dict[str, int]:
    """Constants of the programs, passed with -D. Maps grow with the number of CPUs."""
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
    """C text that precedes samples.bpf.c."""
    rows = {"sampled": SAMPLED, "call": CALL, "owner": _OWNER, "counted": _COUNTED, "stack": _STACK}
    return "".join(row_header(name, dtype) for name, dtype in rows.items())


# --- what is read ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, slots=True)
class SampleReading:
    """What was sampled. Times are in ns of CPU time: samples × the clock's period; ticks that were missed are in none.

    Since the start: `entry_ns` by CPU and entry point, samples without a stack included; `counts`: the samples of all
    rows, those of them with an address that has no name (`unresolved`), ticks that turned out to be `elsewhere` than
    in network work, and all ticks; `lost`: samples that no row has, by reason.

    Since the last reading (dtype SAMPLED_NS): `call_ns` is the time of processes in calls, empty where hooks time
    them; `served_ns` that of softirqs, by the owner process of the socket that they served.
    """

    stacks: Rows
    categories: Rows
    entry_ns: Array
    call_ns: Array
    served_ns: Array
    counts: Mapping[str, int]
    lost: Mapping[str, int]


class GrowingCounts:
    """A hash map of counts that only grow, until it is emptied."""

    def __init__(self, map_fd: int, dtype: np.dtype[Any]) -> None:
        """`dtype`: that of the map's values, which have a field `samples`."""
        self._map, self._dtype = map_fd, dtype
        self._keys: Array = np.zeros(0, np.uint64)
        self._samples: Array = self._keys

    def __len__(self) -> int:
        return len(self._keys)

    def read(self) -> tuple[Array, Array, Array]:
        """The keys whose counts grew since the last reading, their values, and by how much they grew."""
        keys, values = maps.read_all(self._map, self._keys.dtype, self._dtype)
        order = np.argsort(keys)
        keys, values = keys[order], values[order]
        at = positions(keys, self._keys)
        grown = values["samples"].copy()
        grown[at >= 0] = growth(grown[at >= 0], self._samples[at[at >= 0]])
        self._keys, self._samples = keys, values["samples"]
        return keys[grown > 0], values[grown > 0], grown[grown > 0]

    def clear(self) -> None:
        """Delete what the map had at the last reading."""
        maps.delete_all(self._map, self._keys)
        self._keys = self._samples = np.zeros(0, np.uint64)


class StackMaps:
    """The maps of the sampling programs: counts of samples under stacks, and of sockets that softirqs served.

    `stacks` has the addresses of each stack, leaf first, by its key; `served` the samples by the socket's address.
    """

    def __init__(self, map_fds: Mapping[str, int], limits: Mapping[str, int]) -> None:
        self._stacks_fd, self._limits = map_fds["stacks"], limits
        self._counted = GrowingCounts(map_fds["counted"], _COUNTED)
        self.served = GrowingCounts(map_fds["served"], _SERVED)
        self.stacks: dict[int, bytes] = {}

    def counted(self) -> tuple[Array, Array, Array]:
        """Keys whose counts grew, their values (_COUNTED), and by how much; `stack` has their stacks."""
        keys, values, samples = self._counted.read()
        new = set(values["stack"].tolist()) - self.stacks.keys() - {_NO_STACK}
        new_keys = np.fromiter(new, np.uint64, len(new))
        read, is_there = maps.read_each(self._stacks_fd, new_keys, _STACK)
        stacks = read["addresses"]
        # Callers are return addresses: the call itself is before them, and may be the last of its function.
        stacks[:, 1:] -= stacks[:, 1:] > 0
        depths = as_list(np.count_nonzero(stacks, axis=1))
        for at in as_list(np.flatnonzero(is_there)):
            self.stacks[int(new_keys[at])] = stacks[at, : depths[at]].tobytes()
        return keys, values, samples

    def are_full(self) -> bool:
        """Whether the maps should be emptied before they run out of room."""
        used = (("COUNTED_MAX", self._counted), ("SERVED_MAX", self.served), ("STACKS_MAX", self.stacks))
        return any(len(counts) > self._limits[name] * _FULL for name, counts in used)

    def clear(self) -> None:
        """Empty all maps, of what was read last; exact while no clock ticks."""
        self._counted.clear()
        self.served.clear()
        keys, _ = maps.read_all(self._stacks_fd, np.dtype(np.uint64), _STACK)  # also those without a count
        maps.delete_all(self._stacks_fd, keys)
        self.stacks = {}


class ExpectedTicks:
    """How many ticks there should have been, by CPU.

    Clocks rest with an idle CPU on some kernels (seen on 6.18), and while the hypervisor runs something else: only the
    time in which a CPU was busy expects ticks.
    """

    def __init__(self, frequency_hz: int) -> None:
        self.ticks = np.zeros(maps.possible_cpus())
        self._frequency_hz = frequency_hz
        self._busy_ns: dict[int, int] = {}

    def add(self, clocks: Mapping[int, int], times: Mapping[int, CpuTimes]) -> None:
        """Add the ticks expected since the last call, given how long clocks have run and CPUs were idle by now. The
        first call with a CPU begins to count there."""
        for cpu in clocks.keys() & times.keys():
            busy_ns = clocks[cpu] - times[cpu].idle_ns
            self.ticks[cpu] += max(0, busy_ns - self._busy_ns.get(cpu, busy_ns)) * self._frequency_hz / _NS
            self._busy_ns[cpu] = busy_ns


class Owners:
    """Which process owns a socket, by its address (struct sock): the first of those that have it."""

    def __init__(self, program: int | None) -> None:
        self._walk = Iterator(program, _OWNER) if program is not None else None
        self._buffer = RowBuffer()
        self._known: dict[int, int | None] = {}
        self._walked_ns = self._next_ns = 0

    def find(self, sockets: Iterable[int]) -> dict[int, int | None]:
        """The process of each socket, None where no process owns it. Sockets that cannot be looked up yet are left
        out."""
        wanted, now_ns = set(sockets), time.monotonic_ns()
        if self._walk is None:
            return dict.fromkeys(wanted)
        if now_ns - self._walked_ns > _TRUSTED_NS:
            self._known = {}
        if wanted - self._known.keys() and now_ns >= self._next_ns:
            self._walked_ns = now_ns
            rows = self._walk.read(self._buffer)
            rows = rows[np.isin(rows["socket"], np.fromiter(wanted, np.uint64))][
                ::-1
            ]  # of several owners the first remains
            owners = dict(zip(as_list(rows["socket"]), as_list(rows["pid"]), strict=True))
            self._known |= dict.fromkeys(wanted) | owners
            now_ns = time.monotonic_ns()
            self._next_ns = now_ns + _WALK_SHARE * (now_ns - self._walked_ns)
        return {socket: self._known[socket] for socket in wanted & self._known.keys()}

    def close(self) -> None:
        """Detach; a second call does nothing."""
        if self._walk is not None:
            self._walk.close()


# --- the sampling ---------------------------------------------------------------------------------------------


class Samples:
    """The clocks of all CPUs and what they sampled, from `start` to `close`."""

    def __init__(self, program: Program, frequency_hz: int, host: Host, *, finds_calls: bool = False) -> None:
        """`finds_calls`: no hook marks system calls on sockets, so the ticks have to look for them.

        Raises Unsupported where the kernel does not load the program for that.
        """
        self._function = BY_TICKS if finds_calls else BY_HOOKS
        if self._function not in program.functions:
            raise Unsupported(program.refused[self._function])
        self.finds_calls = finds_calls
        self._program, self._host, self._frequency_hz = program, host, frequency_hz
        self._period_ns = np.uint64(_NS // frequency_hz)
        self._clocks: Clocks | None = None
        self._maps = StackMaps(program.maps, defines())
        self._owners = Owners(program.functions.get(OWNERS))
        self._expected = ExpectedTicks(frequency_hz)
        self._missed = np.zeros(maps.possible_cpus())
        self._missed_in_pauses = 0.0
        self._symbols = Symbols(host.proc, CATEGORY_OF)
        self._symbols_ns = 0
        self._folder = Folder(self._function_at)
        self._rows = StackRows()
        self._not_available: dict[int, str] = {}
        self._keys: Array = np.zeros(0, np.uint64)
        self._key_rows: Array = np.zeros(0, np.intp)
        self._calls_of: defaultdict[int, Counter[int]] = defaultdict(Counter)
        self._entry_ns = np.zeros((maps.possible_cpus(), 1 + len(ENTRIES)), np.uint64)
        self._call_ns: list[Array] = []
        self._unowned: defaultdict[int, int] = defaultdict(int)
        self._elsewhere = 0

    def start(self) -> None:
        """Sample every CPU from now on. Raises PermissionMissing, Unsupported, or OSError."""
        self._clocks = Clocks(self._program.functions[self._function], self._frequency_hz)
        self._expected.add(self._clocks.running_ns(), read_cpu_times(self._host.proc))
        self._learn_symbols()  # the programs that were loaded together with this one are among them
        put_calls(self._program.maps["calls"])
        self._clocks.start()

    def read(self, taken_ns: int, cpus: Mapping[int, CpuTimes]) -> SampleReading:
        """What was sampled, with what CPUs have done until now. Raises OSError."""
        self._learn_symbols()
        running_ns = self._clocks.running_ns() if self._clocks else {}  # read before the ticks
        counts = maps.read_per_cpu(self._program.maps["sampled"], 0, SAMPLED)
        self._expected.add(running_ns, cpus)
        self._count()
        if self._maps.are_full():
            self._empty_maps()
        call_ns, self._call_ns = self._call_ns, []
        return SampleReading(
            stacks=self._rows.stacks(taken_ns),
            categories=self._rows.categories(self._not_available, taken_ns),
            entry_ns=self._entry_ns.copy(),
            call_ns=np.concatenate(call_ns),
            served_ns=self._owned_ns(),
            counts={
                "samples": self._rows.samples,
                "unresolved": self._rows.unresolved,
                "elsewhere": self._elsewhere,
                "ticks": int(counts["ticks"].sum()),
            },
            lost=self._lost(counts),
        )

    def close(self) -> None:
        """Stop the clocks; a second call does nothing."""
        if self._clocks is not None:
            self._clocks.close()
            self._clocks = None
        self._owners.close()

    # --- a reading ------------------------------------------------------------------------------------------------

    def _count(self) -> None:
        """Count what was sampled under its row, its CPU and entry point, its process, and the socket it served."""
        keys, values, samples = self._maps.counted()
        at = self._rows_of(keys, values)
        has_row, ns = at >= 0, samples * self._period_ns
        self._rows.add(at[has_row], samples[has_row], ns[has_row])
        self._elsewhere += int(samples[at == _ELSEWHERE].sum())
        entries = np.where(has_row, self._rows.entries_of(at), values["entry"])
        in_entry = (at != _ELSEWHERE) & (entries <= len(ENTRIES))
        np.add.at(self._entry_ns, (values["cpu"][in_entry], entries[in_entry]), ns[in_entry])
        of_process = in_entry & (values["pid"] > 0)
        self._call_ns.append(_sampled_ns(values["pid"][of_process], entries[of_process], ns[of_process]))
        sockets, _, counts = self._maps.served.read()
        for socket, count in zip(as_list(sockets), as_list(counts), strict=True):
            self._unowned[socket] += count * int(self._period_ns)

    def _rows_of(self, keys: Array, values: Array) -> Array:
        """The row of each key; _ELSEWHERE, or _WITHOUT_STACK."""
        is_new = positions(keys, self._keys) < 0
        new = as_list(values[["stack", "entry", "pid", "cpu"]][is_new])
        # All are folded before any gets its row: what a process does in some calls says what it does in others.
        folded = [self._fold(stack, entry, pid) for stack, entry, pid, _ in new]
        rows = [self._row(stack, cpu, pid) for stack, (_, _, pid, cpu) in zip(folded, new, strict=True)]
        all_keys, all_rows = (
            np.append(self._keys, keys[is_new]),
            np.append(self._key_rows, np.array(rows, np.intp)),
        )
        order = np.argsort(all_keys)
        self._keys, self._key_rows = all_keys[order], all_rows[order]
        at: Array = self._key_rows[positions(keys, self._keys)]
        return at

    def _fold(self, key: int, entry: int, pid: int) -> Folded | None:
        """A stack as text; None where there is none."""
        stack = self._maps.stacks.get(key)
        if stack is None:
            return None
        folded = self._folder.fold(stack, entry)
        if entry == CALL_BY_STACK != folded.entry:
            self._calls_of[pid][folded.entry] += 1
        return folded

    def _row(self, folded: Folded | None, cpu: int, pid: int) -> int:
        if folded is None:
            return _WITHOUT_STACK
        if folded.entry == CALL_BY_STACK:  # overhead of such a call: most likely the process's usual one
            ((entry, _),) = self._calls_of[pid].most_common(1) or [(0, 0)]
            folded = folded._replace(entry=entry)
        return self._rows.place(cpu, folded) if folded.entry else _ELSEWHERE

    def _empty_maps(self) -> None:
        """Empty the maps while the clocks stand still, so that no sample is lost; ticks due meanwhile are missed."""
        assert self._clocks is not None
        with self._clocks.paused():
            began_ns = time.monotonic_ns()
            self._count()
            self._maps.clear()
            paused_ns = time.monotonic_ns() - began_ns
        self._missed_in_pauses += len(self._clocks.cpus) * paused_ns / float(self._period_ns)
        self._keys, self._key_rows = self._keys[:0], self._key_rows[:0]
        self._calls_of.clear()

    def _owned_ns(self) -> Array:
        """The softirq time of sockets whose owner process is known by now."""
        owners = self._owners.find(self._unowned)
        ns = {socket: self._unowned.pop(socket) for socket in owners}
        owned = [(pid, ns[socket]) for socket, pid in owners.items() if pid is not None]
        pids, times = np.array(owned, np.uint64).reshape(-1, 2).T
        return _sampled_ns(pids, RX_SOFTIRQ, times)

    def _lost(self, counts: Array) -> dict[str, int]:
        clocks = self._clocks.cpus if self._clocks else ()
        # A tick may be late, and counted by the next reading.
        self._missed = np.maximum(self._missed, np.floor(self._expected.ticks) - 1 - counts["ticks"])
        return {
            "ticks": int(self._missed.sum() + self._missed_in_pauses),
            "walks": int(counts["failed"].sum()),
            "collisions": int(counts["collisions"].sum()),
            "stacks": int((counts["map_full"] + counts["uncounted"]).sum()),
            "not_kept": self._rows.not_kept,
            "cpus": len(set(online_cpus(self._host.root)) - set(clocks)) if clocks else 0,
        }

    def _learn_symbols(self) -> None:
        """Read the kernel's functions if that was not done yet, or if modules were loaded or unloaded since."""
        if self._symbols.refresh():
            self._symbols_ns = time.monotonic_ns()
            self._folder.forget()
            self._not_available = categories_not_available(self._symbols.present)

    def _function_at(self, address: int) -> str | None:
        name, offset = self._symbols.find(address) or (_PROGRAM, _PROGRAM_BYTES)
        if name.endswith(_PROGRAM) and time.monotonic_ns() - self._symbols_ns > _LOOK_AGAIN_NS:
            self._symbols = Symbols(self._host.proc, CATEGORY_OF)  # a program may have been loaded since
            self._symbols.refresh()
            self._symbols_ns = time.monotonic_ns()
            name, offset = self._symbols.find(address) or (_PROGRAM, _PROGRAM_BYTES)
        # Far behind a program is one that is not among the symbols.
        return None if name.endswith(_PROGRAM) and offset >= _PROGRAM_BYTES else name


def _sampled_ns(pids: Array, entries: Array | int, ns: Array) -> Array:
    rows = np.zeros(len(pids), SAMPLED_NS)
    rows["pid"], rows["entry"], rows["ns"] = pids, entries, ns
    return rows
