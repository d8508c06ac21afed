# SPDX-License-Identifier: Apache-2.0
"""The exporters that have sent something: what came of each, what was lost, and what is known of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from nettop.flows.columns import ADDRESS
from nettop.flows.decode.decoder import DecodedBatch, Decoder, Reading
from nettop.flows.decode.messages import KEY, DomainKey, keys_of, numbered_keys
from nettop.flows.decode.sequences import FOLLOWED, Sequences
from nettop.snapshots.arrays import Index, Mask, take
from nettop.snapshots.snapshot import Array

EXPORTERS_MAX = 16_384
"""Exporters in the table: the one that was silent for longest makes room for another."""
UNRECOGNIZED_MAX = 1024
"""Senders of malformed datagrams, for which no exporter makes room."""

_OF_DATAGRAMS = ("bytes", "rows", "options", "broken")
"""Counts that each datagram has."""
COUNTED = ("datagrams", "malformed", *_OF_DATAGRAMS, *(FOLLOWED.names or ()), "forgotten")
"""The counts of an exporter, which only grow; but `lost` falls by what comes late."""

EXPORTER = np.dtype(
    [
        ("exporter", ADDRESS),
        ("port", "u2"),
        ("protocol_version", "u1"),
        ("domain", "u4"),
        *((name, "i8") for name in COUNTED),
        ("templates", "i8"),
        ("waiting", "i8"),
        ("sampling_rate", "u4"),
        ("first_ns", "i8"),
        ("last_ns", "i8"),
    ]
)
"""An exporter. The first four fields are its key, as in DATAGRAM; that of senders of malformed datagrams has version 0.

`rows` are flows, `options` records of them, `broken` what could not be read of datagrams. `lost` counts what numbers of
datagrams are missing: flows of NetFlow v5, records of IPFIX, else datagrams. Of `unchecked` datagrams nobody can say
what was lost before them. `templates` are known and `waiting` sets wait for theirs at the moment; `forgotten` sets were
dropped before theirs came. `sampling_rate` is the last one, 0 where none is known. The wall clock's times are those of
its first and last datagram.
"""


class Exporters:
    """A table of exporters, bounded, and one of senders of malformed datagrams. It is used by one thread.

    What comes malformed does not say which exporter it is of: it is counted by its sender, in a table of its own, so
    that garbage from many addresses takes no exporter's room.
    """

    def __init__(self, most: int = EXPORTERS_MAX, most_unrecognized: int = UNRECOGNIZED_MAX) -> None:
        self._known = _Table(most)
        self._unrecognized = _Table(most_unrecognized)
        self._sequences = Sequences(most)

    @property
    def evicted(self) -> int:
        """How many exporters have made room for others."""
        return self._known.evictions

    @property
    def evicted_unrecognized(self) -> int:
        """How many senders of malformed datagrams have made room for others."""
        return self._unrecognized.evictions

    def update(self, batch: DecodedBatch) -> None:
        """Count a batch, the next after those before."""
        is_decoded = batch.datagrams["reading"] == Reading.DECODED
        for datagrams in _pieces(batch.datagrams, is_decoded, self._known.most):
            keyed = self._known.add(datagrams)
            for row in keyed.new:
                self._sequences.forget(row)
            followed = self._sequences.follow(keyed.rows[keyed.of], datagrams)
            for name in FOLLOWED.names or ():
                self._known.count(name, keyed, followed[name])
        for datagrams in _pieces(batch.datagrams, ~is_decoded, self._unrecognized.most):
            keyed = self._unrecognized.add(datagrams)
            self._unrecognized.count("malformed", keyed, np.ones(len(datagrams), np.int64))
        self.forget(batch.forgotten)

    def forget(self, dropped: Mapping[DomainKey, int]) -> None:
        """Count sets that were dropped before their template came, by the key of their exporter."""
        for key, sets in dropped.items():
            self._known.forget(key, sets)

    def table(self, decoder: Decoder) -> Array:
        """All rows, EXPORTER (e,): the exporters, then the senders of malformed datagrams."""
        exporters = self._known.used()
        domains, waiting = decoder.messages.domains, decoder.messages.waiting
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
    """The rows of distinct keys, for each datagram (n,) the place of its row there, and which rows are new."""

    rows: Index
    of: Index
    new: list[int]


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

    def _placed(self, keys: list[DomainKey]) -> tuple[Index, list[int]]:
        """The row of each key, and those rows that did not have it."""
        places, new = [], []
        for key in keys:
            row = self.row_of.pop(key, None)
            if row is None:
                is_full = len(self.row_of) == self.most
                row = self.row_of.pop(next(iter(self.row_of))) if is_full else len(self.row_of)
                new.append(row)
            self.row_of[key] = row
            places.append(row)
        return np.array(places, np.intp), new

    def _begin(self, keyed: _Keyed, first_of: Array) -> None:
        """Begin the new rows with their key; what they had counted for another goes to `evicted`."""
        new = keyed.new
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
