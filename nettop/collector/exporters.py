# SPDX-License-Identifier: Apache-2.0
"""Exporters: what each has sent, what was lost, and its state."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import NamedTuple

import numpy as np

from nettop.collector.decode.batch import (
    KEY,
    KEY_FIELDS,
    Batch,
    DecodeResult,
    DomainKey,
    keys_of,
    numbered_keys,
)
from nettop.collector.decode.decoder import Decoder
from nettop.collector.decode.domains import UNUSED_S
from nettop.collector.decode.sequences import SEQUENCE_CHANGES, SEQUENCE_STATE, SequenceNumbers
from nettop.snapshots.arrays import Array, Index, Mask, as_list, take_rows

EXPORTERS_MAX = 16_384
"""Maximum exporters in the table. Beyond it those silent for UNUSED_S are evicted, else the newest."""
UNRECOGNIZED_MAX = 1024
"""Maximum senders of malformed datagrams, which have a table of their own."""

_UNUSED_NS = int(UNUSED_S * 1_000_000_000)

_DATAGRAM_COUNTS = ("bytes", "rows", "options", "broken")
"""Per-datagram counts."""
_FOLLOWED = tuple(name for name in SEQUENCE_CHANGES.names or () if name != "row")
COUNTED = ("datagrams", "malformed", *_DATAGRAM_COUNTS, "numbered", *_FOLLOWED, "forgotten")
"""Cumulative counts of an exporter; only `lost` may decrease, when data arrives late or was not lost after all."""

EXPORTER = np.dtype(
    [
        *KEY_FIELDS,
        *((name, "i8") for name in COUNTED),
        *(("counting", "u1"), ("templates", "i8"), ("waiting", "i8"), ("sampling_rate", "u4")),
        *(("first_ns", "i8"), ("last_ns", "i8")),
    ]
)
"""An exporter. The first four fields are its key, as in DATAGRAM; senders of malformed datagrams have version 0.

`rows` counts flows, `options` options records, `broken` unreadable parts of datagrams. `counting` (Counting) is what
its sequence numbers count: `numbered` units have arrived and `lost` are missing; if the counting is unknown, so are
losses. `unchecked` counts datagrams before which losses are unknown. `templates` and `waiting` are current: known
templates, and sets that wait for theirs; `forgotten` counts sets dropped before their template arrived. `sampling_rate`
is the latest, 0 if unknown. Times are wall-clock times of the first and last datagram.
"""


SAVED = np.dtype([*KEY_FIELDS, ("state", SEQUENCE_STATE)])
"""State of an exporter saved for the next start: its key and its sequence numbers."""
SAVED_NS = 24 * 3600 * 1_000_000_000
"""Maximum age at which saved numbers reveal losses. After that, an exporter may have restarted and passed its old
numbers.
"""


class Exporters:
    """A bounded table of exporters, and one of senders of malformed datagrams. Use it from one thread.

    A malformed datagram does not identify an exporter. A separate table counts it by sender, so that garbage from many
    addresses cannot evict exporters.
    """

    def __init__(self, most: int = EXPORTERS_MAX, most_unrecognized: int = UNRECOGNIZED_MAX) -> None:
        self._known = _ExporterRows(most)
        self._unrecognized = _ExporterRows(most_unrecognized)
        self._sequences = SequenceNumbers(most)
        self._kept = np.zeros(0, SAVED)
        self._kept_at: dict[DomainKey, int] = {}
        """Index of the saved state of exporters not seen since the start."""

    @property
    def evicted(self) -> int:
        """Number of evicted exporters."""
        return self._known.evictions

    @property
    def evicted_unrecognized(self) -> int:
        """Number of evicted senders of malformed datagrams."""
        return self._unrecognized.evictions

    def resume(self, kept: Array) -> None:
        """Resume from these states, SAVED (k,), newest last, once their exporters appear."""
        self._kept = kept
        self._kept_at = {key: at for at, key in enumerate(keys_of(kept))}

    def saved(self) -> Array:
        """Return the states to save, SAVED (k,)."""
        known = self._known.used()
        kept = np.zeros(len(known), SAVED)
        for name in KEY:
            kept[name] = known[name]
        kept["state"] = self._sequences.following(np.arange(len(known)))
        silent = np.array([*self._kept_at.values()], np.intp)
        return np.concatenate([take_rows(self._kept, silent), kept])

    def update(self, batch: Batch) -> None:
        """Count the next batch."""
        is_decoded = batch.headers["reading"] == DecodeResult.DECODED
        for datagrams in _split(batch.headers, is_decoded, self._known.most):
            keyed = self._known.add(datagrams)
            for row, key in keyed.new:
                self._begin(row, key)
            followed, numbered = self._sequences.follow(keyed.rows[keyed.of], datagrams)
            self._known.count("numbered", keyed, numbered)
            for name in _FOLLOWED if len(followed) else ():
                np.add.at(self._known.rows[name], followed["row"], followed[name])
        for datagrams in _split(batch.headers, ~is_decoded, self._unrecognized.most):
            keyed = self._unrecognized.add(datagrams)
            self._unrecognized.count("malformed", keyed, np.ones(len(datagrams), np.int64))
        self.forget(batch.forgotten)

    def forget(self, dropped: Mapping[DomainKey, int]) -> None:
        """Count sets dropped before their template arrived, by exporter key."""
        for key, sets in dropped.items():
            if (row := self._known.row_of.get(key)) is not None:  # else it was evicted
                self._known.rows["forgotten"][row] += sets

    def _begin(self, row: int, key: DomainKey) -> None:
        """Start following an exporter's numbers, from its saved state if there is one."""
        self._sequences.begin(row, key)
        at = self._kept_at.pop(key, None)
        if at is not None:
            state = self._kept["state"][at]
            is_recent = self._known.rows["first_ns"][row] < state["seen_ns"] + SAVED_NS
            if state["is_current"] and is_recent:
                self._sequences.resume(row, state)
            else:
                self._known.rows["unchecked"][row] += 1

    def table(self, decoder: Decoder) -> Array:
        """Return all rows, EXPORTER (e,): exporters, then senders of malformed datagrams."""
        exporters = self._known.used()
        exporters["counting"] = self._sequences.countings(np.arange(len(exporters)))
        domains, waiting = decoder.messages.known.all, decoder.messages.waiting
        for key, row in self._known.row_of.items():
            if key in domains:
                exporters["templates"][row] = len(domains[key].templates)
            if key in waiting:
                exporters["waiting"][row] = waiting[key]
        return np.concatenate([exporters, self._unrecognized.used()])


class _Keyed(NamedTuple):
    """Rows of the distinct keys, the index of each datagram's row in them (n,), and new rows with their keys."""

    rows: Index
    of: Index
    new: list[tuple[int, DomainKey]]


class _ExporterRows:
    """Rows by key, bounded."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.rows = np.zeros(most, EXPORTER)
        self.row_of: dict[DomainKey, int] = {}
        self.evictions = 0

    def used(self) -> Array:
        """Return a copy of the rows in use."""
        return self.rows[: len(self.row_of)].copy()

    def add(self, datagrams: Array) -> _Keyed:
        """Count datagrams (n,), DATAGRAM, no more than there are rows."""
        firsts, of = numbered_keys(datagrams)
        first_of = take_rows(datagrams, firsts)
        rows, new = self._assign_rows(keys_of(first_of), int(datagrams["received_ns"].max(initial=0)))
        keyed = _Keyed(rows, of, new)
        self._begin(keyed, first_of)
        self.count("datagrams", keyed, np.ones(len(of), np.int64))
        for name in _DATAGRAM_COUNTS:
            self.count(name, keyed, datagrams[name])
        # The last datagram of each row wins.
        rows_of, rates = rows[of], datagrams["sampling_rate"]
        self.rows["sampling_rate"][rows_of[rates > 0]] = rates[rates > 0]
        self.rows["last_ns"][rows_of] = datagrams["received_ns"]
        return keyed

    def count(self, name: str, keyed: _Keyed, values: Array) -> None:
        """Add the datagrams' values (n,) to a count of their rows."""
        # Sums of one batch stay far below 2⁵³, up to which they are exact.
        self.rows[name][keyed.rows] += np.bincount(keyed.of, values, len(keyed.rows)).astype(np.int64)

    def _assign_rows(self, keys: list[DomainKey], now_ns: int) -> tuple[Index, list[tuple[int, DomainKey]]]:
        """Return the row of each key, and the rows assigned to new keys."""
        unknown = [key for key in keys if key not in self.row_of]
        used = len(self.row_of)
        evicted = self._evict(keys, used + len(unknown) - self.most, now_ns)
        new = list(zip(chain(evicted, range(used, self.most)), unknown, strict=False))
        self.row_of.update((key, row) for row, key in new)
        return np.array([self.row_of[key] for key in keys], np.intp), new

    def _evict(self, keys: list[DomainKey], count: int, now_ns: int) -> list[int]:
        """Remove rows of other keys, and return them: those silent for long first, then the newest, so that forged
        exporters evict each other, and not those known for longer.
        """
        if count <= 0:
            return []
        rows = self.rows[: len(self.row_of)]
        is_silent = rows["last_ns"] < now_ns - _UNUSED_NS
        key_of = {row: key for key, row in self.row_of.items()}
        current = {self.row_of[key] for key in keys if key in self.row_of}
        order = as_list(np.lexsort((-rows["first_ns"], ~is_silent)))
        evicted = [row for row in order if row not in current][:count]
        for row in evicted:
            del self.row_of[key_of[row]]
        return evicted

    def _begin(self, keyed: _Keyed, first_of: Array) -> None:
        """Initialize new rows with their key."""
        new = [row for row, _ in keyed.new]
        self.evictions += int(np.count_nonzero(self.rows["datagrams"][new]))
        self.rows[new] = np.zeros((), EXPORTER)
        is_new = np.isin(keyed.rows, new)
        for name in KEY:
            self.rows[name][keyed.rows[is_new]] = first_of[name][is_new]
        self.rows["first_ns"][keyed.rows[is_new]] = first_of["received_ns"][is_new]


def _split(datagrams: Array, which: Mask, most: int) -> list[Array]:
    """Split the selected datagrams into pieces of a fraction of a table's rows, as a piece evicts none of its own."""
    places, length = np.flatnonzero(which), max(1, most // 4)
    return [take_rows(datagrams, places[begin : begin + length]) for begin in range(0, len(places), length)]
