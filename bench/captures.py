# SPDX-License-Identifier: Apache-2.0
"""Read the UDP datagrams in captures (pcap) of Ethernet frames."""

import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

_VLANS = (0x8100, 0x88A8)
_IPV4, _IPV6, _UDP = 0x0800, 0x86DD, 17


class Datagram(NamedTuple):
    """A datagram from an exporter's address and port."""

    exporter: str
    port: int
    content: bytes


def datagrams(content: bytes) -> Iterator[Datagram]:
    """Yield the UDP datagrams of a capture, with fragments reassembled."""
    parts: dict[bytes, bytes] = {}
    at = 24
    while at + 16 <= len(content):
        (size,) = struct.unpack_from("<8xI", content, at)
        packet = _packet(content[at + 16 : at + 16 + size])
        at += 16 + size
        if packet is None:
            continue
        key, source, offset, is_last, payload = packet
        whole = parts.pop(key, b"") + payload if offset else payload
        if not is_last:
            parts[key] = whole
            continue
        port, _, length = struct.unpack_from("!HHH", whole)
        yield Datagram(source, port, whole[8:length])


def _packet(frame: bytes) -> tuple[bytes, str, int, bool, bytes] | None:
    """Return a fragment's datagram key, sender, offset, whether it is the last, and its content; None if not UDP."""
    kind, at = struct.unpack_from("!H", frame, 12)[0], 14
    while kind in _VLANS:
        (kind,), at = struct.unpack_from("!H", frame, at + 2), at + 4
    if kind == _IPV4 and frame[at + 9] == _UDP:
        length, number, flags = struct.unpack_from("!xxHHH", frame, at)
        key = frame[at + 12 : at + 20] + number.to_bytes(2)
        content = frame[at + (frame[at] & 15) * 4 : at + length]
        source = socket.inet_ntoa(frame[at + 12 : at + 16])
        return key, source, flags & 0x1FFF, not flags & 0x2000, content
    if kind == _IPV6 and frame[at + 6] == _UDP:
        (length,) = struct.unpack_from("!4xH", frame, at)
        source = socket.inet_ntop(socket.AF_INET6, frame[at + 8 : at + 24])
        return b"", source, 0, True, frame[at + 40 : at + 40 + length]
    return None
