# SPDX-License-Identifier: Apache-2.0
"""The exporters that have sent something: what came of each, what was lost, and what is known of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from nettop.flows.columns import ADDRESS
from nettop.flows.decode.decoder import DecodedBatch, Decoder, Reading
from nettop.flows.decode.domains import KEY, DomainKey, keys_of, numbered_keys
from nettop.flows.decode.numbering import OF_ALL
from nettop.flows.decode.sequences import FOLLOWED, FOLLOWING, Sequences
from nettop.snapshots.arrays import Index, Mask, take
from nettop.snapshots.snapshot import Array

EXPORTERS_MAX = 16_384
"""Exporters in the table: the one that was silent for longest makes room for another."""
UNRECOGNIZED_MAX = 1024
"""Senders of malformed datagrams, for which no exporter makes room."""

_OF_DATAGRAMS = ("bytes", "rows", "options", "broken")
"""Counts that each datagram has."""
_FOLLOWED = tuple(name for name in FOLLOWED.names or () if name != "row")
COUNTED = ("datagrams", "malformed", *_OF_DATAGRAMS, "numbered", *_FOLLOWED, "forgotten")
"""The counts of an exporter, which only grow; but `lost` falls by what comes late, or was not lost."""

EXPORTER = np.dtype(
    [
        ("exporter", ADDRESS),
        ("port", "u2"),
        ("protocol_version", "u1"),
        ("domain", "u4"),
        *((name, "i8") for name in COUNTED),
        ("counting", "u1"),
        ("templates", "i8"),
        ("waiting", "i8"),
        ("sampling_rate", "u4"),
        ("first_ns", "i8"),
        ("last_ns", "i8"),
    ]
)
"""An exporter. The first four fields are its key, as in DATAGRAM; that of senders of malformed datagrams has version 0.

`rows` are flows, `options` records of them, `broken` what could not be read of datagrams. `counting`, of Counting, is
what its sequence numbers count: `numbered` have come and `lost` are missing. Where it is unknown so is what was lost.
Of several domains with one series a loss is in the row of the one that shows it. Of `unchecked` datagrams nobody can
say what was lost before them. `templates` are known and `waiting` sets wait for theirs at the moment; `forgotten` sets
were dropped before theirs came. `sampling_rate` is the last one, 0 where none is known. The wall clock's times are
those of its first and last datagram.
"""


KEPT = np.dtype(
    [(name, dtype[name]) for dtype in (EXPORTER[[*KEY]], FOLLOWING) for name in dtype.names or ()]
)
"""What is kept of an exporter for the next start: its key, and what is known of its numbers."""
KEPT_NS = 24 * 3600 * 1_000_000_000
"""How long that says what was lost meanwhile: later an exporter may have begun anew, and be ahead of where it was."""


class Exporters:
    """A table of exporters, bounded, and one of senders of malformed datagrams. It is used by one thread.

    What comes malformed does not say which exporter it is of: it is counted by its sender, in a table of its own, so
    that garbage from many addresses takes no exporter's room.
    """

    def __init__(self, most: int = EXPORTERS_MAX, most_unrecognized: int = UNRECOGNIZED_MAX) -> None:
        self._known = _Table(most)
        self._unrecognized = _Table(most_unrecognized)
        self._sequences = Sequences(most)
        self._kept = np.zeros(0, KEPT)
        self._is_own = np.zeros(0, bool)
        self._kept_at: dict[DomainKey, int] = {}
        """Where what was kept is of exporters that have sent nothing since the start."""
        self._newest_at: dict[tuple[bytes, int, int], int] = {}
        """Where the newest is of each sender."""

    @property
    def evicted(self) -> int:
        """How many exporters have made room for others."""
        return self._known.evictions

    @property
    def evicted_unrecognized(self) -> int:
        """How many senders of malformed datagrams have made room for others."""
        return self._unrecognized.evictions

    def resume(self, kept: Array, is_own: Mask) -> None:
        """Continue from what is known of exporters, KEPT (k,), the newest last, when they send something. What `is_own`
        is kept.
        """
        self._kept, self._is_own = kept, is_own
        self._kept_at = {key: at for at, key in enumerate(keys_of(kept))}
        self._newest_at = {key[:3]: at for key, at in self._kept_at.items()}

    def kept(self) -> Array:
        """Return what is to be kept of exporters, KEPT (k,)."""
        known = self._known.used()
        kept = np.zeros(len(known), KEPT)
        for name in KEY:
            kept[name] = known[name]
        following = self._sequences.following(np.arange(len(known)))
        for name in FOLLOWING.names or ():
            kept[name] = following[name]
        silent = np.array([*self._kept_at.values()], np.intp)
        return np.concatenate([take(self._kept, silent[self._is_own[silent]]), kept])

    def update(self, batch: DecodedBatch) -> None:
        """Count a batch, the next after those before."""
        is_decoded = batch.datagrams["reading"] == Reading.DECODED
        for datagrams in _pieces(batch.datagrams, is_decoded, self._known.most):
            keyed = self._known.add(datagrams)
            for row, key in keyed.new:
                self._begin(row, key)
            followed, numbered = self._sequences.follow(keyed.rows[keyed.of], datagrams)
            self._known.count("numbered", keyed, numbered)
            for name in _FOLLOWED if len(followed) else ():
                np.add.at(self._known.rows[name], followed["row"], followed[name])
        for datagrams in _pieces(batch.datagrams, ~is_decoded, self._unrecognized.most):
            keyed = self._unrecognized.add(datagrams)
            self._unrecognized.count("malformed", keyed, np.ones(len(datagrams), np.int64))
        self.forget(batch.forgotten)

    def forget(self, dropped: Mapping[DomainKey, int]) -> None:
        """Count sets that were dropped before their template came, by the key of their exporter."""
        for key, sets in dropped.items():
            self._known.forget(key, sets)

    def _begin(self, row: int, key: DomainKey) -> None:
        """Follow the numbers of an exporter, from where they were before the start if that is known."""
        self._sequences.begin(row, key)
        at = self._kept_at.pop(key, None)
        newest_at = self._newest_at.get(key[:3])
        if newest_at is not None and self._kept["way"][newest_at] >= OF_ALL:
            at = newest_at
        if at is not None:
            kept = self._kept[at]
            is_recent = self._known.rows["first_ns"][row] < kept["seen_ns"] + KEPT_NS
            is_current = bool(kept["is_current"] and is_recent)
            self._sequences.resume(row, kept, is_current=is_current)
            self._known.rows["unchecked"][row] += not is_current

    def table(self, decoder: Decoder) -> Array:
        """All rows, EXPORTER (e,): the exporters, then the senders of malformed datagrams."""
        exporters = self._known.used()
        exporters["counting"] = self._sequences.countings(np.arange(len(exporters)))
        domains, waiting = decoder.messages.known.all, decoder.messages.waiting
        for key, row in self._known.row_of.items():
            if key in domains:
                exporters["templates"][row] = len(domains[key].templates)
            if key in waiting:
                exporters["waiting"][row] = waiting[key]
        return np.concatenate([exporters, self._unrecognized.used()])

    def totals(self) -> dict[str, int]:
        """The sum of each of COUNTED over all exporters and senders, those that have made room included."""
        tables = (self._known, self._unrecognized)
        return {
            name: sum(int(table.rows[name].sum() + table.evicted[name]) for table in tables)
            for name in COUNTED
        }


class _Keyed(NamedTuple):
    """The rows of distinct keys, for each datagram (n,) the place of its row there, and new rows with their keys."""

    rows: Index
    of: Index
    new: list[tuple[int, DomainKey]]


class _Table:
    """Rows by key: at most so many. `evicted` is the sum of those that have made room."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.rows = np.zeros(most, EXPORTER)
        self.row_of: dict[DomainKey, int] = {}
        """The row of each key, that of the one seen last at the end."""
        self.evicted = dict.fromkeys(COUNTED, 0)
        self.evictions = 0

    def used(self) -> Array:
        """A copy of the rows that have a key."""
        return self.rows[: len(self.row_of)].copy()

    def add(self, datagrams: Array) -> _Keyed:
        """Count datagrams (n,), DATAGRAM, at most as many as there are rows."""
        firsts, of = numbered_keys(datagrams)
        first_of = take(datagrams, firsts)
        rows, new = self._placed(keys_of(first_of))
        keyed = _Keyed(rows, of, new)
        self._begin(keyed, first_of)
        self.count("datagrams", keyed, np.ones(len(of), np.int64))
        for name in _OF_DATAGRAMS:
            self.count(name, keyed, datagrams[name])
        # Of several datagrams of a row the last one stays.
        rows_of, rates = rows[of], datagrams["sampling_rate"]
        self.rows["sampling_rate"][rows_of[rates > 0]] = rates[rates > 0]
        self.rows["last_ns"][rows_of] = datagrams["received_ns"]
        return keyed

    def count(self, name: str, keyed: _Keyed, values: Array) -> None:
        """Add the datagrams' values (n,) to a count of their rows."""
        # The sums of one batch are far from 2⁵³, up to which they are exact.
        self.rows[name][keyed.rows] += np.bincount(keyed.of, values, len(keyed.rows)).astype(np.int64)

    def forget(self, key: DomainKey, sets: int) -> None:
        """Count sets that were dropped, of an exporter that may have made room for others."""
        row = self.row_of.get(key)
        if row is None:
            self.evicted["forgotten"] += sets
        else:
            self.rows["forgotten"][row] += sets

    def _placed(self, keys: list[DomainKey]) -> tuple[Index, list[tuple[int, DomainKey]]]:
        """The row of each key, and those rows that did not have it."""
        places: list[int] = []
        new: list[tuple[int, DomainKey]] = []
        for key in keys:
            row = self.row_of.pop(key, None)
            if row is None:
                is_full = len(self.row_of) == self.most
                row = self.row_of.pop(next(iter(self.row_of))) if is_full else len(self.row_of)
                new.append((row, key))
            self.row_of[key] = row
            places.append(row)
        return np.array(places, np.intp), new

    def _begin(self, keyed: _Keyed, first_of: Array) -> None:
        """Begin the new rows with their key; what they had counted for another goes to `evicted`."""
        new = [row for row, _ in keyed.new]
        self.evictions += int(np.count_nonzero(self.rows["datagrams"][new]))
        for name in COUNTED:
            self.evicted[name] += int(self.rows[name][new].sum())
        self.rows[new] = np.zeros((), EXPORTER)
        is_new = np.isin(keyed.rows, new)
        for name in KEY:
            self.rows[name][keyed.rows[is_new]] = first_of[name][is_new]
        self.rows["first_ns"][keyed.rows[is_new]] = first_of["received_ns"][is_new]


def _pieces(datagrams: Array, which: Mask, most: int) -> list[Array]:
    """Those of the datagrams, at most so many at a time."""
    places = np.flatnonzero(which)
    return [take(datagrams, places[begin : begin + most]) for begin in range(0, len(places), most)]
