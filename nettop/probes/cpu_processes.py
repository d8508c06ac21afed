# SPDX-License-Identifier: Apache-2.0
"""Network CPU time by process: of its calls exactly or by samples, and of the softirqs that served its sockets."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple

import numpy as np

from nettop.kernel.facts import Host
from nettop.snapshots.cpu import IO_WORKERS, PROCESSES, RX_SOFTIRQ, RX_SYSCALLS, TIME_OF, TX_SYSCALLS
from nettop.snapshots.safe_text import safe_bytes
from nettop.snapshots.snapshot import Array, Rows, TextTable, unknown_value

ROWS_MAX = 4096
"""Processes that have a row; beyond them those that used least are left out."""
FIRST_ID = 1 << 32
"""Rows of stacks have lower numbers: one number tells what it is the key of."""
CALLS = (TX_SYSCALLS, RX_SYSCALLS, IO_WORKERS)
_SHARED = 0
_SHARED_BY = (RX_SOFTIRQ, RX_SYSCALLS, TX_SYSCALLS)
_UNKNOWN_TEXT = unknown_value(np.dtype("u4"))

_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
_START_AT = 19
"""Where in /proc/PID/stat, behind the name, the start time stands (proc(5): field 22)."""


class Process(NamedTuple):
    """A process: another one with its PID was started at another time, in ticks since boot; None is unknown."""

    pid: int
    started: int | None


@dataclass(slots=True)
class Used:
    """What a process used, in ns since nettop began: by entry point of its calls, at RX_SOFTIRQ what softirqs spent
    for its sockets, and its share of theirs for nobody known. `name` is None where it had ended before anybody asked.
    """

    id: int
    name: str | None
    ns: Counter[int] = field(default_factory=Counter)

    @property
    def network(self) -> int:
        """All of it."""
        return self.ns.total()


class ProcessTimes:
    """Rows of processes, whose times only grow; a process that has ended keeps its row for one more reading.

    What softirqs did for nobody known is shared out reading by reading: as what was known of that time, else as the
    processes received, else as they sent. While nobody did any of that it waits (`waiting_ns`).
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._sees_all = host.in_initial_pid_namespace()
        self._ids = count(FIRST_ID)
        self._used: dict[Process, Used] = {}
        self._totals: dict[tuple[object, object], int] = {}
        self._seen: dict[tuple[object, object], int] = {}
        self._more: defaultdict[int, Counter[Process]] = defaultdict(Counter)
        self.waiting_ns = 0
        self.left_out = 0

    # --- a reading: begin, add what there is, share, rows -------------------------------------------------------

    def begin(self) -> None:
        """Begin a reading."""
        self._totals, self._seen = self._seen, {}
        self._more.clear()

    def add_exact(self, callers: Array, spent: Array) -> None:
        """What each process spent in its calls since the start (dtypes CALLER and SPENT of cpu_entries)."""
        rows = zip(callers.tolist(), spent["entry_ns"].tolist(), spent["comm"].tolist(), strict=True)
        for (started, tgid, _), entry_ns, comm in rows:
            process = Process(tgid, started // _TICK_NS)
            for entry in CALLS:
                more = self._since(process, entry, entry_ns[entry])
                if more:
                    self._find(process).name = safe_bytes(comm)
                    self._more[entry][process] += more

    def add_sampled(
        self, by_process: Mapping[int, Mapping[int, int]], entries: Iterable[int] = CALLS
    ) -> None:
        """What each process spent at these entry points since the start, by its PID and entry point."""
        for pid, entry_ns in by_process.items():
            for entry in entries:
                self._add_of_pid(pid, entry, entry_ns.get(entry, 0))

    def add_softirqs(self, by_process: Mapping[int, int], unserved_ns: int) -> None:
        """What softirqs spent since the start for the sockets of processes, by their PIDs, and for nobody known."""
        for pid, served_ns in by_process.items():
            self._add_of_pid(pid, RX_SOFTIRQ, served_ns)
        self.waiting_ns += self._since(None, RX_SOFTIRQ, unserved_ns)

    def rows(self, taken_ns: int) -> tuple[Rows, tuple[Process, ...]]:
        """The rows, and the processes that were met for the last time: they have ended."""
        self._share()
        for process, used in self._used.items():
            for entry, more in self._more.items():
                used.ns[entry] += more[process]
        ended = tuple(process for process in self._used if self._has_ended(process))
        rows = self._make_rows(taken_ns)
        for process in ended:
            del self._used[process]
        self._leave_out()
        return rows, ended

    def describe(self, key: int) -> dict[str, str]:
        """The command line of a row's process; nothing where PIDs are not those that /proc has."""
        if not self._sees_all:
            return {}
        pid = next((process.pid for process, used in self._used.items() if used.id == key), None)
        return {} if pid is None else {"Command": self._host.command_line(pid) or "–"}

    # --- whose it is --------------------------------------------------------------------------------------------

    def _since(self, who: object, what: int, total: int) -> int:
        """What a total has grown by since the last reading; one that is less has begun anew."""
        before = self._totals.get((who, what), 0)
        self._seen[who, what] = total
        return total - before if total >= before else total

    def _add_of_pid(self, pid: int, what: int, total: int) -> None:
        more = self._since(pid, what, total)
        if more:
            process = Process(pid, self._started(pid))
            self._find(process)
            self._more[what][process] += more

    def _find(self, process: Process) -> Used:
        if process not in self._used:
            self._used[process] = Used(next(self._ids), self._name(process.pid))
        return self._used[process]

    def _name(self, pid: int) -> str | None:
        return (self._host.process_name(pid) or None) if self._sees_all else None

    def _started(self, pid: int) -> int | None:
        """When the process was started that has this PID now. One that has ended is taken for the last that had it."""
        try:
            text = (self._host.proc / str(pid) / "stat").read_bytes() if self._sees_all else b""
        except OSError:
            text = b""
        if text:
            return int(text.rpartition(b")")[2].split()[_START_AT])
        return next((process.started for process in reversed(self._used) if process.pid == pid), None)

    def _has_ended(self, process: Process) -> bool:
        """Whether nobody has the PID any more: in a PID namespace that cannot be told of those outside of it."""
        if not self._sees_all or any(more[process] for more in self._more.values()):
            return False
        try:
            os.kill(process.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False

    def _share(self) -> None:
        """Share out what waits, in whole ns."""
        weights = next(
            (self._more[what] for what in _SHARED_BY if self._more[what].total()), Counter[Process]()
        )
        whole, waiting = weights.total(), self.waiting_ns
        for process, weight in weights.items():
            part = waiting * weight // whole
            self._more[_SHARED][process] += part
            self.waiting_ns -= part

    # --- the table ----------------------------------------------------------------------------------------------

    def _leave_out(self) -> None:
        """Forget the processes that used least, where there are more than rows may be."""
        too_many = len(self._used) - ROWS_MAX
        if too_many > 0:
            least = sorted(self._used, key=lambda process: self._used[process].network)[:too_many]
            for process in least:
                del self._used[process]
            self.left_out += too_many

    def _make_rows(self, taken_ns: int) -> Rows:
        """In the order in which they were met, which is that of their ids."""
        names = TextTable()
        array = np.zeros(len(self._used), PROCESSES.dtype)
        for row, (process, used) in zip(array, self._used.items(), strict=True):
            row["id"], row["pid"], row["network_ns"] = used.id, process.pid, used.network
            row["process"] = _UNKNOWN_TEXT if used.name is None else names.code(used.name)
            for entry in CALLS:
                row[TIME_OF[entry]] = used.ns[entry]
            row["served_ns"], row["shared_ns"] = used.ns[RX_SOFTIRQ], used.ns[_SHARED]
        return Rows(PROCESSES, array, {"process": names.values}, taken_ns)
