# SPDX-License-Identifier: Apache-2.0
"""Databases of the MaxMind format, version 2, all networks at once (https://maxmind.github.io/MaxMind-DB/).

The package maxminddb reads the metadata and the records, in Python. The tree is walked by numpy, a level at a time: the
package takes 20 µs a network for it. Its C extension takes 3 µs, but going through a damaged tree with it corrupts the
heap, which ends the process (3.2.0).
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nettop.errors import NettopError, UsageError
from nettop.flows.enrichment.networks import Ranges, addresses_of
from nettop.query.address import MAPPED
from nettop.snapshots.arrays import Index, Mask, as_list
from nettop.snapshots.snapshot import Array

_MARK = b"\xab\xcd\xefMaxMind.com"
_TAIL = 128 << 10
"""The metadata is behind its mark, in so many of the last bytes."""
_SEPARATOR = 16
"""Bytes of zeros between the tree and the data."""
_IPV4_BITS, _IPV6_BITS = 32, 128
_IPV4_DEPTH = _IPV6_BITS - _IPV4_BITS
"""IPv4 is below ::/96 in a tree of IPv6."""
_MAPPED = np.uint64(int.from_bytes(MAPPED[8:], "big") << _IPV4_BITS)
"""The lower half of ::ffff:0.0.0.0."""
_VISITS_MAX = 4
"""A tree has a loop if its nodes are visited more often on the average. In one without shared nodes it is once."""
_HALF_BITS = 64
_HALF = (1 << _HALF_BITS) - 1


class Contents(NamedTuple):
    """Networks, which do not overlap, and the position of each one's record (n,)."""

    ranges: Ranges
    record_of: Index
    records: list[object]


class _Level(NamedTuple):
    """Nodes of one depth by their numbers, and the first address of each in halves (n,)."""

    numbers: Index
    upper: Array
    lower: Array

    def taken(self, at: Mask) -> _Level:
        return _Level(*(column[at] for column in self))


def is_mmdb(content: bytes) -> bool:
    """Whether a file is such a database."""
    return content.rfind(_MARK, max(0, len(content) - _TAIL)) >= 0


def read_mmdb(path: Path, content: bytes) -> Contents:
    """All that is in a database. Raises UsageError if it is broken, NettopError if the package is missing."""
    try:
        import maxminddb
        from maxminddb.decoder import Decoder
    except ModuleNotFoundError:
        what = f"{path} is a MaxMind database; to read it the package maxminddb is missing"
        raise NettopError(what, "install it with nettop, by pip install 'nettop[flows]'") from None
    try:
        # Given a file that is open, it leaves its C extension alone.
        with maxminddb.open_database(io.BytesIO(content), maxminddb.MODE_FD) as reader:
            metadata = reader.metadata()
        nodes = _read_nodes(content, metadata.node_count, metadata.record_size)
        ranges, places = _leaves(nodes, _IPV4_BITS if metadata.ip_version == 4 else _IPV6_BITS)
        distinct, record_of = np.unique(places, return_inverse=True)
        begin = metadata.search_tree_size + _SEPARATOR
        decoder = Decoder(content, begin)
        records: list[object] = [decoder.decode(begin + place)[0] for place in as_list(distinct)]
    # The kinds that damage leads to. That of the package is a RuntimeError, and so is too deep a recursion.
    except (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError) as error:
        raise UsageError(f"{path} is a broken MaxMind database", "download it once more") from error
    return Contents(ranges, record_of, records)


def _read_nodes(content: bytes, count: int, record_bits: int) -> Array:
    """The nodes, u4 (n, 2). A number is that of another node, n for nothing, or n + 16 + a place in the data."""
    node_bytes, whole_bytes = record_bits // 4, record_bits // 8
    raw = np.frombuffer(content, np.uint8, count * node_bytes).reshape(count, node_bytes)
    nodes = np.zeros((count, 2), np.uint32)
    for side, begin in enumerate((0, node_bytes - whole_bytes)):
        for at in range(begin, begin + whole_bytes):
            nodes[:, side] = nodes[:, side] << np.uint32(8) | raw[:, at]
    if record_bits == 28:
        # The byte in the middle has the upper four bits of both.
        middle = raw[:, whole_bytes].astype(np.uint32)
        nodes[:, 0] |= middle >> np.uint32(4) << np.uint32(24)
        nodes[:, 1] |= (middle & np.uint32(0xF)) << np.uint32(24)
    return nodes


def _leaves(nodes: Array, bits: int) -> tuple[Ranges, Index]:
    """The networks that have a record, and its place in the data (n,). Raises ValueError if the tree is none."""
    ipv4_root = _ipv4_root(nodes) if bits == _IPV6_BITS else None
    level = _Level(np.zeros(1, np.intp), np.zeros(1, np.uint64), np.zeros(1, np.uint64))
    visited, firsts, lasts, places = 0, [], [], []
    for bit in reversed(range(bits)):
        visited += len(level.numbers)
        if visited > _VISITS_MAX * len(nodes):
            raise ValueError("the tree has a loop")
        level = _below(nodes, level, bit)
        leaves = level.taken(level.numbers > len(nodes))
        is_ipv4 = (leaves.upper == 0) & (leaves.lower >> np.uint64(_IPV4_BITS) == 0) & (bit <= _IPV4_BITS)
        lower = np.where(is_ipv4, leaves.lower | _MAPPED, leaves.lower)
        rest = (1 << bit) - 1
        firsts.append(addresses_of(leaves.upper, lower))
        lasts.append(
            addresses_of(leaves.upper | np.uint64(rest >> _HALF_BITS), lower | np.uint64(rest & _HALF))
        )
        places.append(leaves.numbers - len(nodes) - _SEPARATOR)
        # 6to4 and the like lead to the nodes of IPv4 once more.
        is_alias = (level.numbers == ipv4_root) & ((level.upper > 0) | (level.lower > 0))
        level = level.taken((level.numbers < len(nodes)) & ~is_alias)
    if len(level.numbers) or any((each < 0).any() for each in places):
        raise ValueError("the tree leads nowhere")
    return Ranges(np.concatenate(firsts), np.concatenate(lasts)), np.concatenate(places)


def _below(nodes: Array, level: _Level, bit: int) -> _Level:
    """What both records of each node say. Their addresses differ in this bit, counted from the last."""
    numbers = nodes[level.numbers].astype(np.intp).ravel()
    upper, lower = np.repeat(level.upper, 2), np.repeat(level.lower, 2)
    half = upper if bit >= _HALF_BITS else lower
    half[1::2] |= np.uint64(1 << bit % _HALF_BITS)
    return _Level(numbers, upper, lower)


def _ipv4_root(nodes: Array) -> int | None:
    """The node of ::/96 in a tree of IPv6; None if there is no node."""
    node = 0
    for _ in range(_IPV4_DEPTH):
        if node >= len(nodes):
            return None
        node = int(nodes[node, 0])
    return node if node < len(nodes) else None
