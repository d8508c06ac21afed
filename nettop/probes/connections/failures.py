# SPDX-License-Identifier: Apache-2.0
"""Connections that failed or were reset, grouped by reason and remote address."""

from __future__ import annotations

import numpy as np

from nettop.probes.connections.event_records import FAIL
from nettop.probes.connections.socket_rows import has_process
from nettop.snapshots.arrays import Index, joined
from nettop.snapshots.connections import DIRECTIONS, FAILURES
from nettop.snapshots.safe_text import safe_bytes
from nettop.snapshots.snapshot import Array, Rows, TextTable, unknown_value

GROUPS_MAX = 4096
"""Groups kept; failures that would need one more are counted as lost."""

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
_RAW = f"V{_GROUP.itemsize}"
_INBOUND = next(iter(DIRECTIONS))
_NEVER = np.uint64(2**64 - 1)


class Failures:
    """Groups of failures, numbered in the order in which they appeared. `lost` counts failures beyond GROUPS_MAX."""

    def __init__(self) -> None:
        self.lost = 0
        self._texts = TextTable()
        self._keys = np.zeros(0, _RAW)
        self._rows = np.zeros(0, FAILURES.dtype)

    def add(self, events: Array) -> None:
        """Add events of the ring to their groups."""
        if not len(events):
            return
        groups = _groups(events)
        keys, first, group = np.unique(groups.view(_RAW), return_index=True, return_inverse=True)
        counts = np.bincount(group, minlength=len(keys))
        failed = np.bincount(group, weights=events["event"] == FAIL, minlength=len(keys))
        # CPUs write side by side, so the order of the ring is not quite that of the times.
        earliest, latest = np.full(len(keys), _NEVER), np.zeros(len(keys), np.uint64)
        np.minimum.at(earliest, group, events["time"])
        np.maximum.at(latest, group, events["time"])
        _, places, same = np.unique(
            np.concatenate([self._keys, keys]), return_index=True, return_inverse=True
        )
        at = places[same[len(self._keys) :]]  # among the known groups, or behind them where it is new
        new, room = np.flatnonzero(at >= len(self._keys)), GROUPS_MAX - len(self._keys)
        at[new] = len(self._keys) + np.arange(len(new))
        self.lost += int(counts[new[room:]].sum())
        self._keys = np.concatenate([self._keys, keys[new[:room]]])
        self._rows = joined(self._rows, self._new_rows(groups[first[new[:room]]]))
        kept = np.flatnonzero(at < len(self._rows))
        at = at[kept]
        for name, number in (("failures", counts), ("failed", failed), ("reset", counts - failed)):
            self._rows[name][at] += number[kept].astype(np.uint64)
        self._rows["first_at"][at] = np.minimum(self._rows["first_at"][at], earliest[kept])
        self._rows["last_at"][at] = np.maximum(self._rows["last_at"][at], latest[kept])

    def rows(self, taken_ns: int) -> Rows:
        """The groups, as rows of the table."""
        return Rows(FAILURES, self._rows.copy(), {"process": self._texts.values}, taken_ns)

    def _new_rows(self, groups: Array) -> Array:
        rows = np.zeros(len(groups), FAILURES.dtype)
        rows["id"] = len(self._rows) + 1 + np.arange(len(groups))
        for name in ("remote_address", "port", "netns", "reason", "direction"):
            rows[name] = groups[name]
        rows["process"] = unknown_value(rows["process"].dtype)
        for comm in np.unique(groups["comm"]):
            if comm:
                rows["process"][groups["comm"] == comm] = self._texts.code(safe_bytes(bytes(comm)))
        rows["first_at"] = _NEVER
        return rows


def _groups(events: Array) -> Array:
    """The group of each event. An unknown process has no name; the port is the service's."""
    groups = np.zeros(len(events), _GROUP)
    for name in ("remote_address", "netns", "reason", "direction"):
        groups[name] = events[name]
    owned: Index = np.flatnonzero(has_process(events))
    groups["comm"][owned] = events["comm"][owned]
    inbound = events["direction"] == _INBOUND
    groups["port"] = np.where(inbound, events["local_port"], events["remote_port"])
    return groups
