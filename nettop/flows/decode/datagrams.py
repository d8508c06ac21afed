# SPDX-License-Identifier: Apache-2.0
"""A batch of datagrams in one buffer, and numbers read at many places of it at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from nettop.flows.columns import ADDRESS
from nettop.query.address import MAPPED
from nettop.snapshots.arrays import Index
from nettop.snapshots.snapshot import Array

_WHOLE = (1, 2, 4, 8)
_RANGE = 1 << 32
_Number = TypeVar("_Number", int, Array)


@dataclass(frozen=True, eq=False)
class Datagrams:
    """Datagrams, each with its place in `buffer` (u1), its length, its sender and when it was received (n,).

    `senders` are addresses, `received_ns` times of the wall clock.
    """

    buffer: Array
    starts: Index
    lengths: Index
    senders: Array
    ports: Array
    received_ns: Array

    @property
    def ends(self) -> Index:
        """Where each ends."""
        return self.starts + self.lengths

    def at(self, which: slice) -> Datagrams:
        """Some of them, in the same buffer."""
        return Datagrams(
            self.buffer,
            self.starts[which],
            self.lengths[which],
            self.senders[which],
            self.ports[which],
            self.received_ns[which],
        )

    def pieces(self, sizes: Index, most: int) -> Iterator[Datagrams]:
        """All of them, in pieces whose `sizes` (n,) add up to at most so much, or of one datagram."""
        ends = np.cumsum(sizes)
        first = 0
        while first < len(ends):
            end = max(first + 1, int(np.searchsorted(ends, ends[first] - sizes[first] + most, "right")))
            yield self.at(slice(first, end))
            first = end


def consecutive(starts: Index, counts: Index, length: int) -> tuple[Index, Index]:
    """Where records of one length lie, `counts` of them from each start: the number of its start, and its place."""
    which = np.repeat(np.arange(len(starts)), counts)
    firsts = np.cumsum(counts) - counts
    return which, starts[which] + length * (np.arange(len(which)) - firsts[which])


def nearest(differences: _Number) -> _Number:
    """Return the least differences, in either direction, that those of numbers which wrap at 32 bits may mean."""
    return (differences + _RANGE // 2) % _RANGE - _RANGE // 2


def numbers(buffer: Array, places: Index, width: int) -> Array:
    """The unsigned numbers of `width` bytes (1 to 8), in network order, at these places: u8 (n,)."""
    if width in _WHOLE:
        return items(buffer, places, f">u{width}").astype(np.uint64)
    number: Array = np.zeros(len(places), np.uint64)
    for at in range(width):
        number = number << np.uint64(8) | buffer[places + at]
    return number


def items(buffer: Array, places: Index, dtype: str) -> Array:
    """The values of a dtype at these places, which need not be aligned."""
    width = np.dtype(dtype).itemsize
    if len(buffer) < width:
        return np.zeros(0, dtype)
    overlapping: Array = np.ndarray((len(buffer) - width + 1,), dtype, buffer, 0, (1,))
    return overlapping[places]


def ipv6(buffer: Array, places: Index) -> Array:
    """The IPv6 addresses at these places."""
    return items(buffer, places, ADDRESS)


def ipv4(buffer: Array, places: Index) -> Array:
    """The IPv4 addresses at these places, as ::ffff:a.b.c.d."""
    mapped = np.empty((len(places), 16), np.uint8)
    mapped[:, :12] = np.frombuffer(MAPPED, np.uint8)
    mapped[:, 12:] = items(buffer, places, ">u4").view(np.uint8).reshape(-1, 4)
    return mapped.view(ADDRESS).ravel()
