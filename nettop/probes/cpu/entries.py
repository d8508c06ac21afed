# SPDX-License-Identifier: Apache-2.0
"""Times of the network stack's entry points, from hooks at the start and end of softirqs and system calls on
sockets."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np

from nettop.errors import Unsupported
from nettop.kernel import bpf_syscall as bpf
from nettop.kernel.bpf import kprobes, maps, process_columns
from nettop.kernel.bpf.btf import Slice
from nettop.kernel.bpf.mechanisms import Fallbacks, Mechanism, Refused
from nettop.kernel.bpf.program import Loader, Program
from nettop.kernel.bpf.rows import row_header
from nettop.kernel.host.facts import Host
from nettop.probes.probe import attach_program, loaded_as, skipped_runs, with_types
from nettop.snapshots.arrays import Array
from nettop.snapshots.cpu import (
    ENTRIES,
    HOOK_NAPI_THREADS,
    HOOK_SERVED,
    HOOK_SOFTIRQS,
    HOOK_SYSCALLS,
    NET_RX,
    NET_TX,
    RX_SOFTIRQ,
    TIME_OF,
    TX_SOFTIRQ,
    VECTORS,
)

_CALLERS_BYTES, _CALLERS_MIN, _CALLERS_MAX = 8 << 20, 1 << 10, 1 << 14
"""Memory for processes whose calls are timed, and the limits of their number."""
_CALLER_BYTES, _CALLER_BYTES_PER_CPU = 200, 72
"""Memory per process."""
WAITING_MAX = 1 << 15
"""Maximum threads switched out inside a call or a softirq: 2 MB."""

# --- the values of the maps ---------------------------------------------------------------------------------------

SPAN_BITS = 4
"""Low bits of a span: what time is being spent in. The other bits: since when. Both change atomically."""
_SPAN_MASK = (1 << SPAN_BITS) - 1

CPU_STATE = np.dtype(
    [
        ("entry_ns", "u8", (1 << SPAN_BITS,)),
        ("vector_ns", "u8", (1 << SPAN_BITS,)),
        ("softirq", "u8"),
        ("task", "u8"),
        ("task_depth", "u4"),
        ("interruptions", "u4"),
        ("served", "u8"),
        ("early_ticks", "u8"),
        ("ticked_at", "u8"),
        ("last_caller", "u8"),
    ]
)
"""The state of a CPU, and its times in ns (CLOCK_MONOTONIC).

`softirq` and `task` are spans. `softirq` holds the running softirq's number plus one, 0 outside of softirqs; `task`
holds the entry point of the running thread, 0 for none, and pauses while a softirq runs. `task_depth` is the nesting
depth of calls; `interruptions` counts softirqs and context switches. `served` is the address of the socket (struct
sock) that the running softirq handled last, 0 for none yet; `early_ticks` are the ticks of that softirq before it.
`ticked_at` is the time of the last of them, if no hook marks softirqs. `last_caller` is the start time of the process
that made the last call.

`entry_ns` is indexed by entry point (0 for softirqs), `vector_ns` by softirq plus one. Both have as many elements as a
span can name, which every verifier understands. Times come first: a reader that races with the end of a span may miss
it, but never counts it twice.
"""

PROCESS = np.dtype([("started", "u8"), ("pid", "u4"), ("always_zero", "u4")])
"""A process: its start time (ns of CLOCK_BOOTTIME) and its PID, all bits set outside nettop's PID namespace."""

SPENT = np.dtype([("entry_ns", "u8", (1 << SPAN_BITS,)), ("comm", "S16")])
"""Time that a process spent in its calls, by entry point, and its name."""

_INSIDE = np.dtype([("entry", "u4"), ("depth", "u4"), ("vector", "u4")])
"""State of a thread that is switched out: the entry point of its call and the depth of nested calls; with PREEMPT_RT
also the softirq plus one, 0 for none."""

SOFTIRQ_NS = 200_000
"""A tick in a softirq that no hook marks is charged to the next socket within this time."""
_TASK = ("pid", "flags", "files", "comm", "start_boottime", *process_columns.PID_TASK_MEMBERS)
SLICES = (
    *process_columns.PID_SLICES,
    Slice("task_struct", {name: name for name in _TASK}, {"status": "thread_info.status"}),
    Slice("inode", {"i_mode": "i_mode"}, {}),
    Slice("file", {"f_inode": "f_inode", "private_data": "private_data"}, {}),
    Slice("fdtable", {"max_fds": "max_fds", "fd": "fd"}, {}),
    Slice("files_struct", {"fdt": "fdt"}, {}),
    Slice("socket", {"sk": "sk", "file": "file"}, {}),
    Slice("sock", {"skc_family": "__sk_common.skc_family"}, {}),
    Slice("kiocb", {"ki_filp": "ki_filp"}, {}),
    Slice("io_kiocb", {}, {"file": "file"}),
)

SOURCES = (
    process_columns.PID_SOURCE,
    *(str(Path(__file__).with_name(name)) for name in ("cpu.bpf.h", "cpu.bpf.c")),
)
MAPS = ("cpus", "callers", "overflows", "waiting")
NEEDS = ("bpf_get_current_task_btf", "bpf_sock_from_file")
"""Helpers that the programs call. 5.10 has neither, and logs a warning when it is given such programs."""
_OVERFLOWS = ("threads", "processes", "sockets")
_DEFINES = {
    "SPAN_BITS": SPAN_BITS,
    "SPAN_MASK": _SPAN_MASK,
    **{f"ENTRY_{name.removesuffix('_ns').upper()}": entry for entry, name in TIME_OF.items()},
    **{f"VECTOR_{name.upper()}": number for number, name in enumerate(VECTORS)},
    "WAITING_MAX": WAITING_MAX,
    **{f"OVERFLOW_{name.upper()}": number for number, name in enumerate(_OVERFLOWS)},
    "OVERFLOW_KINDS": len(_OVERFLOWS),
    "SOFTIRQ_NS": SOFTIRQ_NS,
}


def defines() -> dict[str, int]:
    """Return the constants of the programs, passed with -D."""
    fit = _CALLERS_BYTES // (_CALLER_BYTES + _CALLER_BYTES_PER_CPU * maps.possible_cpus())
    host = Host()
    return {
        **_DEFINES,
        "CALLERS_MAX": max(_CALLERS_MIN, min(_CALLERS_MAX, fit)),
        "REAL_TIME": int(host.is_real_time()),
        **process_columns.pid_defines(host),
    }


def header() -> str:
    """Return the C text that precedes cpu.bpf.h."""
    rows = (("cpu_state", CPU_STATE), ("process", PROCESS), ("spent", SPENT), ("inside", _INSIDE))
    return "#include <linux/types.h>\n" + "".join(row_header(name, dtype) for name, dtype in rows)


# --- the hooks ----------------------------------------------------------------------------------------------------

REQUIRED_FUNCTIONS = {
    "__sys_sendto": "send_by_descriptor",
    "__sys_sendmsg": "send_by_descriptor",
    "sock_write_iter": "send_by_iocb",
    "__sys_recvfrom": "receive_by_descriptor",
    "__sys_recvmsg": "receive_by_descriptor",
    "sock_read_iter": "receive_by_iocb",
}
"""Functions of net/socket.c that most system calls on sockets pass, and the program at each. A mechanism must hook all
of them."""
OPTIONAL_FUNCTIONS = {
    "__sys_sendmmsg": "send_by_descriptor",
    "do_sendfile": "send_by_descriptor",
    "splice_to_socket": "send_by_second",
    "sock_sendpage": "send_by_file",
    "io_send": "send_by_request",
    "io_sendmsg": "send_by_request",
    "__sys_recvmmsg": "receive_by_descriptor",
    "sock_splice_read": "receive_by_file",
    "io_recv": "receive_by_request",
    "io_recvmsg": "receive_by_request",
    "sock_sendmsg": "work_on_socket",
    "sock_recvmsg": "work_on_socket",
}
"""Functions that fewer calls pass. Not every kernel has all of them: splice() sends through sock_sendpage before 6.5,
and through splice_to_socket since. Kernel threads send and receive through the last two."""
_SPLICES = frozenset({"splice_to_socket", "sock_sendpage"})
"""Alternative functions: a kernel has only one of them."""
_SOFTIRQS = ("tp_btf__softirq_entry", "tp_btf__softirq_exit")
_THREADS = "tp_btf__sched_switch"

BY_SAMPLES = Mechanism("samples")
SOFTIRQS = Fallbacks(HOOK_SOFTIRQS, (BY_SAMPLES, Mechanism("tp_btf/softirq_entry + softirq_exit", _SOFTIRQS)))
THREADS = Fallbacks(HOOK_NAPI_THREADS, (BY_SAMPLES, Mechanism("tp_btf/sched_switch", (_THREADS,))))
SERVED = Fallbacks(
    HOOK_SERVED,
    (
        Mechanism("tp_btf/tcp_probe + sk_data_ready", ("tp_btf__tcp_probe", "tp_btf__sk_data_ready")),
        Mechanism("tp_btf/tcp_probe", ("tp_btf__tcp_probe",)),
    ),
)
"""Every TCP segment passes tcp_probe; sk_data_ready wakes readers of a socket (since 6.3)."""


_KINDS = {"fexit": ("fexit", "fentry"), "kretprobe": ("return", "entry")}
"""The kinds of hooks at a function's exit and entry, by mechanism."""


def programs_at(function: str, mechanism: str) -> tuple[str, str]:
    """Return the programs at a function's exit and entry, in this order: an exit without an entry counts nothing."""
    at_exit, at_entry = _KINDS[mechanism]
    program = (REQUIRED_FUNCTIONS | OPTIONAL_FUNCTIONS)[function]
    return f"{at_exit}__call@{function}", f"{at_entry}__{program}@{function}"


FEXIT, KRETPROBE = (
    Mechanism(kind, tuple(chain(*(programs_at(name, kind) for name in REQUIRED_FUNCTIONS))))
    for kind in _KINDS
)
SYSCALLS = Fallbacks(HOOK_SYSCALLS, (BY_SAMPLES, FEXIT, KRETPROBE))
FALLBACKS = (SOFTIRQS, SYSCALLS, THREADS, SERVED)


def in_order(fallbacks: Fallbacks, *, exact: bool) -> Fallbacks:
    """Return a hook's mechanisms with samples as the last resort if times are to be `exact`."""
    if not exact:
        return fallbacks
    return replace(fallbacks, mechanisms=tuple(sorted(fallbacks.mechanisms, key=BY_SAMPLES.__eq__)))


def functions() -> dict[str, int]:
    """Return the programs that this kernel may be able to load, with their types."""
    kinds = [kind for kind in _KINDS if kind != KRETPROBE.name or kprobes.KPROBES.exists()]
    at_calls = (
        programs_at(name, kind) for kind in kinds for name in (*REQUIRED_FUNCTIONS, *OPTIONAL_FUNCTIONS)
    )
    return with_types(
        (*_SOFTIRQS, _THREADS, *SERVED.mechanisms[0].programs, *map(loaded_as, chain(*at_calls)))
    )


_CHECKS: Mapping[str, Callable[[socket.socket], object]] = {
    "__sys_sendto": lambda sock: sock.send(b""),
    "__sys_sendmsg": lambda sock: sock.sendmsg([b""]),
    "sock_write_iter": lambda sock: os.write(sock.fileno(), b"n"),
    "__sys_recvfrom": lambda sock: sock.recv(1),
    "__sys_recvmsg": lambda sock: sock.recvmsg(1),
    "sock_read_iter": lambda sock: os.read(sock.fileno(), 1),
}
"""Calls that pass REQUIRED_FUNCTIONS. On a non-blocking UDP socket without an address, all of them fail: no packet
is sent."""


# --- times ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, slots=True)
class EntryReading:
    """Exact times in ns since the start.

    `entry_ns` is indexed by CPU and entry point, `vector_ns` by CPU and softirq. `callers` are the processes that made
    calls (dtype PROCESS), `spent` the time that each spent in them (dtype SPENT).
    """

    entry_ns: Array
    vector_ns: Array
    callers: Array
    spent: Array


class EntryTimes:
    """Programs that time entry points.

    `not_hooked` are OPTIONAL_FUNCTIONS that the mechanism in use cannot hook here.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self._links: dict[str, ExitStack] = {}
        self._published = np.zeros((maps.possible_cpus(), 1 + len(ENTRIES) + len(VECTORS)), np.uint64)
        self.not_hooked: tuple[str, ...] = ()

    # --- attaching ----------------------------------------------------------------------------------------------

    def attach(self, loader: Loader, mechanism: Mechanism) -> None:
        """Attach all programs of a mechanism, or none. Raises Unsupported or OSError."""
        try:
            for name in mechanism.programs:
                with ExitStack() as opened:
                    attach_program(self._program, loader, name, opened)
                    self._links[name] = opened.pop_all()
        except BaseException:
            self.detach(mechanism.programs)
            raise

    def hook_calls(self, loader: Loader, mechanism: Mechanism) -> None:
        """Hook REQUIRED_FUNCTIONS, check that each hook runs, and hook those OPTIONAL_FUNCTIONS that can be hooked.

        Raises Unsupported or OSError on failure; then none is attached.
        """
        try:
            self.attach(loader, mechanism)
            self._check_calls()
        except BaseException:
            self.detach(mechanism.programs)
            self._forget_calls()
            raise
        refused = []
        for function in OPTIONAL_FUNCTIONS:
            try:
                self.attach(loader, Mechanism(function, programs_at(function, mechanism.name)))
            except (Unsupported, OSError):
                refused.append(function)
        self.not_hooked = tuple(
            name for name in refused if name not in _SPLICES or _SPLICES.issubset(refused)
        )

    def detach(self, names: Collection[str]) -> None:
        """Detach programs; their counts are kept."""
        for name in self._links.keys() & set(names):
            self._links.pop(name).close()

    def _forget_calls(self) -> None:
        """Forget calls whose start the hooks saw: their end will go unseen."""
        waiting = self._program.maps["waiting"]
        maps.delete_all(waiting, maps.read_all(waiting, np.dtype("u4"), _INSIDE)[0])
        cpus = bytes(CPU_STATE.itemsize * maps.possible_cpus())
        bpf.set_element(self._program.maps["cpus"], bytes(4), cpus)

    def _check_calls(self) -> None:
        """Raise Refused unless each of REQUIRED_FUNCTIONS is seen to run."""
        silent = []
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            for function, call in _CHECKS.items():
                before = self._own_call_ns()
                with suppress(OSError):
                    call(sock)
                if self._own_call_ns() <= before:
                    silent.append(function)
        if silent:
            raise Refused(f"attached, but the hook never runs: {', '.join(silent)}")

    def _own_call_ns(self) -> int:
        """Return the time that this process spent in its calls."""
        callers, spent = self._read_callers()
        return int(spent["entry_ns"][callers["pid"] == os.getpid()].sum())

    def programs(self) -> set[str]:
        """Return the names of the attached programs."""
        return set(map(loaded_as, self._links))

    # --- reading ------------------------------------------------------------------------------------------------

    def read(self, now_ns: int) -> EntryReading:
        """Return the times at `now_ns` (CLOCK_MONOTONIC, not in the future), including spans that have not ended."""
        state = maps.read_per_cpu(self._program.maps["cpus"], 0, CPU_STATE)
        # A span included in the last reading may end during this one: keep times monotonic.
        self._published = np.maximum(self._published, np.hstack(with_spans(state, now_ns)))
        entry_ns, vector_ns = np.hsplit(self._published, [1 + len(ENTRIES)])
        return EntryReading(entry_ns, vector_ns, *self._read_callers())

    def _read_callers(self) -> tuple[Array, Array]:
        """Return processes, and the time that each spent on all CPUs."""
        each = np.dtype((SPENT, (maps.possible_cpus(),)))
        callers, by_cpu = maps.read_all(self._program.maps["callers"], PROCESS, each)
        spent = np.zeros(len(callers), SPENT)
        spent["entry_ns"] = by_cpu["entry_ns"].sum(axis=1)
        named_on = (by_cpu["comm"] != b"").argmax(axis=1)  # the CPU of its first call
        spent["comm"] = by_cpu["comm"][np.arange(len(callers)), named_on]
        return callers, spent

    def forget(self, callers: Array) -> None:
        """Delete processes that have exited."""
        maps.delete_all(self._program.maps["callers"], callers)

    def lost(self) -> dict[str, int]:
        """Return how often each map was full, and the number of hook runs that the kernel skipped as recursion."""
        overflows = {
            name: int(maps.sum_per_cpu(self._program.maps["overflows"], number))
            for number, name in enumerate(_OVERFLOWS)
        }
        return overflows | {"recursion": skipped_runs(self._program)}

    def close(self) -> None:
        """Detach; a second call is a no-op."""
        self.detach(list(self._links))


def with_spans(state: Array, now_ns: int) -> tuple[Array, Array]:
    """Return times by entry point and by softirq, including the current span of each CPU (dtype CPU_STATE)."""
    entry_ns, vector_ns = state["entry_ns"].copy(), state["vector_ns"].copy()
    softirq, task = state["softirq"], state["task"]
    now = np.uint64(now_ns)
    for ns, span in ((vector_ns, softirq), (entry_ns, np.where(softirq == 0, task, 0))):
        since, of = span >> SPAN_BITS, (span & _SPAN_MASK).astype(np.intp)
        ns[np.arange(len(state)), of] += np.where((of > 0) & (since < now), now - since, np.uint64(0))
    entry_ns[:, RX_SOFTIRQ], entry_ns[:, TX_SOFTIRQ] = vector_ns[:, 1 + NET_RX], vector_ns[:, 1 + NET_TX]
    return entry_ns[:, : 1 + len(ENTRIES)], vector_ns[:, 1 : 1 + len(VECTORS)]
