# SPDX-License-Identifier: Apache-2.0
"""Kernel stacks as text and categories."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from nettop.snapshots.arrays import Array, concatenate_rows
from nettop.snapshots.cpu import (
    CATEGORIES,
    CATEGORY_OF,
    CATEGORY_SHARES,
    ENTRIES,
    IO_WORKERS,
    NAPI_THREADS,
    NET_RX,
    NET_TX,
    NETTOP,
    OTHER,
    RX_SOFTIRQ,
    RX_SYSCALLS,
    STACKS,
    TX_SOFTIRQ,
    TX_SYSCALLS,
    VECTORS,
)
from nettop.snapshots.snapshot import Rows, TextTable, mark_unknown, unknown_value

UNKNOWN_FUNCTION = "[unknown]"
"""Name of an address without a symbol."""

STACKS_MAX = 16384
"""Maximum rows of stacks, by CPU and entry point. A row takes 42 bytes, the text of a stack about 700."""
_NAMED = 3
"""Maximum missing functions that a reason names."""
_CACHED = 8192
"""Size of the caches of names and folded stacks: 5 MB."""
_WORD = 8
NOT_KEPT = "[not kept]"
"""Replaces stacks beyond STACKS_MAX."""

CALL_BY_STACK, THREAD_BY_STACK, SOFTIRQ_BY_STACK = 15, 14, 13
"""Used instead of an entry point: a system call, a kernel thread or a softirq that does network work only if its stack
shows it."""

_SOFTIRQS = (TX_SOFTIRQ, RX_SOFTIRQ)
RUNS_SOFTIRQS = ("handle_softirqs", "__do_softirq")
"""The function that runs softirqs: since 6.10, and before. There may still be a __do_softirq that calls the first."""
_SOFTIRQ_ROOTS = frozenset(RUNS_SOFTIRQS)
_CALL_ROOTS = frozenset({"do_syscall_64", "el0_svc"})
_ROOTS = dict.fromkeys((*_SOFTIRQS, SOFTIRQ_BY_STACK), _SOFTIRQ_ROOTS) | dict.fromkeys(
    (TX_SYSCALLS, RX_SYSCALLS, CALL_BY_STACK), _CALL_ROOTS
)
"""Functions at which an entry point's stacks begin: below them is interrupted code, or entry code in assembler."""


_SENDS = (
    "sock_sendmsg __sock_sendmsg sock_sendmsg_nosec __sys_sendto __sys_sendmsg kernel_sendmsg sock_write_iter "
    "tcp_sendmsg tcp_sendmsg_locked udp_sendmsg udpv6_sendmsg inet_sendmsg inet6_sendmsg io_send io_sendmsg "
    "io_send_zc io_sendmsg_zc __dev_queue_xmit"
)
_RECEIVES = (
    "sock_recvmsg sock_recvmsg_nosec __sys_recvfrom __sys_recvmsg kernel_recvmsg sock_read_iter tcp_recvmsg "
    "tcp_read_sock udp_recvmsg udpv6_recvmsg inet_recvmsg inet6_recvmsg io_recv io_recvmsg io_recvzc"
)

_CALL_OF = dict.fromkeys(_SENDS.split(), TX_SYSCALLS) | dict.fromkeys(_RECEIVES.split(), RX_SYSCALLS)
"""Functions that send or receive. The outermost in a stack decides: receiving also sends acknowledgements."""
_ACTIONS = {
    "tasklet_hi_action": "hi",
    "run_timer_softirq": "timer",
    "net_tx_action": "net_tx",
    "xfrm_dev_backlog": "net_tx",
    "net_rx_action": "net_rx",
    "blk_done_softirq": "block",
    "irq_poll_softirq": "irq_poll",
    "tasklet_action": "tasklet",
    "tasklet_action_common": "tasklet",
    "run_rebalance_domains": "sched",  # before 6.10
    "sched_balance_softirq": "sched",
    "rebalance_domains": "sched",
    "sched_balance_domains": "sched",
    "hrtimer_run_softirq": "hrtimer",
    "tmigr_handle_remote": "timer",
    "rcu_core_si": "rcu",
    "rcu_core": "rcu",
    "rcu_process_callbacks": "rcu",  # Tiny RCU
}
"""The softirq that a function serves. The kernel calls an action through a pointer, so it is never inlined; but its
last call may be a jump, and then only the function that it jumped to is on the stack."""
_HRTIMER_ENDS_IN = "_raw_spin_unlock_irqrestore"
"""hrtimer_run_softirq jumps there. It enables interrupts, so most ticks of that softirq are found in it."""
IN_HOOK = len(VECTORS)
"""Used instead of a softirq's number: a tracer's hook before or after the softirq's action."""
_ENTRY_OF: Mapping[int | None, int] = {NET_TX: TX_SOFTIRQ, NET_RX: RX_SOFTIRQ}
_POLLS_DEVICES = frozenset({"napi_threaded_poll", "napi_threaded_poll_loop"})
_FILE_WORK = {
    *("io_read", "io_write", "io_read_fixed", "io_write_fixed", "io_fsync", "io_openat", "io_openat2"),
    *("io_statx", "aio_read", "aio_write"),
}

_SUFFIX = re.compile(r"(?:\.(?:constprop|isra|part|cold|llvm|lto_priv)\b.*)? *(?:\[\w+\])?$")
_OWN_PROGRAM = re.compile(r"bpf_prog_[0-9a-f]{16}_(?:tp_btf|fentry|fexit|entry|return|bpf_iter|sample)__")
"""nettop's programs in kallsyms: a tag of their instructions, and a name that begins with the hook."""
_ANY_PROGRAM = re.compile(r"bpf_prog_[0-9a-f]{16}")
_DISPATCH = re.compile(r"(?:bpf_trace_run\d+|__bpf_trace_\w+|__traceiter_\w+|bpf_trampoline_\w+)$")
"""Kernel code between a hook and its programs."""

_POLL, _XDP, _TC = (CATEGORY_OF[symbol] for symbol in ("__napi_poll", "xdp_do_redirect", "tcf_classify"))
_PROGRAMS_IN = {name: _XDP for name, number in CATEGORY_OF.items() if number == _POLL} | {
    "__netif_receive_skb_core": _TC,
    "__dev_queue_xmit": _TC,
}
"""Category of programs that these functions call, except nettop's own: the functions in between are inlined."""


class Folded(NamedTuple):
    """A stack: its functions, root first, separated by ;, its category, its entry point (0: none), whether all of its
    addresses have names, and the number of its softirq (or IN_HOOK), if that is not the network's."""

    text: str
    category: int
    entry: int
    is_whole: bool
    softirq: int | None = None


def strip_suffixes(symbol: str) -> str:
    """Return the function's name without suffixes of the compiler and the module."""
    return _SUFFIX.sub("", symbol)


def category_of(frames: Sequence[str]) -> int:
    """Return the category of a stack, leaf first: that of the deepest frame that has one."""
    other_programs = False
    for frame in frames:
        if frame in CATEGORY_OF:
            return _PROGRAMS_IN.get(frame, CATEGORY_OF[frame]) if other_programs else CATEGORY_OF[frame]
        if _OWN_PROGRAM.match(frame) or (_DISPATCH.match(frame) and not other_programs):
            return NETTOP
        other_programs = other_programs or _ANY_PROGRAM.match(frame) is not None
    return OTHER


def trim_to_root(frames: Sequence[str], entry: int) -> Sequence[str]:
    """Return the frames (leaf first) from the leaf to the entry point's innermost root."""
    roots = _ROOTS.get(entry, frozenset())
    for at, frame in enumerate(frames):
        if frame in roots:
            return frames[: at + 1]
    return frames


def entry_of(frames: Sequence[str], entry: int) -> int:
    """Return the entry point, from the stack if necessary; 0 if the stack neither sends nor receives.

    Return CALL_BY_STACK for overhead of the call, which belongs to whatever work the call does.
    """
    if entry not in _SOFTIRQS and not _SOFTIRQ_ROOTS.isdisjoint(frames):
        return 0  # an interrupt just before or after a softirq
    if entry not in (CALL_BY_STACK, THREAD_BY_STACK):
        return entry
    call = next((_CALL_OF[frame] for frame in reversed(frames) if frame in _CALL_OF), None)
    if entry == THREAD_BY_STACK:
        return NAPI_THREADS if not _POLLS_DEVICES.isdisjoint(frames) else IO_WORKERS if call else 0
    return call or (CALL_BY_STACK if _FILE_WORK.isdisjoint(frames) else 0)


def softirq_of(frames: Sequence[str]) -> int | None:
    """Return the number of the softirq that a stack (from its root) serves, or IN_HOOK; None if it shows neither."""
    *inside, _ = frames
    if action := next((frame for frame in reversed(inside) if frame in _ACTIONS), None):
        return VECTORS.index(_ACTIONS[action])
    if inside[-1:] == [_HRTIMER_ENDS_IN]:
        return VECTORS.index("hrtimer")
    is_hook = any(_DISPATCH.match(frame) or frame.endswith("_softirq") for frame in inside)
    return IN_HOOK if is_hook else None


class Folder:
    """Converter of address stacks to text."""

    def __init__(self, find: Callable[[int], str | None]) -> None:
        """Look functions up with `find`, which returns the name at an address, or None if unknown."""
        self._find = find
        self._name = lru_cache(_CACHED)(self._look_up)
        self._fold = lru_cache(_CACHED)(self._fold_callers)

    def fold(self, stack: bytes, entry: int) -> Folded:
        """Return the text of a stack sampled in an entry point; `stack` holds its addresses (u64), leaf first.

        Most new stacks differ from known ones only in the address within the leaf function.
        """
        return self._fold(self._name(int.from_bytes(stack[:_WORD], sys.byteorder)), stack[_WORD:], entry)

    def forget(self) -> None:
        """Clear the caches."""
        self._name.cache_clear()
        self._fold.cache_clear()

    def _fold_callers(self, leaf: str, callers: bytes, entry: int) -> Folded:
        frames = trim_to_root([leaf, *map(self._name, memoryview(callers).cast("Q"))], entry)
        text = sys.intern(";".join(reversed(frames)))
        is_whole = UNKNOWN_FUNCTION not in frames
        if entry != SOFTIRQ_BY_STACK:
            return Folded(text, category_of(frames), entry_of(frames, entry), is_whole)
        softirq = softirq_of(frames)
        if softirq in _ENTRY_OF:
            return Folded(text, category_of(frames), _ENTRY_OF[softirq], is_whole)
        return Folded(text, OTHER, 0, is_whole, softirq)

    def _look_up(self, address: int) -> str:
        symbol = self._find(address)
        return strip_suffixes(symbol) if symbol else UNKNOWN_FUNCTION


def categories_not_available(functions: Iterable[str]) -> dict[int, str]:
    """Map the categories without a function in this kernel, in ascending order, to the reason to show."""
    available = {CATEGORY_OF[name] for name in functions if name in CATEGORY_OF}
    reasons = {}
    for number, category in sorted(CATEGORIES.items()):
        if category.symbols and number not in available:
            names, more = sorted(category.symbols), len(category.symbols) - _NAMED
            named = ", ".join([*names[:_NAMED], *([f"{more} more"] if more > 0 else [])])
            reasons[number] = f"n/a: this kernel has none of {named}"
    return reasons


class StackRows:
    """Rows of the table of stacks, in the order in which they were first sampled."""

    def __init__(self, rows_max: int = STACKS_MAX) -> None:
        self._rows_max = rows_max
        self._texts = TextTable()
        self._processes = TextTable()
        self._at: dict[tuple[int, str, int, int, str], int] = {}
        self._rows: Array = np.zeros(256, STACKS.dtype)
        self._is_whole = np.ones(256, bool)

    def __len__(self) -> int:
        return len(self._at)

    def place(self, cpu: int, process: str, folded: Folded) -> int:
        """Return the index of a stack's row on a CPU; without room, that of the shared row of its category.

        `process` is the name of the process that made the call, empty in softirqs.
        """
        key = (cpu, process, folded.entry, folded.category, folded.text)
        if (at := self._at.get(key)) is not None:
            return at
        if len(self._at) >= self._rows_max and folded.text != NOT_KEPT:
            return self.place(cpu, "", folded._replace(text=NOT_KEPT))
        at = self._at[key] = len(self._at)
        if at == len(self._rows):
            self._rows = concatenate_rows(self._rows, np.zeros_like(self._rows))
            self._is_whole = np.concatenate([self._is_whole, np.ones(at, bool)])
        row = self._rows[at : at + 1]
        row["id"], row["cpu"], row["entry"], row["category"] = at + 1, cpu, folded.entry, folded.category
        row["stack"] = self._texts.code(folded.text)
        row["process"] = self._processes.code(process) if process else unknown_value(STACKS.dtype["process"])
        self._is_whole[at] = folded.is_whole
        return at

    def entries_of(self, at: Array) -> Array:
        """Return the entry points of these rows; arbitrary for a negative index."""
        entries: Array = self._rows["entry"][np.maximum(at, 0)].astype(np.intp)
        return entries

    @property
    def samples(self) -> int:
        """Samples of all rows."""
        return int(self._rows["samples"].sum())

    @property
    def unresolved(self) -> int:
        """Samples whose stack has an address without a name."""
        return int(self._rows["samples"][~self._is_whole].sum())

    @property
    def not_kept(self) -> int:
        """Samples of stacks that had no room for a row."""
        return int(sum(self._rows["samples"][at] for key, at in self._at.items() if key[-1] == NOT_KEPT))

    def add(self, at: Array, samples: Array, time_ns: Array) -> None:
        """Count samples of these rows; a row may occur several times."""
        np.add.at(self._rows["samples"], at, samples)
        np.add.at(self._rows["time_ns"], at, time_ns)

    def stacks(self, taken_ns: int) -> Rows:
        """Return the table of stacks."""
        texts = {"stack": self._texts.frozen(), "process": self._processes.frozen()}
        return Rows(STACKS, self._rows[: len(self)].copy(), texts, taken_ns)

    def categories(self, not_available: Mapping[int, str], taken_ns: int) -> Rows:
        """Return the table of categories: all of them for each sampled entry point, so that each row starts at 0.

        A category that is `not_available` has one row with the reason, unless it was sampled anyway.
        """
        rows = self._rows[: len(self)]
        of_entry = len(CATEGORIES)
        not_available = {
            number: why for number, why in not_available.items() if number not in rows["category"]
        }
        which = rows["entry"].astype(np.intp) * of_entry + rows["category"]
        samples = np.bincount(which, rows["samples"], of_entry * (1 + len(ENTRIES)))
        times = np.bincount(which, rows["time_ns"], len(samples))
        of_entries = samples.reshape(-1, of_entry).sum(axis=1)
        is_available = ~np.isin(np.arange(of_entry), list(not_available))
        (ids,) = np.nonzero(np.repeat(of_entries > 0, of_entry) & np.tile(is_available, len(of_entries)))
        texts = TextTable()
        no_note = texts.code("")
        table = np.zeros(len(not_available) + len(ids), CATEGORY_SHARES.dtype)
        missing, sampled = table[: len(not_available)], table[len(not_available) :]
        sampled["id"], sampled["entry"], sampled["category"] = ids, ids // of_entry, ids % of_entry
        sampled["samples"], sampled["time_ns"], sampled["note"] = samples[ids], times[ids], no_note
        sampled["entry_samples"] = of_entries[ids // of_entry]
        mark_unknown(missing, ("entry", "samples", "entry_samples", "time_ns"))
        missing["id"] = missing["category"] = list(not_available)
        missing["note"] = [texts.code(why) for why in not_available.values()]
        return Rows(CATEGORY_SHARES, table, {"note": texts.frozen()}, taken_ns)
