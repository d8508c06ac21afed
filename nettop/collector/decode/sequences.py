# SPDX-License-Identifier: Apache-2.0
"""Detect lost exports as gaps between the sequence numbers of an exporter's datagrams.

A sequence number says how much was sent before, in the unit of its protocol: NetFlow v5 numbers flows, v9 messages (RFC
3954, section 5.1), IPFIX records including options records (RFC 7011, section 3.1), sFlow datagrams, each in a series
per observation domain, engine or sub-agent. So each datagram covers a range of numbers, and numbers never covered were
lost in transit, or in the exporter before that. Losses are unknown where the numbers contradict that rule: they go back
and forth, as those of several exporters that share an identity, count another unit, or are those of several domains.
"""

from __future__ import annotations

from dataclasses import dataclass, field
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
_LOST_MAX = {Counting.DATAGRAMS: 1 << 20, Counting.FLOWS: 1 << 24, Counting.RECORDS: 1 << 24}
_LOST_PER_SENT = 8
"""Maximum distance ahead for numbers in between to count as lost: a fixed number of units or, after a long silence,
this multiple of what the exporter sends in that time.

A number further ahead, or further back, means the exporter restarted.
"""
_RATE_NS = 10_000_000_000
"""Minimum time an exporter must be known for its rate to be meaningful."""
_MISSES_MAX, _PROVED_MISSES_MAX = 8, 32
"""Maximum excess of unexpected numbers: until some number was the one due, and afterwards. While there is any excess,
losses are unknown."""
_MISSES_PER_HIT = 2
"""Misses offset by one expected number. With another counting some numbers match by chance; no working network loses
two datagrams in three.
"""
_CREDIT_MAX = 8
"""Misses that earlier hits offset at most."""
_TRUST_MAX = 8
"""Maximum lead of numbers that only the protocol's counting explains over those that only another one explains."""
_SHARED_MAX = 4
"""Maximum gaps that other domains of the sender fill: these share a series."""
GAPS_MAX = 4 * _PROVED_MISSES_MAX
"""Newest gaps kept per exporter, which late datagrams may still fill, or which may be withdrawn. More than an exporter
accumulates before it becomes clear that nearly all of its numbers are unexpected.
"""
_LEFT_MAX = 8
"""Newest jumps remembered."""
_RETURNS_MAX = 2
"""Maximum returns to a number before a jump. The first may be due to a single corrupt number."""
_TURNS_MAX = 8
"""Maximum times late datagrams continue each other while on-time ones continue too."""
_OVERLAPS_MAX = 8
"""Maximum datagrams whose numbers others cover in part; with the right counting there are none."""
_FIT_LEAST, _FIT_MOST = 64, 1 << 16
"""Datagrams in excess that must have the number due before numbers are followed again: initially and at most, as it
doubles each time.
"""
_FIT_LOSS = 4
"""Datagrams subtracted for one with another number."""

SEQUENCE_CHANGES = np.dtype([("row", "intp"), ("lost", "i8"), ("restarts", "i8"), ("unchecked", "i8")])
"""Changes to the counters of the exporter in a row: units lost, minus those found late or wrongly counted; restarts;
and datagrams for which losses are unknown.
"""
SEQUENCE_STATE = np.dtype(
    [
        ("is_current", "?"),
        ("due", "i8"),
        ("begun", "i8"),
        ("other", "i8"),
        ("is_exact", "?"),
        ("is_unknown", "?"),
        ("is_proved", "?"),
        ("is_apart", "?"),
        ("trust", "i8"),
        ("misses", "i8"),
        ("units", "i8"),
        ("since_ns", "i8"),
        ("seen_ns", "i8"),
    ]
)
"""State of an exporter's numbers: whether the last one is known; the number due, which counts on beyond 32 bits, the
first since the last gap, and how much more another counting would make due; whether the number due is exact or a
minimum, whether numbers are not being followed, whether some number was the one due, and whether other domains have
sent the same numbers; the lead of the protocol's counting over another, and the excess of unexpected numbers; and units
sent over a period.
"""

_STRETCH = np.dtype(
    [("first", "i8"), ("length", "i8"), ("datagrams", "i8"), ("distinct", "i8"), ("other", "i8"), ("is_exact", "?"),
     ("seen_ns", "i8")]
)  # fmt: skip


class _Stretch(NamedTuple):
    """Numbers of consecutive datagrams without a gap: first number, how many numbers and datagrams; how many of these
    numbers another counting does not explain, and how much more it would make due next; and when the last one arrived.

    If not exact, there may be more.
    """

    first: int
    length: int
    datagrams: int
    distinct: int
    other: int
    is_exact: bool
    seen_ns: int


class _Gap(NamedTuple):
    """Missing numbers from `begin` to `end` - 1, counted as lost. They may arrive late, but not after a restart."""

    begin: int
    end: int
    is_open: bool = True


class _Jump(NamedTuple):
    """The number that was due, and the one that arrived instead."""

    due: int
    to: int


class _Followed(NamedTuple):
    """Changes to an exporter's counters, as in SEQUENCE_CHANGES."""

    lost: int = 0
    restarts: int = 0
    unchecked: int = 0


@dataclass(eq=False)
class _Jumps:
    """State of a series with jumps in its numbers."""

    fit_least: int = _FIT_LEAST // 2
    """Value of `fit` required to follow the numbers again."""
    fit: int = 0
    gaps: list[_Gap] = field(default_factory=list)
    left: list[_Jump] = field(default_factory=list)
    returns: int = 0
    late_end: int = 0
    """End of the last late datagram, the number due at the time, and how often late ones continued there."""
    late_due: int = 0
    turns: int = 0
    overlaps: int = 0
    shared: int = 0

    def before(self, first: int, late_max: int) -> _Jump | None:
        """Return the jump that began near this number, if any."""
        return next((jump for jump in self.left if 0 <= nearest(first - jump.due) <= late_max), None)


class SequenceNumbers:
    """Follower of exporters' sequence numbers. Each exporter has a row from 0 to `size` - 1."""

    def __init__(self, size: int) -> None:
        self._series = np.zeros(size, SEQUENCE_STATE)
        self._countings = np.zeros(size, np.intp)
        self._senders = np.zeros(size, np.int64)
        """Hash of each row's exporter without its domain."""
        self._jumps: dict[int, _Jumps] = {}
        self._is_known, self._is_unknown = self._series["is_current"], self._series["is_unknown"]
        self._next, self._begun, self._other = (self._series[name] for name in ("due", "begun", "other"))
        self._is_exact, self._is_proved = self._series["is_exact"], self._series["is_proved"]
        self._is_apart = self._series["is_apart"]
        self._trust, self._misses = self._series["trust"], self._series["misses"]
        self._units, self._seen_ns = self._series["units"], self._series["seen_ns"]
        self._since_ns = self._series["since_ns"]

    def begin(self, row: int, key: DomainKey) -> None:
        """Assign a row to an exporter and start afresh."""
        self._series[row] = np.zeros((), SEQUENCE_STATE)
        self._countings[row], self._senders[row] = _COUNTINGS[key[2]], hash(key[:3])
        self._jumps.pop(row, None)

    def following(self, rows: Index) -> Array:
        """Return the state of exporters' numbers: SEQUENCE_STATE (n,)."""
        return take_rows(self._series, rows)

    def resume(self, row: int, following: Array) -> None:
        """Continue from the saved SEQUENCE_STATE of a row's exporter."""
        self._series[row] = following

    def countings(self, rows: Index) -> Array:
        """Return what the numbers of each row count (n,), as Counting: unknown also while that is in doubt."""
        is_doubted = self._misses[rows] > 0
        return np.where(self._is_unknown[rows] | is_doubted, Counting.UNKNOWN, self._countings[rows])

    def follow(self, rows: Index, datagrams: Array) -> tuple[Array, Array]:
        """Follow datagrams (n,) of the exporters in these rows, in order of arrival.

        Return SEQUENCE_CHANGES (m,), in which rows may repeat, and how far each datagram advanced the numbers (n,), 0
        if unknown. `datagrams` have the fields of DATAGRAM, none malformed.
        """
        # Sorting two-byte numbers is several times faster.
        order = np.argsort(rows.astype(np.min_scalar_type(len(self._series))), kind="stable")
        ordered, of_rows = take_rows(datagrams, order), rows[order]
        counts_datagrams = self._countings[of_rows] == Counting.DATAGRAMS
        begins, stretches = _stretches(of_rows, ordered, counts_datagrams)
        is_plain = self._follow_plain(of_rows[begins], stretches)
        # Domains that share a series are told by the order of arrival.
        others = np.flatnonzero(~is_plain)
        others = others[np.argsort(order[begins[others]])]
        slow = zip(as_list(of_rows[begins[others]]), take_rows(stretches, others).tolist(), strict=True)
        changes = [(row, *each) for row, values in slow for each in self._follow(row, _Stretch(*values))]
        moved = np.where(self._countings[rows] == Counting.DATAGRAMS, 1, datagrams["units"])
        moved[self._is_unknown[rows]] = 0
        return np.array(changes, SEQUENCE_CHANGES), moved

    def _follow_plain(self, rows: Index, stretches: Array) -> Mask:
        """Follow series whose next stretch starts at the number due. Return which stretches do."""
        is_known = self._is_known[rows]
        is_next = ~self._is_unknown[rows]
        is_next[1:] &= rows[1:] != rows[:-1]
        firsts = np.where(is_known, self._next[rows], stretches["first"])
        is_plain: Mask = is_next & (firsts & _MASK == stretches["first"])
        plain, of_plain = rows[is_plain], stretches[is_plain]
        new = plain[~is_known[is_plain]]
        self._next[new] = self._begun[new] = firsts[is_plain & ~is_known]
        hits: Array = of_plain["datagrams"] - ~is_known[is_plain]
        self._hit(plain, hits, of_plain["distinct"] + (self._other[plain] != 0))
        self._next[plain] += of_plain["length"]
        self._other[plain], self._is_exact[plain] = of_plain["other"], of_plain["is_exact"]
        self._is_known[plain] = True
        self._units[plain] += of_plain["length"]
        self._seen_ns[plain] = of_plain["seen_ns"]
        self._units[new], self._since_ns[new] = 0, self._seen_ns[new]
        return is_plain

    def _hit(self, rows: Index | int, datagrams: Array | int, distinct: Array | int) -> None:
        """Trust the numbers more: these datagrams follow the one before, `distinct` ones by this counting only."""
        self._trust[rows] = np.minimum(self._trust[rows] + distinct, _TRUST_MAX)
        self._misses[rows] = np.maximum(self._misses[rows] - _MISSES_PER_HIT * datagrams, -_CREDIT_MAX)
        self._is_proved[rows] |= datagrams > 0

    def _follow(self, row: int, stretch: _Stretch) -> list[_Followed]:
        """Follow one stretch."""
        if self._is_unknown[row]:
            return self._watch(row, stretch)
        ahead = nearest(stretch.first - int(self._next[row]))
        if ahead == 0:
            self._hit(row, stretch.datagrams, stretch.distinct + (self._other[row] != 0))
            self._expect(row, int(self._next[row]) + stretch.length, stretch)
            return []
        jumps = self._jumps.setdefault(row, _Jumps())
        if ahead == self._other[row]:
            self._trust[row] -= 1
            self._misses[row] = max(int(self._misses[row]), 0)
        self._misses[row] += 1
        self._is_proved[row] |= stretch.datagrams > 1
        followed = self._miss(row, stretch, ahead)
        misses_max = _PROVED_MISSES_MAX if self._is_proved[row] else _MISSES_MAX
        if self._misses[row] >= misses_max or self._trust[row] < 0 or jumps.shared >= _SHARED_MAX:
            followed += self._give_up(row, stretch)
        return followed

    def _miss(self, row: int, stretch: _Stretch, ahead: int) -> list[_Followed]:
        """Handle a stretch that does not start at the number due."""
        due, jumps, late_max = int(self._next[row]), self._jumps[row], _LATE_MAX[self._countings[row]]
        first = due + ahead
        if -late_max <= ahead < 0:
            return self._late(row, stretch, first)
        jump = jumps.before(first, late_max) if ahead < 0 or ahead > late_max else None
        if jump is not None:
            return self._return(row, stretch, jump)
        if ahead < 0 or ahead > self._max_distance(row, stretch):
            jumps.gaps = [gap._replace(is_open=False) for gap in jumps.gaps]
            jumps.left = [*jumps.left, _Jump(due, first)][-_LEFT_MAX:]
            self._expect(row, first + stretch.length, stretch)
            return [_Followed(restarts=1)]
        return self._gap(row, stretch, first)

    def _max_distance(self, row: int, stretch: _Stretch) -> int:
        """Return how far ahead a number may be if those in between are to count as lost."""
        most = _LOST_MAX[self._countings[row]]
        units, since_ns, seen_ns = (int(each[row]) for each in (self._units, self._since_ns, self._seen_ns))
        if seen_ns - since_ns < _RATE_NS:
            return most
        return max(most, _LOST_PER_SENT * units * (stretch.seen_ns - seen_ns) // (seen_ns - since_ns))

    def _expect(self, row: int, due: int, after: _Stretch) -> None:
        if self._next[row] != due - after.length:
            self._begun[row] = due - after.length
        self._next[row], self._is_exact[row] = due, after.is_exact
        self._other[row] = after.other
        self._units[row] += after.length
        self._seen_ns[row] = after.seen_ns

    def _gap(self, row: int, stretch: _Stretch, first: int) -> list[_Followed]:
        """Count the numbers between the one due and a stretch as lost, if the one due is exact and no other domain sent
        them.
        """
        due, jumps = int(self._next[row]), self._jumps[row]
        # Until a number is due that only counts datagrams, uncounted flows may be numbered.
        is_exact = self._is_exact[row] or (self._counts_datagrams(row) and self._is_proved[row])
        is_shared = self._is_sent_elsewhere(row, due, first)
        self._expect(row, first + stretch.length, stretch)
        if not is_exact:
            self._misses[row] -= 1
            return [_Followed(unchecked=1)]
        self._hit(row, stretch.datagrams - 1, stretch.distinct)
        if is_shared:
            jumps.shared += 1
            return [_Followed(unchecked=1)]
        jumps.gaps = [*jumps.gaps, _Gap(due, first)][-GAPS_MAX:]
        jumps.left = [*jumps.left, _Jump(due, first)][-_LEFT_MAX:]
        return [_Followed(lost=first - due)]

    def _is_sent_elsewhere(self, row: int, due: int, first: int) -> bool:
        """Return whether another domain of the sender began its run of numbers in a gap, and ended it with the gap.

        If any domain's run ever has numbers of this one's run as well, each domain has a series of its own.
        """
        if self._is_apart[row]:
            return False
        others = np.flatnonzero(self._senders == self._senders[row])
        if len(others) == 1:
            return False
        others = others[others != row]
        begun, ended = nearest(self._begun[others] - due), nearest(self._next[others] - due)
        is_apart = (begun < 0) & (ended > nearest(int(self._begun[row]) - due))
        fills = (begun >= 0) & (ended > begun) & (ended == first - due)
        self._is_apart[row] |= is_apart.any()
        return bool(fills.any() and not self._is_apart[row])

    def _counts_datagrams(self, row: int) -> bool:
        return bool(self._countings[row] == Counting.DATAGRAMS)

    def _late(self, row: int, stretch: _Stretch, first: int) -> list[_Followed]:
        """Remove late arrivals from the gaps."""
        due, end = int(self._next[row]), first + stretch.length
        jumps = self._jumps[row]
        is_exact = stretch.is_exact or self._counts_datagrams(row)
        followed = _fill(jumps, first, end, is_exact=is_exact)
        if followed or self._is_proved[row]:
            self._misses[row] -= 1  # reordered or duplicate
        if end > due:
            # A longer stretch may end where another begins.
            jumps.overlaps += stretch.datagrams == 1 and stretch.is_exact and bool(self._is_exact[row])
            self._expect(row, end, stretch)
        if not followed or first != jumps.late_end:
            jumps.turns = 0
        elif due > jumps.late_due:
            jumps.turns += 1
        jumps.late_end, jumps.late_due = end, due
        if jumps.turns >= _TURNS_MAX or jumps.overlaps >= _OVERLAPS_MAX:
            return [*followed, *self._give_up(row, stretch)]
        return followed

    def _return(self, row: int, stretch: _Stretch, jump: _Jump) -> list[_Followed]:
        """Continue from before a jump: nothing in between was lost."""
        jumps = self._jumps[row]
        jumps.returns += 1
        if jumps.returns >= _RETURNS_MAX:
            return self._give_up(row, stretch)
        between = [gap for gap in jumps.gaps if jump.due <= gap.begin < jump.to]
        followed = _withdraw(jumps, between)
        first = jump.due + nearest(stretch.first - jump.due)
        jumps.left = [*(each for each in jumps.left if each is not jump), _Jump(int(self._next[row]), first)]
        self._next[row] = jump.due
        if first == jump.due:
            self._expect(row, first + stretch.length, stretch)
            return [*followed, _Followed(unchecked=1)]
        return [*followed, *self._gap(row, stretch, first)]

    def _give_up(self, row: int, stretch: _Stretch) -> list[_Followed]:
        """Stop following the numbers; gaps may not have been losses."""
        jumps = self._jumps[row]
        followed = _withdraw(jumps, jumps.gaps)
        self._jumps[row] = _Jumps(min(2 * jumps.fit_least, _FIT_MOST))
        self._is_unknown[row], self._misses[row], self._trust[row] = True, 0, 0
        self._next[row] = stretch.first + stretch.length
        return [*followed, _Followed(unchecked=stretch.datagrams)]

    def _watch(self, row: int, stretch: _Stretch) -> list[_Followed]:
        """Check whether unfollowed numbers make sense again."""
        jumps = self._jumps.setdefault(row, _Jumps())
        is_due = self._next[row] & _MASK == stretch.first
        jumps.fit = max(0, jumps.fit + stretch.datagrams - (0 if is_due else _FIT_LOSS))
        self._expect(row, stretch.first + stretch.length, stretch)
        if jumps.fit >= jumps.fit_least:
            self._is_unknown[row] = False
        return [_Followed(unchecked=stretch.datagrams)]


def _withdraw(jumps: _Jumps, gaps: list[_Gap]) -> list[_Followed]:
    """Withdraw gaps that were not losses."""
    jumps.gaps = [gap for gap in jumps.gaps if gap not in gaps]
    return [_Followed(lost=gap.begin - gap.end, unchecked=1) for gap in gaps]


def _fill(jumps: _Jumps, first: int, end: int, *, is_exact: bool) -> list[_Followed]:
    """Remove late arrivals from the gaps. Return what is no longer lost."""
    left: list[_Gap] = []
    followed: list[_Followed] = []
    for gap in jumps.gaps:
        begin, stop = gap.begin, gap.end
        # A datagram with uncounted records may have covered the whole gap.
        until = stop if not is_exact and begin <= end < stop else min(stop, end)
        since = max(begin, first)
        if since >= until or not gap.is_open:
            left.append(gap)
        else:
            followed.append(_Followed(lost=since - until))
            parts = (begin, since), (until, stop)
            left += [gap._replace(begin=a, end=b) for a, b in parts if a < b]
    jumps.gaps = left[-GAPS_MAX:]
    return followed


def _stretches(rows: Index, datagrams: Array, counts_datagrams: Mask) -> tuple[Index, Array]:
    """Return the index of the first datagram and the structured array of `_Stretch` for datagrams sorted by row."""
    numbers, is_exact = datagrams["sequence"].astype(np.int64), datagrams["is_exact"]
    units = np.where(counts_datagrams, 1, datagrams["units"])
    # Without countable units, another counting says nothing about the next number.
    more = np.where(counts_datagrams, datagrams["units"] - 1, 1 - datagrams["units"])
    other = np.where(is_exact & (datagrams["units"] > 0), more, 0)
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
        stretches["distinct"] = np.add.reduceat(other != 0, begins, dtype=np.int64) - (other[lasts] != 0)
        for name, values in (("other", other), ("is_exact", is_exact), ("seen_ns", datagrams["received_ns"])):
            stretches[name] = values[lasts]
    return begins, stretches
