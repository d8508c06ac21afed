# SPDX-License-Identifier: Apache-2.0
"""Neighbours that do not count against the kernel's limit, from rtnetlink (linux/neighbour.h).

Needs no capability. A thread sees the neighbours of its own namespace.
"""

from __future__ import annotations

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
    (neigh_update_gc_list in net/core/neighbour.c). Raise OSError.
    """
    with netlink.open_channel(socket.NETLINK_ROUTE) as channel:
        channel.send(netlink.request(_RTM_GETNEIGH, netlink.DUMP, _NEIGHBOUR.pack(family, 0, 0, 0, 0)))
        return sum(
            _is_unlimited(body)
            for kind, _, body in netlink.dump(channel, "RTM_GETNEIGH")
            if kind == _RTM_NEWNEIGH and len(body) >= _NEIGHBOUR.size
        )


def _is_unlimited(body: bytes) -> bool:
    _, _, state, flags, _ = _NEIGHBOUR.unpack_from(body)
    return bool(state & _NUD_PERMANENT or flags & _NTF_EXT_LEARNED)
