# SPDX-License-Identifier: Apache-2.0
"""Data sets whose template has not come: they wait in bounded memory, where no exporter takes the room of another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from nettop.flows.decode.domains import DomainKey
from nettop.snapshots.snapshot import Array

DOMAIN_BYTES_MAX = 1 << 20
"""Bytes that wait of one observation domain."""
ADDRESS_BYTES_MAX = 4 << 20
"""Bytes that wait of one address, whichever ports and domains it sends from."""
BYTES_MAX = 64 << 20
"""Bytes that wait in all."""
_OVERHEAD = 1024
"""About what a set takes beside its content, where it is the only one of its domain."""


@dataclass(frozen=True, eq=False)
class Held:
    """A set, and what is said of its message."""

    message: Array
    content: bytes


class HeldSets:
    """Sets by domain and set ID. Where a bound is exceeded, those go first that have waited for longest."""

    def __init__(self) -> None:
        self._by_address: dict[bytes, dict[DomainKey, dict[int, list[Held]]]] = {}
        self._waiting: Counter[DomainKey] = Counter()
        self._domain_bytes: Counter[DomainKey] = Counter()
        self._address_bytes: Counter[bytes] = Counter()
        self._bytes = 0

    @property
    def waiting(self) -> Mapping[DomainKey, int]:
        """How many sets of each domain wait."""
        return self._waiting

    def add(self, key: DomainKey, set_id: int, held: Held) -> Iterator[DomainKey]:
        """Keep a set. Yields a domain for each set that is dropped to make room."""
        of_address = self._by_address.setdefault(key[0], {})
        of_address.setdefault(key, {}).setdefault(set_id, []).append(held)
        self._count(key, held, 1)
        while self._domain_bytes[key] > DOMAIN_BYTES_MAX:
            yield self._drop(key)
        while self._address_bytes[key[0]] > ADDRESS_BYTES_MAX:
            yield self._drop(next(iter(of_address)))
        while self._bytes > BYTES_MAX:
            yield self._drop(next(iter(next(iter(self._by_address.values())))))

    def take(self, key: DomainKey, set_id: int) -> list[Held]:
        """Sets of a domain and ID, which no longer wait."""
        taken = self._by_address.get(key[0], {}).get(key, {}).get(set_id, [])
        for held in taken:
            self._count(key, held, -1)
        if taken:
            self._remove(key, set_id)
        return taken

    def _drop(self, key: DomainKey) -> DomainKey:
        """Drop the set of a domain that has waited for longest: of several IDs that of the one held first."""
        set_id, sets = next(iter(self._by_address[key[0]][key].items()))
        self._count(key, sets.pop(0), -1)
        if not sets:
            self._remove(key, set_id)
        return key

    def _remove(self, key: DomainKey, set_id: int) -> None:
        """Remove an ID that has no sets left, and what is empty then."""
        of_address = self._by_address[key[0]]
        del of_address[key][set_id]
        if not of_address[key]:
            del of_address[key], self._waiting[key], self._domain_bytes[key]
        if not of_address:
            del self._by_address[key[0]], self._address_bytes[key[0]]

    def _count(self, key: DomainKey, held: Held, sign: int) -> None:
        size = sign * (len(held.content) + _OVERHEAD)
        self._waiting[key] += sign
        self._domain_bytes[key] += size
        self._address_bytes[key[0]] += size
        self._bytes += size
