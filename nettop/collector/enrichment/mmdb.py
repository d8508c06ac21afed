# SPDX-License-Identifier: Apache-2.0
"""Read whole databases in MaxMind format, version 2 (https://maxmind.github.io/MaxMind-DB/).

The package maxminddb decodes the metadata and records, in Python. Numpy walks the tree level by level, as the package
takes 20 µs per network for it. Its C extension takes 3 µs, but iterating over a damaged tree with it corrupts the heap,
which crashes the process (3.2.0).
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np

from nettop.collector.enrichment.networks import Ranges, addresses_of
from nettop.errors import NettopError, UsageError
from nettop.query.address import MAPPED
from nettop.snapshots.arrays import Array, Index, Mask, as_list

_MARK = b"\xab\xcd\xefMaxMind.com"
_TAIL = 128 << 10
"""Maximum distance of the metadata's marker from the end of the file."""
_SEPARATOR = 16
"""Number of zero bytes between the tree and the data."""
_IPV4_BITS, _IPV6_BITS = 32, 128
_IPV4_DEPTH = _IPV6_BITS - _IPV4_BITS
"""IPv4 lies below ::/96 in an IPv6 tree."""
_MAPPED = np.uint64(int.from_bytes(MAPPED[8:], "big") << _IPV4_BITS)
"""Lower half of ::ffff:0.0.0.0."""
_VISITS_MAX = 4
"""Average visits per node above which the tree is taken to have a loop. Without shared nodes the average is one."""
_HALF_BITS = 64
_HALF = (1 << _HALF_BITS) - 1


class Contents(NamedTuple):
    """Disjoint networks, and the index of each one's record (n,)."""

    ranges: Ranges
    record_of: Index
    records: list[object]


class _Level(NamedTuple):
    """Node numbers of one depth, and the upper and lower half of each node's first address (n,)."""

    numbers: Index
    upper: Array
    lower: Array

    def taken(self, at: Mask) -> _Level:
        return _Level(*(column[at] for column in self))


def is_mmdb(content: bytes) -> bool:
    """Return whether a file is a MaxMind database."""
    return content.rfind(_MARK, max(0, len(content) - _TAIL)) >= 0


def read_mmdb(path: Path, content: bytes) -> Contents:
    """Read a whole database. Raise UsageError if it is corrupt, NettopError if the package is missing."""
    try:
        import maxminddb
        from maxminddb.decoder import Decoder
    except ModuleNotFoundError:
        what = f"{path} is a MaxMind database; reading it requires the package maxminddb"
        raise NettopError(what, "install it: pip install 'nettop[flows]'") from None
    try:
        # Given an open file, the package does not use its C extension.
        with maxminddb.open_database(io.BytesIO(content), maxminddb.MODE_FD) as reader:
            metadata = reader.metadata()
        nodes = _read_nodes(content, metadata.node_count, metadata.record_size)
        ranges, places = _leaves(nodes, _IPV4_BITS if metadata.ip_version == 4 else _IPV6_BITS)
        distinct, record_of = np.unique(places, return_inverse=True)
        begin = metadata.search_tree_size + _SEPARATOR
        decoder = Decoder(content, begin)
        records: list[object] = [decoder.decode(begin + place)[0] for place in as_list(distinct)]
    # Exceptions caused by corruption. The package's own is a RuntimeError, as is RecursionError.
    except (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError) as error:
        raise UsageError(f"{path} is a corrupt MaxMind database", "download it again") from error
    return Contents(ranges, record_of, records)


def _read_nodes(content: bytes, count: int, record_bits: int) -> Array:
    """Return the nodes, u4 (n, 2). A value is another node, n for nothing, or n + 16 + an offset into the data."""
    node_bytes, whole_bytes = record_bits // 4, record_bits // 8
    raw = np.frombuffer(content, np.uint8, count * node_bytes).reshape(count, node_bytes)
    nodes = np.zeros((count, 2), np.uint32)
    for side, begin in enumerate((0, node_bytes - whole_bytes)):
        for at in range(begin, begin + whole_bytes):
            nodes[:, side] = nodes[:, side] << np.uint32(8) | raw[:, at]
    if record_bits == 28:
        # The middle byte holds the upper four bits of both.
        middle = raw[:, whole_bytes].astype(np.uint32)
        nodes[:, 0] |= middle >> np.uint32(4) << np.uint32(24)
        nodes[:, 1] |= (middle & np.uint32(0xF)) << np.uint32(24)
    return nodes


def _leaves(nodes: Array, bits: int) -> tuple[Ranges, Index]:
    """Return the networks with a record, and its offset into the data (n,). Raise ValueError if the tree is invalid."""
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
        # 6to4 and similar prefixes alias the IPv4 nodes.
        is_alias = (level.numbers == ipv4_root) & ((level.upper > 0) | (level.lower > 0))
        level = level.taken((level.numbers < len(nodes)) & ~is_alias)
    if len(level.numbers) or any((place < 0).any() for place in places):
        raise ValueError("the tree leads nowhere")
    return Ranges(np.concatenate(firsts), np.concatenate(lasts)), np.concatenate(places)


def _below(nodes: Array, level: _Level, bit: int) -> _Level:
    """Return both children of each node. Their addresses differ in this bit, counted from the least significant."""
    numbers = nodes[level.numbers].astype(np.intp).ravel()
    upper, lower = np.repeat(level.upper, 2), np.repeat(level.lower, 2)
    half = upper if bit >= _HALF_BITS else lower
    half[1::2] |= np.uint64(1 << bit % _HALF_BITS)
    return _Level(numbers, upper, lower)


def _ipv4_root(nodes: Array) -> int | None:
    """Return the node of ::/96 in an IPv6 tree, or None."""
    node = 0
    for _ in range(_IPV4_DEPTH):
        if node >= len(nodes):
            return None
        node = int(nodes[node, 0])
    return node if node < len(nodes) else None
