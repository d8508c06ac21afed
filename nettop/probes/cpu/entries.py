# SPDX-License-Identifier: Apache-2.0
"""The entry points of the network stack, timed: hooks where softirqs and system calls on sockets begin and end."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from nettop.errors import Unsupported
from nettop.kernel import bpf, kprobes, maps
from nettop.kernel.btf import Slice
from nettop.kernel.facts import Host
from nettop.kernel.mechanisms import Fallbacks, Mechanism, Refused
from nettop.kernel.program import Loader, Program
from nettop.kernel.rows import row_header
from nettop.probes.cpu.calls import put_calls
from nettop.snapshots.cpu import (
    ENTRIES,
    HOOK_NAPI_THREADS,
    HOOK_SERVED,
    HOOK_SOFTIRQS,
    HOOK_SYSCALLS,
    IO_WORKERS,
    NAPI_THREADS,
    NET_RX,
    NET_TX,
    RX_SOFTIRQ,
    RX_SYSCALLS,
    TX_SOFTIRQ,
    TX_SYSCALLS,
    VECTORS,
)
from nettop.snapshots.snapshot import Array

_CALLERS_BYTES, _CALLERS_LEAST, _CALLERS_MOST = 8 << 20, 1 << 10, 1 << 14
"""Room for processes whose calls are timed, unless that were too few or more than anybody has."""
_CALLER_BYTES, _CALLER_BYTES_PER_CPU = 200, 72
"""What one process takes."""
WAITING_MAX = 1 << 15
"""Threads that may wait inside of a call, or of a softirq, at once: 2 MB."""
_BPF_PROG_TYPE_KPROBE, _BPF_PROG_TYPE_TRACING = 2, 26

# --- what the programs keep ---------------------------------------------------------------------------------------

STINT_BITS = 4
"""How many bits of a stint say what it is spent in; the others are since when."""
_OF = (1 << STINT_BITS) - 1

CPU_STATE = np.dtype(
    [
        ("entry_ns", "u8", (1 << STINT_BITS,)),
        ("vector_ns", "u8", (1 << STINT_BITS,)),
        ("softirq", "u8"),
        ("task", "u8"),
        ("task_depth", "u4"),
        ("turns", "u4"),
        ("served", "u8"),
        ("early", "u8"),
        ("noted", "u8"),
    ]
)
"""What a CPU does, and its times in ns (CLOCK_MONOTONIC).

`softirq` and `task` are stints: what time is spent in, and since when, as one number, so that both change at once
(`since << STINT_BITS | what`). `softirq` is in one more than the softirq that runs, and 0 outside of them; `task` in
the entry point that the running thread is in, 0 for none, and rests while a softirq runs. `task_depth` is how many
calls deep the thread is, `turns` counts when softirqs and other threads come between. `served` is the address of the
socket (struct sock) that the running softirq handled last, 0 for none yet, and `early` the ticks that met it before.
`noted` is when the process was started that called last.

`entry_ns` is indexed by entry point, where softirqs have nothing, and `vector_ns` by one more than the softirq; they
have as many elements as a stint can name, which every verifier understands. Times stand
first: who reads the state while it changes may miss the end of a stint, and never has it twice."""

CALLER = np.dtype([("started", "u8"), ("tgid", "u4"), ("always_zero", "u4")])
"""A process: when it was started (ns of CLOCK_BOOTTIME), and its id as the initial PID namespace has it."""

SPENT = np.dtype([("entry_ns", "u8", (1 << STINT_BITS,)), ("comm", "S16")])
"""What a process spent in its calls, by entry point, and its name."""

_INSIDE = np.dtype([("entry", "u4"), ("depth", "u4"), ("vector", "u4")])
"""What a thread waits in: the entry point of its call, and how many calls deep it is; and on a kernel for real time one
more than the softirq, 0 for none."""

_TASK = ("pid", "tgid", "flags", "files", "comm", "group_leader", "start_boottime")
SLICES = (
    Slice("task_struct", {name: name for name in _TASK}, {"status": "thread_info.status"}),
    Slice("inode", {"i_mode": "i_mode"}, {}),
    Slice("file", {"f_inode": "f_inode", "private_data": "private_data"}, {}),
    Slice("fdtable", {"max_fds": "max_fds", "fd": "fd"}, {}),
    Slice("files_struct", {"fdt": "fdt"}, {}),
    Slice("socket", {"sk": "sk", "file": "file"}, {}),
    Slice("sock", {"skc_family": "__sk_common.skc_family"}, {}),
    Slice("kiocb", {"ki_filp": "ki_filp"}, {}),
    Slice("io_kiocb", {}, {"file": "file", "opcode": "opcode"}),
)

SOURCES = tuple(str(Path(__file__).with_name(name)) for name in ("cpu.bpf.h", "cpu.bpf.c"))
MAPS = ("cpus", "callers", "refused", "hooked", "waiting")
NEEDS = ("bpf_get_current_task_btf", "bpf_sock_from_file")
"""Helpers that the programs call. 5.10 has neither, and warns in its log of what it is given."""
_REFUSED = ("threads", "processes", "sockets")
_DEFINES = {
    "STINT_BITS": STINT_BITS,
    "STINT_OF": _OF,
    "ENTRY_TX_SYSCALLS": TX_SYSCALLS,
    "ENTRY_RX_SYSCALLS": RX_SYSCALLS,
    "ENTRY_TX_SOFTIRQ": TX_SOFTIRQ,
    "ENTRY_RX_SOFTIRQ": RX_SOFTIRQ,
    "ENTRY_IO_WORKERS": IO_WORKERS,
    "ENTRY_NAPI_THREADS": NAPI_THREADS,
    "VECTOR_NET_TX": NET_TX,
    "VECTOR_NET_RX": NET_RX,
    "WAITING_MAX": WAITING_MAX,
    **{f"REFUSED_{name.upper()}": which for which, name in enumerate(_REFUSED)},
    "REFUSED_KINDS": len(_REFUSED),
}


def defines() -> dict[str, int]:
    """The numbers that reach the programs by -D."""
    here = {"CALLERS_MAX": _callers_max(maps.possible_cpus()), "REAL_TIME": int(Host().is_real_time())}
    return _DEFINES | here | ({"HAS_KPROBES": 1} if kprobes.KPROBES.exists() else {})


def _callers_max(cpus: int) -> int:
    fit = _CALLERS_BYTES // (_CALLER_BYTES + _CALLER_BYTES_PER_CPU * cpus)
    return max(_CALLERS_LEAST, min(_CALLERS_MOST, fit))


def header() -> str:
    """C text in front of cpu.bpf.h."""
    rows = (("cpu_state", CPU_STATE), ("caller", CALLER), ("spent", SPENT), ("inside", _INSIDE))
    return "#include <linux/types.h>\n" + "".join(row_header(name, dtype) for name, dtype in rows)


# --- the hooks ----------------------------------------------------------------------------------------------------

CORE = {
    "__sys_sendto": "send_by_descriptor",
    "__sys_sendmsg": "send_by_descriptor",
    "sock_write_iter": "send_by_iocb",
    "__sys_recvfrom": "receive_by_descriptor",
    "__sys_recvmsg": "receive_by_descriptor",
    "sock_read_iter": "receive_by_iocb",
}
"""Functions that system calls on sockets pass, and the program at a probe at each (net/socket.c). Where one of these
cannot be hooked none is."""
MORE = {
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
"""Those that fewer calls pass, some of them not on every kernel: splice() sends by sock_sendpage before 6.5, and by
splice_to_socket since. What kernel threads send and receive passes the last two."""
_SPLICES = frozenset({"splice_to_socket", "sock_sendpage"})
"""A kernel has one of them."""
_AT_RETURN = "return__call"

_KTHREADD = "2"
"""The process whose children are the kernel's threads (kernel/kthread.c)."""
_SOFTIRQS = ("tp_btf__softirq_entry", "tp_btf__softirq_exit")
_THREADS = "tp_btf__sched_switch"
_RAW_SYSCALLS = ("tp_btf__sys_enter", "tp_btf__sys_exit")
_SUBMISSIONS = "tp_btf__io_uring_submit_req"
"""What system calls of io_uring begin (since 6.4)."""

SOFTIRQS = Fallbacks(HOOK_SOFTIRQS, (Mechanism("tp_btf/softirq_entry + softirq_exit", _SOFTIRQS),))
THREADS = Fallbacks(HOOK_NAPI_THREADS, (Mechanism("tp_btf/sched_switch", (_THREADS,)),))
SERVED = Fallbacks(
    HOOK_SERVED,
    (
        Mechanism("tp_btf/tcp_probe + sk_data_ready", ("tp_btf__tcp_probe", "tp_btf__sk_data_ready")),
        Mechanism("tp_btf/tcp_probe", ("tp_btf__tcp_probe",)),
    ),
)
"""What every segment of TCP passes, and what wakes who waits for a socket (since 6.3)."""


def _ends(function: str) -> tuple[str, str]:
    """The programs at a function's end and beginning: an end without a beginning counts nothing."""
    return f"fexit__call@{function}", f"fentry__{(CORE | MORE)[function]}@{function}"


FEXIT = Mechanism("fexit", tuple(chain(*map(_ends, CORE))))
KRETPROBE = Mechanism(
    "kretprobe", (_AT_RETURN, *dict.fromkeys(f"entry__{program}" for program in CORE.values()))
)
BY_SAMPLES = Mechanism("samples", ("sample__calls",))
RAW_SYSCALLS = Mechanism("raw_syscalls", _RAW_SYSCALLS)
"""It runs at every system call of the host, on sockets or not: nobody gets it unasked."""
SYSCALLS = Fallbacks(HOOK_SYSCALLS, (FEXIT, KRETPROBE, BY_SAMPLES, RAW_SYSCALLS))
FALLBACKS = (SOFTIRQS, SYSCALLS, THREADS, SERVED)
_NOT_AT_CALLS = frozenset({*_SOFTIRQS, _THREADS, *SERVED.mechanisms[0].programs})

_TRACING = (
    *(*_SOFTIRQS, _THREADS, *SERVED.mechanisms[0].programs, *_RAW_SYSCALLS, _SUBMISSIONS),
    *chain(*map(_ends, (*CORE, *MORE))),
)
_PROBED = (_AT_RETURN, *dict.fromkeys(f"entry__{program}" for program in (CORE | MORE).values()))


def functions() -> dict[str, int]:
    """The programs that are worth loading here, with their types."""
    probed = _PROBED if kprobes.KPROBES.exists() else ()
    return dict.fromkeys(_TRACING, _BPF_PROG_TYPE_TRACING) | dict.fromkeys(probed, _BPF_PROG_TYPE_KPROBE)


_TRIALS: Mapping[str, Callable[[socket.socket], object]] = {
    "__sys_sendto": lambda tried: tried.send(b""),
    "__sys_sendmsg": lambda tried: tried.sendmsg([b""]),
    "sock_write_iter": lambda tried: os.write(tried.fileno(), b"n"),
    "__sys_recvfrom": lambda tried: tried.recv(1),
    "__sys_recvmsg": lambda tried: tried.recvmsg(1),
    "sock_read_iter": lambda tried: os.read(tried.fileno(), 1),
}
"""Calls that pass the functions of CORE. On a UDP socket without an address, that waits for nothing, all fail: no
packet leaves or comes."""
_NEVER_PASSED = "attached, but never passed in a trial"


# --- threads that poll devices ------------------------------------------------------------------------------------


class NapiThreads:
    """Whether there are kernel threads that poll devices: a hook at every change of threads is for those alone.

    What is not known is believed to be: in a PID namespace of its own nobody sees the kernel's threads.
    """

    def __init__(self, proc: Path) -> None:
        self._proc = proc
        self._polling: dict[str, bool] = {}

    def are_here(self) -> bool:
        """Look for new ones; takes 0.05 ms for 60 threads of the kernel."""
        try:
            threads = (self._proc / "2/task/2/children").read_text().split()
        except OSError:
            return True
        if self._name(_KTHREADD) != "kthreadd":
            return True
        known = {thread: self._polling[thread] for thread in threads if thread in self._polling}
        new = {thread: self._name(thread) for thread in threads if thread not in known}
        # A thread has its maker's name for a moment.
        found = {thread: name.startswith("napi/") for thread, name in new.items() if name != "kthreadd"}
        self._polling = known | found
        return any(self._polling.values())

    def _name(self, pid: str) -> str:
        try:
            return (self._proc / pid / "comm").read_text().rstrip("\n")
        except OSError:
            return ""


# --- their times --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, slots=True)
class EntryReading:
    """Times in ns since the start, all of them exact.

    `entry_ns` is indexed by CPU, then by entry point, `vector_ns` by CPU, then by softirq. `callers` are the processes
    that called (dtype CALLER), `spent` what they spent (dtype SPENT), in one order.
    """

    entry_ns: Array
    vector_ns: Array
    callers: Array
    spent: Array


class EntryTimes:
    """The programs that time entry points: attached one way after the other, read, detached.

    `not_hooked` are functions that only some calls pass, and that cannot be hooked here by the way that is taken.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self._links: dict[str, list[int]] = {}
        self._shown = np.zeros((maps.possible_cpus(), 1 + len(ENTRIES) + len(VECTORS)), np.uint64)
        self.not_hooked: tuple[str, ...] = ()

    # --- attaching ----------------------------------------------------------------------------------------------

    def attach(self, way: Mechanism) -> None:
        """Attach a way's programs, all or none. Raises Refused or OSError."""
        try:
            for name in way.programs:
                self._keep(name, [bpf.attach_tracing(self._loaded(name))])
        except BaseException:
            self.detach(way.programs)
            raise

    def hook_calls(self, way: Mechanism, loader: Loader | None = None) -> None:
        """Attach programs at calls, in which threads may wait. Raises Refused or OSError.

        Probes are opened by the loader, as long as there is one.
        """
        before = set(self._links)
        self._forget_waiting()
        self._say_whether_hooked(True)
        try:
            if way == RAW_SYSCALLS:
                put_calls(self._program.maps["calls"])
                self.attach(way)
                self._hook_submissions()
            else:
                self._hook_functions(
                    self._attach_ends if way == FEXIT else partial(self._open_probes, loader)
                )
        except BaseException:
            self.unhook_calls(self._links.keys() - before)
            raise

    def unhook_calls(self, links: Iterable[str] | None = None) -> None:
        """Detach what is attached at calls; what was counted stays."""
        self.detach([name for name in self._links if name not in _NOT_AT_CALLS] if links is None else links)
        self._say_whether_hooked(False)

    def detach(self, links: Iterable[str]) -> None:
        """Detach programs; what they counted stays."""
        for name in self._links.keys() & set(links):
            for link in self._links.pop(name):
                os.close(link)

    def _hook_functions(self, hook: Callable[[str], None]) -> None:
        """HookStatus the functions of CORE, see them passed, and of the others hook what can be."""
        for function in CORE:
            hook(function)
        self._try_out()
        refused = []
        for function in MORE:
            try:
                hook(function)
            except (Unsupported, OSError):
                refused.append(function)
        self.not_hooked = tuple(
            name for name in refused if name not in _SPLICES or _SPLICES.issubset(refused)
        )

    def _hook_submissions(self) -> None:
        """Tell apart what system calls of io_uring do, where that can be had."""
        try:
            self.attach(Mechanism("io_uring", (_SUBMISSIONS,)))
        except (Unsupported, OSError):
            self.not_hooked = ("io_uring",)

    def _attach_ends(self, function: str) -> None:
        self.attach(Mechanism(function, _ends(function)))

    def _open_probes(self, loader: Loader | None, function: str) -> None:
        """Probes at a function's end and beginning."""
        opened: dict[str, list[int]] = {}
        try:
            for program, at_return in ((_AT_RETURN, True), (f"entry__{(CORE | MORE)[function]}", False)):
                open_probes = kprobes.open_probes if loader is None else loader.open_probes
                opened[f"{program} {function}"] = probes = list(open_probes(function, at_return).values())
                for probe in probes:
                    kprobes.run_at(probe, self._loaded(program))
        except BaseException:
            for probe in chain(*opened.values()):
                os.close(probe)
            raise
        for name, probes in opened.items():
            self._keep(name, probes)

    def _try_out(self) -> None:
        """Raise Refused for functions that their calls did not pass."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as tried:
            tried.setblocking(False)
            silent = [function for function, call in _TRIALS.items() if not self._is_passed(call, tried)]
        if silent:
            raise Refused(f"{_NEVER_PASSED}: {', '.join(silent)}")

    def _is_passed(self, call: Callable[[socket.socket], object], tried: socket.socket) -> bool:
        before = self._spent_here()
        with suppress(OSError):
            call(tried)
        return self._spent_here() > before

    def _spent_here(self) -> int:
        """What this process spent in its calls; all of them, where it is not told its number among all."""
        callers, spent = self._read_callers()
        own = callers["tgid"] == os.getpid()
        return int(spent["entry_ns"][own | (not Host().in_initial_pid_namespace())].sum())

    def _loaded(self, name: str) -> int:
        if name not in self._program.functions:
            raise Refused(self._program.refused.get(name, "this kernel has no kprobes"))
        return self._program.functions[name]

    def _keep(self, name: str, links: list[int]) -> None:
        self._links[name] = links

    def _say_whether_hooked(self, hooked: bool) -> None:
        bpf.set_element(self._program.maps["hooked"], bytes(4), int(hooked).to_bytes(4, sys.byteorder))

    def _forget_waiting(self) -> None:
        """Threads that waited in calls when those were hooked before may have left them since."""
        waiting = self._program.maps["waiting"]
        threads, _ = maps.read_all(waiting, np.dtype("u4"), _INSIDE)
        maps.delete_all(waiting, threads)

    def watch_threads(self, *, wanted: bool) -> None:
        """Attach what sees threads change, or detach it: it costs some 70 ns at each change. Raises Refused or
        OSError."""
        way = THREADS.mechanisms[0]
        if not wanted:
            self.detach(way.programs)
        elif not self._links.keys() & set(way.programs):
            self.attach(way)

    def programs(self) -> set[str]:
        """Those that are attached."""
        return {name.split()[0] for name in self._links}

    # --- reading ------------------------------------------------------------------------------------------------

    def read(self, now_ns: int) -> EntryReading:
        """The times at `now_ns` (CLOCK_MONOTONIC, not in the future), with those of what goes on."""
        state = maps.read_per_cpu(self._program.maps["cpus"], 0, CPU_STATE)
        entry_ns, vector_ns = with_stints(state, now_ns)
        # What was going on when it was read the last time may have ended while it was read now.
        self._shown = np.maximum(self._shown, np.hstack([entry_ns, vector_ns]))
        callers, spent = self._read_callers()
        return EntryReading(
            self._shown[:, : 1 + len(ENTRIES)], self._shown[:, 1 + len(ENTRIES) :], callers, spent
        )

    def _read_callers(self) -> tuple[Array, Array]:
        """Processes, and what each spent on all CPUs."""
        each = np.dtype((SPENT, (maps.possible_cpus(),)))
        callers, by_cpu = maps.read_all(self._program.maps["callers"], CALLER, each)
        spent = np.zeros(len(callers), SPENT)
        spent["entry_ns"] = by_cpu["entry_ns"].sum(axis=1)
        named_on = (by_cpu["comm"] != b"").argmax(axis=1)  # the CPU on which it was met first
        spent["comm"] = by_cpu["comm"][np.arange(len(callers)), named_on]
        return callers, spent

    def forget(self, callers: Array) -> None:
        """Make room of processes that have ended."""
        maps.delete_all(self._program.maps["callers"], callers)

    def lost(self) -> dict[str, int]:
        """What the maps had no room for, and what hooks missed because they were running already on that CPU."""
        refused = {
            name: int(maps.read_per_cpu(self._program.maps["refused"], which, np.dtype("u8")).sum())
            for which, name in enumerate(_REFUSED)
        }
        return refused | {"recursion": sum(map(bpf.recursion_misses, self._program.functions.values()))}

    def close(self) -> None:
        """Detach; a second call does nothing."""
        self.detach(list(self._links))


def with_stints(state: Array, now_ns: int) -> tuple[Array, Array]:
    """Times by entry point and by softirq, with those of what each CPU is in now."""
    entry_ns, vector_ns = state["entry_ns"][:, : 1 + len(ENTRIES)].copy(), state["vector_ns"].copy()
    for cpu, (softirq, task) in enumerate(
        zip(state["softirq"].tolist(), state["task"].tolist(), strict=True)
    ):
        if softirq:
            vector_ns[cpu, softirq & _OF] += max(0, now_ns - (softirq >> STINT_BITS))
        elif task:
            entry_ns[cpu, task & _OF] += max(0, now_ns - (task >> STINT_BITS))
    vector_ns = vector_ns[:, 1 : 1 + len(VECTORS)]
    entry_ns[:, RX_SOFTIRQ], entry_ns[:, TX_SOFTIRQ] = vector_ns[:, NET_RX], vector_ns[:, NET_TX]
    return entry_ns, vector_ns
