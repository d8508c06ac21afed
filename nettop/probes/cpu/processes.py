# SPDX-License-Identifier: Apache-2.0
"""Network CPU time by process: of its calls exactly or by samples, and of the softirqs that served its sockets.

What served nobody's is in a row of its own: no process has time that nothing ties to it.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple

import numpy as np

from nettop.kernel.facts import Host
from nettop.kernel.proc_stat import TICK_NS
from nettop.snapshots.arrays import joined
from nettop.snapshots.cpu import (
    IO_WORKERS,
    NO_PROCESS,
    PROCESSES,
    RX_SOFTIRQ,
    RX_SYSCALLS,
    TIME_OF,
    TX_SYSCALLS,
)
from nettop.snapshots.safe_text import safe_bytes
from nettop.snapshots.snapshot import Array, Rows, TextTable, unknown_value

ROWS_MAX = 4096
"""Processes that have a row; beyond them those that used least are left out."""
FIRST_ID = 1 << 32
"""The key of the row that is no process's. Rows of stacks have lower numbers: one number tells what it is the key of.
"""
CALLS = (TX_SYSCALLS, RX_SYSCALLS, IO_WORKERS)
_WHAT_NOBODYS_IS = (
    "forwarded, bridged and dropped packets, answers of the kernel itself, sockets that no process holds, and what "
    "passes before it shows whose socket it is for"
)
_UNKNOWN_TEXT = unknown_value(np.dtype("u4"))

_START_AT = 19
"""Where in /proc/PID/stat, behind the name, the start time stands (proc(5): field 22)."""


class Process(NamedTuple):
    """A process: another one with its PID was started at another time, in ticks since boot; None is unknown."""

    pid: int
    started: int | None


@dataclass(slots=True)
class Used:
    """What a process used, in ns since nettop began: by entry point of its calls, and at RX_SOFTIRQ what softirqs spent
    for its sockets. `name` is None where it had ended before anybody asked.
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

    How long softirqs ran is exact, whose sockets they served is known by samples. So what samples tell of a process is
    taken from what softirqs have spent since the last reading, and what they tell beyond that waits for the next one;
    what nobody takes is no process's. All rows add up to what softirqs and calls have spent, but for what those that
    have no row any more had (`ended`, by entry point).
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._sees_all = host.in_initial_pid_namespace()
        self._ids = count(FIRST_ID + 1)
        self._used: dict[Process, Used] = {}
        self._totals: dict[tuple[object, object], int] = {}
        self._seen: dict[tuple[object, object], int] = {}
        self._more: defaultdict[int, Counter[Process]] = defaultdict(Counter)
        self._told = Counter[Process]()
        self._ended: tuple[Process, ...] = ()
        self._nobodys_ns: int | None = None
        self.ended = Counter[int]()
        self.left_out = 0

    # --- a reading: begin, add what there is, rows --------------------------------------------------------------

    def begin(self) -> None:
        """Begin a reading, without the rows that the last one had for the last time."""
        for process in self._ended:
            self._drop(process)
        self._leave_out()
        self._totals, self._seen = self._seen, {}
        self._more.clear()

    def add_exact(self, callers: Array, spent: Array) -> None:
        """What each process spent in its calls since the start (dtypes CALLER and SPENT of cpu_entries)."""
        rows = zip(callers.tolist(), spent["entry_ns"].tolist(), spent["comm"].tolist(), strict=True)
        for (started, tgid, _), entry_ns, comm in rows:
            process = Process(tgid, started // TICK_NS)
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
                self._add_of_pid(self._more[entry], pid, entry, entry_ns.get(entry, 0))

    def add_softirqs(self, by_process: Mapping[int, int], whole_ns: int) -> None:
        """What softirqs spent since the start: by samples for the sockets of processes, by their PIDs, and in all."""
        for pid, served_ns in by_process.items():
            self._add_of_pid(self._told, pid, RX_SOFTIRQ, served_ns)
        self._charge(self._since(None, RX_SOFTIRQ, whole_ns))

    def rows(self, taken_ns: int) -> tuple[Rows, tuple[Process, ...]]:
        """The rows, and the processes that were met for the last time: they have ended."""
        for process, used in self._used.items():
            for entry, more in self._more.items():
                used.ns[entry] += more[process]
        self._ended = tuple(process for process in self._used if self._has_ended(process))
        return self._make_rows(taken_ns), self._ended

    def describe(self, key: int) -> dict[str, str]:
        """The command line of a row's process; nothing where PIDs are not those that /proc has. Of what is no process's
        what that is."""
        if key == FIRST_ID:
            return {"Softirqs": _WHAT_NOBODYS_IS}
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

    def _add_of_pid(self, to: Counter[Process], pid: int, what: int, total: int) -> None:
        more = self._since(pid, what, total)
        if more:
            process = Process(pid, self._started(pid))
            self._find(process)
            to[process] += more

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

    def _charge(self, spent: int) -> None:
        """Charge processes what samples told of them: each its part where that is more than softirqs spent."""
        at_most = max(spent, self._told.total())
        charged = Counter({process: told * spent // at_most for process, told in self._told.items()})
        self._more[RX_SOFTIRQ] += charged
        self._told -= charged
        self._nobodys_ns = (self._nobodys_ns or 0) + spent - charged.total()

    # --- the table ----------------------------------------------------------------------------------------------

    def _leave_out(self) -> None:
        """Forget the processes that used least, where there are more than rows may be."""
        too_many = len(self._used) - ROWS_MAX
        if too_many > 0:
            least = sorted(self._used, key=lambda process: self._used[process].network)[:too_many]
            for process in least:
                self._drop(process)
            self.left_out += too_many

    def _drop(self, process: Process) -> None:
        self.ended += self._used.pop(process).ns
        self._told.pop(process, None)

    def _make_rows(self, taken_ns: int) -> Rows:
        """First what is no process's, then they in the order in which they were met: both by their ids."""
        names = TextTable()
        nobodys = self._nobodys_row(names)
        array = np.zeros(len(self._used), PROCESSES.dtype)
        for row, (process, used) in zip(array, self._used.items(), strict=True):
            row["id"], row["pid"], row["network_ns"] = used.id, process.pid, used.network
            row["process"] = _UNKNOWN_TEXT if used.name is None else names.code(used.name)
            for entry in CALLS:
                row[TIME_OF[entry]] = used.ns[entry]
            row["softirq_ns"] = used.ns[RX_SOFTIRQ]
        return Rows(PROCESSES, joined(nobodys, array), {"process": names.values}, taken_ns)

    def _nobodys_row(self, names: TextTable) -> Array:
        """The row of what is no process's, which makes no calls; none where nothing tells how long softirqs ran."""
        row = np.zeros(int(self._nobodys_ns is not None), PROCESSES.dtype)
        row["id"], row["process"] = FIRST_ID, names.code(NO_PROCESS)
        row["network_ns"] = row["softirq_ns"] = self._nobodys_ns or 0
        for name in ("pid", *(TIME_OF[entry] for entry in CALLS)):
            row[name] = unknown_value(row.dtype[name])
        return row
