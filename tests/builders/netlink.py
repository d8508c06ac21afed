# SPDX-License-Identifier: Apache-2.0
"""Netlink messages in the kernel's layout, and a channel that delivers them."""

from __future__ import annotations

import struct
from contextlib import AbstractContextManager
from typing import Any, Self
from unittest.mock import patch

from nettop.kernel.net import netlink
from nettop.kernel.net.netlink import attribute

ERROR, DONE = 2, 3
MULTI, INTERRUPTED = 0x2, 0x10
NESTED = 0x8000
__all__ = ["Channel", "attribute", "end", "message", "open_each"]


def message(kind: int, body: bytes, flags: int = MULTI) -> bytes:
    """Return one message, padded to 4 bytes."""
    return struct.pack("=IHHII", 16 + len(body), kind, flags, 1, 99) + body + bytes(-len(body) % 4)


def end(number: int = 0, kind: int = DONE, flags: int = MULTI) -> bytes:
    """Return the message that ends a dump, or refuses it with an errno."""
    return message(kind, struct.pack("=i", -number), flags)


class Channel:
    """A netlink socket on which each request is answered by the next of these replies, a list of datagrams.

    After the last datagram it fails, as a socket does whose timeout expired.
    """

    def __init__(self, *replies: list[bytes]) -> None:
        self.requests: list[bytes] = []
        self._replies = list(replies)
        self._datagrams: list[bytes] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, request: bytes) -> int:
        """Accept a request."""
        self.requests.append(request)
        self._datagrams = self._replies.pop(0)
        return len(request)

    def recv(self, _size: int) -> bytes:
        """Return the next datagram."""
        if not self._datagrams:
            raise TimeoutError
        return self._datagrams.pop(0)

    def recvmsg_into(self, buffers: list[memoryview]) -> tuple[int, list[Any], int, None]:
        """Return the next datagram in a buffer; a reply without an end is cut short."""
        datagram = self._datagrams.pop(0) if self._datagrams else b"\0"
        buffers[0][: len(datagram)] = datagram
        return len(datagram), [], 0, None

    def ignore(self, *_: object) -> None:
        """Ignore an option."""

    setsockopt = bind = close = ignore


def open_each(*replies: list[bytes]) -> AbstractContextManager[object]:
    """Let the product's netlink sockets have these replies, inside the context."""
    channel = Channel(*replies)
    return patch.object(netlink, "open_channel", lambda _: channel)
