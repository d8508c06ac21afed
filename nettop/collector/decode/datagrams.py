# SPDX-License-Identifier: Apache-2.0
"""A batch of datagrams in one buffer, and vectorized reads at many offsets of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from nettop.collector.columns import ADDRESS, TIME_MIN_MS
from nettop.query.address import MAPPED
from nettop.snapshots.arrays import Array, Index, Mask

_WHOLE = (1, 2, 4, 8)
_RANGE = 1 << 32
_Number = TypeVar("_Number", int, Array)


@dataclass(frozen=True, eq=False)
class Datagrams:
    """A batch of datagrams: offset in `buffer` (u1), length, sender and receive time of each (n,).

    `senders` are addresses; `received_ns` is wall-clock time.
    """

    buffer: Array
    starts: Index
    lengths: Index
    senders: Array
    ports: Array
    received_ns: Array

    @property
    def ends(self) -> Index:
        """End offset of each datagram."""
        return self.starts + self.lengths

    def at(self, which: slice | Mask) -> Datagrams:
        """Return some of the datagrams; they share the buffer."""
        return Datagrams(
            self.buffer,
            self.starts[which],
            self.lengths[which],
            self.senders[which],
            self.ports[which],
            self.received_ns[which],
        )

    def pieces(self, sizes: Index, most: int) -> Iterator[Datagrams]:
        """Yield consecutive slices whose `sizes` (n,) add up to at most `most`, or that hold a single datagram."""
        ends = np.cumsum(sizes)
        first = 0
        while first < len(ends):
            end = max(first + 1, int(np.searchsorted(ends, ends[first] - sizes[first] + most, "right")))
            yield self.at(slice(first, end))
            first = end


def consecutive(starts: Index, counts: Index, length: int) -> tuple[Index, Index]:
    """Locate `counts` consecutive records of fixed length from each start. Return each one's start index and offset."""
    which = np.repeat(np.arange(len(starts)), counts)
    firsts = np.cumsum(counts) - counts
    return which, starts[which] + length * (np.arange(len(which)) - firsts[which])


def nearest(differences: _Number) -> _Number:
    """Return the smallest signed differences equal to these modulo 2³², as 32-bit numbers wrap."""
    return (differences + _RANGE // 2) % _RANGE - _RANGE // 2


def numbers(buffer: Array, places: Index, width: int) -> Array:
    """Read big-endian unsigned numbers of `width` bytes (1 to 8) at these offsets: u8 (n,)."""
    if width in _WHOLE:
        return items(buffer, places, f">u{width}").astype(np.uint64)
    number: Array = np.zeros(len(places), np.uint64)
    for at in range(width):
        number = number << np.uint64(8) | buffer[places + at]
    return number


def items(buffer: Array, places: Index, dtype: str) -> Array:
    """Read values of a dtype at these offsets, aligned or not."""
    width = np.dtype(dtype).itemsize
    if len(buffer) < width:
        return np.zeros(0, dtype)
    overlapping: Array = np.ndarray((len(buffer) - width + 1,), dtype, buffer, 0, (1,))
    return overlapping[places]


def ipv6(buffer: Array, places: Index) -> Array:
    """Read the IPv6 addresses at these offsets."""
    return items(buffer, places, ADDRESS)


def ipv4(buffer: Array, places: Index) -> Array:
    """Read the IPv4 addresses at these offsets, as ::ffff:a.b.c.d."""
    mapped = np.empty((len(places), 16), np.uint8)
    mapped[:, :12] = np.frombuffer(MAPPED, np.uint8)
    mapped[:, 12:] = items(buffer, places, ">u4").view(np.uint8).reshape(-1, 4)
    return mapped.view(ADDRESS).ravel()


# --- an exporter's clock and its 32-bit uptime ------------------------------------------------------------------


def exported_ms(clock_ms: Array, received_ms: Array) -> Array:
    """Return the export time by the exporter's clock, or the receive time if that clock was never set."""
    return np.where(clock_ms >= TIME_MIN_MS, clock_ms, received_ms)


def uptime_at_ms(uptime_ms: Array, zero_ms: Array, export_ms: Array) -> Array:
    """Convert uptimes to times. Uptimes wrap after 49.7 days, so choose the time nearest to the export time.

    `zero_ms` is any time at which the uptime was 0: the exporter's start, or an export time minus its uptime.
    """
    time_ms: Array = export_ms + nearest(zero_ms + uptime_ms - export_ms)
    return time_ms
