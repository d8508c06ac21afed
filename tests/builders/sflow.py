# SPDX-License-Identifier: Apache-2.0
"""Datagrams of sFlow, and packets in them."""

from __future__ import annotations

import struct
from ipaddress import ip_address

MACS = bytes.fromhex("0200000000020200000000aa")
A4, B4 = "192.0.2.1", "198.51.100.7"
A6, B6 = "2001:db8::1", "2001:db8:ffff::7"
AGENT = "203.0.113.9"
TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58
SYN_ACK = 0x12


def ethernet(etype: int, payload: bytes, tags: tuple[tuple[int, int], ...] = ()) -> bytes:
    return MACS + b"".join(struct.pack("!HH", *tag) for tag in tags) + struct.pack("!H", etype) + payload


def ip4(payload: bytes, protocol: int, *, options: bytes = b"", fragment: int = 0, length: int = -1) -> bytes:
    total = 20 + len(options) + len(payload) if length < 0 else length
    words = 5 + len(options) // 4
    head = struct.pack("!BBHHHBBH", 0x40 | words, 0xB8, total, 0x1234, fragment, 61, protocol, 0)
    return head + packed(A4) + packed(B4) + options + payload


def ip6(payload: bytes, protocol: int, length: int = -1) -> bytes:
    total = len(payload) if length < 0 else length
    head = struct.pack("!IHBB", 6 << 28 | 0xB8 << 20 | 0xABCDE, total, protocol, 61)
    return head + packed(A6) + packed(B6) + payload


def tcp(flags: int = SYN_ACK) -> bytes:
    return struct.pack("!HHIIHHHH", 50123, 443, 1, 2, 0x5000 | flags, 1024, 0, 0)


def packed(address: str) -> bytes:
    return ip_address(address).packed


def mapped(address: str) -> bytes:
    return (b"" if ":" in address else bytes(10) + b"\xff\xff") + packed(address)


TCP4, TCP6 = ip4(tcp(), TCP), ip6(tcp(), TCP)


def words(*values: int) -> bytes:
    return struct.pack(f"!{len(values)}I", *values)


def address(text: str) -> bytes:
    if not text:
        return words(0)
    return words(2 if ":" in text else 1) + packed(text)


def part(form: int, content: bytes, length: int | None = None) -> bytes:
    """Return a sample or a record."""
    return words(form, len(content) if length is None else length) + content


def datagram(*samples: bytes, agent: str = AGENT, count: int | None = None, version: int = 5) -> bytes:
    count = len(samples) if count is None else count
    return words(version) + address(agent) + words(3, 77, 1000, count) + b"".join(samples)


def flow(*records: bytes, input_if: int = 10, output_if: int = 20, count: int | None = None) -> bytes:
    count = len(records) if count is None else count
    return part(1, words(1, 10, 512, 99, 0, input_if, output_if, count) + b"".join(records))


def raw(packet: bytes, protocol: int = 1, frame_length: int = 1500, captured: int | None = None) -> bytes:
    padded = packet + bytes(-len(packet) % 4)
    captured = len(packet) if captured is None else captured
    return part(1, words(protocol, frame_length, 4, captured) + padded)


INTERFACE = struct.pack("!IIQIIQ6IQ5II", 4, 6, 10**10, 1, 3, 10**15, *range(1, 7), 10**16, *range(11, 16), 2)
RAW = raw(ethernet(0x0800, TCP4))
