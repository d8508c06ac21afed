# SPDX-License-Identifier: Apache-2.0
"""Netlink messages of the firewall (include/uapi/linux/netfilter/nfnetlink.h): sockets and parsing."""

from __future__ import annotations

import os
import socket
import struct
import time
from collections.abc import Iterator

from nettop.errors import NettopError, PermissionMissing, Unsupported
from nettop.flows.decode.datagrams import Datagrams
from nettop.flows.receive import OpenSocket
from nettop.kernel.net import netlink
from nettop.snapshots.arrays import as_list

_NETLINK_NETFILTER = 12
_SOL_NETLINK, _NO_ENOBUFS = 270, 5
_SO_RCVBUFFORCE = 33
BODY = struct.Struct("!BBH")
"""struct nfgenmsg: address family, version, group or queue number."""

Attributes = dict[int, memoryview]
"""Attribute contents by type."""


def open_netfilter(groups: int, name: str, receive_buffer_bytes: int) -> OpenSocket:
    """Open a socket in these multicast groups (bits). Raise Unsupported, PermissionMissing or NettopError."""
    try:
        opened = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
    except OSError as error:
        raise Unsupported(f"{name} is not available: {error.strerror}", "modprobe nfnetlink") from error
    try:
        # Drops are counted; an ENOBUFS error would add nothing.
        opened.setsockopt(_SOL_NETLINK, _NO_ENOBUFS, 1)
        opened.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, receive_buffer_bytes)
        opened.bind((0, groups))
    except PermissionError as error:
        opened.close()
        raise PermissionMissing(f"{name} needs CAP_NET_ADMIN", "start nettop as root") from error
    except OSError as error:
        opened.close()
        raise NettopError(f"cannot read {name}: {error.strerror}") from error
    granted = opened.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2
    return OpenSocket(opened, name, granted, "")


def configure(opened: OpenSocket, kind: int, body: bytes, what: str) -> None:
    """Send a configuration message to the kernel. Raise PermissionMissing, or NettopError if it is rejected."""
    number = netlink.confirm(opened.socket, kind, 0, body)
    if number:
        text = os.strerror(number)
        if number == 1:
            raise PermissionMissing(f"{what} needs CAP_NET_ADMIN", "start nettop as root")
        raise NettopError(f"the kernel rejected {what}: {text}", "check whether another program uses it")


def messages(received: Datagrams) -> Iterator[tuple[int, memoryview]]:
    """Yield the type and body of each message received."""
    buffer = received.buffer.data
    for begin, length in zip(as_list(received.starts), as_list(received.lengths), strict=True):
        for kind, _, start, end in netlink.messages(buffer, begin, begin + length):
            yield kind, buffer[start:end]


def now_ms() -> int:
    """Return the wall clock in ms, as netlink messages carry no timestamp."""
    return time.time_ns() // 1_000_000
