# SPDX-License-Identifier: Apache-2.0
"""Connections that firewalls report by events (Cisco's NSEL): updates have increments, and the end has the totals.

An update counts what it says, the end what no update has counted. Short connections have no updates, and neither has an
exporter that is not set to send any; an update that got lost is made up for by the end.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from nettop.flows.columns import ADDRESS, Flows
from nettop.snapshots.arrays import as_list
from nettop.snapshots.snapshot import Array

CREATED, ENDED, UPDATED = 1, 2, 5
"""Of firewallEvent, and what NSEL calls flow-create, flow-teardown and flow-update."""
CONNECTIONS_MAX = 65_536
"""Connections with updates whose end has not come: the one updated longest ago makes room, and its end counts all."""
KEY = np.dtype(
    [
        ("exporter", ADDRESS),
        ("domain", "u4"),
        ("connection", "u8"),
        ("src", ADDRESS),
        ("dst", ADDRESS),
        ("src_port", "u2"),
        ("dst_port", "u2"),
        ("protocol", "u1"),
    ]
)
"""What a connection is known by; `connection` is the exporter's number for it, 0 if it gives none."""
_Counters = tuple[int, ...]
"""Bytes and packets of one direction, then those of the other."""
_NOTHING = (0, 0, 0, 0)


class Connections:
    """What updates of connections have counted that have not ended; those that make room are counted in `dropped`."""

    def __init__(self, dropped: Counter[str]) -> None:
        self._counted: dict[bytes, _Counters] = {}
        self._ended: set[bytes] = set()
        self._ended_before: set[bytes] = set()
        self._dropped = dropped

    def begin_batch(self) -> None:
        """Forget which connections ended before the last batch: an end may be read, or come, before an update."""
        self._ended_before, self._ended = self._ended, set()

    def count_once(self, keys: Array, events: Array, forward: Flows, backward: Flows) -> None:
        """Leave in the counters of both directions what is new. `keys` are KEY, in their order."""
        # A number tells a connection from the one before: it needs no creation, which may be read after an update.
        begins = (events == CREATED) & (keys["connection"] == 0)
        at = np.flatnonzero(begins | np.isin(events, (ENDED, UPDATED)))
        columns = [flows.get(name) for flows in (forward, backward) for name in ("bytes", "packets")]
        reported = [np.zeros(len(at), np.uint64) if column is None else column[at] for column in columns]
        names = keys[at].view(f"V{KEY.itemsize}")
        rows = zip(
            events[at].tolist(), names.tolist(), zip(*map(as_list, reported), strict=True), strict=True
        )
        counted = np.array([self._counts(*row) for row in rows], np.uint64).reshape(-1, len(columns))
        for column, values in zip(columns, counted.T, strict=True):
            if column is not None:
                column[at] = values

    def _counts(self, event: int, name: bytes, reported: _Counters) -> _Counters:
        """Return what an event counts, of what it reports."""
        if event == UPDATED and (name in self._ended or name in self._ended_before):
            return _NOTHING
        before = self._counted.pop(name, _NOTHING)
        if event == CREATED:
            return reported
        if event == UPDATED:
            self._remember(name, tuple(map(sum, zip(before, reported, strict=True))))
            return reported
        self._ended.add(name)
        return tuple(max(0, total - part) for total, part in zip(reported, before, strict=True))

    def _remember(self, name: bytes, counted: _Counters) -> None:
        self._counted[name] = counted
        if len(self._counted) > CONNECTIONS_MAX:
            del self._counted[next(iter(self._counted))]
            self._dropped["connections"] += 1
