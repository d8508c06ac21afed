# SPDX-License-Identifier: Apache-2.0
"""Recognize what an exporter's sequence numbers count, as not all follow their protocol.

NetFlow v5 numbers flows, v9 numbers messages (RFC 3954, section 5.1), IPFIX numbers records including options records
(RFC 7011, section 3.1), sFlow numbers datagrams, each with a series per observation domain, engine or sub-agent. Some
NetFlow v9 exporters number flows, others use one series for all domains. So `Numbering` compares all schemes with the
numbers that arrive.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import numpy as np

from nettop.flows.decode import netflow5, sflow
from nettop.flows.decode.batch import DomainKey
from nettop.flows.decode.templates import IPFIX, NETFLOW_9
from nettop.snapshots.arrays import Array, Index, Mask, as_list

MASK = (1 << 32) - 1
"""Sequence numbers have 32 bits."""
SCORE_MAX = 8
"""Maximum lead of one scheme over another: the number of datagrams after which a change of scheme is recognized."""


class Counting(IntEnum):
    """Quantities that an exporter's sequence numbers may count."""

    UNKNOWN = 0
    """No scheme explains the numbers, as when two exporters send under one identity."""
    DATAGRAMS = 1
    FLOWS = 2
    RECORDS = 3
    """Flow and options records."""


_KINDS = len(Counting) - 1
SCHEMES = 2 * _KINDS
"""Schemes: each counting with one series per domain, then each with one series for all domains of a sender."""
OF_ALL = _KINDS
"""Index of the first scheme with one series for all domains."""
_DEFAULT_COUNTINGS = {
    netflow5.VERSION: Counting.FLOWS,
    NETFLOW_9: Counting.DATAGRAMS,
    IPFIX: Counting.RECORDS,
    sflow.PROTOCOL_VERSION: Counting.DATAGRAMS,
}
LAST = np.dtype([("due", "i8", (_KINDS,)), ("number", "i8"), ("is_exact", "?"), ("is_known", "?")])
"""Last datagram of a series: the number due next by each counting, its own number, and whether its records could be
counted.
"""


class Series(NamedTuple):
    """A series to restart: its slot, the number due next, and flags as in LAST."""

    slot: int
    due: int
    is_exact: bool
    is_known: bool


def units_of(datagrams: Array) -> Array:
    """Return how far each datagram (n,), DATAGRAM, advances the numbers under each counting: (n, 3)."""
    units = np.ones((len(datagrams), _KINDS), np.int64)
    units[:, Counting.FLOWS - 1] = datagrams["units"] - datagrams["unit_options"]
    units[:, Counting.RECORDS - 1] = datagrams["units"]
    return units


class Numbering:
    """Recognition of each sender's numbering scheme.

    Each exporter has a row, from 0 to `size` - 1. Each series has a slot: the row for a series of one exporter, a slot
    from `size` on for one shared by all domains of a sender.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._sender_of = np.full(size, -1, np.intp)
        """Sender number of each row."""
        self._senders: dict[tuple[bytes, int, int], int] = {}
        self._keys: dict[int, DomainKey] = {}
        self._free = list(range(size))
        self._rows_of = np.zeros(size, np.intp)
        """Number of rows of each sender."""
        self._ways = np.zeros(size, np.intp)
        self._scores = np.zeros((size, SCHEMES), np.int64)
        self._are_proved = np.zeros(size, bool)
        self._last = np.zeros(2 * size, LAST)

    def begin(self, row: int, key: DomainKey) -> list[int]:
        """Assign a row to an exporter, replacing any previous one. Return the slots that were reassigned."""
        if row in self._keys:
            self._release(row)
        self._keys[row] = key
        sender = key[:3]
        slots = [row]
        if sender not in self._senders:
            number = self._senders[sender] = self._free.pop()
            self._ways[number], self._scores[number] = _DEFAULT_COUNTINGS[sender[2]] - 1, 0
            self._are_proved[number] = False
            slots.append(self._size + number)
        self._sender_of[row] = self._senders[sender]
        self._rows_of[self._senders[sender]] += 1
        self._last["is_known"][slots] = False
        return slots

    def resume(self, row: int, way: int, scores: Array, *, is_proved: bool) -> None:
        """Restore the scheme of a row's sender, unless its numbers already indicated one."""
        sender = self._sender_of[row]
        if not self._scores[sender].any():
            self._ways[sender], self._scores[sender] = way, scores
            self._are_proved[sender] |= is_proved

    def schemes(self, rows: Index) -> tuple[Index, Array, Mask]:
        """Return the schemes of the rows' senders (n,), the scores of all schemes (n, SCHEMES), and which are
        proved."""
        senders = self._sender_of[rows]
        return self._ways[senders], self._scores[senders], self._are_proved[senders]

    def is_proved(self, row: int) -> bool:
        """Return whether some datagram had the number due by the current scheme."""
        return bool(self._are_proved[self._sender_of[row]])

    def lead(self, row: int) -> int:
        """Return the lead of the current scheme over all others. With a single domain, the other kind of series is no
        rival.
        """
        sender = self._sender_of[row]
        scores, way = self._scores[sender], self._ways[sender]
        same = [way, (way + _KINDS) % SCHEMES] if self._rows_of[sender] == 1 else [way]
        return int(scores[way] - np.delete(scores, same).max())

    def slot_of_all(self, row: int) -> int:
        """Return the slot of the series shared by all domains of a row's sender."""
        return self._size + int(self._sender_of[row])

    def countings(self, rows: Index) -> Index:
        """Return the column of each row's counting in `units_of` (n,)."""
        countings: Index = self._ways[self._sender_of[rows]] % _KINDS
        return countings

    def slots(self, rows: Index) -> Index:
        """Return the slot of the series each row uses (n,)."""
        senders = self._sender_of[rows]
        slots: Index = np.where(self._ways[senders] < _KINDS, rows, self._size + senders)
        return slots

    def compare(
        self, rows: Index, places: Index, numbers: Array, units: Array, is_exact: Mask
    ) -> list[Series]:
        """Compare datagrams (n,), sorted by row and then by arrival (`places`), with all schemes.

        Return the series of senders whose scheme changed. Under the new scheme they start at the last datagram before
        these.
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
        changed = self._switch_schemes(senders)
        for run in runs:
            run.keep(self._last)
        self._last[self._size + senders[alone]] = self._last[rows[own.firsts[alone]]]
        return changed

    def _prove(self, senders: Index, run: _Run, are_so: Mask) -> None:
        """Mark the senders `are_so` as proved if a number in this run was the one due by their current scheme."""
        are_due = run.are_due[np.arange(len(senders)), self._ways[senders] % _KINDS]
        self._are_proved[senders[are_due & are_so]] = True

    def _switch_schemes(self, senders: Index) -> list[Series]:
        """Switch each of these senders to the scheme with the best score; on a tie keep the current one."""
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
        """Return all series of a sender as they were before the current datagrams."""
        slots = [*as_list(np.flatnonzero(self._sender_of == sender)), self._size + sender]
        counting = self._ways[sender] % _KINDS
        lasts = ((slot, self._last[slot]) for slot in slots)
        return [
            Series(slot, int(last["due"][counting]), bool(last["is_exact"]), bool(last["is_known"]))
            for slot, last in lasts
        ]

    def _release(self, row: int) -> None:
        """Forget the exporter of a row, and its sender along with the last row."""
        sender = int(self._sender_of[row])
        self._sender_of[row] = -1
        self._rows_of[sender] -= 1
        if not self._rows_of[sender]:
            del self._senders[self._keys[row][:3]]
            self._free.append(sender)
        del self._keys[row]


class _Run:
    """Datagrams (n,) sorted by slot, then by arrival; `firsts` are the first of each slot."""

    def __init__(self, slots: Index, numbers: Array, units: Array, is_exact: Mask) -> None:
        self._slots, self._numbers, self._units, self._is_exact = slots, numbers, units, is_exact
        is_first = np.ones(len(slots), bool)
        is_first[1:] = slots[1:] != slots[:-1]
        self.firsts: Index = np.flatnonzero(is_first)
        self.are_due: Mask = np.zeros((0, _KINDS), bool)
        """Whether any datagram of each slot had the number due under each counting."""

    def hits(self, last: Array) -> Array:
        """Return how many datagrams of each slot have the number due under each counting.

        A datagram whose records could not be counted does not distinguish countings for the next one. A repeated number
        says nothing either: it may be a duplicate.
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
