# SPDX-License-Identifier: Apache-2.0
"""Stacks of kernel functions, as text and as categories."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from nettop.snapshots.cpu import (
    CATEGORIES,
    CATEGORY_OF,
    CATEGORY_SHARES,
    ENTRIES,
    IO_WORKERS,
    NETTOP,
    OTHER,
    RX_SOFTIRQ,
    RX_SYSCALLS,
    STACKS,
    TX_SOFTIRQ,
    TX_SYSCALLS,
)
from nettop.snapshots.snapshot import Array, Rows, TextTable, unknown_value

UNKNOWN = "[unknown]"
"""What stands for an address that no symbol tells of."""

ROWS_MAX = 16384
"""Stacks that are kept apart, by CPU and entry point. A row takes 42 bytes, the text of a stack some 700."""
_NAMED = 3
"""So many of the functions that a kernel has not are told by name."""
_REMEMBERED = 8192
"""So many addresses, and stacks, are known by name: 5 MB."""
_WORD = 8
NOT_KEPT = "[not kept]"
"""What stands for the stacks beyond those."""

CALL_BY_STACK, THREAD_BY_STACK = 15, 14
"""In place of an entry point: a system call or a kernel thread of which only its stack tells whether it sends or
receives."""

_OF_SOFTIRQS = (TX_SOFTIRQ, RX_SOFTIRQ)
_SOFTIRQ_ROOTS = frozenset({"handle_softirqs", "__do_softirq"})
_CALL_ROOTS = frozenset({"do_syscall_64", "el0_svc"})
_ROOTS = dict.fromkeys(_OF_SOFTIRQS, _SOFTIRQ_ROOTS) | dict.fromkeys(
    (TX_SYSCALLS, RX_SYSCALLS, CALL_BY_STACK), _CALL_ROOTS
)
"""Where an entry point's stacks begin: below is what was interrupted, or assembler."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SENDS = _words(
    "sock_sendmsg __sock_sendmsg sock_sendmsg_nosec __sys_sendto __sys_sendmsg kernel_sendmsg sock_write_iter "
    "tcp_sendmsg tcp_sendmsg_locked udp_sendmsg udpv6_sendmsg inet_sendmsg inet6_sendmsg io_send io_sendmsg "
    "io_send_zc io_sendmsg_zc __dev_queue_xmit"
)
_RECEIVES = _words(
    "sock_recvmsg sock_recvmsg_nosec __sys_recvfrom __sys_recvmsg kernel_recvmsg sock_read_iter tcp_recvmsg "
    "tcp_read_sock udp_recvmsg udpv6_recvmsg inet_recvmsg inet6_recvmsg io_recv io_recvmsg io_recvzc"
)

_CALL_OF = dict.fromkeys(_SENDS, TX_SYSCALLS) | dict.fromkeys(_RECEIVES, RX_SYSCALLS)
"""Where both are met the outermost tells: who receives sends acknowledgements."""
_OF_FILES = _words(
    "io_read io_write io_read_fixed io_write_fixed io_fsync io_openat io_openat2 io_statx aio_read aio_write"
)

_SUFFIX = re.compile(r"(?:\.(?:constprop|isra|part|cold|llvm|lto_priv)\b.*)? *(?:\[\w+\])?$")
_OWN = re.compile(r"bpf_prog_[0-9a-f]{16}_(?:tp_btf|fentry|fexit|entry|return|bpf_iter|sample)__")
"""nettop's programs as kallsyms has them: a tag of their instructions, and names that begin with what they hook."""
_ANY_PROGRAM = re.compile(r"bpf_prog_[0-9a-f]{16}")
_AROUND = re.compile(r"(?:bpf_trace_run\d+|__bpf_trace_\w+|__traceiter_\w+|bpf_trampoline_\w+)$")
"""What leads from a hook to the programs there."""


_POLL, _XDP, _TC = (CATEGORY_OF[one] for one in ("__napi_poll", "xdp_do_redirect", "tcf_classify"))
_PROGRAMS_IN = {name: _XDP for name, number in CATEGORY_OF.items() if number == _POLL} | {
    "__netif_receive_skb_core": _TC,
    "__dev_queue_xmit": _TC,
}
"""What others' programs do that are called there: of the callers in between the compiler leaves nothing to see."""


class Folded(NamedTuple):
    """A stack: its functions, root first with ; between, the category of its samples, whether they are of an entry
    point (0: none), and whether an address has no name."""

    text: str
    category: int
    entry: int
    is_whole: bool


def bare(symbol: str) -> str:
    """The function's own name: without what the compiler and the module put behind it."""
    return _SUFFIX.sub("", symbol)


def category_of(frames: Sequence[str]) -> int:
    """The category of a stack, leaf first: that of the deepest frame that names one."""
    programs_of_others = False
    for frame in frames:
        if frame in CATEGORY_OF:
            return _PROGRAMS_IN.get(frame, CATEGORY_OF[frame]) if programs_of_others else CATEGORY_OF[frame]
        if _OWN.match(frame) or (_AROUND.match(frame) and not programs_of_others):
            return NETTOP
        programs_of_others = programs_of_others or _ANY_PROGRAM.match(frame) is not None
    return OTHER


def cut(frames: Sequence[str], entry: int) -> Sequence[str]:
    """The frames (leaf first) from the entry point inwards: its innermost root, and what that called."""
    roots = _ROOTS.get(entry, frozenset())
    for at, frame in enumerate(frames):
        if frame in roots:
            return frames[: at + 1]
    return frames


def entry_of(frames: Sequence[str], entry: int) -> int:
    """The entry point, also where the stack has to tell; 0 where it tells of no sending and no receiving.

    CALL_BY_STACK where that is in what goes with any work of such a call.
    """
    if entry not in _OF_SOFTIRQS and not _SOFTIRQ_ROOTS.isdisjoint(frames):
        return 0  # an interrupt is about to begin a softirq, or has ended one
    if entry not in (CALL_BY_STACK, THREAD_BY_STACK):
        return entry
    call = next((_CALL_OF[frame] for frame in reversed(frames) if frame in _CALL_OF), None)
    if entry == THREAD_BY_STACK:
        return IO_WORKERS if call else 0
    return call or (CALL_BY_STACK if _OF_FILES.isdisjoint(frames) else 0)


class Folder:
    """Makes stacks of addresses into text."""

    def __init__(self, find: Callable[[int], str | None]) -> None:
        """`find` gives the function at an address, None where it is not known."""
        self._find = find
        self._names: dict[int, str] = {}
        self._folded: dict[tuple[int, str, bytes], Folded] = {}

    def fold(self, stack: bytes, entry: int) -> Folded:
        """A stack that was met in an entry point: its addresses (u64), leaf first.

        Most stacks that were not met before differ from others by nothing but where in the leaf they are.
        """
        leaf, callers = self._name(int.from_bytes(stack[:_WORD], sys.byteorder)), stack[_WORD:]
        folded = self._folded.get((entry, leaf, callers))
        if folded is None:
            if len(self._folded) >= _REMEMBERED:
                self._folded.clear()
            folded = self._folded[entry, leaf, callers] = self._fold([leaf, *self._names_of(callers)], entry)
        return folded

    def forget(self) -> None:
        """Ask for every name again."""
        self._names.clear()
        self._folded.clear()

    def _fold(self, all_frames: Sequence[str], entry: int) -> Folded:
        frames = cut(all_frames, entry)
        text = sys.intern(";".join(reversed(frames)))
        return Folded(text, category_of(frames), entry_of(frames, entry), UNKNOWN not in frames)

    def _names_of(self, addresses: bytes) -> Iterable[str]:
        return map(self._name, memoryview(addresses).cast("Q"))

    def _name(self, address: int) -> str:
        name = self._names.get(address)
        if name is None:
            if len(self._names) >= _REMEMBERED:
                self._names.clear()
            found = self._find(address)
            name = self._names[address] = bare(found) if found else UNKNOWN
        return name


def categories_not_available(functions: Iterable[str]) -> dict[int, str]:
    """The categories none of whose symbols is among a kernel's functions, in ascending order, and that in words."""
    here = {CATEGORY_OF[one] for one in functions if one in CATEGORY_OF}
    return {
        number: f"n/a: this kernel has none of {_some_of(one.symbols)}"
        for number, one in sorted(CATEGORIES.items())
        if one.symbols and number not in here
    }


def _some_of(symbols: Iterable[str]) -> str:
    """The first names, and how many more there are."""
    names = sorted(symbols)
    more = [f"{len(names) - _NAMED} more"] if len(names) > _NAMED else []
    return ", ".join([*names[:_NAMED], *more])


class StackRows:
    """The rows of the table of stacks. They stay in the order in which they were met."""

    def __init__(self, rows_max: int = ROWS_MAX) -> None:
        self._rows_max = rows_max
        self._texts = TextTable()
        self._at: dict[tuple[int, int, int, str], int] = {}
        self._rows: Array = np.zeros(256, STACKS.dtype)
        self._time: Array = np.zeros(256)
        self._is_whole = np.ones(256, bool)

    def __len__(self) -> int:
        return len(self._at)

    def place(self, cpu: int, folded: Folded) -> int:
        """The row of a stack on a CPU; where there is no room for it the one of all such of its category."""
        key = (cpu, folded.entry, folded.category, folded.text)
        at = self._at.get(key)
        if at is None and len(self._at) >= self._rows_max and folded.text != NOT_KEPT:
            return self.place(cpu, folded._replace(text=NOT_KEPT))
        return self._add_row(key, folded.is_whole) if at is None else at

    def _add_row(self, key: tuple[int, int, int, str], is_whole: bool) -> int:
        at = self._at[key] = len(self._at)
        if at == len(self._rows):
            self._rows, self._time = (
                np.concatenate([one, np.zeros_like(one)]) for one in (self._rows, self._time)
            )
            self._is_whole = np.concatenate([self._is_whole, np.ones(at, bool)])
        cpu, entry, category, text = key
        row = self._rows[at : at + 1]
        row["id"], row["cpu"], row["entry"], row["category"] = at + 1, cpu, entry, category
        row["stack"] = self._texts.code(text)
        self._is_whole[at] = is_whole
        return at

    def entries_of(self, at: Array) -> Array:
        """The entry points of these rows; of a row that there is not anything."""
        entries: Array = self._rows["entry"][np.maximum(at, 0)].astype(np.intp)
        return entries

    @property
    def samples(self) -> int:
        """How many samples all rows have."""
        return int(self._rows["samples"].sum())

    @property
    def unresolved(self) -> int:
        """How many samples have an address in their stack that has no name."""
        return int(self._rows["samples"][~self._is_whole].sum())

    @property
    def not_kept(self) -> int:
        """How many samples are of stacks for which there was no row."""
        return int(sum(self._rows["samples"][at] for key, at in self._at.items() if key[3] == NOT_KEPT))

    def add(self, at: Array, samples: Array, time_ns: Array) -> None:
        """Count samples of these rows, some of which may stand there several times."""
        np.add.at(self._rows["samples"], at, samples)
        np.add.at(self._time, at, time_ns)

    def stacks(self, taken_ns: int) -> Rows:
        """The table of stacks."""
        rows = self._rows[: len(self)].copy()
        rows["time_ns"] = self._time[: len(self)]
        return Rows(STACKS, rows, {"stack": self._texts.values}, taken_ns)

    def categories(self, not_here: Mapping[int, str], taken_ns: int) -> Rows:
        """The table of categories: all of them for each entry point that was met, so that each row begins at 0. Those
        that are `not_here` have one row that says why, until one is met."""
        rows = self._rows[: len(self)]
        of_entry = len(CATEGORIES)
        not_here = {number: why for number, why in not_here.items() if number not in rows["category"]}
        which = rows["entry"].astype(np.intp) * of_entry + rows["category"]
        samples = np.bincount(which, rows["samples"], of_entry * (1 + len(ENTRIES)))
        times = np.bincount(which, self._time[: len(self)], len(samples))
        of_entries = samples.reshape(-1, of_entry).sum(axis=1)
        is_here = ~np.isin(np.arange(of_entry), list(not_here))
        (met,) = np.nonzero(np.repeat(of_entries > 0, of_entry) & np.tile(is_here, len(of_entries)))
        texts = TextTable()
        nothing = texts.code("")
        table = np.zeros(len(met) + len(not_here), CATEGORY_SHARES.dtype)
        told, untold = table[len(not_here) :], table[: len(not_here)]
        told["id"], told["entry"], told["category"] = met, met // of_entry, met % of_entry
        told["samples"], told["time_ns"], told["note"] = samples[met], times[met], nothing
        told["entry_samples"] = of_entries[met // of_entry]
        for name in ("entry", "samples", "entry_samples", "time_ns"):
            untold[name] = unknown_value(table.dtype[name])
        untold["id"] = untold["category"] = list(not_here)
        untold["note"] = [texts.code(why) for why in not_here.values()]
        return Rows(CATEGORY_SHARES, table, {"note": texts.values}, taken_ns)
