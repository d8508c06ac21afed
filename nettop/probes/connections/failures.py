# SPDX-License-Identifier: Apache-2.0
"""Connections that failed or were reset, grouped by reason and remote address."""

from __future__ import annotations

import numpy as np

from nettop.kernel.bpf.rows import columns
from nettop.kernel.net.entered_namespaces import Namespaces
from nettop.probes.connections.event_records import FAIL
from nettop.probes.connections.socket_rows import has_process
from nettop.snapshots.arrays import Array, Index, concatenate_rows, copy_columns, take_rows
from nettop.snapshots.connections import DIRECTIONS, FAILURES
from nettop.snapshots.left_rows import ENDED, LeftRows
from nettop.snapshots.safe_text import safe_bytes
from nettop.snapshots.snapshot import Ended, Rows, TextTable

GROUPS_MAX = 4096
"""Maximum groups listed. The least recently failed are evicted for new ones."""
_EVICTED_SHARE = 8
"""Evict at least one in this many groups, so that not every new group rewrites the table."""

_GROUP = np.dtype(
    [
        ("remote_address", ">u8", 2),
        ("comm", "S16"),
        *columns("u4", "port", "netns"),
        ("reason", "u2"),
        *columns("u1", "direction", "unused"),
    ]
)
_RAW = f"V{_GROUP.itemsize}"
_INBOUND = next(iter(DIRECTIONS))
_NEVER = np.uint64(2**64 - 1)


class Failures:
    """Groups of failures, numbered in order of appearance."""

    def __init__(self) -> None:
        self._texts = TextTable()
        self._keys: Array = np.zeros(0, _RAW)
        self._rows: Array = np.zeros(0, FAILURES.dtype)
        self._left: Array = self._rows
        self._ended = LeftRows(FAILURES, "process", ENDED)
        self._last_id = 0

    def add(self, events: Array) -> None:
        """Add events of the ring to their groups."""
        if not len(events):
            return
        groups = _groups(events)
        keys, first, group = np.unique(groups.view(_RAW), return_index=True, return_inverse=True)
        at = self._places(keys, groups[first])[group]
        has_failed = events["event"] == FAIL
        for name, places in (("failures", at), ("failed", at[has_failed]), ("reset", at[~has_failed])):
            np.add.at(self._rows[name], places, np.uint64(1))
        # CPUs write concurrently, so the ring is not strictly in chronological order.
        np.minimum.at(self._rows["first_at"], at, events["time"])
        np.maximum.at(self._rows["last_at"], at, events["time"])
        self._make_room()

    def _places(self, keys: Array, groups: Array) -> Index:
        """Return the positions of the rows of these groups, and add rows for new ones."""
        _, firsts, same = np.unique(
            np.concatenate([self._keys, keys]), return_index=True, return_inverse=True
        )
        at: Index = firsts[same[len(self._keys) :]]  # index of a known group, or past the last one if new
        new = np.flatnonzero(at >= len(self._keys))
        at[new] = len(self._keys) + np.arange(len(new))
        self._keys = np.concatenate([self._keys, keys[new]])
        self._rows = concatenate_rows(self._rows, self._new_rows(groups[new]))
        return at

    def _make_room(self) -> None:
        """Evict the oldest groups if there are too many."""
        surplus = len(self._rows) - GROUPS_MAX
        if surplus <= 0:
            return
        oldest = np.argsort(self._rows["last_at"], kind="stable")[: surplus + GROUPS_MAX // _EVICTED_SHARE]
        stays = np.ones(len(self._rows), bool)
        stays[oldest] = False
        self._left = concatenate_rows(self._left, take_rows(self._rows, ~stays))
        self._rows = take_rows(self._rows, stays)
        self._keys = self._keys[stays]
        texts, self._texts = self._texts.frozen(), TextTable()  # many were of evicted groups
        for rows in (self._rows, self._left):
            rows["process"] = self._texts.adopted(rows["process"], texts)

    def rows(self, namespaces: Namespaces, taken_ns: int) -> Rows:
        """Return the groups as rows of the table."""
        return self._as_rows(self._rows.copy(), namespaces, taken_ns)

    def ended(self, namespaces: Namespaces, taken_ns: int) -> Ended:
        """Return the groups evicted since the last call, and the sum of all that were ever evicted."""
        left, self._left = self._left, self._left[:0]
        return self._ended.add(self._as_rows(left, namespaces, taken_ns))

    def _as_rows(self, rows: Array, namespaces: Namespaces, taken_ns: int) -> Rows:
        return namespaces.with_names(Rows(FAILURES, rows, {"process": self._texts.frozen()}, taken_ns))

    def _new_rows(self, groups: Array) -> Array:
        rows = np.zeros(len(groups), FAILURES.dtype)
        rows["id"] = self._last_id + 1 + np.arange(len(groups))
        self._last_id += len(groups)
        copy_columns(rows, groups, ("remote_address", "port", "netns", "reason", "direction"))
        rows["process"] = self._texts.codes(groups["comm"], lambda comm: safe_bytes(comm) if comm else None)
        rows["first_at"] = _NEVER
        return rows


def _groups(events: Array) -> Array:
    """Return the group of each event. An unknown process has no name; the port is the service's."""
    groups = np.zeros(len(events), _GROUP)
    copy_columns(groups, events, ("remote_address", "netns", "reason", "direction"))
    owned: Index = np.flatnonzero(has_process(events))
    groups["comm"][owned] = events["comm"][owned]
    inbound = events["direction"] == _INBOUND
    groups["port"] = np.where(inbound, events["local_port"], events["remote_port"])
    return groups
