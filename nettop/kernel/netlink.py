# SPDX-License-Identifier: Apache-2.0
"""The format of netlink messages (netlink(7), include/uapi/linux/netlink.h).

A message is a header and a body; most bodies end with attributes, each with a header of its own.
"""

from __future__ import annotations

import struct

REQUEST, ACK, EXCL, CREATE, DUMP = 0x1, 0x4, 0x200, 0x400, 0x300
"""NLM_F_…: flags of requests."""
DUMP_INTERRUPTED = 0x10
"""NLM_F_DUMP_INTR: set in an answer if something changed while the kernel listed it."""
ERROR, DONE = 2, 3
"""NLMSG_…: types of the messages that end an answer."""
ATTRIBUTE_KIND = 0x3FFF
"""NLA_TYPE_MASK: the other bits of an attribute's type are flags (NLA_F_NESTED, NLA_F_NET_BYTEORDER)."""

HEADER = struct.Struct("=IHHII")
"""struct nlmsghdr: length with the header, type, flags, sequence number, port."""
ATTRIBUTE = struct.Struct("=HH")
"""struct nlattr: length with this header, type."""
RESULT = struct.Struct("=i")
"""The begin of the body of ERROR and DONE: a negative errno, or 0."""
ANSWER_BYTES = 1 << 16
"""Buffer for one answer; the kernel sends 32 KiB at most (netlink_recvmsg in net/netlink/af_netlink.c)."""

RTM_NEWLINK, IFLA_IFNAME = 16, 3
LINK = struct.Struct("=BxHiII")
"""struct ifinfomsg, the body of RTM_NEWLINK before its attributes (include/uapi/linux/rtnetlink.h): address family,
type of device, its index, its flags, which of them change."""


def request(kind: int, flags: int, body: bytes) -> bytes:
    """A message to the kernel."""
    return HEADER.pack(HEADER.size + len(body), kind, REQUEST | flags, 1, 0) + body


def attribute(kind: int, content: bytes) -> bytes:
    """An attribute, padded so that the next one can follow."""
    length = ATTRIBUTE.size + len(content)
    return ATTRIBUTE.pack(length, kind) + content.ljust(aligned(length) - ATTRIBUTE.size, b"\0")


def aligned(length: int) -> int:
    """A length with padding: NLMSG_ALIGN, NLA_ALIGN."""
    return length + 3 & ~3


def error_number(body: bytes | bytearray) -> int:
    """The errno in the body of ERROR or DONE; 0 for success, and in an empty body."""
    return -RESULT.unpack_from(body)[0] if len(body) >= RESULT.size else 0
