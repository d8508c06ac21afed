# SPDX-License-Identifier: Apache-2.0
"""Detect lost exports as gaps between the sequence numbers of an exporter's datagrams.

A sequence number says how much was sent before, in the unit of its protocol: NetFlow v5 numbers flows, v9 messages (RFC
3954, section 5.1), IPFIX records including options records (RFC 7011, section 3.1), sFlow datagrams, each in a series
per observation domain, engine or sub-agent. So each datagram covers a range of numbers, and numbers never covered were
lost in transit, or in the exporter before that. An exporter that numbers differently has few datagrams with the number
due: losses are then unknown.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import numpy as np

from nettop.collector.decode import netflow5, sflow
from nettop.collector.decode.batch import DomainKey
from nettop.collector.decode.datagrams import nearest
from nettop.collector.decode.templates import IPFIX, NETFLOW_9
from nettop.snapshots.arrays import Array, Index, Mask, as_list, take_rows


class Counting(IntEnum):
    """Quantities that an exporter's sequence numbers may count."""

    UNKNOWN = 0
    """The numbers contradict the protocol, as when two exporters send under one identity."""
    DATAGRAMS = 1
    FLOWS = 2
    RECORDS = 3
    """Flow and options records."""


_COUNTINGS = {
    netflow5.VERSION: Counting.FLOWS,
    NETFLOW_9: Counting.DATAGRAMS,
    IPFIX: Counting.RECORDS,
    sflow.PROTOCOL_VERSION: Counting.DATAGRAMS,
}
_MASK = (1 << 32) - 1
"""Sequence numbers have 32 bits."""
_LATE_MAX = {Counting.DATAGRAMS: 128, Counting.FLOWS: 4096, Counting.RECORDS: 4096}
"""Maximum distance back of a reordered or duplicate datagram: 128 datagrams, or their records."""
_LOST_MAX = {Counting.DATAGRAMS: 1024, Counting.FLOWS: 1 << 15, Counting.RECORDS: 1 << 15}
_LOST_PER_SENT = 8
"""Maximum distance ahead for numbers in between to count as lost: a fixed number of units or, after a long silence,
this multiple of what the exporter sends in that time.

A number further ahead, or further back, means the exporter restarted.
"""
_RATE_NS = 10_000_000_000
"""Minimum time an exporter must be known for its rate to be meaningful."""
_DOUBT_MAX, _DOUBT_MIN = 32, -8
"""Doubt from which losses are unknown, and from which they are known again. While there is any, they are not shown."""
_DOUBT_OF_RESTART = 8
_TRUST_OF_HIT = 2
"""Decrease of doubt by a datagram with the number due; any other increases it by one. No working network loses two
datagrams in three.
"""
_DOUBT_OF_MISS = 4
"""Increase of doubt while losses are unknown; a datagram with the number due then decreases it by one."""
GAPS_MAX = 128
"""Newest gaps kept per exporter, which late datagrams may still fill, or which may be withdrawn."""

SEQUENCE_CHANGES = np.dtype([("row", "intp"), ("lost", "i8"), ("restarts", "i8"), ("unchecked", "i8")])
"""Changes to the counters of the exporter in a row: units lost, minus those found late or wrongly counted; restarts;
and datagrams for which losses are unknown.
"""
SEQUENCE_STATE = np.dtype(
    [
        *((name, "?") for name in ("is_current", "is_exact", "is_proved", "is_unknown")),
        *((name, "i8") for name in ("due", "doubt", "units", "since_ns", "seen_ns")),
    ]
)
"""State of an exporter's numbers: whether the last one is known, whether the number due is exact or a minimum, whether
some number was the one due, and whether losses are unknown; the number due, which counts on beyond 32 bits; doubt in
the numbers; and units sent over a period.
"""
_STRETCH = np.dtype(
    [("first", "i8"), ("length", "i8"), ("datagrams", "i8"), ("is_exact", "?"), ("seen_ns", "i8")]
)


class _Stretch(NamedTuple):
    """Numbers of consecutive datagrams without a gap: first number, how many numbers and datagrams, and when the last
    one arrived. If not exact, there may be more.
    """

    first: int
    length: int
    datagrams: int
    is_exact: bool
    seen_ns: int


class _Gap(NamedTuple):
    """Missing numbers from `begin` to `end` - 1, counted as lost. They may arrive late, but not after a restart."""

    begin: int
    end: int
    is_open: bool = True


class _Followed(NamedTuple):
    """Changes to an exporter's counters, as in SEQUENCE_CHANGES."""

    lost: int = 0
    restarts: int = 0
    unchecked: int = 0


class SequenceNumbers:
    """Follower of exporters' sequence numbers. Each exporter has a row from 0 to `size` - 1."""

    def __init__(self, size: int) -> None:
        self._series = np.zeros(size, SEQUENCE_STATE)
        self._countings = np.zeros(size, np.intp)
        self._gaps: dict[int, list[_Gap]] = {}

    def begin(self, row: int, key: DomainKey) -> None:
        """Assign a row to an exporter and start afresh."""
        self._series[row] = np.zeros((), SEQUENCE_STATE)
        self._countings[row] = _COUNTINGS[key[2]]
        self._gaps.pop(row, None)

    def following(self, rows: Index) -> Array:
        """Return the state of exporters' numbers: SEQUENCE_STATE (n,)."""
        return take_rows(self._series, rows)

    def resume(self, row: int, following: Array) -> None:
        """Continue from the saved SEQUENCE_STATE of a row's exporter."""
        self._series[row] = following

    def countings(self, rows: Index) -> Array:
        """Return what the numbers of each row count (n,), as Counting: unknown also while that is in doubt."""
        series = self._series[rows]
        is_doubted = series["is_unknown"] | (series["doubt"] > 0)
        return np.where(is_doubted, Counting.UNKNOWN, self._countings[rows])

    def follow(self, rows: Index, datagrams: Array) -> tuple[Array, Array]:
        """Follow datagrams (n,) of the exporters in these rows, in order of arrival.

        Return SEQUENCE_CHANGES (m,), in which rows may repeat, and how far each datagram advanced the numbers (n,), 0
        if unknown. `datagrams` have the fields of DATAGRAM, none malformed.
        """
        # Sorting two-byte numbers is several times faster.
        order = np.argsort(rows.astype(np.min_scalar_type(len(self._series))), kind="stable")
        ordered, of_rows = take_rows(datagrams, order), rows[order]
        begins, stretches = _stretches(of_rows, ordered, self._countings[of_rows] == Counting.DATAGRAMS)
        others = np.flatnonzero(~self._follow_plain(of_rows[begins], stretches))
        slow = zip(as_list(of_rows[begins[others]]), take_rows(stretches, others).tolist(), strict=True)
        changes = [(row, *self._follow(row, _Stretch(*values))) for row, values in slow]
        moved = np.where(self._countings[rows] == Counting.DATAGRAMS, 1, datagrams["units"])
        moved[self._series["is_unknown"][rows]] = 0
        return np.array(changes, SEQUENCE_CHANGES), moved

    def _follow_plain(self, rows: Index, stretches: Array) -> Mask:
        """Follow series whose next stretch starts at the number due. Return which stretches do."""
        series = self._series
        is_known = series["is_current"][rows]
        is_next = ~series["is_unknown"][rows]
        is_next[1:] &= rows[1:] != rows[:-1]
        firsts = np.where(is_known, series["due"][rows], stretches["first"])
        is_plain: Mask = is_next & (firsts & _MASK == stretches["first"])
        plain, of_plain, is_new = rows[is_plain], stretches[is_plain], ~is_known[is_plain]
        hits: Array = of_plain["datagrams"] - is_new
        series["doubt"][plain] = np.maximum(series["doubt"][plain] - _TRUST_OF_HIT * hits, _DOUBT_MIN)
        series["is_proved"][plain] |= hits > 0
        series["due"][plain] = firsts[is_plain] + of_plain["length"]
        series["units"][plain] += np.where(is_new, 0, of_plain["length"])
        series["is_current"][plain] = True
        for name in ("is_exact", "seen_ns"):
            series[name][plain] = of_plain[name]
        series["since_ns"][plain[is_new]] = of_plain["seen_ns"][is_new]
        return is_plain

    def _follow(self, row: int, stretch: _Stretch) -> _Followed:
        """Follow one stretch."""
        state = self._series[row]
        due = int(state["due"])
        first = due + nearest(stretch.first - due)
        misses = int(first != due)
        hits = stretch.datagrams - misses
        if state["is_unknown"]:
            _advance(state, first, stretch)
            state["doubt"] = min(state["doubt"] + _DOUBT_OF_MISS * misses - hits, _DOUBT_MAX)
            state["is_unknown"] = state["doubt"] > _DOUBT_MIN
            state["is_proved"] |= not state["is_unknown"]
            return _Followed(unchecked=stretch.datagrams)
        if -_LATE_MAX[self._countings[row]] <= first - due < 0:
            followed = self._late(row, stretch, first)
        else:
            followed = self._jump(row, stretch, first)
            state["is_proved"] |= hits > 0
            state["doubt"] += misses - _TRUST_OF_HIT * hits + _DOUBT_OF_RESTART * followed.restarts
            _advance(state, first, stretch)
        state["doubt"] = max(state["doubt"], _DOUBT_MIN)
        return self._give_up(row, followed) if state["doubt"] >= _DOUBT_MAX else followed

    def _jump(self, row: int, stretch: _Stretch, first: int) -> _Followed:
        """Count the numbers between the one due and a stretch as lost, if the one due is exact and some number before
        was the one due.
        """
        state, counting = self._series[row], self._countings[row]
        due = int(state["due"])
        if first == due:
            return _Followed()
        if not 0 < first - due <= _ahead_max(state, counting, stretch):
            self._gaps[row] = [gap._replace(is_open=False) for gap in self._gaps.get(row, ())]
            return _Followed(restarts=1)
        if not state["is_exact"] and counting != Counting.DATAGRAMS:
            state["doubt"] -= 1
            return _Followed(unchecked=1)
        if not state["is_proved"]:
            return _Followed(unchecked=1)
        self._gaps[row] = [*self._gaps.get(row, ()), _Gap(due, first)][-GAPS_MAX:]
        return _Followed(lost=first - due)

    def _late(self, row: int, stretch: _Stretch, first: int) -> _Followed:
        """Remove late arrivals from the gaps."""
        state, end = self._series[row], first + stretch.length
        is_exact = stretch.is_exact or self._countings[row] == Counting.DATAGRAMS
        self._gaps[row], found = _filled(self._gaps.get(row, []), first, end, is_exact=is_exact)
        is_unexplained = not found and not state["is_proved"]
        hits = stretch.datagrams - 1
        state["is_proved"] |= hits > 0
        state["doubt"] += is_unexplained - _TRUST_OF_HIT * hits
        if end > state["due"]:
            _advance(state, first, stretch)
        return _Followed(lost=-found, unchecked=int(is_unexplained))

    def _give_up(self, row: int, followed: _Followed) -> _Followed:
        """Stop counting losses, and withdraw the gaps, which may not have been losses."""
        self._series[row]["is_unknown"] = True
        gaps = self._gaps.pop(row, [])
        lost = followed.lost - sum(gap.end - gap.begin for gap in gaps)
        return _Followed(lost, followed.restarts, followed.unchecked + len(gaps))


def _advance(state: Array, first: int, stretch: _Stretch) -> None:
    """Expect the number after a stretch next."""
    state["due"], state["is_exact"] = first + stretch.length, stretch.is_exact
    state["units"] += stretch.length
    state["seen_ns"] = stretch.seen_ns


def _ahead_max(state: Array, counting: Counting, stretch: _Stretch) -> int:
    """Return how far ahead a number may be if those in between are to count as lost."""
    units, since_ns, seen_ns = (int(state[name]) for name in ("units", "since_ns", "seen_ns"))
    if seen_ns - since_ns < _RATE_NS:
        return _LOST_MAX[counting]
    in_silence = units * (stretch.seen_ns - seen_ns) // (seen_ns - since_ns)
    return max(_LOST_MAX[counting], _LOST_PER_SENT * in_silence)


def _filled(gaps: list[_Gap], first: int, end: int, *, is_exact: bool) -> tuple[list[_Gap], int]:
    """Return what late arrivals leave of the gaps, and how many numbers they fill."""
    left: list[_Gap] = []
    found = 0
    for gap in gaps:
        begin, stop = gap.begin, gap.end
        # A datagram with uncounted records may have covered the whole gap.
        until = stop if not is_exact and begin <= end < stop else min(stop, end)
        since = max(begin, first)
        if since >= until or not gap.is_open:
            left.append(gap)
        else:
            found += until - since
            left += [_Gap(a, b) for a, b in ((begin, since), (until, stop)) if a < b]
    return left[-GAPS_MAX:], found


def _stretches(rows: Index, datagrams: Array, counts_datagrams: Mask) -> tuple[Index, Array]:
    """Return the index of the first datagram and the structured array of `_Stretch` for datagrams sorted by row."""
    numbers, is_exact = datagrams["sequence"].astype(np.int64), datagrams["is_exact"]
    units = np.where(counts_datagrams, 1, datagrams["units"])
    is_first = np.ones(len(rows), bool)
    is_first[1:] = (
        (rows[1:] != rows[:-1])
        | ~(is_exact[:-1] | counts_datagrams[:-1])
        | (numbers[:-1] + units[:-1] & _MASK != numbers[1:])
        # A datagram without countable units still has the number due; merged at the end of a late stretch, that would
        # be lost.
        | (units[1:] == 0)
    )
    begins = np.flatnonzero(is_first)
    stretches = np.zeros(len(begins), _STRETCH)
    if len(begins):
        lasts = np.append(begins[1:], len(rows)) - 1
        stretches["first"], stretches["length"] = numbers[begins], np.add.reduceat(units, begins)
        stretches["datagrams"] = lasts + 1 - begins
        stretches["is_exact"], stretches["seen_ns"] = is_exact[lasts], datagrams["received_ns"][lasts]
    return begins, stretches
