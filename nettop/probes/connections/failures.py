# SPDX-License-Identifier: Apache-2.0
"""Connections that failed or were reset, added up by reason and remote."""

from __future__ import annotations

import numpy as np

from nettop.snapshots.arrays import Index, joined
from nettop.snapshots.connections import DIRECTIONS, FAILURES
from nettop.snapshots.safe_text import safe_bytes
from nettop.snapshots.snapshot import Array, Rows, TextTable, known, unknown_value

GROUPS_MAX = 4096
"""Groups kept; what would need one more is counted as lost."""

_GROUP = np.dtype(
    [
        ("remote_address", ">u8", 2),
        ("comm", "S16"),
        ("port", "u4"),
        ("netns", "u4"),
        ("reason", "u2"),
        ("direction", "u1"),
        ("unused", "u1"),
    ]
)
_INBOUND = next(iter(DIRECTIONS))
_NEVER = np.uint64(2**64 - 1)


class Failures:
    """Groups of failures; the first to come keeps its number."""

    def __init__(self) -> None:
        self.lost = 0
        self._texts = TextTable()
        self._numbers: dict[bytes, int] = {}
        self._rows = np.zeros(0, FAILURES.dtype)

    def add(self, events: Array) -> None:
        """Add events of the ring to their groups."""
        if not len(events):
            return
        groups = _groups(events)
        raw = groups.view(f"V{_GROUP.itemsize}")
        distinct, first, place = np.unique(raw, return_index=True, return_inverse=True)
        counts = np.bincount(place, minlength=len(distinct))
        # CPUs write side by side, so the order of the ring is not quite that of the times.
        earliest, latest = np.full(len(distinct), _NEVER), np.zeros(len(distinct), np.uint64)
        np.minimum.at(earliest, place, events["time"])
        np.maximum.at(latest, place, events["time"])
        for at, key in enumerate(distinct.tolist()):
            number = self._number(key, groups[first[at]])
            if number is None:
                self.lost += int(counts[at])
            else:
                row = self._rows[number]
                row["failures"] += np.uint64(counts[at])
                row["first_at"] = min(row["first_at"], earliest[at])
                row["last_at"] = max(row["last_at"], latest[at])

    def rows(self, taken_ns: int) -> Rows:
        """The groups, as rows of the table."""
        return Rows(FAILURES, self._rows.copy(), {"process": self._texts.values}, taken_ns)

    def _number(self, key: bytes, group: Array) -> int | None:
        number = self._numbers.get(key)
        if number is not None or len(self._rows) >= GROUPS_MAX:
            return number
        number = self._numbers[key] = len(self._rows)
        row = np.zeros(1, FAILURES.dtype)
        row["id"] = number + 1
        for name in ("remote_address", "port", "netns", "reason", "direction"):
            row[name] = group[name]
        comm = bytes(group["comm"])
        row["process"] = self._texts.code(safe_bytes(comm)) if comm else unknown_value(row["process"].dtype)
        row["first_at"] = _NEVER
        self._rows = joined(self._rows, row)
        return number


def _groups(events: Array) -> Array:
    """The group of each event. An unknown process has no name; the port is the service's."""
    groups = np.zeros(len(events), _GROUP)
    for name in ("remote_address", "netns", "reason", "direction"):
        groups[name] = events[name]
    owned: Index = np.flatnonzero(known(events["pid"]))
    groups["comm"][owned] = events["comm"][owned]
    inbound = events["direction"] == _INBOUND
    groups["port"] = np.where(inbound, events["local_port"], events["remote_port"])
    return groups
