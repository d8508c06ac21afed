# SPDX-License-Identifier: Apache-2.0
"""Neighbours that the kernel does not limit, read from rtnetlink messages, and the use without them."""

from __future__ import annotations

import errno
import os
import socket
import struct
from unittest.mock import Mock

import pytest

from nettop.kernel.net.neighbours import count_unlimited
from nettop.probes.findings import limits
from tests.builders.netlink import ERROR, end, message, open_each

NEWNEIGH = 28
STALE, PERMANENT, NOARP = 0x04, 0x80, 0x40
LEARNED = 0x10
ARP, IPV6 = "neighbours (ARP)", "neighbours (IPv6)"


def neighbour(state: int, flags: int = 0) -> bytes:
    """Return a message about a neighbour."""
    return message(NEWNEIGH, struct.pack("=B3xiHBB", socket.AF_INET, 2, state, flags, 1))


def test_permanent_and_learned_neighbours_are_not_limited() -> None:
    """Permanent and learned neighbours are counted as unlimited; other and truncated messages are skipped."""
    some = neighbour(PERMANENT) + neighbour(STALE) + neighbour(STALE, LEARNED) + neighbour(NOARP)
    with open_each([some + message(16, bytes(16)) + neighbour(PERMANENT)[:-4], neighbour(PERMANENT), end()]):
        assert count_unlimited(socket.AF_INET) == 3
    with open_each([end(errno.EPERM, ERROR)]), pytest.raises(OSError, match=os.strerror(errno.EPERM)):
        count_unlimited(socket.AF_INET)


def test_use_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """From half of the limit on, unlimited neighbours of all namespaces are subtracted, by family, not below zero."""
    monkeypatch.setattr(limits, "count_unlimited", {socket.AF_INET: 300, socket.AF_INET6: 900}.__getitem__)

    def in_two_namespaces(family: int) -> int:
        return 2 * limits.unlimited_here(family)

    amounts = {ARP: (1500, 1024), IPV6: (1500, 1024), "open files": (9, 10)}
    less = {ARP: (900, 1024), IPV6: (0, 1024), "open files": (9, 10)}
    assert limits.less_unlimited(amounts, in_two_namespaces) == less
    for unchanged in ({ARP: (511, 1024)}, {"open files": (9, 10)}, {}):
        assert limits.less_unlimited(unchanged, in_two_namespaces) == unchanged
    monkeypatch.setattr(
        limits, "count_unlimited", Mock(side_effect=TimeoutError)
    )  # a namespace that does not answer
    assert limits.less_unlimited({ARP: (900, 1024)}, limits.unlimited_here) == {ARP: (900, 1024)}
