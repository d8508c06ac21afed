# SPDX-License-Identifier: Apache-2.0
"""Devices and addresses of the self-test's private network namespaces, set by rtnetlink.

Everything is made in the namespace of the calling thread, and is gone with it. (Numbers and layouts:
rtnetlink.h, if_link.h, if_addr.h and veth.h of include/uapi/linux.)
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct

from nettop.kernel import netlink
from nettop.kernel.capabilities import require
from nettop.kernel.netlink import attribute
from nettop.kernel.privileges import CAP_NET_ADMIN

_NEW = netlink.CREATE | netlink.EXCL
_RTM_NEWADDR = 20
_IFLA_LINKINFO, _IFLA_NET_NS_PID = 18, 19
_INFO_KIND, _INFO_DATA, _VETH_INFO_PEER = 1, 2, 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_IFA_F_NODAD = 0x02
"""The address can be used at once: nobody else is there who could have it."""
_IFF_UP, _IFF_RUNNING = 0x1, 0x40
_SIOCGIFFLAGS = 0x8913
_INDEX = 10
"""The ends of a pair get different numbers: the kernel reports a device whose peer has its own number only once a
second that packets can pass (net/core/link_watch.c, linkwatch_urgent_event)."""
_ADDRESS = struct.Struct("=BBBBI")


def set_up(device: str) -> None:
    """Switch a device on."""
    _request(netlink.RTM_NEWLINK, 0, netlink.LINK.pack(0, 0, socket.if_nametoindex(device), _IFF_UP, _IFF_UP))


def make_veth(device: str, peer: str, peer_pid: int) -> None:
    """Make a pair of devices, the other end of which is in the namespace of a process."""
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
    """Give a device an address."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    raw = socket.inet_pton(family, address)
    body = _ADDRESS.pack(family, prefix, _IFA_F_NODAD, 0, socket.if_nametoindex(device))
    _request(_RTM_NEWADDR, _NEW, body + attribute(_IFA_LOCAL, raw) + attribute(_IFA_ADDRESS, raw))


def is_running(device: str) -> bool:
    """Whether packets can pass: a pair needs both its ends switched on, and a moment."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        answer = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, struct.pack("=16sh14x", device.encode(), 0))
    flags: int = struct.unpack_from("=H", answer, 16)[0]
    return bool(flags & _IFF_RUNNING)


def _request(kind: int, flags: int, body: bytes) -> None:
    """Send one request and wait for its acknowledgement. Raises PermissionMissing without the capability that it takes,
    and OSError with the kernel's errno.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as channel:
        channel.send(netlink.request(kind, netlink.ACK | flags, body))
        answer = channel.recv(netlink.ANSWER_BYTES)
    kind = netlink.HEADER.unpack_from(answer)[1]
    number = netlink.error_number(answer[netlink.HEADER.size :]) if kind == netlink.ERROR else 0
    if number == errno.EPERM:
        require({CAP_NET_ADMIN}, "changing network devices")
    if number:
        raise OSError(number, os.strerror(number))
