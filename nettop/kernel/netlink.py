# SPDX-License-Identifier: Apache-2.0
"""The form of netlink's messages, whatever they are about (netlink(7), include/uapi/linux/netlink.h).

A message is a header and a body; of most bodies the end is a row of attributes, each with a header of its own.
"""

from __future__ import annotations

import struct

REQUEST, ACK, EXCL, CREATE, DUMP = 0x1, 0x4, 0x200, 0x400, 0x300
"""NLM_F_…: flags of what is asked."""
DUMP_INTERRUPTED = 0x10
"""NLM_F_DUMP_INTR: the flag of an answer that something changed while the kernel went through it."""
ERROR, DONE = 2, 3
"""NLMSG_…: kinds of the messages that end an answer."""
ATTRIBUTE_KIND = 0x3FFF
"""NLA_TYPE_MASK: above an attribute's kind stand flags (NLA_F_NESTED, NLA_F_NET_BYTEORDER)."""

HEADER = struct.Struct("=IHHII")
"""struct nlmsghdr: length with the header, kind, flags, number, port."""
ATTRIBUTE = struct.Struct("=HH")
"""struct nlattr: length with this header, kind."""
RESULT = struct.Struct("=i")
"""How the body of ERROR and DONE begins: a negative errno, or 0."""
ANSWER_BYTES = 1 << 16
"""Bytes for one answer; one of several messages is of 32 KiB at most (netlink_recvmsg in net/netlink/af_netlink.c)."""

RTM_NEWLINK, IFLA_IFNAME = 16, 3
LINK = struct.Struct("=BxHiII")
"""struct ifinfomsg, the body of RTM_NEWLINK before its attributes (include/uapi/linux/rtnetlink.h): address family,
kind of device, its number, its flags, which of them change."""


def request(kind: int, flags: int, body: bytes) -> bytes:
    """A message to the kernel."""
    return HEADER.pack(HEADER.size + len(body), kind, REQUEST | flags, 1, 0) + body


def attribute(kind: int, content: bytes) -> bytes:
    """An attribute, as long as the next one can follow."""
    length = ATTRIBUTE.size + len(content)
    return ATTRIBUTE.pack(length, kind) + content.ljust(aligned(length) - ATTRIBUTE.size, b"\0")


def aligned(length: int) -> int:
    """How far the next message or attribute begins behind the begin of one of this length: NLMSG_ALIGN, NLA_ALIGN."""
    return length + 3 & ~3


def error_number(body: bytes | bytearray) -> int:
    """The errno that the body of ERROR or DONE tells; 0 for success, and where it tells nothing."""
    return -RESULT.unpack_from(body)[0] if len(body) >= RESULT.size else 0
