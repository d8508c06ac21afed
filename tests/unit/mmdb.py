# SPDX-License-Identifier: Apache-2.0
"""Write databases of the MaxMind format, version 2.0 (https://maxmind.github.io/MaxMind-DB/)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network

Network = IPv4Network | IPv6Network
Record = Mapping[str, object]

MARK = b"\xab\xcd\xefMaxMind.com"
_TEXT, _U16, _U32, _MAP, _U64, _ARRAY = 2, 5, 6, 7, 9, 11
_METADATA_TYPES = {
    **dict.fromkeys(("binary_format_major_version", "binary_format_minor_version"), _U16),
    **dict.fromkeys(("ip_version", "record_size"), _U16),
    "build_epoch": _U64,
}
"""Numbers of the metadata that are not of 32 bits; readers check this."""
_SEPARATOR = bytes(16)


def database(networks: Mapping[Network, object], version: int = 6, record_bits: int = 28) -> bytes:
    """Return a database of networks that do not overlap, and are longer than /0. In version 6, IPv4 is below ::/96.

    A network with the record None shares the nodes of IPv4, as 2002::/16 may. Texts may be bytes, which need not be
    UTF-8.
    """
    return _Tree(networks, 128 if version == 6 else 32).written(version, record_bits)


class _Tree:
    """Nodes of two records each: None, the number of a node, or ~PLACE of a data item."""

    def __init__(self, networks: Mapping[Network, object], bits: int) -> None:
        self._bits = bits
        self._data = bytearray()
        self._places: dict[bytes, int] = {}
        self._ipv4_root: int | None = None
        leaves = (
            (
                int(network.network_address),
                network.prefixlen + bits - network.max_prefixlen,
                self._place(record),
            )
            for network, record in networks.items()
        )
        self._leaves = sorted(leaves, key=lambda leaf: leaf[:2])
        self._firsts = [first for first, _, _ in self._leaves]
        self._nodes: list[tuple[int | None, int | None]] = []
        self._build(0, len(self._leaves), 0, 0)

    def _place(self, record: object) -> int | None:
        """Return where a record is in the data."""
        if record is None:
            return None
        content = _value(record)
        if content not in self._places:
            self._places[content] = len(self._data)
            self._data += content
        return self._places[content]

    def _build(self, begin: int, end: int, first: int, depth: int) -> int | None:
        """Build the nodes of these leaves, which share the prefix `first`; return their record."""
        if begin == end:
            return None
        if self._leaves[begin][1] == depth and depth > 0:
            place = self._leaves[begin][2]
            return self._ipv4_root if place is None else ~place
        number = len(self._nodes)
        if depth == 96 and first == 0:
            self._ipv4_root = number
        self._nodes.append((None, None))
        middle = first | 1 << (self._bits - depth - 1)
        split = bisect_left(self._firsts, middle, begin, end)
        left, right = self._build(begin, split, first, depth + 1), self._build(split, end, middle, depth + 1)
        self._nodes[number] = (left, right)
        return number

    def written(self, version: int, record_bits: int) -> bytes:
        """Return the database."""
        if not self._nodes:
            self._nodes.append((None, None))
        count = len(self._nodes)
        tree = b"".join(
            _node(self._record(left, count), self._record(right, count), record_bits)
            for left, right in self._nodes
        )
        metadata = {
            "binary_format_major_version": 2,
            "binary_format_minor_version": 0,
            "build_epoch": 1_700_000_000,
            "database_type": "Test",
            "description": {"en": "for tests"},
            "ip_version": version,
            "languages": ["en"],
            "node_count": count,
            "record_size": record_bits,
        }
        return tree + _SEPARATOR + bytes(self._data) + MARK + _value(metadata)

    def _record(self, content: int | None, count: int) -> int:
        if content is None:
            return count
        return content if content >= 0 else count + len(_SEPARATOR) + ~content


def _node(left: int, right: int, record_bits: int) -> bytes:
    if record_bits != 28:
        return left.to_bytes(record_bits // 8, "big") + right.to_bytes(record_bits // 8, "big")
    # The byte in the middle has the upper four bits of both.
    middle = left >> 24 << 4 | right >> 24
    return (left & 0xFFFFFF).to_bytes(3, "big") + bytes([middle]) + (right & 0xFFFFFF).to_bytes(3, "big")


def _value(value: object, number_type: int = _U32) -> bytes:
    if isinstance(value, Mapping):
        items = (_value(key) + _value(item, _METADATA_TYPES.get(key, _U32)) for key, item in value.items())
        return _control(_MAP, len(value)) + b"".join(items)
    if isinstance(value, list):
        return _control(_ARRAY, len(value)) + b"".join(map(_value, value))
    if isinstance(value, int):
        content = value.to_bytes((value.bit_length() + 7) // 8, "big")
        return _control(number_type, len(content)) + content
    assert isinstance(value, str | bytes)
    content = value.encode() if isinstance(value, str) else value
    return _control(_TEXT, len(content)) + content


def _control(kind: int, size: int) -> bytes:
    """Return the control bytes before a value: its type (from 8 on in a separate byte) and its size."""
    extended = b"" if kind < 8 else bytes([kind - 7])
    short = kind << 5 if kind < 8 else 0
    if size < 29:
        return bytes([short | size]) + extended
    if size < 285:
        return bytes([short | 29]) + extended + bytes([size - 29])
    return bytes([short | 30]) + extended + (size - 285).to_bytes(2, "big")
