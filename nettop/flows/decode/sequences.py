# SPDX-License-Identifier: Apache-2.0
"""Lost exports: gaps between the sequence numbers of an exporter's datagrams.

A number says how much was sent before, in the units that `Numbering` recognizes. So each datagram covers a stretch of
numbers, and what no datagram has covered was lost on its journey, or before it in the exporter. Numbers that go to and
fro are those of several exporters that send as one: then nobody can say what was lost.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from nettop.flows.decode.datagrams import nearest
from nettop.flows.decode.domains import DomainKey
from nettop.flows.decode.numbering import MASK, SCORE_MAX, WAYS, Counting, Numbering, Series, units_of
from nettop.snapshots.arrays import Index, Mask, as_list, take
from nettop.snapshots.snapshot import Array

_DATAGRAMS = Counting.DATAGRAMS - 1
"""The place of this counting, as those in `units_of` and in what follows: datagrams, flows, records."""
_LATE_MAX = (128, 4096, 4096)
"""How far back a number may lie for a datagram that was overtaken, or came twice: 128 datagrams, or their records."""
_LOST_MAX = (1 << 20, 1 << 24, 1 << 24)
_LOST_PER_SENT = 8
"""How far ahead a number may lie for what lies between to be lost: so many units, or after a long silence so many times
what the exporter sends in that time.

What is further ahead, or further back, is of an exporter that has restarted.
"""
_RATE_NS = 10_000_000_000
"""An exporter has to be known for so long for its rate to say something."""
_MISSES_MAX, _PROVED_MISSES_MAX = 8, 32
"""How many more numbers may be others than were due: as long as none was, and later."""
_MISSES_PER_HIT = 2
"""How many misses a number makes up for that was due. Numbers that count something else are due by chance now and then;
no network that still carries something loses two datagrams in three.
"""
GAPS_MAX = 4 * _PROVED_MISSES_MAX
"""Gaps of an exporter that late datagrams may still fill, or that may be found to be none, the newest: more than it has
until it is seen that nearly all of its numbers are others than were due, though some are.
"""
_LEFT_MAX = 8
"""Numbers that an exporter has jumped away from, the newest."""
_RETURNS_MAX = 2
"""How often an exporter may go on where it was before a jump. The first may be one damaged number."""
_TURNS_MAX = 8
"""How often late datagrams may go on where the one before has ended, while those on time go on too."""
_OVERLAPS_MAX = 8
"""How many datagrams may have numbers of which others have covered only some: by the right counting none has."""
_FIT_LEAST, _FIT_MOST = 64, 1 << 16
"""How many datagrams more have to have the number that is due, for numbers to be followed that were not: at first, and
at most, as it is twice as many each time."""
_FIT_LOSS = 4
"""How many of these a datagram takes away that has another number."""

FOLLOWED = np.dtype([("row", "intp"), ("lost", "i8"), ("restarts", "i8"), ("unchecked", "i8")])
"""What datagrams have shown of the exporter in a row: how much more was lost before them, less what they have of
earlier gaps and what was taken for lost and was not; how often it has restarted; and before how many of them nobody can
say what was lost.
"""
FOLLOWING = np.dtype(
    [
        ("is_current", "?"),
        ("due", "i8"),
        ("is_exact", "?"),
        ("is_unknown", "?"),
        ("way", "u1"),
        ("scores", "u1", (WAYS,)),
        ("is_proved", "?"),
        ("units", "i8"),
        ("since_ns", "i8"),
        ("seen_ns", "i8"),
    ]
)
"""What is known of an exporter's numbers: whether its last one is known; what should come next, whether it is that or
may be more, whether its numbers are not followed; how its sender numbers; and how much it has sent in which time."""

_STRETCH = np.dtype(
    [("row", "intp"), ("counting", "u1"), ("first", "i8"), ("length", "i8"), ("datagrams", "i8"), ("is_exact", "?"),
     ("seen_ns", "i8")]
)  # fmt: skip


class _Numbered(NamedTuple):
    """Of datagrams (n,): the slot of its series, the exporter's row, what the series counts, its number, how much it
    counts, whether that is all, and when it came."""

    slots: Array
    rows: Array
    countings: Array
    numbers: Array
    units: Array
    is_exact: Array
    received_ns: Array

    def at(self, order: Index) -> _Numbered:
        """Return them in this order."""
        return _Numbered(*(values[order] for values in self))


class _Stretch(NamedTuple):
    """Numbers of datagrams that followed each other without a gap: the row of the first one's exporter, what they
    count, the first one, how many, of how many datagrams, and when the last one came.

    There may be more of them if they are not exact.
    """

    row: int
    counting: int
    first: int
    length: int
    datagrams: int
    is_exact: bool
    seen_ns: int


class _Gap(NamedTuple):
    """Numbers from `begin` to `end` - 1 that did not come, which were counted as lost in a row: how far the way to
    number was ahead of others then. They may come late, but not after a restart."""

    begin: int
    end: int
    row: int
    lead: int
    is_open: bool = True


class _Jump(NamedTuple):
    """A number that was due, and the one that came in its place."""

    due: int
    to: int


class _Followed(NamedTuple):
    """What a stretch has shown of the exporter in a row, as FOLLOWED has it."""

    row: int
    lost: int = 0
    restarts: int = 0
    unchecked: int = 0


@dataclass(eq=False)
class _Jumps:
    """What is remembered of a series whose numbers have jumped."""

    fit_least: int = _FIT_LEAST // 2
    """How much `fit` has to be for numbers to be followed again."""
    fit: int = 0
    gaps: list[_Gap] = field(default_factory=list)
    left: list[_Jump] = field(default_factory=list)
    returns: int = 0
    late_end: int = 0
    """Where the last late datagram has ended, what was due then, and how often late ones went on there."""
    late_due: int = 0
    turns: int = 0
    overlaps: int = 0

    def doubtful(self) -> list[_Gap]:
        """Return the newest gaps, since when nothing has confirmed that the way to number is the right one."""
        start = 0
        for at, gap in enumerate(self.gaps):
            if gap.lead >= SCORE_MAX:
                start = at + 1
            elif at and gap.lead > self.gaps[at - 1].lead:
                start = at
        return self.gaps[start:]

    def before(self, first: int, late_max: int) -> _Jump | None:
        """Return the jump from about this number to elsewhere, if there was one."""
        return next((jump for jump in self.left if 0 <= nearest(first - jump.due) <= late_max), None)


class Sequences:
    """Follows the sequence numbers of exporters, each of which has a row here, from 0 to `size` - 1."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._numbering = Numbering(size)
        slots = 2 * size
        self._is_known = np.zeros(slots, bool)
        self._next = np.zeros(slots, np.int64)
        """What should come next, of each slot, which counts on beyond 32 bits."""
        self._is_exact = np.zeros(slots, bool)
        """Whether it is that number, or may be a higher one."""
        self._is_unknown = np.zeros(slots, bool)
        """Whether the numbers are not followed, as no way explains them."""
        self._misses = np.zeros(slots, np.int64)
        """How many more stretches had other numbers than were due than hits make up for."""
        self._units, self._since_ns, self._seen_ns = (np.zeros(slots, np.int64) for _ in range(3))
        self._jumps: dict[int, _Jumps] = {}

    def begin(self, row: int, key: DomainKey) -> None:
        """Begin anew: the row is that of this exporter now."""
        # What was lost of the exporter before is not found again in this row.
        if jumps := self._jumps.get(self._numbering.slot_of_all(row)):
            jumps.gaps = [gap for gap in jumps.gaps if gap.row != row]
        for slot in self._numbering.begin(row, key):
            self._is_known[slot] = self._is_unknown[slot] = False
            self._jumps.pop(slot, None)

    def following(self, rows: Index) -> Array:
        """Return what is known of the numbers of exporters: FOLLOWING (n,)."""
        slots = self._numbering.slots(rows)
        following = np.zeros(len(rows), FOLLOWING)
        ways, scores, are_proved = self._numbering.ways(rows)
        following["way"], following["scores"], following["is_proved"] = ways, scores, are_proved
        following["due"] = self._next[slots] & MASK
        following["is_current"] = self._is_known[slots]
        following["is_exact"], following["is_unknown"] = self._is_exact[slots], self._is_unknown[slots]
        for name, values in (
            ("units", self._units),
            ("since_ns", self._since_ns),
            ("seen_ns", self._seen_ns),
        ):
            following[name] = values[slots]
        return following

    def resume(self, row: int, following: Array, *, is_current: bool) -> None:
        """Continue from FOLLOWING of a row's exporter, which has just begun; if not current, from how it numbers."""
        way, is_proved = int(following["way"]), bool(following["is_proved"])
        self._numbering.resume(row, way, following["scores"], is_proved=is_proved)
        if not is_current:
            return
        (slot,) = self._numbering.slots(np.array([row]))
        # Of several domains with one series each would say the same.
        if not self._is_known[slot]:
            self._is_known[slot] = True
            self._misses[slot] = 0
            self._next[slot], self._is_exact[slot] = following["due"], following["is_exact"]
            self._is_unknown[slot] = following["is_unknown"]
            self._units[slot] = following["units"]
            self._since_ns[slot], self._seen_ns[slot] = following["since_ns"], following["seen_ns"]

    def countings(self, rows: Index) -> Array:
        """Return what the numbers of each row count (n,), as Counting."""
        is_unknown = self._is_unknown[self._numbering.slots(rows)]
        return np.where(is_unknown, Counting.UNKNOWN, self._numbering.countings(rows) + 1)

    def follow(self, rows: Index, datagrams: Array) -> tuple[Array, Array]:
        """Follow datagrams (n,) of the exporters in these rows, in the order in which they came.

        Returns FOLLOWED (m,), of the same row as often as need be, and by how much each datagram has moved the numbers
        (n,), 0 where nobody knows. `datagrams` have the fields of DATAGRAM, and none is malformed.
        """
        order = self._ordered(rows)
        numbers, units = datagrams["sequence"].astype(np.int64), units_of(datagrams)
        is_exact = datagrams["is_exact"]
        changed = self._numbering.see(rows[order], order, numbers[order], units[order], is_exact[order])
        followed = [each for series in changed for each in self._begin_series(series)]
        slots, countings = self._numbering.slots(rows), self._numbering.countings(rows)
        moved: Array = units[np.arange(len(rows)), countings]
        numbered = _Numbered(slots, rows, countings, numbers, moved, is_exact, datagrams["received_ns"])
        of_stretch, stretches = _stretches(numbered.at(self._ordered(slots)))
        is_plain = self._follow_plain(of_stretch, stretches)
        if not is_plain.all():
            others = take(stretches, np.flatnonzero(~is_plain)).tolist()
            for slot, values in zip(as_list(of_stretch[~is_plain]), others, strict=True):
                followed += self._follow(slot, _Stretch(*values))
        moved[self._is_unknown[slots]] = 0
        return np.array(followed, FOLLOWED), moved

    def _ordered(self, numbers: Index) -> Index:
        # Numbers of two bytes are sorted several times as fast as others.
        narrow = np.min_scalar_type(2 * self._size)
        return np.argsort(numbers.astype(narrow), kind="stable")

    def _follow_plain(self, slots: Index, stretches: Array) -> Mask:
        """Follow series whose next stretch is the one that is due. Returns which stretches these are."""
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
        """Make up for misses by as many datagrams whose number was due."""
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
        """Follow a stretch whose number is another one than was due."""
        due, jumps, late_max = int(self._next[slot]), self._jumps[slot], _LATE_MAX[stretch.counting]
        first = due + ahead
        if -late_max <= ahead < 0:
            return self._late(slot, stretch, first)
        jump = jumps.before(first, late_max) if ahead < 0 or ahead > late_max else None
        if jump is not None:
            return self._return(slot, stretch, jump)
        if ahead < 0 or ahead > self._furthest(slot, stretch):
            jumps.gaps = [gap._replace(is_open=False) for gap in jumps.gaps]
            jumps.left = [*jumps.left, _Jump(due, first)][-_LEFT_MAX:]
            self._expect(slot, first + stretch.length, stretch)
            return [_Followed(stretch.row, restarts=1)]
        return self._gap(slot, stretch, first)

    def _furthest(self, slot: int, stretch: _Stretch) -> int:
        """How far ahead a number may be for what lies between to be lost."""
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
        """Count as lost what lies between what was due and a stretch, if that is known."""
        due, jumps, row = int(self._next[slot]), self._jumps[slot], stretch.row
        # Whether it numbers datagrams shows if these give another number of records, which has to be known.
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
        """Take what has come late out of the gaps."""
        due, end = int(self._next[slot]), first + stretch.length
        jumps = self._jumps[slot]
        is_exact = stretch.is_exact or stretch.counting == _DATAGRAMS
        followed = _fill(jumps, first, end, is_exact=is_exact)
        if followed or self._numbering.is_proved(stretch.row):
            self._misses[slot] -= 1  # it was overtaken, or came twice
        if end > due:
            # Within a longer stretch one datagram may end where another begins.
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
        """Go on where the numbers were before a jump: nothing of what lies between was lost."""
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
        """Follow the numbers no longer: what was taken for lost may not have been."""
        jumps = self._jumps[slot]
        followed = _withdraw(jumps, jumps.gaps)
        self._jumps[slot] = _Jumps(min(2 * jumps.fit_least, _FIT_MOST))
        self._is_unknown[slot], self._misses[slot] = True, 0
        self._next[slot] = stretch.first + stretch.length
        return [*followed, _Followed(stretch.row, unchecked=stretch.datagrams)]

    def _watch(self, slot: int, stretch: _Stretch) -> list[_Followed]:
        """See whether numbers that are not followed may be followed again."""
        jumps = self._jumps.setdefault(slot, _Jumps())
        is_due = self._next[slot] & MASK == stretch.first
        jumps.fit = max(0, jumps.fit + stretch.datagrams - (0 if is_due else _FIT_LOSS))
        self._expect(slot, stretch.first + stretch.length, stretch)
        if jumps.fit >= jumps.fit_least:
            self._is_unknown[slot] = False
            self._misses[slot] = 0
        return [_Followed(stretch.row, unchecked=stretch.datagrams)]

    def _begin_series(self, series: Series) -> list[_Followed]:
        """Follow a series in another way. What was taken for lost since there were signs of that may not have been."""
        slot = series.slot
        jumps = self._jumps.pop(slot, None)
        followed = [] if jumps is None else _withdraw(jumps, jumps.doubtful())
        self._next[slot], self._is_exact[slot], self._is_known[slot] = series[1:]
        self._is_unknown[slot], self._misses[slot] = False, 0
        self._units[slot], self._since_ns[slot] = 0, self._seen_ns[slot]
        return followed


def _withdraw(jumps: _Jumps, gaps: list[_Gap]) -> list[_Followed]:
    """Count as lost no longer what lies in these gaps, which were none."""
    jumps.gaps = [gap for gap in jumps.gaps if gap not in gaps]
    return [_Followed(gap.row, lost=gap.begin - gap.end, unchecked=1) for gap in gaps]


def _fill(jumps: _Jumps, first: int, end: int, *, is_exact: bool) -> list[_Followed]:
    """Take what has come late out of the gaps. Returns what of them is not lost."""
    left: list[_Gap] = []
    followed: list[_Followed] = []
    for gap in jumps.gaps:
        begin, stop = gap.begin, gap.end
        # Of a datagram that may have had more, the gap may have been all.
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


def _stretches(numbered: _Numbered) -> tuple[Index, Array]:
    """The slots of stretches among datagrams that are ordered by their slot, and a structured array of `_Stretch`."""
    slots, rows, countings, numbers, units, is_exact, received_ns = numbered
    is_first = np.ones(len(slots), bool)
    is_first[1:] = (
        (slots[1:] != slots[:-1])
        | ~(is_exact[:-1] | (countings[:-1] == _DATAGRAMS))
        | (numbers[:-1] + units[:-1] & MASK != numbers[1:])
        # What has nothing counted still says that its number is due: at the end of a late stretch that would be lost.
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
