# SPDX-License-Identifier: Apache-2.0
"""Datagrams of NetFlow 5."""

from __future__ import annotations

import ipaddress
import struct

from tests.builders.flow_messages import PORT, SENDER, Sent

UPTIME_MS, SECONDS, NANOSECONDS = 5_000_000, 1_700_000_000, 250_000_000
FIRST = (
    *("10.0.0.1", "10.0.0.2", "10.0.0.254", 3, 4, 7, 700, 4_990_000, 4_999_000),
    *(443, 51_515, 0x1B, 6, 0x10, 65_001, 65_002, 24, 16),
)
PING = ("10.0.0.3", "10.0.0.4", "0.0.0.0", 1, 2, 1, 84, 0, 1, 0, 0x0301, 0, 1, 0, 0, 0, 0, 0)


def record(values: tuple[str | int, ...]) -> bytes:
    """Return the 48 bytes of a record."""
    addresses = b"".join(ipaddress.IPv4Address(address).packed for address in values[:3])
    return addresses + struct.pack("!HHIIIIHHxBBBHHBBxx", *values[3:])


def datagram(*records: bytes, count: int | None = None) -> Sent:
    """Return a datagram of these records, whose header states `count`."""
    stated = len(records) if count is None else count
    head = struct.pack("!HHIIIIBBH", 5, stated, UPTIME_MS, SECONDS, NANOSECONDS, 77, 1, 2, 0x4000 | 100)
    return Sent(SENDER, PORT, head + b"".join(records))


def address(text: str) -> bytes:
    """Return an address as stored."""
    return ipaddress.IPv6Address(f"::ffff:{text}").packed
