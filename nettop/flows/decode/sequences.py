# SPDX-License-Identifier: Apache-2.0
"""Detect lost exports as gaps between the sequence numbers of an exporter's datagrams.

A sequence number says how much was sent before, in the units that `Numbering` recognizes. So each datagram covers a
range of numbers, and numbers never covered were lost in transit, or in the exporter before that. Numbers that go back
and forth come from several exporters that share an identity; their losses are unknown.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from nettop.flows.decode.batch import DomainKey
from nettop.flows.decode.datagrams import nearest
from nettop.flows.decode.numbering import MASK, SCHEMES, SCORE_MAX, Counting, Numbering, Series, units_of
from nettop.snapshots.arrays import Array, Index, Mask, as_list, take_rows

_DATAGRAMS = Counting.DATAGRAMS - 1
"""Column of this counting in `units_of` and in the tuples below: datagrams, flows, records."""
_LATE_MAX = (128, 4096, 4096)
"""Maximum distance back of a reordered or duplicate datagram: 128 datagrams, or their records."""
_LOST_MAX = (1 << 20, 1 << 24, 1 << 24)
_LOST_PER_SENT = 8
"""Maximum distance ahead for numbers in between to count as lost: a fixed number of units or, after a long silence,
this multiple of what the exporter sends in that time.

A number further ahead, or further back, means the exporter restarted.
"""
_RATE_NS = 10_000_000_000
"""Minimum time an exporter must be known for its rate to be meaningful."""
_MISSES_MAX, _PROVED_MISSES_MAX = 8, 32
"""Maximum excess of unexpected numbers: until the scheme is proved, and afterwards."""
_MISSES_PER_HIT = 2
"""Misses offset by one expected number. With a wrong counting some numbers match by chance; no working network loses
two datagrams in three.
"""
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
        ("is_exact", "?"),
        ("is_unknown", "?"),
        ("way", "u1"),
        ("scores", "u1", (SCHEMES,)),
        ("is_proved", "?"),
        ("units", "i8"),
        ("since_ns", "i8"),
        ("seen_ns", "i8"),
    ]
)
"""State of an exporter's numbers: whether the last one is known; the number due, whether that is exact or a minimum,
whether numbers are not being followed; the sender's scheme; and units sent over a period.
"""

_STRETCH = np.dtype(
    [("row", "intp"), ("counting", "u1"), ("first", "i8"), ("length", "i8"), ("datagrams", "i8"), ("is_exact", "?"),
     ("seen_ns", "i8")]
)  # fmt: skip


class _Stretch(NamedTuple):
    """Numbers of consecutive datagrams without a gap: row of the first one's exporter, what they count, first number,
    how many numbers and datagrams, and when the last one arrived.

    If not exact, there may be more.
    """

    row: int
    counting: int
    first: int
    length: int
    datagrams: int
    is_exact: bool
    seen_ns: int


class _Gap(NamedTuple):
    """Missing numbers from `begin` to `end` - 1, counted as lost in a row; `lead` is the lead of the scheme at the
    time. They may arrive late, but not after a restart.
    """

    begin: int
    end: int
    row: int
    lead: int
    is_open: bool = True


class _Jump(NamedTuple):
    """The number that was due, and the one that arrived instead."""

    due: int
    to: int


class _Followed(NamedTuple):
    """Changes to the counters of the exporter in a row, as in SEQUENCE_CHANGES."""

    row: int
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

    def doubtful(self) -> list[_Gap]:
        """Return the newest gaps: those after the scheme was last confirmed."""
        start = 0
        for at, gap in enumerate(self.gaps):
            if gap.lead >= SCORE_MAX:
                start = at + 1
            elif at and gap.lead > self.gaps[at - 1].lead:
                start = at
        return self.gaps[start:]

    def before(self, first: int, late_max: int) -> _Jump | None:
        """Return the jump that began near this number, if any."""
        return next((jump for jump in self.left if 0 <= nearest(first - jump.due) <= late_max), None)


class Sequences:
    """Follower of exporters' sequence numbers. Each exporter has a row from 0 to `size` - 1."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._numbering = Numbering(size)
        slots = 2 * size
        self._series = np.zeros(slots, SEQUENCE_STATE)
        self._is_known = self._series["is_current"]
        self._next = self._series["due"]
        """Number due next in each slot, which counts on beyond 32 bits."""
        self._is_exact, self._is_unknown = self._series["is_exact"], self._series["is_unknown"]
        self._units, self._seen_ns = self._series["units"], self._series["seen_ns"]
        self._since_ns = self._series["since_ns"]
        self._misses = np.zeros(slots, np.int64)
        """Excess of stretches with unexpected numbers over those that hits offset."""
        self._jumps: dict[int, _Jumps] = {}

    def begin(self, row: int, key: DomainKey) -> None:
        """Assign a row to an exporter and start afresh."""
        # Losses of the row's previous exporter must not be recovered in this one.
        if jumps := self._jumps.get(self._numbering.slot_of_all(row)):
            jumps.gaps = [gap for gap in jumps.gaps if gap.row != row]
        for slot in self._numbering.begin(row, key):
            self._is_known[slot] = self._is_unknown[slot] = False
            self._jumps.pop(slot, None)

    def following(self, rows: Index) -> Array:
        """Return the state of exporters' numbers: SEQUENCE_STATE (n,)."""
        following = take_rows(self._series, self._numbering.slots(rows))
        following["due"] &= MASK
        following["way"], following["scores"], following["is_proved"] = self._numbering.schemes(rows)
        return following

    def resume(self, row: int, following: Array, *, is_current: bool) -> None:
        """Continue from the saved SEQUENCE_STATE of a row's exporter; unless current, restore only its numbering
        scheme.
        """
        way, is_proved = int(following["way"]), bool(following["is_proved"])
        self._numbering.resume(row, way, following["scores"], is_proved=is_proved)
        (slot,) = self._numbering.slots(np.array([row]))
        # Domains that share a series all have the same state.
        if is_current and not self._is_known[slot]:
            self._misses[slot] = 0
            for name in SEQUENCE_STATE.names or ():
                self._series[name][slot] = following[name]

    def countings(self, rows: Index) -> Array:
        """Return what the numbers of each row count (n,), as Counting."""
        is_unknown = self._is_unknown[self._numbering.slots(rows)]
        return np.where(is_unknown, Counting.UNKNOWN, self._numbering.countings(rows) + 1)

    def follow(self, rows: Index, datagrams: Array) -> tuple[Array, Array]:
        """Follow datagrams (n,) of the exporters in these rows, in order of arrival.

        Return SEQUENCE_CHANGES (m,), in which rows may repeat, and how far each datagram advanced the numbers (n,), 0
        if unknown. `datagrams` have the fields of DATAGRAM, none malformed.
        """
        order = self._ordered(rows)
        numbers, units = datagrams["sequence"].astype(np.int64), units_of(datagrams)
        is_exact = datagrams["is_exact"]
        changed = self._numbering.compare(rows[order], order, numbers[order], units[order], is_exact[order])
        followed = [each for series in changed for each in self._begin_series(series)]
        slots, countings = self._numbering.slots(rows), self._numbering.countings(rows)
        moved: Array = units[np.arange(len(rows)), countings]
        order = self._ordered(slots)
        numbered = (slots, rows, countings, numbers, moved, is_exact, datagrams["received_ns"])
        of_stretch, stretches = _stretches(tuple(values[order] for values in numbered))
        is_plain = self._follow_plain(of_stretch, stretches)
        if not is_plain.all():
            others = take_rows(stretches, np.flatnonzero(~is_plain)).tolist()
            for slot, values in zip(as_list(of_stretch[~is_plain]), others, strict=True):
                followed += self._follow(slot, _Stretch(*values))
        moved[self._is_unknown[slots]] = 0
        return np.array(followed, SEQUENCE_CHANGES), moved

    def _ordered(self, numbers: Index) -> Index:
        # Sorting two-byte numbers is several times faster.
        narrow = np.min_scalar_type(2 * self._size)
        return np.argsort(numbers.astype(narrow), kind="stable")

    def _follow_plain(self, slots: Index, stretches: Array) -> Mask:
        """Follow series whose next stretch starts at the number due. Return which stretches do."""
        is_known = self._is_known[slots]
        is_next = ~self._is_unknown[slots]
        is_next[1:] &= slots[1:] != slots[:-1]
        firsts = np.where(is_known, self._next[slots], stretches["first"])
        is_plain: Mask = is_next & (firsts & MASK == stretches["first"])
        plain = slots[is_plain]
        of_plain = stretches[is_plain]
        self._next[plain] = firsts[is_plain] + of_plain["length"]
        self._is_exact[plain] = of_plain["is_exact"]
        self._is_known[plain] = True
        self._hit(plain, of_plain["datagrams"])
        self._units[plain] += of_plain["length"]
        self._seen_ns[plain] = of_plain["seen_ns"]
        new = plain[~is_known[is_plain]]
        self._units[new], self._since_ns[new] = 0, self._seen_ns[new]
        return is_plain

    def _hit(self, slots: Index | int, datagrams: Array | int) -> None:
        """Reduce misses for datagrams with the number due."""
        self._misses[slots] = np.maximum(self._misses[slots] - _MISSES_PER_HIT * datagrams, 0)

    def _follow(self, slot: int, stretch: _Stretch) -> list[_Followed]:
        """Follow one stretch."""
        if self._is_unknown[slot]:
            return self._watch(slot, stretch)
        ahead = nearest(stretch.first - int(self._next[slot]))
        if ahead == 0:
            self._expect(slot, int(self._next[slot]) + stretch.length, stretch)
            self._hit(slot, stretch.datagrams)
            return []
        self._jumps.setdefault(slot, _Jumps())
        self._misses[slot] += 1
        followed = self._miss(slot, stretch, ahead)
        is_proved = self._numbering.is_proved(stretch.row)
        if self._misses[slot] >= (_PROVED_MISSES_MAX if is_proved else _MISSES_MAX):
            followed += self._give_up(slot, stretch)
        return followed

    def _miss(self, slot: int, stretch: _Stretch, ahead: int) -> list[_Followed]:
        """Handle a stretch that does not start at the number due."""
        due, jumps, late_max = int(self._next[slot]), self._jumps[slot], _LATE_MAX[stretch.counting]
        first = due + ahead
        if -late_max <= ahead < 0:
            return self._late(slot, stretch, first)
        jump = jumps.before(first, late_max) if ahead < 0 or ahead > late_max else None
        if jump is not None:
            return self._return(slot, stretch, jump)
        if ahead < 0 or ahead > self._max_distance(slot, stretch):
            jumps.gaps = [gap._replace(is_open=False) for gap in jumps.gaps]
            jumps.left = [*jumps.left, _Jump(due, first)][-_LEFT_MAX:]
            self._expect(slot, first + stretch.length, stretch)
            return [_Followed(stretch.row, restarts=1)]
        return self._gap(slot, stretch, first)

    def _max_distance(self, slot: int, stretch: _Stretch) -> int:
        """Return how far ahead a number may be if those in between are to count as lost."""
        most = _LOST_MAX[stretch.counting]
        units, since_ns, seen_ns = (int(each[slot]) for each in (self._units, self._since_ns, self._seen_ns))
        if seen_ns - since_ns < _RATE_NS:
            return most
        return max(most, _LOST_PER_SENT * units * (stretch.seen_ns - seen_ns) // (seen_ns - since_ns))

    def _expect(self, slot: int, due: int, after: _Stretch) -> None:
        self._next[slot], self._is_exact[slot] = due, after.is_exact
        self._units[slot] += after.length
        self._seen_ns[slot] = after.seen_ns

    def _gap(self, slot: int, stretch: _Stretch, first: int) -> list[_Followed]:
        """Count the numbers between the one due and a stretch as lost, if the one due is exact."""
        due, jumps, row = int(self._next[slot]), self._jumps[slot], stretch.row
        # Proved to number datagrams: only a different, known number of records could show that.
        is_exact = self._is_exact[slot] or (stretch.counting == _DATAGRAMS and self._numbering.is_proved(row))
        self._expect(slot, first + stretch.length, stretch)
        if not is_exact:
            self._misses[slot] = 0
            return [_Followed(row, unchecked=1)]
        jumps.gaps = [*jumps.gaps, _Gap(due, first, row, self._numbering.lead(row))][-GAPS_MAX:]
        jumps.left = [*jumps.left, _Jump(due, first)][-_LEFT_MAX:]
        self._hit(slot, stretch.datagrams - 1)
        return [_Followed(row, lost=first - due)]

    def _late(self, slot: int, stretch: _Stretch, first: int) -> list[_Followed]:
        """Remove late arrivals from the gaps."""
        due, end = int(self._next[slot]), first + stretch.length
        jumps = self._jumps[slot]
        is_exact = stretch.is_exact or stretch.counting == _DATAGRAMS
        followed = _fill(jumps, first, end, is_exact=is_exact)
        if followed or self._numbering.is_proved(stretch.row):
            self._misses[slot] -= 1  # reordered or duplicate
        if end > due:
            # A longer stretch may end where another begins.
            jumps.overlaps += stretch.datagrams == 1 and stretch.is_exact and bool(self._is_exact[slot])
            self._expect(slot, end, stretch)
        if not followed or first != jumps.late_end:
            jumps.turns = 0
        elif due > jumps.late_due:
            jumps.turns += 1
        jumps.late_end, jumps.late_due = end, due
        if jumps.turns >= _TURNS_MAX or jumps.overlaps >= _OVERLAPS_MAX:
            return [*followed, *self._give_up(slot, stretch)]
        return followed

    def _return(self, slot: int, stretch: _Stretch, jump: _Jump) -> list[_Followed]:
        """Continue from before a jump: nothing in between was lost."""
        jumps = self._jumps[slot]
        jumps.returns += 1
        if jumps.returns >= _RETURNS_MAX:
            return self._give_up(slot, stretch)
        between = [gap for gap in jumps.gaps if jump.due <= gap.begin < jump.to]
        followed = _withdraw(jumps, between)
        first = jump.due + nearest(stretch.first - jump.due)
        jumps.left = [*(each for each in jumps.left if each is not jump), _Jump(int(self._next[slot]), first)]
        self._next[slot] = jump.due
        if first == jump.due:
            self._expect(slot, first + stretch.length, stretch)
            return [*followed, _Followed(stretch.row, unchecked=1)]
        return [*followed, *self._gap(slot, stretch, first)]

    def _give_up(self, slot: int, stretch: _Stretch) -> list[_Followed]:
        """Stop following the numbers; gaps may not have been losses."""
        jumps = self._jumps[slot]
        followed = _withdraw(jumps, jumps.gaps)
        self._jumps[slot] = _Jumps(min(2 * jumps.fit_least, _FIT_MOST))
        self._is_unknown[slot], self._misses[slot] = True, 0
        self._next[slot] = stretch.first + stretch.length
        return [*followed, _Followed(stretch.row, unchecked=stretch.datagrams)]

    def _watch(self, slot: int, stretch: _Stretch) -> list[_Followed]:
        """Check whether unfollowed numbers make sense again."""
        jumps = self._jumps.setdefault(slot, _Jumps())
        is_due = self._next[slot] & MASK == stretch.first
        jumps.fit = max(0, jumps.fit + stretch.datagrams - (0 if is_due else _FIT_LOSS))
        self._expect(slot, stretch.first + stretch.length, stretch)
        if jumps.fit >= jumps.fit_least:
            self._is_unknown[slot] = False
            self._misses[slot] = 0
        return [_Followed(stretch.row, unchecked=stretch.datagrams)]

    def _begin_series(self, series: Series) -> list[_Followed]:
        """Follow a series by a new scheme. Withdraw the gaps found while the old one was in doubt."""
        slot = series.slot
        jumps = self._jumps.pop(slot, None)
        followed = [] if jumps is None else _withdraw(jumps, jumps.doubtful())
        self._next[slot], self._is_exact[slot], self._is_known[slot] = series[1:]
        self._is_unknown[slot], self._misses[slot] = False, 0
        self._units[slot], self._since_ns[slot] = 0, self._seen_ns[slot]
        return followed


def _withdraw(jumps: _Jumps, gaps: list[_Gap]) -> list[_Followed]:
    """Withdraw gaps that were not losses."""
    jumps.gaps = [gap for gap in jumps.gaps if gap not in gaps]
    return [_Followed(gap.row, lost=gap.begin - gap.end, unchecked=1) for gap in gaps]


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
            followed.append(_Followed(gap.row, lost=since - until))
            parts = (begin, since), (until, stop)
            left += [gap._replace(begin=a, end=b) for a, b in parts if a < b]
    jumps.gaps = left[-GAPS_MAX:]
    return followed


def _stretches(numbered: tuple[Array, ...]) -> tuple[Index, Array]:
    """Return the slots and structured array of `_Stretch` for datagrams sorted by slot.

    They have a slot, the exporter's row, what the series counts, sequence number, units, whether the units are exact,
    and receive time: (n,) each.
    """
    slots, rows, countings, numbers, units, is_exact, received_ns = numbered
    is_first = np.ones(len(slots), bool)
    is_first[1:] = (
        (slots[1:] != slots[:-1])
        | ~(is_exact[:-1] | (countings[:-1] == _DATAGRAMS))
        | (numbers[:-1] + units[:-1] & MASK != numbers[1:])
        # A datagram without countable units still has the number due; merged at the end of a late stretch, that would
        # be lost.
        | (units[1:] == 0)
    )
    begins = np.flatnonzero(is_first)
    stretches = np.zeros(len(begins), _STRETCH)
    if len(begins):
        ends = np.append(begins[1:], len(slots))
        stretches["row"], stretches["counting"] = rows[begins], countings[begins]
        stretches["first"], stretches["length"] = numbers[begins], np.add.reduceat(units, begins)
        stretches["datagrams"] = ends - begins
        stretches["is_exact"], stretches["seen_ns"] = is_exact[ends - 1], received_ns[ends - 1]
    return slots[begins], stretches
