# SPDX-License-Identifier: Apache-2.0
"""Neighbours that do not count against the kernel's limit, from rtnetlink (linux/neighbour.h).

Needs no capability. A thread sees the neighbours of its own namespace.
"""

from __future__ import annotations

import os
import socket
import struct

from nettop.kernel.net import netlink

_RTM_NEWNEIGH, _RTM_GETNEIGH = 28, 30
_NEIGHBOUR = struct.Struct("=B3xiHBB")
"""struct ndmsg: address family, device, state, flags, type."""
_NUD_PERMANENT, _NTF_EXT_LEARNED = 0x80, 0x10


def count_unlimited(family: int) -> int:
    """Return the number of neighbours of the calling thread's namespace that may be more than gc_thresh3.

    Permanent ones and those that a routing daemon has learned are counted as entries, but are not limited
    (neigh_update_gc_list in net/core/neighbour.c). Raises OSError.
    """
    with netlink.open_channel(socket.NETLINK_ROUTE) as channel:
        channel.send(netlink.request(_RTM_GETNEIGH, netlink.DUMP, _NEIGHBOUR.pack(family, 0, 0, 0, 0)))
        counted, ended = 0, False
        while not ended:
            some, ended = parse_unlimited(channel.recv(netlink.ANSWER_BYTES))
            counted += some
        return counted


def parse_unlimited(message: bytes) -> tuple[int, bool]:
    """Return how many neighbours in one message of a dump are not limited, and whether it ends the dump.

    Raises OSError with the kernel's errno if the reply is an error.
    """
    counted, ended = 0, False
    for kind, _, begin, end in netlink.messages(message):
        if kind in (netlink.ERROR, netlink.DONE):
            ended = True
            if (number := netlink.error_number(message[begin:end])) > 0:
                raise OSError(number, f"RTM_GETNEIGH: {os.strerror(number)}")
        elif kind == _RTM_NEWNEIGH and end - begin >= _NEIGHBOUR.size:
            _, _, state, flags, _ = _NEIGHBOUR.unpack_from(message, begin)
            counted += bool(state & _NUD_PERMANENT or flags & _NTF_EXT_LEARNED)
    return counted, ended
