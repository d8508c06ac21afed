# SPDX-License-Identifier: Apache-2.0
"""Count each connection of a firewall (Cisco NSEL) once: updates report increments, the end reports the totals.

An update counts its increments; the end counts the rest. Short connections have no updates, and exporters send them
only if configured to. If an update is lost, the end makes up for it.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from nettop.collector.columns import ADDRESS, Flows
from nettop.snapshots.arrays import Array, as_list

CREATED, ENDED, UPDATED = 1, 2, 5
"""Values of firewallEvent; NSEL calls them flow-create, flow-teardown and flow-update."""
CONNECTIONS_MAX = 65_536
"""Maximum open connections with updates. Beyond it the least recently updated one is evicted; its end then counts its
full total.
"""
KEY = np.dtype(
    [
        *(("exporter", ADDRESS), ("domain", "u4"), ("connection", "u8")),
        *(("src", ADDRESS), ("dst", ADDRESS), ("src_port", "u2"), ("dst_port", "u2"), ("protocol", "u1")),
    ]
)
"""Key of a connection; `connection` is the exporter's number for it, or 0 if it sends none."""
_Counters = tuple[int, ...]
"""Bytes and packets of one direction, then of the other."""
_NOTHING = (0, 0, 0, 0)


class ReportedCounters:
    """Counters already reported by updates of open connections. `dropped` counts evictions."""

    def __init__(self, dropped: Counter[str]) -> None:
        self._counted: dict[bytes, _Counters] = {}
        self._ended: set[bytes] = set()
        self._ended_before: set[bytes] = set()
        self._dropped = dropped

    def begin_batch(self) -> None:
        """Forget the connections that ended before the previous batch. For later ones, an update may still arrive after
        the end.
        """
        self._ended_before, self._ended = self._ended, set()

    def count_once(self, keys: Array, events: Array, forward: Flows, backward: Flows) -> None:
        """Reduce the counters of both directions to their increments. `keys` (KEY) and `events` have the same order."""
        # A connection number already separates a connection from its predecessor, and its creation may be decoded after
        # an update.
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
        """Return the increments of the reported counters."""
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
