# SPDX-License-Identifier: Apache-2.0
"""The format of netlink messages (netlink(7), include/uapi/linux/netlink.h).

A message is a header and a body; most bodies end with attributes, each with a header of its own.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import TypeVar

Data = TypeVar("Data", bytes, memoryview)

REQUEST, ACK, EXCL, CREATE, DUMP = 0x1, 0x4, 0x200, 0x400, 0x300
"""NLM_F_…: flags of requests."""
DUMP_INTERRUPTED = 0x10
"""NLM_F_DUMP_INTR: set in a reply if the table changed during the dump."""
ERROR, DONE = 2, 3
"""NLMSG_…: types of the messages that end a reply."""
ATTRIBUTE_KIND = 0x3FFF
"""NLA_TYPE_MASK: the other bits of an attribute's type are flags (NLA_F_NESTED, NLA_F_NET_BYTEORDER)."""

HEADER = struct.Struct("=IHHII")
"""struct nlmsghdr: length with the header, type, flags, sequence number, port."""
ATTRIBUTE = struct.Struct("=HH")
"""struct nlattr: length with this header, type."""
RESULT = struct.Struct("=i")
"""Start of the body of ERROR and DONE: a negative errno, or 0."""
_TIMEOUT_S = 5.0
ANSWER_BYTES = 1 << 16
"""Receive buffer size; the kernel sends at most 32 KiB at once (netlink_recvmsg in net/netlink/af_netlink.c)."""

RTM_NEWLINK, IFLA_IFNAME = 16, 3
LINK = struct.Struct("=BxHiII")
"""struct ifinfomsg, the body of RTM_NEWLINK before its attributes (include/uapi/linux/rtnetlink.h): address family,
device type, index, flags, change mask."""


def open_channel(protocol: int) -> socket.socket:
    """Open a socket for a protocol of netlink, with a timeout."""
    channel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    channel.settimeout(_TIMEOUT_S)
    return channel


def request(kind: int, flags: int, body: bytes) -> bytes:
    """Build a request message."""
    return HEADER.pack(HEADER.size + len(body), kind, REQUEST | flags, 1, 0) + body


def attribute(kind: int, content: bytes) -> bytes:
    """Build an attribute, padded for the next one."""
    length = ATTRIBUTE.size + len(content)
    return ATTRIBUTE.pack(length, kind) + content.ljust(aligned(length) - ATTRIBUTE.size, b"\0")


def aligned(length: int) -> int:
    """Round a length up to the alignment (NLMSG_ALIGN, NLA_ALIGN)."""
    return length + 3 & ~3


def messages(
    data: bytes | bytearray | memoryview, at: int = 0, end: int | None = None
) -> Iterator[tuple[int, int, int, int]]:
    """Yield each message's type, flags, and body start and end, between two offsets; stop at a truncated message."""
    end = len(data) if end is None else end
    while at + HEADER.size <= end:
        length, kind, flags, _, _ = HEADER.unpack_from(data, at)
        if not HEADER.size <= length <= end - at:
            return
        yield kind, flags, at + HEADER.size, at + length
        at += aligned(length)


def attributes(data: bytes | memoryview, at: int = 0) -> Iterator[tuple[int, int, int]]:
    """Yield each attribute's type, and content start and end, from an offset on; stop at a truncated attribute."""
    while at + ATTRIBUTE.size <= len(data):
        length, kind = ATTRIBUTE.unpack_from(data, at)
        if not ATTRIBUTE.size <= length <= len(data) - at:
            return
        yield kind & ATTRIBUTE_KIND, at + ATTRIBUTE.size, at + length
        at += aligned(length)


def contents(data: Data) -> dict[int, Data]:
    """Map attribute types to their contents; stop at a truncated attribute."""
    return {kind: data[begin:end] for kind, begin, end in attributes(data)}


def error_number(body: bytes | bytearray) -> int:
    """Return the errno in the body of ERROR or DONE; 0 for success or an empty body."""
    return -RESULT.unpack_from(body)[0] if len(body) >= RESULT.size else 0


def dump(channel: socket.socket, what: str) -> Iterator[tuple[int, int, bytes]]:
    """Receive the reply to a request for a dump; yield the type, flags and body of each message, with the last one.

    Messages lost to a full queue are skipped. Raise OSError if the kernel does not answer, or with its errno.
    """
    while True:
        try:
            reply = channel.recv(ANSWER_BYTES)
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            continue
        for kind, flags, begin, end in messages(reply):
            body = reply[begin:end]
            if kind in (ERROR, DONE) and (number := error_number(body)) > 0:
                raise OSError(number, f"{what}: {os.strerror(number)}")
            yield kind, flags, body
            if kind in (ERROR, DONE):
                return


def confirm(channel: socket.socket, kind: int, flags: int, body: bytes) -> int:
    """Send a request and return the errno in the kernel's acknowledgement; 0 for success."""
    channel.send(request(kind, ACK | flags, body))
    reply = channel.recv(ANSWER_BYTES)
    return next(
        (error_number(reply[begin:end]) for kind, _, begin, end in messages(reply) if kind == ERROR), 0
    )
