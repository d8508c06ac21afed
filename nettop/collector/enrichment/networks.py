# SPDX-License-Identifier: Apache-2.0
"""Networks as sorted, disjoint intervals of addresses, for vectorized lookups.

IPv4 and IPv6 are separate: ::/0 contains no IPv4 address, although those are stored as ::ffff:a.b.c.d.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from nettop.collector.columns import ADDRESS
from nettop.errors import UsageError
from nettop.query.address import MAPPED, address_halves, address_text
from nettop.snapshots.arrays import Array, Index, Mask

Keys = tuple[Array, ...]
"""Unsigned numbers (n,) compared column by column: an IPv4 address is one u4, an IPv6 address two u8."""

_BLOCK_BITS = 16
_BLOCKS = 1 << _BLOCK_BITS
_IPV4_BITS, _ALL_BITS = 32, 128
_ABOVE_IPV4 = 0xFFFF
"""Bits above the address in the lower half of a mapped IPv4 address; the upper half is 0."""
_BOUNDS: tuple[Keys, Keys] = (
    (np.zeros(1, np.uint32),),
    (np.zeros(2, np.uint64), np.arange(2, dtype=np.uint64)),
)
"""Fixed interval starts of IPv4 and IPv6: at zero, and after the all-zero address."""


class SortedKeys:
    """Distinct keys (n,) in ascending order, for vectorized searches."""

    def __init__(self, columns: Keys) -> None:
        self.columns = columns
        first = columns[0]
        self._shift = first.dtype.type(8 * first.dtype.itemsize - _BLOCK_BITS)
        in_blocks = np.bincount((first >> self._shift).astype(np.intp), minlength=_BLOCKS)
        # The last position before each block of keys with the same leading bits, and before the end.
        self._before = (np.append(0, np.cumsum(in_blocks)) - 1).clip(0).astype(np.int32)

    def __len__(self) -> int:
        return len(self.columns[0])

    def last_at_most(self, keys: Keys) -> Index:
        """Return the position of the last key not greater than each given one, 0 if there is none.

        There must be at least one key.
        """
        blocks = (keys[0] >> self._shift).astype(np.intp)
        positions: Index = self._before[blocks]
        reach = int((self._before[blocks + 1] - positions).max(initial=0))
        # All keys advance together by binary search. Being branch-free, this is several times as fast as searchsorted
        # on unordered keys.
        for bit in reversed(range(reach.bit_length())):
            step = np.int32(1 << bit)
            positions += self._are_at_most(positions + step, keys) * step
        # Positions beyond the end compared as the last key.
        last: Index = positions.clip(max=len(self) - 1)
        return last

    def positions(self, keys: Keys) -> Index:
        """Return the position of each key, or −1."""
        if not len(self):
            return np.full(len(keys[0]), -1)
        positions = self.last_at_most(keys)
        pairs = zip(self.columns, keys, strict=True)
        are_equal = np.logical_and.reduce([column[positions] == key for column, key in pairs])
        return np.where(are_equal, positions, -1)

    def _are_at_most(self, positions: Index, keys: Keys) -> Mask:
        """Return whether the keys at these positions are not greater than the given ones."""
        are: Mask = self.columns[-1].take(positions, mode="clip") <= keys[-1]
        for column, key in zip(self.columns[-2::-1], keys[-2::-1], strict=True):
            values = column.take(positions, mode="clip")
            are &= values == key
            are |= values < key
        return are


@dataclass(frozen=True, eq=False)
class Ranges:
    """Ranges of addresses: the first and last ADDRESS of each (n,), of the same family."""

    firsts: Array
    lasts: Array

    @classmethod
    def of(cls, bounds: Sequence[tuple[int, int]]) -> Ranges:
        """Create ranges from first and last addresses as 128-bit numbers."""
        packed = b"".join([number.to_bytes(16, "big") for pair in bounds for number in pair])
        firsts_and_lasts = np.frombuffer(packed, ADDRESS).reshape(-1, 2)
        return cls(firsts_and_lasts[:, 0].copy(), firsts_and_lasts[:, 1].copy())

    def __len__(self) -> int:
        return len(self.firsts)

    @classmethod
    def joined(cls, parts: Sequence[Ranges]) -> Ranges:
        """Concatenate ranges."""
        nothing = np.zeros(0, ADDRESS)
        firsts, lasts = [part.firsts for part in parts], [part.lasts for part in parts]
        return cls(np.concatenate([nothing, *firsts]), np.concatenate([nothing, *lasts]))

    def taken(self, at: Index) -> Ranges:
        """Return the ranges at these positions."""
        return Ranges(self.firsts[at], self.lasts[at])


@dataclass(frozen=True, eq=False)
class Intervals:
    """A partition of the address space into intervals, each with an index; −1 means nothing is known.

    IPv4 intervals come first, then IPv6, in ascending order: `starts` are their first addresses, by family, and
    `indices` is i4 (m,). Each interval ends where the next begins. The all-zero address, which means unknown in flows,
    always has −1.
    """

    starts: tuple[SortedKeys, SortedKeys]
    indices: Array

    @classmethod
    def of(cls, ranges: Ranges, indices: Array, ranks: Array | None = None) -> Intervals:
        """Create intervals from ranges, each with an index (n,).

        Where ranges overlap, the lowest of the `ranks` (n,) wins, then the smallest range, then the first.
        """
        starts, of_intervals = [], []
        ranks = np.zeros(len(ranges), np.uint8) if ranks is None else ranks
        firsts, lasts = address_keys(ranges.firsts), address_keys(ranges.lasts)
        # Tell families by first address: the last one of ::/80 looks like an IPv4 address.
        for rows, keys_at, bounds in zip(_families(firsts), _KEYS_AT, _BOUNDS, strict=True):
            begins, best = _flatten(keys_at(firsts, rows), keys_at(lasts, rows), ranks[rows], bounds)
            starts.append(begins)
            of_intervals.append(np.append(indices[rows], -1)[best])
        of_intervals[1][0] = -1
        return cls._merged((starts[0], starts[1]), np.concatenate(of_intervals))

    def __len__(self) -> int:
        return len(self.indices)

    def look_up(self, addresses: Array) -> Array:
        """Return the index of each ADDRESS (n,), −1 if there is none: i4 (n,)."""
        indices = np.empty(len(addresses), np.int32)
        halves = address_keys(addresses)
        begin = 0
        for rows, keys_at, starts in zip(_families(halves), _KEYS_AT, self.starts, strict=True):
            indices[rows] = self.indices[begin + starts.last_at_most(keys_at(halves, rows))]
            begin += len(starts)
        return indices

    def with_indices(self, indices: Array) -> Intervals:
        """Return the same intervals with other indices (m,), merging neighbors with equal indices."""
        ipv4, ipv6 = self.starts
        return self._merged((ipv4.columns, ipv6.columns), indices)

    @classmethod
    def _merged(cls, starts: tuple[Keys, Keys], indices: Array) -> Intervals:
        ipv4, ipv6 = starts
        begins = np.append(True, indices[1:] != indices[:-1])
        ipv4_count = len(ipv4[0])
        begins[ipv4_count] = True
        return cls(
            (
                SortedKeys(tuple(column[begins[:ipv4_count]] for column in ipv4)),
                SortedKeys(tuple(column[begins[ipv4_count:]] for column in ipv6)),
            ),
            indices[begins].astype(np.int32),
        )


def overlaid(tables: Sequence[Intervals]) -> tuple[Intervals, list[Array]]:
    """Split the intervals of all tables at each other's bounds. Return them numbered, and each table's indices: i4
    (m,).
    """
    (ipv4, _), (ipv6, _) = (
        _distinct((bounds, *(table.starts[family].columns for table in tables)))
        for family, bounds in enumerate(_BOUNDS)
    )
    numbers = np.arange(len(ipv4[0]) + len(ipv6[0]), dtype=np.int32)
    at = [
        np.append(
            table.starts[0].last_at_most(ipv4), table.starts[1].last_at_most(ipv6) + len(table.starts[0])
        )
        for table in tables
    ]
    indices = [table.indices[positions] for table, positions in zip(tables, at, strict=True)]
    return Intervals((SortedKeys(ipv4), SortedKeys(ipv6)), numbers), indices


def address_keys(addresses: Array) -> Keys:
    """Return each ADDRESS (n,), of either family, as two u8."""
    return address_halves(_halves(addresses))


def addresses_of(upper: Array, lower: Array) -> Array:
    """Return the ADDRESS (n,) made of these u8 halves."""
    return np.stack([upper, lower], axis=1).astype(">u8").view(ADDRESS).ravel()


def parsed_networks(texts: Sequence[str]) -> Ranges:
    """Parse networks given by a user. Raise UsageError."""
    return Ranges.of([parsed_network(text) for text in texts])


def parsed_network(text: str) -> tuple[int, int]:
    """Return the first and last address of ADDRESS/LENGTH, or of a single address. Raise UsageError."""
    address, slash, length = text.partition("/")
    first = parsed_address(address)
    bits = _ALL_BITS if ":" in address else _IPV4_BITS
    if not slash:
        return first, first
    if not (length.isascii() and length.isdigit() and len(length) <= 3 and int(length) <= bits):
        raise UsageError(f"{text!r} is not a network", f"use a prefix length from 0 to {bits}")
    rest = (1 << (bits - int(length))) - 1
    if first & rest:
        network = address_text((first & ~rest).to_bytes(16, "big"))
        what = f"{text!r} is not a network: host bits are set after the first {length}"
        raise UsageError(what, f"write {network}/{length}")
    return first, first | rest


def parsed_range(start: str, end: str) -> tuple[int, int]:
    """Return the first and last address of a range. Raise UsageError."""
    first, last = parsed_address(start), parsed_address(end)
    if _is_ipv4(first) != _is_ipv4(last):
        raise UsageError(f"{start!r} and {end!r} are of different families", "use a range of IPv4 or of IPv6")
    if first > last:
        raise UsageError(f"the start {start!r} is after the end {end!r}", "swap them")
    return first, last


def parsed_address(text: str) -> int:
    """Parse an address into a 128-bit number, IPv4 as ::ffff:a.b.c.d. Raise UsageError."""
    # The ipaddress module is ten times slower.
    try:
        if ":" in text:
            packed = socket.inet_pton(socket.AF_INET6, text)
        else:
            packed = MAPPED + socket.inet_pton(socket.AF_INET, text)
    except (OSError, ValueError):
        raise UsageError(f"{text!r} is not an address", "write it like 192.0.2.1 or 2001:db8::1") from None
    return int.from_bytes(packed, "big")


def _is_ipv4(number: int) -> bool:
    return number >> _IPV4_BITS == _ABOVE_IPV4


def _halves(addresses: Array) -> Array:
    return np.ascontiguousarray(addresses).view(">u8").reshape(-1, 2)


def _families(halves: Keys) -> tuple[Index, Index]:
    """Return the positions of IPv4 addresses, and of IPv6 addresses, given their halves."""
    upper, lower = halves
    is_ipv4 = (upper == 0) & (lower >> np.uint64(_IPV4_BITS) == _ABOVE_IPV4)
    return np.flatnonzero(is_ipv4), np.flatnonzero(~is_ipv4)


_KEYS_AT: tuple[Callable[[Keys, Index], Keys], ...] = (
    lambda halves, rows: (halves[1][rows].astype(np.uint32),),
    lambda halves, rows: (halves[0][rows], halves[1][rows]),
)
"""Convert selected addresses to keys of IPv4, and of IPv6."""


def _flatten(firsts: Keys, lasts: Keys, ranks: Array, bounds: Keys) -> tuple[Keys, Index]:
    """Return where intervals begin (m,), and the best of the ranges (n,) covering each; n if there is none."""
    starts, places = _distinct((bounds, firsts, _successors(lasts)))
    begins, ends = np.split(places[len(bounds[0]) :], 2)
    # A range that ends with the last address has wrapped to zero.
    ends[ends == 0] = len(starts[0])
    best: Array = np.full(len(starts[0]), len(begins), np.int32)
    # The best comes last; of equals the first.
    for row in np.lexsort((*_differences(lasts, firsts)[::-1], ranks))[::-1].tolist():
        best[begins[row] : ends[row]] = row
    return starts, best


def _distinct(parts: Sequence[Keys]) -> tuple[Keys, Index]:
    """Return the distinct keys of all parts in ascending order, and the index of each key in them."""
    columns = tuple(np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.lexsort(columns[::-1])
    ordered = [column[order] for column in columns]
    is_new = np.append(True, np.logical_or.reduce([column[1:] != column[:-1] for column in ordered]))
    places = np.empty(len(order), np.intp)
    places[order] = np.cumsum(is_new) - 1
    return tuple(column[is_new] for column in ordered), places


def _successors(keys: Keys) -> Keys:
    """Return the keys of the next addresses; the last one wraps to zero."""
    *above, last = keys
    last = last + last.dtype.type(1)
    return (*(column + (last == 0) for column in above), last)


def _differences(minuends: Keys, subtrahends: Keys) -> Keys:
    *above, last = zip(minuends, subtrahends, strict=True)
    borrow = last[0] < last[1]
    return (*(minuend - subtrahend - borrow for minuend, subtrahend in above), last[0] - last[1])
