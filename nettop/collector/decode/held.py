# SPDX-License-Identifier: Apache-2.0
"""Data sets that wait for their template, in bounded memory; no exporter can take another's share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from nettop.collector.decode.batch import DomainKey
from nettop.snapshots.arrays import Array

DOMAIN_BYTES_MAX = 1 << 20
"""Maximum waiting bytes per observation domain."""
ADDRESS_BYTES_MAX = 4 << 20
"""Maximum waiting bytes per address, over all ports and domains."""
BYTES_MAX = 64 << 20
"""Maximum waiting bytes in total."""
_OVERHEAD = 1024
"""Approximate memory per set beyond its content, if it is the only one of its domain."""


@dataclass(frozen=True, eq=False)
class Held:
    """A set and its message's header, DATAGRAM (1,)."""

    header: Array
    content: bytes


class HeldSets:
    """Held sets by domain and set ID. When a bound is exceeded, the oldest are dropped first."""

    def __init__(self) -> None:
        self._by_address: dict[bytes, dict[DomainKey, dict[int, list[Held]]]] = {}
        self._waiting: Counter[DomainKey] = Counter()
        self._domain_bytes: Counter[DomainKey] = Counter()
        self._address_bytes: Counter[bytes] = Counter()
        self._bytes = 0

    @property
    def waiting(self) -> Mapping[DomainKey, int]:
        """Number of waiting sets per domain."""
        return self._waiting

    def add(self, key: DomainKey, set_id: int, held: Held) -> Iterator[DomainKey]:
        """Hold a set. Yield a domain for each set dropped to make room."""
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
        """Remove and return the held sets of a domain and set ID."""
        taken = self._by_address.get(key[0], {}).get(key, {}).get(set_id, [])
        for held in taken:
            self._count(key, held, -1)
        if taken:
            self._remove(key, set_id)
        return taken

    def _drop(self, key: DomainKey) -> DomainKey:
        """Drop a domain's oldest set: the first one of the set ID that has waited longest."""
        set_id, sets = next(iter(self._by_address[key[0]][key].items()))
        self._count(key, sets.pop(0), -1)
        if not sets:
            self._remove(key, set_id)
        return key

    def _remove(self, key: DomainKey, set_id: int) -> None:
        """Remove a set ID without sets, and its domain and address if they have none left either."""
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
