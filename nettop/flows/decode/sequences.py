# SPDX-License-Identifier: Apache-2.0
"""Lost exports: gaps between the sequence numbers of an exporter's datagrams.

A number says how much was sent before: flows by NetFlow v5, messages by v9 (RFC 3954, section 5.1), records of IPFIX
with those of options (RFC 7011, section 3.1), and datagrams by sFlow. So each datagram covers a stretch of numbers, and
what no datagram has covered was lost on its journey, or before it in the exporter.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nettop.flows.decode import netflow5, sflow
from nettop.flows.decode.templates import IPFIX, NETFLOW_9
from nettop.snapshots.arrays import Index, Mask, as_list, take
from nettop.snapshots.snapshot import Array

_RANGE = 1 << 32
_LATE_MAX = {netflow5.VERSION: 4096, NETFLOW_9: 128, IPFIX: 4096, sflow.PROTOCOL_VERSION: 128}
"""How far back a number may lie for a datagram that was overtaken, or came twice: 128 datagrams, or their records."""
_LOST_MAX = {netflow5.VERSION: 1 << 24, NETFLOW_9: 1 << 20, IPFIX: 1 << 24, sflow.PROTOCOL_VERSION: 1 << 20}
"""How far ahead a number may lie for what lies between to be lost.

What is further ahead, or further back, is of an exporter that has restarted.
"""
GAPS_MAX = 8
"""Gaps of an exporter that late datagrams may still fill, the newest."""

FOLLOWED = np.dtype([("lost", "i8"), ("restarts", "i8"), ("unchecked", "i8")])
"""What datagrams have shown: how much was lost before them, less what they have of earlier gaps; whether the exporter
has restarted; and whether nobody can say what was lost before them.
"""


_STRETCH = np.dtype([("version", "u1"), ("first", "i8"), ("length", "i8"), ("is_exact", "?")])


class _Stretch(NamedTuple):
    """Numbers of datagrams that followed each other without a gap: of which version, the first one, and how many.

    There may be more of them if they are not exact.
    """

    version: int
    first: int
    length: int
    is_exact: bool


class Sequences:
    """Follows the sequence numbers of exporters, each of which has a row here, from 0 to `size` - 1."""

    def __init__(self, size: int) -> None:
        self._is_known = np.zeros(size, bool)
        self._next = np.zeros(size, np.int64)
        """What should come next, which counts on beyond 32 bits."""
        self._is_exact = np.zeros(size, bool)
        """Whether it is that number, or may be a higher one."""
        self._gaps: dict[int, list[tuple[int, int]]] = {}

    def forget(self, row: int) -> None:
        """Begin anew: the row is that of another exporter now."""
        self._is_known[row] = False
        self._gaps.pop(row, None)

    def follow(self, rows: Index, datagrams: Array) -> Array:
        """What datagrams (n,) of the exporters in these rows show, in the order in which they came: FOLLOWED (n,).

        `datagrams` have the fields of DATAGRAM, and none is malformed.
        """
        followed = np.zeros(len(rows), FOLLOWED)
        order = np.argsort(rows, kind="stable")
        begins, stretches = _stretches(rows[order], take(datagrams, order))
        of_stretch = rows[order[begins]]
        is_plain = self._follow_plain(of_stretch, stretches)
        columns = (stretches[name][~is_plain].tolist() for name in _Stretch._fields)
        for at, row, *stretch in zip(
            as_list(order[begins[~is_plain]]), as_list(of_stretch[~is_plain]), *columns, strict=True
        ):
            followed[at] = self._follow(row, _Stretch(*stretch))
        return followed

    def _follow_plain(self, rows: Index, stretches: Array) -> Mask:
        """Follow exporters whose next stretch is the one that is due. Returns which stretches these are."""
        is_next = np.ones(len(rows), bool)
        is_next[1:] = rows[1:] != rows[:-1]
        firsts = np.where(self._is_known[rows], self._next[rows], stretches["first"])
        is_plain: Mask = is_next & (firsts % _RANGE == stretches["first"])
        plain = rows[is_plain]
        self._next[plain] = firsts[is_plain] + stretches["length"][is_plain]
        self._is_exact[plain] = stretches["is_exact"][is_plain]
        self._is_known[plain] = True
        return is_plain

    def _follow(self, row: int, stretch: _Stretch) -> tuple[int, int, int]:
        """What a stretch shows, as in FOLLOWED."""
        due = int(self._next[row])
        ahead = (stretch.first - due + _RANGE // 2) % _RANGE - _RANGE // 2
        is_known, late_max, lost_max = (
            self._is_known[row],
            _LATE_MAX[stretch.version],
            _LOST_MAX[stretch.version],
        )
        if not is_known or ahead > lost_max or ahead < -late_max:
            self.forget(row)
            self._expect(row, stretch.first + stretch.length, stretch)
            return 0, int(is_known), 0
        first, end = due + ahead, due + ahead + stretch.length
        was_exact = bool(self._is_exact[row])
        if end > due or ahead == 0:
            self._expect(row, end, stretch)
        if ahead < 0:
            return -self._fill(row, first, end, stretch.is_exact), 0, 0
        if ahead > 0 and was_exact:
            self._gaps[row] = [*self._gaps.get(row, []), (due, first)][-GAPS_MAX:]
            return ahead, 0, 0
        return 0, 0, int(ahead > 0)

    def _expect(self, row: int, due: int, after: _Stretch) -> None:
        self._next[row], self._is_exact[row], self._is_known[row] = due, after.is_exact, True

    def _fill(self, row: int, first: int, end: int, is_exact: bool) -> int:
        """Take what has come late out of the gaps. Returns how much it was."""
        left: list[tuple[int, int]] = []
        filled = 0
        for begin, stop in self._gaps.get(row, []):
            # Of a datagram that may have had more, the gap may have been all.
            until = stop if not is_exact and begin <= end < stop else min(stop, end)
            since = max(begin, first)
            if since >= until:
                left.append((begin, stop))
            else:
                filled += until - since
                left += [(a, b) for a, b in ((begin, since), (until, stop)) if a < b]
        self._gaps[row] = left[-GAPS_MAX:]
        return filled


def _stretches(rows: Index, datagrams: Array) -> tuple[Index, Array]:
    """Where stretches begin among datagrams that are ordered by their row, and a structured array of `_Stretch`."""
    numbers, units, is_exact = (
        datagrams["sequence"].astype(np.int64),
        datagrams["units"],
        datagrams["is_exact"],
    )
    is_first = np.ones(len(rows), bool)
    is_first[1:] = (
        (rows[1:] != rows[:-1])
        | ~is_exact[:-1]
        | ((numbers[:-1] + units[:-1]) % _RANGE != numbers[1:])
        # What has nothing counted still says that its number is due: at the end of a late stretch that would be lost.
        | (units[1:] == 0)
    )
    begins = np.flatnonzero(is_first)
    stretches = np.zeros(len(begins), _STRETCH)
    if len(begins):
        ends = np.append(begins[1:], len(rows))
        stretches["version"], stretches["first"] = datagrams["protocol_version"][begins], numbers[begins]
        stretches["length"] = np.add.reduceat(units, begins)
        stretches["is_exact"] = is_exact[ends - 1]
    return begins, stretches
