# SPDX-License-Identifier: Apache-2.0
"""What sequence numbers count: exporters do not all number as their protocol says.

NetFlow 5 numbers flows, 9 messages (RFC 3954, section 5.1), IPFIX records with those of options (RFC 7011, section
3.1), sFlow datagrams, and each observation domain, engine or sub-agent has a series of its own. Some exporters of
NetFlow 9 number flows, others have one series for all domains. So all ways are compared with what comes.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import numpy as np

from nettop.flows.decode import netflow5, sflow
from nettop.flows.decode.domains import DomainKey
from nettop.flows.decode.templates import IPFIX, NETFLOW_9
from nettop.snapshots.arrays import Index, Mask, as_list
from nettop.snapshots.snapshot import Array

MASK = (1 << 32) - 1
"""Numbers are of 32 bits."""
SCORE_MAX = 8
"""How far one way may be ahead of another: after so many datagrams it is seen that a sender numbers in another way."""


class Counting(IntEnum):
    """What the numbers of an exporter count."""

    UNKNOWN = 0
    """No way explains the numbers, as where two exporters send as one."""
    DATAGRAMS = 1
    FLOWS = 2
    RECORDS = 3
    """Flows, and records of options."""


_KINDS = len(Counting) - 1
WAYS = 2 * _KINDS
"""Each counting with a series for each domain, then each with one series for all domains of a sender."""
OF_ALL = _KINDS
"""The first way with one series for all domains."""
_USUAL = {
    netflow5.VERSION: Counting.FLOWS,
    NETFLOW_9: Counting.DATAGRAMS,
    IPFIX: Counting.RECORDS,
    sflow.PROTOCOL_VERSION: Counting.DATAGRAMS,
}
LAST = np.dtype([("due", "i8", (_KINDS,)), ("number", "i8"), ("is_exact", "?"), ("is_known", "?")])
"""The last datagram of a series: which number should follow by each counting, its own number, and whether its records
could be counted."""


class Series(NamedTuple):
    """A series that is followed anew: its slot, which number is due, and as in LAST."""

    slot: int
    due: int
    is_exact: bool
    is_known: bool


def units_of(datagrams: Array) -> Array:
    """Return by how much each datagram (n,), DATAGRAM, moves the numbers, by each counting (n, 3)."""
    units = np.ones((len(datagrams), _KINDS), np.int64)
    units[:, Counting.FLOWS - 1] = datagrams["units"] - datagrams["unit_options"]
    units[:, Counting.RECORDS - 1] = datagrams["units"]
    return units


class Numbering:
    """Recognizes how senders number.

    Every exporter has a row, from 0 to `size` - 1. A series of numbers has a slot: that of one exporter its row, that
    of all domains of a sender one of as many behind.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._sender_of = np.full(size, -1, np.intp)
        """The sender of each row, as a number."""
        self._senders: dict[tuple[bytes, int, int], int] = {}
        self._keys: dict[int, DomainKey] = {}
        self._free = list(range(size))
        self._rows_of = np.zeros(size, np.intp)
        """How many rows each sender has."""
        self._ways = np.zeros(size, np.intp)
        self._scores = np.zeros((size, WAYS), np.int64)
        self._are_proved = np.zeros(size, bool)
        self._last = np.zeros(2 * size, LAST)

    def begin(self, row: int, key: DomainKey) -> list[int]:
        """Give a row to an exporter; the one that had it is forgotten. Returns the slots that are of others now."""
        if row in self._keys:
            self._leave(row)
        self._keys[row] = key
        sender = key[:3]
        slots = [row]
        if sender not in self._senders:
            number = self._senders[sender] = self._free.pop()
            self._ways[number], self._scores[number] = _USUAL[sender[2]] - 1, 0
            self._are_proved[number] = False
            slots.append(self._size + number)
        self._sender_of[row] = self._senders[sender]
        self._rows_of[self._senders[sender]] += 1
        self._last["is_known"][slots] = False
        return slots

    def resume(self, row: int, way: int, scores: Array, *, is_proved: bool) -> None:
        """Take it that the sender of a row numbers as it did before, unless it has shown how already."""
        sender = self._sender_of[row]
        if not self._scores[sender].any():
            self._ways[sender], self._scores[sender] = way, scores
            self._are_proved[sender] |= is_proved

    def ways(self, rows: Index) -> tuple[Index, Array, Mask]:
        """Return how the senders of rows (n,) number, the scores of all ways (n, WAYS), and whether that is proved."""
        senders = self._sender_of[rows]
        return self._ways[senders], self._scores[senders], self._are_proved[senders]

    def is_proved(self, row: int) -> bool:
        """Return whether a datagram has had the number that was due by the way that is taken."""
        return bool(self._are_proved[self._sender_of[row]])

    def lead(self, row: int) -> int:
        """Return by how much more the way that is taken explains than any other; one domain has one series anyway."""
        sender = self._sender_of[row]
        scores, way = self._scores[sender], self._ways[sender]
        same = [way, (way + _KINDS) % WAYS] if self._rows_of[sender] == 1 else [way]
        return int(scores[way] - np.delete(scores, same).max())

    def slot_of_all(self, row: int) -> int:
        """Return the slot of the series that all domains of a row's sender may have."""
        return self._size + int(self._sender_of[row])

    def countings(self, rows: Index) -> Index:
        """Return the place of each row's counting in `units_of` (n,)."""
        countings: Index = self._ways[self._sender_of[rows]] % _KINDS
        return countings

    def slots(self, rows: Index) -> Index:
        """Return the slot of the series that each row's datagrams are of (n,)."""
        senders = self._sender_of[rows]
        slots: Index = np.where(self._ways[senders] < _KINDS, rows, self._size + senders)
        return slots

    def see(self, rows: Index, places: Index, numbers: Array, units: Array, is_exact: Mask) -> list[Series]:
        """Compare datagrams (n,) with all ways. They are ordered by row, then as they came, which is at `places`.

        Returns the series of senders that are found to number in another way than before: that way is taken from now
        on, from the last datagram before these.
        """
        own = _Run(rows, numbers, units, is_exact)
        senders = self._sender_of[rows[own.firsts]]
        alone = self._rows_of[senders] == 1
        hits = own.hits(self._last)
        runs = [own]
        self._prove(senders, own, alone | (self._ways[senders] < _KINDS))
        if alone.all():
            self._scores[senders] += np.hstack([hits, hits])
        else:
            of = self._sender_of[rows]
            which = np.flatnonzero(self._rows_of[of] > 1)
            which = which[np.lexsort((places[which], of[which]))]
            together = _Run(self._size + of[which], numbers[which], units[which], is_exact[which])
            of_senders = of[which[together.firsts]]
            np.add.at(self._scores, senders, np.hstack([hits, np.where(alone[:, None], hits, 0)]))
            self._scores[of_senders, _KINDS:] += together.hits(self._last)
            self._prove(of_senders, together, self._ways[of_senders] >= _KINDS)
            runs.append(together)
        changed = self._decided(senders)
        for run in runs:
            run.keep(self._last)
        self._last[self._size + senders[alone]] = self._last[rows[own.firsts[alone]]]
        return changed

    def _prove(self, senders: Index, run: _Run, are_so: Mask) -> None:
        """Note which senders' numbers were as they are to be by the way that is taken, if it is one of the run's."""
        are_due = run.are_due[np.arange(len(senders)), self._ways[senders] % _KINDS]
        self._are_proved[senders[are_due & are_so]] = True

    def _decided(self, senders: Index) -> list[Series]:
        """Take for each of these senders the way that explains most, the one so far where that is as good."""
        scores, ways = self._scores[senders], self._ways[senders]
        best = scores.max(axis=1)
        changed: list[Series] = []
        for at in as_list(np.flatnonzero(scores[np.arange(len(senders)), ways] < best)):
            sender = int(senders[at])
            way = int(scores[at].argmax())
            if self._ways[sender] != way:
                self._ways[sender], self._are_proved[sender] = way, True
                changed += self._series(sender)
        self._scores[senders] = np.maximum(scores - np.maximum(best - SCORE_MAX, 0)[:, None], 0)
        return changed

    def _series(self, sender: int) -> list[Series]:
        """All series of a sender, as they were before the present datagrams."""
        slots = [*as_list(np.flatnonzero(self._sender_of == sender)), self._size + sender]
        counting = self._ways[sender] % _KINDS
        lasts = ((slot, self._last[slot]) for slot in slots)
        return [
            Series(slot, int(last["due"][counting]), bool(last["is_exact"]), bool(last["is_known"]))
            for slot, last in lasts
        ]

    def _leave(self, row: int) -> None:
        """Forget the exporter of a row, and its sender with the last one."""
        sender = int(self._sender_of[row])
        self._sender_of[row] = -1
        self._rows_of[sender] -= 1
        if not self._rows_of[sender]:
            del self._senders[self._keys[row][:3]]
            self._free.append(sender)
        del self._keys[row]


class _Run:
    """Datagrams (n,) ordered by slot, each slot's in the order in which they came; `firsts` are the first of each."""

    def __init__(self, slots: Index, numbers: Array, units: Array, is_exact: Mask) -> None:
        self._slots, self._numbers, self._units, self._is_exact = slots, numbers, units, is_exact
        is_first = np.ones(len(slots), bool)
        is_first[1:] = slots[1:] != slots[:-1]
        self.firsts: Index = np.flatnonzero(is_first)
        self.are_due: Mask = np.zeros((0, _KINDS), bool)
        """Whether any datagram of each slot had the number that was due, by each counting."""

    def hits(self, last: Array) -> Array:
        """Return how many datagrams of each slot have the number that was due, by each counting.

        After one whose records could not be counted that does not tell one counting from another. A number that comes
        twice says nothing: it may be the same datagram.
        """
        due = np.empty((len(self._slots), _KINDS), np.int64)
        before, was_exact = np.empty(len(due), np.int64), np.empty(len(due), bool)
        due[1:] = self._numbers[:-1, None] + self._units[:-1]
        before[1:], was_exact[1:] = self._numbers[:-1], self._is_exact[:-1]
        of_slot = last[self._slots[self.firsts]]
        due[self.firsts], was_exact[self.firsts] = of_slot["due"], of_slot["is_exact"]
        before[self.firsts] = np.where(of_slot["is_known"], of_slot["number"], self._numbers[self.firsts])
        hits = (due & MASK == self._numbers[:, None]) & (before != self._numbers)[:, None]
        self.are_due = np.logical_or.reduceat(hits, self.firsts, axis=0)
        hits &= was_exact[:, None]
        sums: Array = np.add.reduceat(hits, self.firsts, axis=0, dtype=np.int64)
        return sums

    def keep(self, last: Array) -> None:
        """Remember the last datagram of each slot."""
        ends = np.append(self.firsts[1:], len(self._slots)) - 1
        slots = self._slots[ends]
        last["due"][slots] = self._numbers[ends, None] + self._units[ends]
        last["number"][slots], last["is_exact"][slots] = self._numbers[ends], self._is_exact[ends]
        last["is_known"][slots] = True
