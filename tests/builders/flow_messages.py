# SPDX-License-Identifier: Apache-2.0
"""Messages of NetFlow 9 and IPFIX, and batches of datagrams."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from nettop.collector.decode.datagrams import Datagrams
from nettop.collector.decode.templates import NETFLOW_9
from tests.unit.flow_oracle import Field

SENDER, PORT = bytes(10) + b"\xff\xff" + bytes((192, 0, 2, 1)), 50_000
RECEIVED_NS = 1_700_000_000_123_456_789
EXPORT_S = 1_700_000_000
UPTIME_MS = 90_061_000


@dataclass(frozen=True)
class Sent:
    """A message: its sender and its bytes."""

    sender: bytes
    port: int
    data: bytes


def batch(sent: list[Sent]) -> Datagrams:
    """Return the messages in one buffer."""
    lengths = np.array([len(datagram.data) for datagram in sent], np.intp)
    return Datagrams(
        np.frombuffer(b"".join(datagram.data for datagram in sent), np.uint8),
        np.cumsum(lengths) - lengths,
        lengths,
        np.array([datagram.sender for datagram in sent], "V16"),
        np.array([datagram.port for datagram in sent], np.uint16),
        np.full(len(sent), RECEIVED_NS),
    )


def message(version: int, *sets: bytes, domain: int = 7, sequence: int = 1) -> Sent:
    """Return a message of these sets."""
    content = b"".join(sets)
    if version == NETFLOW_9:
        head = struct.pack("!HHIIII", 9, len(sets), UPTIME_MS, EXPORT_S, sequence, domain)
    else:
        head = struct.pack("!HHIII", 10, 16 + len(content), EXPORT_S, sequence, domain)
    return Sent(SENDER, PORT, head + content)


def a_set(set_id: int, content: bytes, padding: int = 0) -> bytes:
    """Return a set with its header."""
    return struct.pack("!HH", set_id, 4 + len(content) + padding) + content + bytes(padding)


def template_set(version: int, template_id: int, fields: list[Field]) -> bytes:
    """Return a set of one template."""
    content = struct.pack("!HH", template_id, len(fields)) + packed(fields)
    return a_set(0 if version == NETFLOW_9 else 2, content)


def options_set(version: int, template_id: int, scopes: list[Field], fields: list[Field]) -> bytes:
    """Return a set of one options template."""
    if version == NETFLOW_9:
        head = struct.pack("!HHH", template_id, 4 * len(scopes), 4 * len(fields))
        return a_set(1, head + packed([*scopes, *fields]))
    head = struct.pack("!HHH", template_id, len(scopes) + len(fields), len(scopes))
    return a_set(3, head + packed([*scopes, *fields]))


def packed(fields: list[Field]) -> bytes:
    """Pack fields as in a template."""
    parts = []
    for enterprise, number, length in fields:
        parts.append(struct.pack("!HH", number | (0x8000 if enterprise else 0), length))
        if enterprise:
            parts.append(struct.pack("!I", enterprise))
    return b"".join(parts)


def plain(byte_count: int) -> bytes:
    """Return a record of the plain template."""
    return struct.pack("!4s4sII", bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2)), byte_count, 1)


QUIET = bytes(10) + b"\xff\xff" + bytes((192, 0, 2, 2))


def from_port(sent: Sent, port: int, *, sender: bytes = SENDER, uptime_ms: int = UPTIME_MS) -> Sent:
    """Return the message as from another port or address, or with another uptime in versions that have it."""
    is_netflow = sent.data[:2] == b"\0\x09"
    uptime = struct.pack("!I", uptime_ms) if is_netflow else sent.data[4:8]
    return Sent(sender, port, sent.data[:4] + uptime + sent.data[8:])


PLAIN: list[Field] = [(0, 8, 4), (0, 12, 4), (0, 1, 4), (0, 2, 4)]
