# SPDX-License-Identifier: Apache-2.0
"""Network CPU time by process: its system calls, exact or sampled, and the softirqs that served its sockets.

Softirqs that served no known process have a row of their own.
"""

from __future__ import annotations

import errno
import os

import numpy as np

from nettop.kernel.host.facts import Host
from nettop.kernel.host.proc_files import TICK_NS
from nettop.kernel.host.processes import outside_name
from nettop.snapshots.arrays import Array, Index, as_list, concatenate_rows, growth, positions, take_rows
from nettop.snapshots.cpu import (
    ENTRIES,
    IO_WORKERS,
    NO_PROCESS,
    PROCESSES,
    RX_SOFTIRQ,
    RX_SYSCALLS,
    TIME_OF,
    TX_SYSCALLS,
)
from nettop.snapshots.safe_text import safe_bytes
from nettop.snapshots.snapshot import Rows, TextTable, unknown_value

PROCESSES_MAX = 4096
"""Maximum processes with a row; those with the least CPU time are dropped."""
FIRST_ID = 1 << 32
"""Key of the row `(no process)`. Rows of stacks have lower keys, so that the key alone identifies the table."""
CALLS = (TX_SYSCALLS, RX_SYSCALLS, IO_WORKERS)
SAMPLED_NS = np.dtype([("pid", "u4"), ("entry", "u4"), ("ns", "u8")])
"""Sampled CPU time of a process, in ns."""

_NO_PROCESS_HELP = (
    "forwarded, bridged and dropped packets, the kernel's own replies, sockets that no process owns, and work "
    "done before the packet's socket is known"
)
_PROCESS = np.dtype(
    [
        ("identity", "u8"),
        ("id", "u8"),
        ("name", "u4"),
        ("ns", "u8", (1 + len(ENTRIES),)),
        ("served_ns", "u8"),
        ("is_active", "?"),
    ]
)
"""A process: its CPU time in ns by entry point, softirqs at RX_SOFTIRQ. `served_ns` is sampled softirq time that is not
yet charged; `is_active` if the current reading added time."""
_PID_BITS = 23
_PID_MASK = _OUTSIDE = (1 << _PID_BITS) - 1
"""Layout of an identity: a start time (ticks since boot) above these bits, and a PID in them, as PIDs are reused. All
of these bits are set for a process outside nettop's PID namespace; no PID has that value (PID_MAX_LIMIT in
include/linux/threads.h)."""
_UNKNOWN_START = (1 << 64 - _PID_BITS) - 1
_UNKNOWN_TEXT = unknown_value(np.dtype("u4"))
_START_AT = 19
"""Index of the start time in /proc/PID/stat, counted after the name (proc(5): field 22)."""


class ProcessTimes:
    """Rows of processes, whose times only grow. A process that has exited keeps its row for one more reading.

    The time of softirqs is exact; which sockets they served is sampled. A process is therefore charged its sampled
    softirq time only up to the exact softirq time since the last reading; the rest of its samples waits for the next
    one, and time without samples goes to `(no process)`. The rows add up to the total time of softirqs and calls, minus
    the rows that are gone: `ended_ns` holds theirs, by entry point. `dropped` counts processes that had no room.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._processes = np.zeros(0, _PROCESS)
        self._names = TextTable()
        self._last_id = FIRST_ID
        self._callers: Array = np.zeros(0, np.uint64)
        self._caller_ns: Array = np.zeros((0, 1 + len(ENTRIES)), np.uint64)
        self._softirq_ns = 0
        self._no_process_ns: int | None = None
        self._has_ended = np.zeros(0, bool)
        self.ended_ns = np.zeros(1 + len(ENTRIES), np.uint64)
        self.dropped = 0

    # --- a reading: begin, add what there is, rows --------------------------------------------------------------

    def begin(self) -> None:
        """Begin a reading: drop processes that had exited by the last one, and those beyond PROCESSES_MAX."""
        kept = ~self._has_ended
        excess = int(np.count_nonzero(kept)) - PROCESSES_MAX
        if excess > 0:
            used = np.where(kept, self._processes["ns"].sum(axis=1), np.iinfo(np.uint64).max)
            kept[np.argsort(used, kind="stable")[:excess]] = False
            self.dropped += excess
        if not kept.all():
            self.ended_ns += self._processes["ns"][~kept].sum(axis=0, dtype=np.uint64)
            self._processes = take_rows(self._processes, np.flatnonzero(kept))
        self._processes["is_active"] = False
        if len(self._names.values) > 4 * PROCESSES_MAX:
            names, self._names = self._names, TextTable()  # keep only names in use
            has_name = self._processes["name"] != _UNKNOWN_TEXT
            codes = self._processes["name"][has_name].tolist()
            self._processes["name"][has_name] = [self._names.code(names.values[code]) for code in codes]

    def add_exact(self, callers: Array, spent: Array) -> None:
        """Add each process's time in calls since the start (dtypes CALLER and SPENT of entries.py)."""
        identity = callers["started"] // TICK_NS << _PID_BITS | callers["pid"] & _OUTSIDE
        order = np.argsort(identity)
        identity, spent = identity[order], spent[order]
        now_ns = spent["entry_ns"][:, : 1 + len(ENTRIES)]
        at = positions(identity, self._callers)
        before_ns = np.zeros_like(now_ns)
        before_ns[at >= 0] = self._caller_ns[at[at >= 0]]
        self._callers, self._caller_ns = identity, now_ns
        more_ns = growth(now_ns, before_ns)
        has_grown = more_ns.any(axis=1)
        names, which = np.unique(spent["comm"][has_grown], return_inverse=True)
        at = self._add(identity[has_grown], more_ns[has_grown])
        codes = np.array([self._names.code(safe_bytes(name)) for name in names.tolist()], np.uint32)
        self._processes["name"][at] = codes[which]

    def add_sampled(self, more: Array) -> None:
        """Add sampled time in calls since the last reading (dtype SAMPLED_NS)."""
        pids, which = np.unique(more["pid"], return_inverse=True)
        more_ns = np.zeros((len(pids), 1 + len(ENTRIES)), np.uint64)
        np.add.at(more_ns, (which, more["entry"]), more["ns"])
        self._name(self._add(self._identities(pids), more_ns))

    def add_softirqs(self, served: Array, total_ns: int) -> None:
        """Add softirq time: sampled per process since the last reading (dtype SAMPLED_NS), and the exact total since
        the start."""
        pids, which = np.unique(served["pid"], return_inverse=True)
        at = self._find(self._identities(pids))
        self._name(at)
        served_ns = self._processes["served_ns"]
        np.add.at(served_ns, at[which], served["ns"])
        spent_ns, self._softirq_ns = max(0, total_ns - self._softirq_ns), total_ns
        at_most = max(spent_ns, int(served_ns.sum()), 1)
        products = served_ns.astype(object) * spent_ns  # may exceed 64 bits
        charged = (products // at_most).astype(np.uint64)
        self._processes["ns"][:, RX_SOFTIRQ] += charged
        self._processes["is_active"] |= charged > 0
        served_ns -= charged
        self._no_process_ns = (self._no_process_ns or 0) + spent_ns - int(charged.sum())

    def rows(self, taken_ns: int) -> tuple[Rows, Array]:
        """Return the table, and the PIDs of processes that have exited: this is their last reading."""
        processes = self._processes
        pids = processes["identity"] & _PID_MASK
        self._has_ended = np.zeros(len(processes), bool)
        is_outside = pids == _OUTSIDE
        idle = np.flatnonzero(~processes["is_active"] & ~is_outside)
        self._has_ended[idle] = [not _exists(pid) for pid in as_list(pids[idle])]
        array = np.zeros(len(processes), PROCESSES.dtype)
        array["id"], array["pid"], array["process"] = processes["id"], pids, processes["name"]
        array["pid"][is_outside] = unknown_value(array.dtype["pid"])
        array["process"][is_outside] = [
            self._names.code(outside_name("" if code == _UNKNOWN_TEXT else self._names.values[code]))
            for code in as_list(array["process"][is_outside])
        ]
        array["network_ns"] = processes["ns"].sum(axis=1)
        array["softirq_ns"] = processes["ns"][:, RX_SOFTIRQ]
        for entry in CALLS:
            array[TIME_OF[entry]] = processes["ns"][:, entry]
        array = concatenate_rows(self._no_process_row(), array)
        return Rows(PROCESSES, array, {"process": self._names.values}, taken_ns), pids[self._has_ended]

    def describe(self, key: int) -> dict[str, str]:
        """Return the command line of a row's process."""
        if key == FIRST_ID:
            return {"Softirqs": _NO_PROCESS_HELP}
        identity = self._processes["identity"][self._processes["id"] == key]
        if not len(identity):
            return {}
        return {"Command": self._host.command_line(int(identity[0]) & _PID_MASK) or "–"}

    # --- processes ----------------------------------------------------------------------------------------------

    def _add(self, identities: Array, more_ns: Array) -> Index:
        """Add times to distinct processes; return their indices."""
        at = self._find(identities)
        self._processes["ns"][at] += more_ns
        self._processes["is_active"][at] = True
        return at

    def _find(self, identities: Array) -> Index:
        """Return the indices of distinct processes; append new ones, without a name."""
        order = np.argsort(self._processes["identity"])
        at = positions(identities, self._processes["identity"][order])
        is_new = at < 0
        new = np.zeros(np.count_nonzero(is_new), _PROCESS)
        new["identity"], new["name"] = identities[is_new], _UNKNOWN_TEXT
        new["id"] = np.arange(self._last_id + 1, self._last_id + 1 + len(new))
        self._last_id += len(new)
        places = np.append(order, np.arange(len(order), len(order) + len(new)))
        at[is_new] = np.arange(len(order), len(places))
        self._processes = concatenate_rows(self._processes, new)
        return places[at]

    def _name(self, at: Index) -> None:
        """Look up the names of processes that have none yet."""
        for place in at[self._processes["name"][at] == _UNKNOWN_TEXT].tolist():
            if name := self._host.process_name(int(self._processes["identity"][place]) & _PID_MASK):
                self._processes["name"][place] = self._names.code(name)

    def _identities(self, pids: Array) -> Array:
        return np.array(
            [self._start_time(pid) << _PID_BITS | pid for pid in as_list(pids & _OUTSIDE)], np.uint64
        )

    def _start_time(self, pid: int) -> int:
        """Return the start time of a process in ticks; if no process has the PID now, that of the last one that had
        it."""
        try:
            text = (self._host.proc / str(pid) / "stat").read_bytes()
        except OSError:
            text = b""
        if text:
            return int(text.rpartition(b")")[2].split()[_START_AT])
        identities = self._processes["identity"]
        same = identities[identities & _PID_MASK == pid]
        return int(same[-1]) >> _PID_BITS if len(same) else _UNKNOWN_START

    def _no_process_row(self) -> Array:
        """Return the row of softirqs that served no known process; empty if the time of softirqs is unknown."""
        row = np.zeros(int(self._no_process_ns is not None), PROCESSES.dtype)
        row["id"], row["process"] = FIRST_ID, self._names.code(NO_PROCESS)
        row["network_ns"] = row["softirq_ns"] = self._no_process_ns or 0
        for name in ("pid", *(TIME_OF[entry] for entry in CALLS)):
            row[name] = unknown_value(row.dtype[name])
        return row


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return error.errno != errno.ESRCH
    return True
