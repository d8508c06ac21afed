# SPDX-License-Identifier: Apache-2.0
"""Messages of the firewall over netlink (include/uapi/linux/netfilter/nfnetlink.h): sockets, and what they say."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterator

from nettop.errors import NettopError, PermissionMissing, Unsupported
from nettop.flows.decode.datagrams import Datagrams
from nettop.flows.receive import OpenSocket
from nettop.kernel import netlink
from nettop.snapshots.arrays import as_list

_NETLINK_NETFILTER = 12
_SOL_NETLINK, _NO_ENOBUFS = 270, 5
_SO_RCVBUFFORCE = 33
BODY = struct.Struct("!BBH")
"""struct nfgenmsg: address family, version, number of a group or queue."""

Attributes = dict[int, memoryview]
"""The contents of attributes by their type."""


def open_netfilter(groups: int, name: str, receive_buffer_bytes: int) -> OpenSocket:
    """A socket that belongs to these multicast groups (bits). Raises Unsupported, PermissionMissing, NettopError."""
    try:
        opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
    except OSError as error:
        raise Unsupported(f"{name} is not available: {error.strerror}", "modprobe nfnetlink") from error
    try:
        # Drops are counted, which an error in between would not do better.
        opened.setsockopt(_SOL_NETLINK, _NO_ENOBUFS, 1)
        opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, receive_buffer_bytes)
        opened.bind((0, groups))
    except PermissionError as error:
        opened.close()
        raise PermissionMissing(f"{name} needs CAP_NET_ADMIN", "start nettop as root") from error
    except OSError as error:
        opened.close()
        raise NettopError(f"{name} cannot be read: {error.strerror}") from error
    granted = opened.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2
    return OpenSocket(opened, name, granted, "")


def configure(opened: OpenSocket, kind: int, body: bytes, what: str) -> None:
    """Have the kernel do what a message of this kind says. Raises PermissionMissing, and NettopError if it refuses."""
    opened.socket.send(netlink.request(kind, netlink.ACK, body))
    answer = opened.socket.recv(netlink.ANSWER_BYTES)
    number = netlink.error_number(answer[netlink.HEADER.size :])
    if number:
        text = os.strerror(number)
        if number == 1:
            raise PermissionMissing(f"{what} needs CAP_NET_ADMIN", "start nettop as root")
        raise NettopError(f"{what} is refused by the kernel: {text}", "see whether another program uses it")


def messages(received: Datagrams) -> Iterator[tuple[int, memoryview]]:
    """The messages in what was received: type and body of each."""
    buffer = received.buffer.data
    for begin, length in zip(as_list(received.starts), as_list(received.lengths), strict=True):
        at, end = begin, begin + length
        while at + netlink.HEADER.size <= end:
            size, kind, _, _, _ = netlink.HEADER.unpack_from(buffer, at)
            if not netlink.HEADER.size <= size <= end - at:
                break
            yield kind, buffer[at + netlink.HEADER.size : at + size]
            at += netlink.aligned(size)


def attributes(content: memoryview) -> Attributes:
    """The attributes in a body, or in another attribute."""
    contents: Attributes = {}
    at = 0
    while at + netlink.ATTRIBUTE.size <= len(content):
        length, kind = netlink.ATTRIBUTE.unpack_from(content, at)
        if not netlink.ATTRIBUTE.size <= length <= len(content) - at:
            break
        contents[kind & netlink.ATTRIBUTE_KIND] = content[at + netlink.ATTRIBUTE.size : at + length]
        at += netlink.aligned(length)
    return contents


def now_ms() -> int:
    """The wall clock, in ms: netlink's messages have no time of their own."""
    return time.time_ns() // 1_000_000
