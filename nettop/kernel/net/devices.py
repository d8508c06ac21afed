# SPDX-License-Identifier: Apache-2.0
"""Devices and addresses of private network namespaces, set by rtnetlink.

Everything is created in the namespace of the calling thread, and removed with it. (Numbers and layouts:
rtnetlink.h, if_link.h, if_addr.h and veth.h in include/uapi/linux.)
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct

from nettop.kernel.host.privileges import CAP_NET_ADMIN, require
from nettop.kernel.net import netlink
from nettop.kernel.net.netlink import attribute

_NEW = netlink.CREATE | netlink.EXCL
_RTM_NEWADDR = 20
_IFLA_LINKINFO, _IFLA_NET_NS_PID = 18, 19
_INFO_KIND, _INFO_DATA, _VETH_INFO_PEER = 1, 2, 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_IFA_F_NODAD = 0x02
"""Flag to skip duplicate address detection: the namespace is private, so the address can be used at once."""
_IFF_UP, _IFF_RUNNING = 0x1, 0x40
_SIOCGIFFLAGS = 0x8913
_INDEX = 10
"""Index of one end; the other gets the next one. If both were equal, the kernel would report that packets can pass
only once a second (net/core/link_watch.c, linkwatch_urgent_event)."""
_ADDRESS = struct.Struct("=BBBBI")


def set_up(device: str) -> None:
    """Set a device up."""
    _request(netlink.RTM_NEWLINK, 0, netlink.LINK.pack(0, 0, socket.if_nametoindex(device), _IFF_UP, _IFF_UP))


def make_veth(device: str, peer: str, peer_pid: int) -> None:
    """Create a veth pair whose other end is in the namespace of a process."""
    there = (
        netlink.LINK.pack(0, 0, _INDEX + 1, 0, 0)
        + attribute(netlink.IFLA_IFNAME, peer.encode() + b"\0")
        + attribute(_IFLA_NET_NS_PID, struct.pack("=I", peer_pid))
    )
    info = attribute(_INFO_KIND, b"veth") + attribute(_INFO_DATA, attribute(_VETH_INFO_PEER, there))
    here = attribute(netlink.IFLA_IFNAME, device.encode() + b"\0") + attribute(_IFLA_LINKINFO, info)
    try:
        _request(netlink.RTM_NEWLINK, _NEW, netlink.LINK.pack(0, 0, _INDEX, 0, 0) + here)
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            raise OSError(error.errno, "this kernel has no veth (CONFIG_VETH)") from error
        raise


def add_address(device: str, address: str, prefix: int) -> None:
    """Add an address to a device."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    raw = socket.inet_pton(family, address)
    body = _ADDRESS.pack(family, prefix, _IFA_F_NODAD, 0, socket.if_nametoindex(device))
    _request(_RTM_NEWADDR, _NEW, body + attribute(_IFA_LOCAL, raw) + attribute(_IFA_ADDRESS, raw))


def is_running(device: str) -> bool:
    """Return whether packets can pass: a pair needs both ends up, and a moment."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        answer = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, struct.pack("=16sh14x", device.encode(), 0))
    flags: int = struct.unpack_from("=H", answer, 16)[0]
    return bool(flags & _IFF_RUNNING)


def _request(kind: int, flags: int, body: bytes) -> None:
    """Send a request and wait for its acknowledgement. Raise PermissionMissing without the required capability, or
    OSError with the kernel's errno.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as channel:
        number = netlink.confirm(channel, kind, flags, body)
    if number == errno.EPERM:
        require({CAP_NET_ADMIN}, "changing network devices")
    if number:
        raise OSError(number, os.strerror(number))
