# SPDX-License-Identifier: Apache-2.0
"""Samples of what CPUs do inside the network stack.

A clock on each CPU runs a BPF program many times a second. If the CPU is doing network work, the program counts the
tick under the kernel stack, in maps that grow until they are half full. For a stack that is already known, a reading
therefore only reads its count. The stack shows in which softirq or system call the CPU is.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nettop.errors import Unsupported
from nettop.kernel import bpf_syscall as bpf
from nettop.kernel.bpf import maps, process_columns
from nettop.kernel.bpf.btf import Slice
from nettop.kernel.bpf.iterator import Iterator
from nettop.kernel.bpf.perf_events import Clocks, online_cpus
from nettop.kernel.bpf.program import Program
from nettop.kernel.bpf.program_text import ProgramText
from nettop.kernel.bpf.rows import row_header
from nettop.kernel.bpf.symbols import Symbols, bounds_of
from nettop.kernel.host.facts import Host
from nettop.kernel.host.proc_files import CpuTimes, read_cpu_times
from nettop.probes.cpu.calls import calls_header
from nettop.probes.cpu.processes import SAMPLED_NS
from nettop.probes.cpu.stacks import (
    CALL_BY_STACK,
    IN_HOOK,
    RUNS_SOFTIRQS,
    SOFTIRQ_BY_STACK,
    THREAD_BY_STACK,
    Folded,
    Folder,
    StackRows,
    categories_not_available,
)
from nettop.probes.cpu.ticks import TickTimes
from nettop.probes.probe import with_types
from nettop.process.clocks import monotonic_ns
from nettop.snapshots.arrays import Array, as_list, copy_columns, growth, positions
from nettop.snapshots.cpu import CATEGORY_OF, ENTRIES, RX_SOFTIRQ
from nettop.snapshots.safe_text import safe_bytes
from nettop.snapshots.snapshot import Rows

TICK, OWNERS = "sample__tick", "bpf_iter__task_file"
"""The clock's program, and the walk over sockets."""
_TASK = ("flags", "files", "comm", "start_boottime", *process_columns.PID_TASK_MEMBERS)
_SLICES = (
    *process_columns.PID_SLICES,
    Slice("task_struct", {name: name for name in _TASK}, {"status": "thread_info.status"}),
    Slice("inode", {"i_mode": "i_mode"}, {}),
    Slice("file", {"f_inode": "f_inode", "private_data": "private_data"}, {}),
    Slice("fdtable", {"max_fds": "max_fds", "fd": "fd"}, {}),
    Slice("files_struct", {"fdt": "fdt"}, {}),
    Slice("socket", {"sk": "sk"}, {}),
    Slice("sock", {"skc_family": "__sk_common.skc_family"}, {}),
    Slice("bpf_iter_meta", {"seq": "seq"}, {}),
)
_NEEDS = ("bpf_get_current_task_btf", "bpf_sock_from_file", "bpf_task_pt_regs")
"""Helpers that the programs call. 5.10 lacks the first two, and logs a warning when it is given such programs."""

SAMPLED = np.dtype(
    [(name, "u8") for name in ("ticks", "busy", "samples", "uncounted", "collisions", "failed", "map_full")]
)
"""Counters per CPU: ticks; those outside the idle task (`busy`), and in network work (`samples`); of these, those that
did not fit in the map `counted`; and those without a stack because of a hash collision, a failed stack walk or a full
map."""

_COUNTED = np.dtype(
    [
        ("stack", "u8"),
        ("samples", "u8"),
        ("started", "u8"),
        ("comm", "S16"),
        ("pid", "u4"),
        ("cpu", "u2"),
        ("entry", "u2"),
    ]
)
_SERVED = np.dtype([("samples", "u8")])
_BOUNDS = np.dtype([("begin", "u8"), ("size", "u8")])
"""The addresses of a function."""
_OWNER = np.dtype([("socket", "u8"), ("started", "u8"), ("comm", "S16"), ("pid", "u4"), ("padding", "u4")])
_PROCESS = np.dtype([("started", "u8"), ("pid", "u4"), ("always_zero", "u4")])
"""A process: its start time (ns of CLOCK_BOOTTIME) and its PID, all bits set outside nettop's PID namespace."""
_TICKED = np.dtype([("at", "u8"), ("served", "u8"), ("unserved", "u8")])
"""The time of a CPU's last tick in a softirq, 0 once a socket was served; the address of that socket (struct sock); and
the ticks whose socket had no room in the map `served`."""
_SOFTIRQ_NS = 200_000
"""A tick in a softirq is charged to the next socket served within this time."""
_STACK_DEPTH = 127
"""The kernel's default (sysctl kernel.perf_event_max_stack)."""
_STACK = np.dtype([("addresses", "u8", (_STACK_DEPTH,))])

_NO_STACK = 0
_ELSEWHERE, _WITHOUT_STACK, _SOFTIRQ = -1, -2, -3
"""Used instead of a row: not in network work after all, without a stack, or in another softirq, whose number (or
IN_HOOK) is subtracted."""

_STACKS_PER_CPU, _STACKS_MAX = 2048, 8192
_COUNTED_PER_CPU, _COUNTED_MAX = 8192, 1 << 17
_FULL = 0.5
"""Share of a map in use at which all maps are cleared."""
_SYMBOLS_MIN_AGE_NS = 30_000_000_000
"""Minimum time between readings of the symbols: new BPF programs are not announced."""
_TRUSTED_NS = 5_000_000_000
"""After this time, a socket's address may have been reused."""
_WALK_SHARE = 100
"""The walk over sockets takes at most one nanosecond in this many."""
_NS = 1_000_000_000
_PROGRAM, _PROGRAM_BYTES = "[bpf]", 1 << 14
"""Suffix of a BPF program in kallsyms, and a size that few of them exceed."""


def program_text() -> ProgramText:
    """Return the programs of this lens."""
    functions = with_types((TICK, OWNERS, "tp_btf__tcp_probe", "tp_btf__sk_data_ready"))
    return ProgramText(
        sources=(process_columns.PID_SOURCE, str(Path(__file__).with_name("cpu.bpf.c"))),
        header="#include <linux/types.h>\n"
        + calls_header()
        + "".join(row_header(*row) for row in _STRUCTS.items()),
        slices=_SLICES,
        functions=functions,
        maps=("stacks", "counted", "served", "sampled", "softirqs", "ticked"),
        defines={**_defines(), **process_columns.pid_defines(Host())},
        optional=tuple(functions),
        needs=_NEEDS,
    )


_STRUCTS = {
    "process": _PROCESS,
    "sampled": SAMPLED,
    "owner": _OWNER,
    "counted": _COUNTED,
    "stack": _STACK,
    "bounds": _BOUNDS,
    "ticked": _TICKED,
}


def _defines() -> dict[str, int]:
    """Return the constants of the programs, passed with -D. Maps grow with the number of CPUs."""
    cpus = 1 << (maps.possible_cpus() - 1).bit_length()
    counted_max = min(_COUNTED_MAX, _COUNTED_PER_CPU * cpus)
    return {
        "STACK_DEPTH": _STACK_DEPTH,
        "STACKS_MAX": min(_STACKS_MAX, _STACKS_PER_CPU * cpus),
        "COUNTED_MAX": counted_max,
        "SERVED_MAX": counted_max,
        "NO_STACK": _NO_STACK,
        "CALL_BY_STACK": CALL_BY_STACK,
        "THREAD_BY_STACK": THREAD_BY_STACK,
        "SOFTIRQ_BY_STACK": SOFTIRQ_BY_STACK,
        "SOFTIRQ_NS": _SOFTIRQ_NS,
    }


# --- what is read ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, slots=True)
class SampleReading:
    """Sampled values. Times are in ns of CPU time: samples × what a tick stands for.

    Since the start: `entry_ns` by CPU and entry point, samples without a stack included; `vector_ns` by CPU and
    softirq (or IN_HOOK), except the network's; `counts`: the samples of all rows, those with an address that has no
    name (`unresolved`), ticks that turned out not to be in network work (`elsewhere`), and all ticks; `lost`: samples
    that are in no row, by reason.

    Since the last reading (dtype SAMPLED_NS): `call_ns` is the time of processes in calls; `served_ns` that of
    softirqs, by the owner process of the socket that they served.
    """

    stacks: Rows
    categories: Rows
    entry_ns: Array
    vector_ns: Array
    call_ns: Array
    served_ns: Array
    counts: Mapping[str, int]
    lost: Mapping[str, int]


class GrowingCounts:
    """A hash map of counts that only grow until it is cleared."""

    def __init__(self, map_fd: int, dtype: np.dtype[Any]) -> None:
        """Read a map whose values have this dtype, with a field `samples`."""
        self._map, self._dtype = map_fd, dtype
        self._keys: Array = np.zeros(0, np.uint64)
        self._samples: Array = self._keys

    def __len__(self) -> int:
        return len(self._keys)

    def read(self) -> tuple[Array, Array, Array]:
        """Return the keys whose counts grew since the last reading, their values, and the growth."""
        keys, values = maps.read_all(self._map, self._keys.dtype, self._dtype)
        order = np.argsort(keys)
        keys, values = keys[order], values[order]
        at = positions(keys, self._keys)
        grown = values["samples"].copy()
        grown[at >= 0] = growth(grown[at >= 0], self._samples[at[at >= 0]])
        self._keys, self._samples = keys, values["samples"]
        return keys[grown > 0], values[grown > 0], grown[grown > 0]

    def clear(self) -> None:
        """Delete the entries of the last reading from the map."""
        maps.delete_all(self._map, self._keys)
        self._keys = self._samples = np.zeros(0, np.uint64)


class StackMaps:
    """Maps of the sampling programs: sample counts by stack, and by socket that softirqs served.

    `stacks` holds the addresses of each stack, leaf first, by its key; `served` the samples by the socket's address.
    """

    def __init__(self, map_fds: Mapping[str, int], limits: Mapping[str, int]) -> None:
        self._stacks_fd, self._limits = map_fds["stacks"], limits
        self._counted = GrowingCounts(map_fds["counted"], _COUNTED)
        self.served = GrowingCounts(map_fds["served"], _SERVED)
        self.stacks: dict[int, bytes] = {}

    def counted(self) -> tuple[Array, Array, Array]:
        """Return the keys whose counts grew, their values (_COUNTED), and the growth; `stack` holds their stacks."""
        keys, values, samples = self._counted.read()
        new = set(values["stack"].tolist()) - self.stacks.keys() - {_NO_STACK}
        new_keys = np.fromiter(new, np.uint64, len(new))
        read, is_there = maps.read_each(self._stacks_fd, new_keys, _STACK)
        stacks = read["addresses"]
        # Callers are return addresses: the call itself is before them, and may be the last instruction of its
        # function.
        stacks[:, 1:] -= stacks[:, 1:] > 0
        depths = as_list(np.count_nonzero(stacks, axis=1))
        for at in as_list(np.flatnonzero(is_there)):
            self.stacks[int(new_keys[at])] = stacks[at, : depths[at]].tobytes()
        return keys, values, samples

    def are_full(self) -> bool:
        """Return whether the maps should be cleared before they run out of room."""
        used = (("COUNTED_MAX", self._counted), ("SERVED_MAX", self.served), ("STACKS_MAX", self.stacks))
        return any(len(counts) > self._limits[name] * _FULL for name, counts in used)

    def clear(self) -> None:
        """Delete the entries last read from all maps; loses no sample while no clock ticks."""
        self._counted.clear()
        self.served.clear()
        # Include stacks without a count.
        keys, _ = maps.read_all(self._stacks_fd, np.dtype(np.uint64), _STACK)
        maps.delete_all(self._stacks_fd, keys)
        self.stacks = {}


class Owners:
    """Owner processes of sockets by address (struct sock): the first of the processes that hold a socket."""

    def __init__(self, program: int | None) -> None:
        self._walk = Iterator(program, _OWNER) if program is not None else None
        self._known: dict[int, Array | None] = {}
        self._walked_ns = self._next_ns = 0

    def find(self, sockets: Iterable[int]) -> dict[int, Array | None]:
        """Return the process of each socket (one row, dtype _OWNER), None if no process owns it.

        Omit sockets that cannot be looked up yet.
        """
        wanted, now_ns = set(sockets), monotonic_ns()
        if self._walk is None:
            return dict.fromkeys(wanted)
        if now_ns - self._walked_ns > _TRUSTED_NS:
            self._known = {}
        if wanted - self._known.keys() and now_ns >= self._next_ns:
            self._walked_ns = now_ns
            rows = self._walk.read()
            rows = rows[np.isin(rows["socket"], np.fromiter(wanted, np.uint64))]
            rows = rows[::-1]  # of several owners, keep the first
            owners = {socket: rows[at : at + 1] for at, socket in enumerate(as_list(rows["socket"]))}
            self._known |= dict.fromkeys(wanted) | owners
            now_ns = monotonic_ns()
            self._next_ns = now_ns + _WALK_SHARE * (now_ns - self._walked_ns)
        return {socket: self._known[socket] for socket in wanted & self._known.keys()}

    def close(self) -> None:
        """Detach; a second call is a no-op."""
        if self._walk is not None:
            self._walk.close()


# --- the sampling ---------------------------------------------------------------------------------------------


class Samples:
    """Clocks of all CPUs and their samples, from `start` to `close`."""

    def __init__(self, program: Program, frequency_hz: int, host: Host) -> None:
        """Prepare to sample. Raise Unsupported if the kernel did not load the clock's program."""
        if TICK not in program.functions:
            raise Unsupported(program.refused[TICK])
        self._program, self._host, self._frequency_hz = program, host, frequency_hz
        self._ticks = TickTimes(frequency_hz, maps.possible_cpus())
        self._clocks: Clocks | None = None
        self._maps = StackMaps(program.maps, _defines())
        self._owners = Owners(program.functions.get(OWNERS))
        self._missed_in_pauses = 0.0
        self._symbols = Symbols(host.proc, CATEGORY_OF, host.kept)
        self._symbols_ns = 0
        self._has_been_read = False
        self._folder = Folder(self._function_at)
        self._rows = StackRows()
        self._not_available: dict[int, str] = {}
        self._keys: Array = np.zeros(0, np.uint64)
        self._key_rows: Array = np.zeros(0, np.intp)
        self._calls_of: defaultdict[int, Counter[int]] = defaultdict(Counter)
        self._entry_ns = np.zeros((maps.possible_cpus(), 1 + len(ENTRIES)), np.uint64)
        self._vector_ns = np.zeros((maps.possible_cpus(), 1 + IN_HOOK), np.uint64)
        self._call_ns: list[Array] = []
        self._unowned: defaultdict[int, int] = defaultdict(int)
        self._elsewhere = 0

    def start(self) -> None:
        """Start sampling every CPU. Raise PermissionMissing, Unsupported, or OSError."""
        self._clocks = Clocks(self._program.functions[TICK], self._frequency_hz, self._host.kept.clocks)
        self._ticks.expect(self.running_ns(), read_cpu_times(self._host.proc))
        bounds = bounds_of(RUNS_SOFTIRQS, self._host.proc, self._host.kept)
        if bounds is None:
            raise Unsupported(f"this kernel has no symbol {' or '.join(RUNS_SOFTIRQS)}")
        bpf.set_element(self._program.maps["softirqs"], bytes(4), np.array([bounds], _BOUNDS).tobytes())
        self._clocks.start()

    def running_ns(self) -> dict[int, int]:
        """Return how long the clock of each CPU has run, in ns. Raise OSError."""
        return self._clocks.running_ns() if self._clocks else {}

    def read(
        self, taken_ns: int, running_ns: Mapping[int, int], cpus: Mapping[int, CpuTimes]
    ) -> SampleReading:
        """Return the sampled values, given how long the clocks have run, and the CPU times read after that.

        Raise OSError.
        """
        counts = maps.read_per_cpu(self._program.maps["sampled"], 0, SAMPLED)
        self._ticks.expect(running_ns, cpus)
        self._ticks.count(counts["busy"])
        if self._has_been_read:
            if self._symbols.refresh():  # the first time, and after modules were loaded or unloaded
                self._symbols_ns = monotonic_ns()
                self._folder.forget()
                self._not_available = categories_not_available(self._symbols.present)
            self._count()
            if self._maps.are_full():
                self._clear_maps()
        self._has_been_read = True  # the first rows do not wait for the symbols, which take 0.2 s
        call_ns, self._call_ns = self._call_ns, []
        return SampleReading(
            stacks=self._rows.stacks(taken_ns),
            categories=self._rows.categories(self._not_available, taken_ns),
            entry_ns=self._entry_ns.copy(),
            vector_ns=self._vector_ns.copy(),
            call_ns=np.concatenate([np.zeros(0, SAMPLED_NS), *call_ns]),
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
        """Stop the clocks; a second call is a no-op."""
        if self._clocks is not None:
            self._clocks.close()
            self._clocks = None
        self._owners.close()

    # --- a reading ------------------------------------------------------------------------------------------------

    def _count(self) -> None:
        """Count new samples by row, by CPU and entry point, by process, and by the socket served."""
        keys, values, samples = self._maps.counted()
        at = self._rows_of(keys, values)
        has_row, ns = at >= 0, (samples * self._ticks.tick_ns[values["cpu"]]).astype(np.uint64)
        self._rows.add(at[has_row], samples[has_row], ns[has_row])
        self._elsewhere += int(samples[(at == _ELSEWHERE) | (at <= _SOFTIRQ)].sum())
        entries = np.where(has_row, self._rows.entries_of(at), values["entry"])
        in_softirq = at <= _SOFTIRQ
        np.add.at(self._vector_ns, (values["cpu"][in_softirq], _SOFTIRQ - at[in_softirq]), ns[in_softirq])
        in_entry = (at != _ELSEWHERE) & ~in_softirq & (entries <= len(ENTRIES))
        np.add.at(self._entry_ns, (values["cpu"][in_entry], entries[in_entry]), ns[in_entry])
        of_process = in_entry & (values["pid"] > 0)
        self._call_ns.append(_sampled_ns(values[of_process], entries[of_process], ns[of_process]))
        sockets, _, counts = self._maps.served.read()
        for socket, count in zip(as_list(sockets), as_list(counts), strict=True):
            self._unowned[socket] += count * _NS // self._frequency_hz

    def _rows_of(self, keys: Array, values: Array) -> Array:
        """Return the row of each key, or what is used instead of a row."""
        is_new = positions(keys, self._keys) < 0
        new = as_list(values[["stack", "entry", "pid", "cpu", "comm"]][is_new])
        # Fold all stacks before assigning rows: a process's other calls show what an ambiguous one does.
        folded = [self._fold(stack, entry, pid) for stack, entry, pid, *_ in new]
        rows = [
            self._row(stack, cpu, pid, comm)
            for stack, (_, _, pid, cpu, comm) in zip(folded, new, strict=True)
        ]
        all_keys, all_rows = (
            np.append(self._keys, keys[is_new]),
            np.append(self._key_rows, np.array(rows, np.intp)),
        )
        order = np.argsort(all_keys)
        self._keys, self._key_rows = all_keys[order], all_rows[order]
        at: Array = self._key_rows[positions(keys, self._keys)]
        return at

    def _fold(self, key: int, entry: int, pid: int) -> Folded | None:
        """Return a stack as text; None if there is none."""
        stack = self._maps.stacks.get(key)
        if stack is None:
            return None
        folded = self._folder.fold(stack, entry)
        if entry == CALL_BY_STACK != folded.entry:
            self._calls_of[pid][folded.entry] += 1
        return folded

    def _row(self, folded: Folded | None, cpu: int, pid: int, comm: bytes) -> int:
        if folded is None:
            return _WITHOUT_STACK
        if folded.entry == CALL_BY_STACK:  # overhead: most likely of the process's usual call
            ((entry, _),) = self._calls_of[pid].most_common(1) or [(0, 0)]
            folded = folded._replace(entry=entry)
        if folded.softirq is not None:
            return _SOFTIRQ - folded.softirq
        return self._rows.place(cpu, safe_bytes(comm), folded) if folded.entry else _ELSEWHERE

    def _clear_maps(self) -> None:
        """Clear the maps while the clocks are paused, so that no sample is lost; ticks due meanwhile are missed."""
        assert self._clocks is not None
        with self._clocks.paused():
            began_ns = monotonic_ns()
            self._count()
            self._maps.clear()
            paused_ns = monotonic_ns() - began_ns
        self._missed_in_pauses += len(self._clocks.cpus) * paused_ns * self._frequency_hz / _NS
        self._keys, self._key_rows = self._keys[:0], self._key_rows[:0]
        self._calls_of.clear()

    def _owned_ns(self) -> Array:
        """Return the softirq time of sockets whose owner process is known."""
        owners = self._owners.find(self._unowned)
        ns = {socket: self._unowned.pop(socket) for socket in owners}
        owned = {socket: owner for socket, owner in owners.items() if owner is not None}
        rows = np.concatenate([np.zeros(0, _OWNER), *owned.values()])
        times = np.array([ns[socket] for socket in owned], np.uint64)
        return _sampled_ns(rows, RX_SOFTIRQ, times)

    def _lost(self, counts: Array) -> dict[str, int]:
        clocks = self._clocks.cpus if self._clocks else ()
        return {
            "ticks": int(self._ticks.missed.sum() + self._missed_in_pauses),
            "walks": int(counts["failed"].sum()),
            "collisions": int(counts["collisions"].sum()),
            "stacks": int((counts["map_full"] + counts["uncounted"]).sum()),
            "not_kept": self._rows.not_kept,
            "sockets": int(maps.read_per_cpu(self._program.maps["ticked"], 0, _TICKED)["unserved"].sum()),
            "cpus": len(set(online_cpus(self._host.root)) - set(clocks)) if clocks else 0,
        }

    def _function_at(self, address: int) -> str | None:
        name, offset = self._symbols.find(address) or (_PROGRAM, _PROGRAM_BYTES)
        if name.endswith(_PROGRAM) and monotonic_ns() - self._symbols_ns > _SYMBOLS_MIN_AGE_NS:
            # A program may have been loaded meanwhile.
            self._symbols = Symbols(self._host.proc, CATEGORY_OF, self._host.kept)
            self._symbols.refresh()
            self._symbols_ns = monotonic_ns()
            name, offset = self._symbols.find(address) or (_PROGRAM, _PROGRAM_BYTES)
        # An address far past a program belongs to a program that is not among the symbols.
        return None if name.endswith(_PROGRAM) and offset >= _PROGRAM_BYTES else name


def _sampled_ns(processes: Array, entries: Array | int, ns: Array) -> Array:
    rows = np.zeros(len(processes), SAMPLED_NS)
    copy_columns(rows, processes, ("started", "pid", "comm"))
    rows["entry"], rows["ns"] = entries, ns
    return rows
