# SPDX-License-Identifier: Apache-2.0
"""Network CPU time by process: its system calls, and the softirqs that served its sockets.

Softirqs that served no known process have a row of their own.
"""

from __future__ import annotations

import errno
import os

import numpy as np

from nettop.kernel.host.facts import Host
from nettop.kernel.host.proc_files import TICK_NS
from nettop.kernel.host.processes import outside_name
from nettop.snapshots.arrays import Array, Index, as_list, concatenate_rows, positions, take_rows
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
from nettop.snapshots.left_rows import ENDED, LeftRows
from nettop.snapshots.safe_text import safe_bytes
from nettop.snapshots.snapshot import Ended, Rows, TextTable, mark_unknown

PROCESSES_MAX = 4096
"""Maximum processes with a row; those with the least CPU time are dropped."""
FIRST_ID = 1 << 32
"""Key of the row `(no process)`. Rows of stacks have lower keys, so that the key alone identifies the table."""
CALLS = (TX_SYSCALLS, RX_SYSCALLS, IO_WORKERS)
SAMPLED_NS = np.dtype([("started", "u8"), ("pid", "u4"), ("entry", "u4"), ("ns", "u8"), ("comm", "S16")])
"""Sampled CPU time of a process in an entry point. `started` is its start time (ns of CLOCK_BOOTTIME); all bits of
`pid` are set outside nettop's PID namespace."""

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


class ProcessTimes:
    """Rows of processes, whose times only grow. A process that has exited keeps its row for one more reading.

    Owners of sockets are found some time after the samples. A process is therefore charged its softirq time only up to
    the time of all softirqs since the last reading; the rest waits for the next one, and what is nobody's goes to
    `(no process)`. The rows and the ended ones add up to the total time of softirqs and calls. `dropped` counts
    processes that had no room.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._processes = np.zeros(0, _PROCESS)
        self._names = TextTable()
        self._last_id = FIRST_ID
        self._softirq_ns = 0
        self._no_process_ns: int | None = None
        self._has_ended = np.zeros(0, bool)
        self._left = self._processes
        self._ended = LeftRows(PROCESSES, "process", ENDED)
        self.dropped = 0

    # --- a reading: begin, add what there is, rows, ended ----------------------------------------------------------

    def begin(self) -> None:
        """Begin a reading: drop processes that had exited by the last one, and those beyond PROCESSES_MAX."""
        texts, self._names = self._names.frozen(), self._names.renewed(len(self._processes))
        self._processes["name"] = self._names.adopted(self._processes["name"], texts)
        kept = ~self._has_ended
        excess = int(np.count_nonzero(kept)) - PROCESSES_MAX
        if excess > 0:
            used = np.where(kept, self._processes["ns"].sum(axis=1), np.iinfo(np.uint64).max)
            kept[np.argsort(used, kind="stable")[:excess]] = False
            self.dropped += excess
        self._left = take_rows(self._processes, ~kept)
        self._processes = take_rows(self._processes, kept)
        self._processes["is_active"] = False

    def add_calls(self, more: Array) -> None:
        """Add time in calls since the last reading (dtype SAMPLED_NS)."""
        at = self._place(more)
        np.add.at(self._processes["ns"], (at, more["entry"]), more["ns"])
        self._processes["is_active"][at] = True

    def add_softirqs(self, served: Array, total_ns: int) -> None:
        """Add softirq time: of processes since the last reading (dtype SAMPLED_NS), and the total since the start."""
        at = self._place(served)
        served_ns = self._processes["served_ns"]
        np.add.at(served_ns, at, served["ns"])
        spent_ns, self._softirq_ns = max(0, total_ns - self._softirq_ns), total_ns
        at_most = max(spent_ns, int(served_ns.sum()), 1)
        products = served_ns.astype(object) * spent_ns  # may exceed 64 bits
        charged = (products // at_most).astype(np.uint64)
        self._processes["ns"][:, RX_SOFTIRQ] += charged
        self._processes["is_active"] |= charged > 0
        served_ns -= charged
        self._no_process_ns = (self._no_process_ns or 0) + spent_ns - int(charged.sum())

    def rows(self, taken_ns: int) -> Rows:
        """Return the table, and find the processes that have exited."""
        pids = self._processes["identity"] & _PID_MASK
        self._has_ended = np.zeros(len(pids), bool)
        idle = np.flatnonzero(~self._processes["is_active"] & (pids != _OUTSIDE))
        self._has_ended[idle] = [not _exists(pid) for pid in as_list(pids[idle])]
        array = concatenate_rows(self._no_process_row(), self._table_rows(self._processes))
        return Rows(PROCESSES, array, {"process": self._names.frozen()}, taken_ns)

    def ended(self, taken_ns: int) -> Ended:
        """Return the rows that left the table with this reading, and the sum of all that ever left."""
        rows = self._table_rows(self._left)
        return self._ended.add(Rows(PROCESSES, rows, {"process": self._names.frozen()}, taken_ns))

    def _table_rows(self, processes: Array) -> Array:
        pids = processes["identity"] & _PID_MASK
        is_outside = pids == _OUTSIDE
        array = np.zeros(len(processes), PROCESSES.dtype)
        array["id"], array["pid"], array["process"] = processes["id"], pids, processes["name"]
        mark_unknown(array, ("pid",), is_outside)
        texts = self._names.frozen()
        array["process"][is_outside] = self._names.codes(
            array["process"][is_outside], lambda code: outside_name(texts[code])
        )
        array["network_ns"] = processes["ns"].sum(axis=1)
        array["softirq_ns"] = processes["ns"][:, RX_SOFTIRQ]
        for entry in CALLS:
            array[TIME_OF[entry]] = processes["ns"][:, entry]
        return array

    def describe(self, key: int) -> dict[str, str]:
        """Return the command line of a row's process."""
        if key == FIRST_ID:
            return {"Softirqs": _NO_PROCESS_HELP}
        identity = self._processes["identity"][self._processes["id"] == key]
        if not len(identity):
            return {}
        return {"Command": self._host.command_line(int(identity[0]) & _PID_MASK) or "–"}

    # --- processes ----------------------------------------------------------------------------------------------

    def _place(self, sampled: Array) -> Index:
        """Return the index of each sample's process; append new processes, and set names, which may have changed."""
        identities, first, which = np.unique(_identities(sampled), return_index=True, return_inverse=True)
        order = np.argsort(self._processes["identity"])
        at = positions(identities, self._processes["identity"][order])
        is_new = at < 0
        new = np.zeros(np.count_nonzero(is_new), _PROCESS)
        new["identity"] = identities[is_new]
        new["id"] = np.arange(self._last_id + 1, self._last_id + 1 + len(new))
        self._last_id += len(new)
        places = np.append(order, np.arange(len(order), len(order) + len(new)))
        at[is_new] = np.arange(len(order), len(places))
        self._processes = concatenate_rows(self._processes, new)
        self._processes["name"][places[at]] = self._names.codes(sampled["comm"][first], safe_bytes)
        placed: Index = places[at][which]
        return placed

    def _no_process_row(self) -> Array:
        """Return the row of softirqs that served no known process; empty if the time of softirqs is unknown."""
        row = np.zeros(int(self._no_process_ns is not None), PROCESSES.dtype)
        row["id"], row["process"] = FIRST_ID, self._names.code(NO_PROCESS)
        row["network_ns"] = row["softirq_ns"] = self._no_process_ns or 0
        mark_unknown(row, ("pid", *(TIME_OF[entry] for entry in CALLS)))
        return row


def _identities(processes: Array) -> Array:
    """Return the identities of processes (`started` and `pid` as in SAMPLED_NS)."""
    identities: Array = processes["started"] // TICK_NS << _PID_BITS | processes["pid"] & _OUTSIDE
    return identities


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return error.errno != errno.ESRCH
    return True
