# SPDX-License-Identifier: Apache-2.0
"""The network devices of a namespace and what they count, over rtnetlink (rtnetlink(7), linux/if_link.h).

No capability is needed. A thread sees the devices of the namespace that it is in.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from nettop.kernel import netlink
from nettop.snapshots.safe_text import safe_bytes

_RTM_DELLINK, _RTM_GETLINK = 17, 18
_RTMGRP_LINK = 1
_IFLA_MASTER, _IFLA_LINKINFO, _IFLA_STATS64, _IFLA_LINK_NETNSID, _IFLA_PARENT_DEV_NAME = 10, 18, 23, 37, 56
_IFLA_INFO_KIND = 1
_IFLA_XDP, _IFLA_XDP_ATTACHED = 43, 2
_IFF_UP, _IFF_LOOPBACK = 1 << 0, 1 << 3
_ARPHRD_ETHER, _ARPHRD_LOOPBACK = 1, 772
_SYSFS = Path("/sys/class/net")
_SIOCETHTOOL, _ETHTOOL_GSET, _ETHTOOL_CMD_BYTES = 0x8946, 1, 44
_SPEED_AT, _SPEED_UNKNOWN = (12, 28), 0xFFFFFFFF
"""The halves of the speed in struct ethtool_cmd (linux/ethtool.h)."""
_REQUEST = netlink.request(_RTM_GETLINK, netlink.DUMP, netlink.LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0))
_ATTEMPTS = 5
_TIMEOUT_S = 5.0
_NLM_F_MULTI = 0x2
_SO_ATTACH_FILTER, _SO_RCVBUFFORCE = 26, 33
_QUEUE_BYTES = 4 << 20
"""Room for what left between two lists, about 2,000 devices; without CAP_NET_ADMIN net.core.rmem_max may allow less."""
_INSTRUCTION = struct.Struct("=HBBI")
_NEWS = b"".join(
    _INSTRUCTION.pack(*words)
    for words in (
        (0x28, 0, 0, 4),  # load nlmsg_type
        (0x15, 0, 2, socket.htons(netlink.RTM_NEWLINK)),  # other types: take it
        (0x28, 0, 0, 6),  # load nlmsg_flags
        (0x45, 0, 1, socket.htons(_NLM_F_MULTI)),  # no part of a list: a change, leave it
        (0x06, 0, 0, 0xFFFFFFFF),
        (0x06, 0, 0, 0),
    )
)
"""A filter of messages: the list that was asked for, and devices that leave."""

STATISTICS = (
    "rx_packets", "tx_packets", "rx_bytes", "tx_bytes", "rx_errors", "tx_errors", "rx_dropped", "tx_dropped",
    "multicast", "collisions", "rx_length_errors", "rx_over_errors", "rx_crc_errors", "rx_frame_errors",
    "rx_fifo_errors", "rx_missed_errors", "tx_aborted_errors", "tx_carrier_errors", "tx_fifo_errors",
    "tx_heartbeat_errors", "tx_window_errors", "rx_compressed", "tx_compressed", "rx_nohandler",
    "rx_otherhost_dropped",
)  # fmt: skip
"""The members of struct rtnl_link_stats64, in their order; older kernels lack the last ones."""


@dataclass(frozen=True, slots=True)
class Link:
    """A network device: its number and name in its namespace, and what it counts, by the names of STATISTICS.

    `rx_missed_errors` found no room in the device's own queue; `rx_dropped` and `tx_dropped` were lost after it, for
    lack of memory, a free queue or a receiver; `rx_nohandler` came in by a device that must not receive (a bond's
    inactive one), `rx_otherhost_dropped` was for another machine's address.
    """

    index: int
    name: str
    statistics: Mapping[str, int] = field(default_factory=dict)
    kind: str = ""
    """The driver of a virtual device (`veth`, `bridge`, `tun`); empty for others."""
    is_up: bool = False
    is_loopback: bool = False
    has_ethernet: bool = False
    """Whether packets begin with an Ethernet header."""
    has_parent: bool = False
    """Whether the kernel names a device on a bus behind it (since 5.14)."""
    has_master: bool = False
    """Whether it is a port of a bridge, a bond or the like."""
    leads_elsewhere: bool = False
    """Whether its other end is in another namespace."""
    has_xdp: bool = False
    """Whether an XDP program is attached."""

    def after(self, earlier: Link) -> Link:
        """Return this device, that has left, with counters no lower than they were: a veth without its other end has
        forgotten what it received."""
        known = earlier.statistics
        return replace(
            self, statistics={name: max(n, known.get(name, 0)) for name, n in self.statistics.items()}
        )

    def is_device(self) -> bool:
        """Whether a device on a bus is behind it: as the kernel says, or else sysfs, for the own namespace."""
        return self.has_parent or (not self.kind and (_SYSFS / self.name / "device").exists())

    def speed(self) -> int | None:
        """Return what the link negotiated, in bytes/s; None is unknown.

        Call it in the device's namespace, which is asked: /sys may be of another one, with a device of the
        same name.
        """
        command = ctypes.create_string_buffer(_ETHTOOL_GSET.to_bytes(4, sys.byteorder), _ETHTOOL_CMD_BYTES)
        request = struct.pack("16sQ16x", self.name.encode(), ctypes.addressof(command))
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
                fcntl.ioctl(channel, _SIOCETHTOOL, request)
        except OSError:
            return None
        low, high = (struct.unpack_from("=H", command, at)[0] for at in _SPEED_AT)
        megabits = high << 16 | low
        return megabits * 125_000 if self.is_up and megabits not in (0, _SPEED_UNKNOWN) else None


def read_links() -> list[Link]:
    """The devices of the calling thread's network namespace. Raises OSError when the kernel does not answer."""
    with _channel() as channel:
        links, _ = _listed(channel)
        return links


class LinkWatch:
    """Lists the devices of the network namespace in which it was made, and those that have left it meanwhile.

    Both come by one socket, in the order in which they happened: so a device that was deleted and made again with the
    same index is known to be another one. Raises OSError when the kernel does not answer.
    """

    def __init__(self) -> None:
        self._channel = _channel()
        try:
            _leave_out_changes(self._channel)
            _enlarge(self._channel)
            self._channel.bind((0, _RTMGRP_LINK))
        except BaseException:
            self.close()
            raise

    def read(self) -> tuple[list[Link], list[Link]]:
        """Return the devices now, and those that have left since the last call, with what they had counted."""
        return _listed(self._channel)

    def close(self) -> None:
        """Close the socket; a second call does nothing."""
        self._channel.close()


def _channel() -> socket.socket:
    channel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    channel.settimeout(_TIMEOUT_S)
    return channel


def _leave_out_changes(channel: socket.socket) -> None:
    """Have the kernel queue nothing for changes of devices that stay."""
    program = ctypes.create_string_buffer(_NEWS)
    about = struct.pack("@HP", len(_NEWS) // _INSTRUCTION.size, ctypes.addressof(program))
    channel.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, about)


def _enlarge(channel: socket.socket) -> None:
    try:
        channel.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _QUEUE_BYTES)
    except PermissionError:
        channel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _QUEUE_BYTES)


def _listed(channel: socket.socket) -> tuple[list[Link], list[Link]]:
    """Return the devices now, and those that left before or during the list."""
    left: list[Link] = []
    # With devices that come and go all the time an inconsistent list is better than none.
    for _ in range(_ATTEMPTS):
        channel.send(_REQUEST)
        links: dict[int, Link] = {}
        ended, is_whole = False, True
        while not ended:
            message = _received(channel)
            for gone in parse_left(message):
                links.pop(gone.index, None)
                left.append(gone)
            some, ended, whole = parse_links(message)
            links |= {link.index: link for link in some}
            is_whole = is_whole and whole
        if is_whole:
            break
    return list(links.values()), left


def _received(channel: socket.socket) -> bytes:
    """Return the next message; one that found no room is skipped."""
    while True:
        try:
            return channel.recv(netlink.ANSWER_BYTES)
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise


def parse_left(message: bytes) -> list[Link]:
    """Return the devices that have left, by a message that tells of them; a port that leaves its bridge does
    not."""
    return [
        _link(body)
        for kind, _, body in _messages(message)
        if kind == _RTM_DELLINK and len(body) >= netlink.LINK.size and body[0] == socket.AF_UNSPEC
    ]


def parse_links(message: bytes) -> tuple[list[Link], bool, bool]:
    """The devices of one message of a dump, whether it ends the dump, and whether the dump is whole so far.

    It is not when devices changed during the dump. Truncated messages and other types are left out. Raises OSError
    with the kernel's errno where the answer is an error.
    """
    links, ended, is_whole = [], False, True
    for kind, flags, body in _messages(message):
        is_whole = is_whole and not flags & netlink.DUMP_INTERRUPTED
        if kind in (netlink.ERROR, netlink.DONE):
            ended = True
            number = netlink.error_number(body)
            if number > 0:
                raise OSError(number, f"RTM_GETLINK: {os.strerror(number)}")
        if kind == netlink.RTM_NEWLINK and len(body) >= netlink.LINK.size:
            links.append(_link(body))
    return links, ended, is_whole


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Type, flags and body of each netlink message, up to one that is truncated."""
    at = 0
    while at + netlink.HEADER.size <= len(data):
        length, kind, flags, _, _ = netlink.HEADER.unpack_from(data, at)
        if not netlink.HEADER.size <= length <= len(data) - at:
            return
        yield kind, flags, data[at + netlink.HEADER.size : at + length]
        at += netlink.aligned(length)


def _link(body: bytes) -> Link:
    _, hardware, index, flags, _ = netlink.LINK.unpack_from(body)
    name, kind_of_link, statistics, has_xdp, present = "", "", {}, False, set[int]()
    for kind, value in _attributes(body[netlink.LINK.size :]):
        if kind == netlink.IFLA_IFNAME:
            name = safe_bytes(value.rstrip(b"\0"))
        elif kind == _IFLA_STATS64:
            count = min(len(value) // 8, len(STATISTICS))
            statistics = dict(zip(STATISTICS, struct.unpack_from(f"={count}Q", value), strict=False))
        elif kind == _IFLA_LINKINFO:
            texts = (text for nested, text in _attributes(value) if nested == _IFLA_INFO_KIND)
            kind_of_link = safe_bytes(next(texts, b"").rstrip(b"\0"))
        elif kind == _IFLA_XDP:
            has_xdp = any(
                mode[:1] > b"\0" for nested, mode in _attributes(value) if nested == _IFLA_XDP_ATTACHED
            )
        present.add(kind)
    return Link(
        index,
        name,
        statistics,
        kind=kind_of_link,
        is_up=bool(flags & _IFF_UP),
        is_loopback=bool(flags & _IFF_LOOPBACK),
        has_ethernet=hardware in (_ARPHRD_ETHER, _ARPHRD_LOOPBACK),
        has_parent=_IFLA_PARENT_DEV_NAME in present,
        has_master=_IFLA_MASTER in present,
        leads_elsewhere=_IFLA_LINK_NETNSID in present,
        has_xdp=has_xdp,
    )


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + netlink.ATTRIBUTE.size <= len(data):
        length, kind = netlink.ATTRIBUTE.unpack_from(data, at)
        if not netlink.ATTRIBUTE.size <= length <= len(data) - at:
            return
        yield kind & netlink.ATTRIBUTE_KIND, data[at + netlink.ATTRIBUTE.size : at + length]
        at += netlink.aligned(length)
