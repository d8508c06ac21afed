# SPDX-License-Identifier: Apache-2.0
"""The network devices of a namespace and their counters, from rtnetlink (rtnetlink(7), linux/if_link.h).

Needs no capability. A thread sees the devices of its own namespace.
"""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from nettop.kernel.net import netlink
from nettop.snapshots.safe_text import safe_bytes

_RTM_DELLINK, _RTM_GETLINK = 17, 18
_RTMGRP_LINK = 1
_IFLA_MASTER, _IFLA_LINKINFO, _IFLA_STATS64, _IFLA_LINK_NETNSID, _IFLA_PARENT_DEV_NAME = 10, 18, 23, 37, 56
_IFLA_INFO_KIND = 1
_IFLA_XDP, _IFLA_XDP_ATTACHED = 43, 2
_IFLA_CARRIER_UP_COUNT = 47
_IFLA_PROP_LIST, _IFLA_ALT_IFNAME = 52, 53
_IFF_UP, _IFF_LOOPBACK, _IFF_LOWER_UP = 1 << 0, 1 << 3, 1 << 16
_ARPHRD_ETHER, _ARPHRD_LOOPBACK = 1, 772
_SPEED_OF_OTHERS = frozenset({"bond", "dsa", "ipvlan", "macsec", "macvlan", "macvtap", "team", "vlan"})
"""Kinds of virtual devices whose speed is that of the cards below. The kernel makes up those of others: 10 Mb/s for a
tap, 10 Gb/s for a veth."""
_SYSFS = Path("/sys/class/net")
_SIOCETHTOOL, _ETHTOOL_GSET, _ETHTOOL_CMD_BYTES = 0x8946, 1, 44
_SPEED_AT, _SPEED_UNKNOWN = (12, 28), 0xFFFFFFFF
"""The halves of the speed in struct ethtool_cmd (linux/ethtool.h)."""
_DUPLEX_AT, _DUPLEX_UNKNOWN = 14, 0xFF
_REQUEST = netlink.request(_RTM_GETLINK, netlink.DUMP, netlink.LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0))
_ATTEMPTS = 5
_NLM_F_MULTI = 0x2
_SO_RCVBUFFORCE = 33
_QUEUE_BYTES = 4 << 20
"""Holds about 2,000 changes of devices between two dumps; without CAP_NET_ADMIN, net.core.rmem_max may allow less."""
STATISTICS = (
    "rx_packets", "tx_packets", "rx_bytes", "tx_bytes", "rx_errors", "tx_errors", "rx_dropped", "tx_dropped",
    "multicast", "collisions", "rx_length_errors", "rx_over_errors", "rx_crc_errors", "rx_frame_errors",
    "rx_fifo_errors", "rx_missed_errors", "tx_aborted_errors", "tx_carrier_errors", "tx_fifo_errors",
    "tx_heartbeat_errors", "tx_window_errors", "rx_compressed", "tx_compressed", "rx_nohandler",
    "rx_otherhost_dropped",
)  # fmt: skip
"""The members of struct rtnl_link_stats64, in order; older kernels lack the last ones."""


class Negotiated(NamedTuple):
    """What both ends of a link have agreed on: `speed` in bytes/s, `duplex` (0 half, 1 full); None if unknown."""

    speed: int | None = None
    duplex: int | None = None


@dataclass(frozen=True, slots=True)
class Link:
    """A network device: its index and name in its namespace, and its counters by the names in STATISTICS.

    `rx_missed_errors` counts packets dropped because the device's own queue was full; `rx_dropped` and `tx_dropped`
    those dropped past it, for lack of memory, queue space or a receiver; `rx_nohandler` those that arrived on a device
    that must not receive (a bond's inactive port); `rx_otherhost_dropped` those for another host's address.
    """

    index: int
    name: str
    statistics: Mapping[str, int] = field(default_factory=dict)
    kind: str = ""
    """Kind of a virtual device (`veth`, `bridge`, `tun`); empty for others."""
    is_up: bool = False
    has_carrier: bool = False
    """Whether the hardware, or the other end of a pair, is connected."""
    carrier_ups: int = 0
    """Times that it became connected."""
    is_loopback: bool = False
    has_ethernet: bool = False
    """Whether packets begin with an Ethernet header."""
    has_parent: bool = False
    """Whether the kernel reports a parent bus device (since 5.14)."""
    has_master: bool = False
    """Whether it is a port of a bridge, bond or similar."""
    peer_is_elsewhere: bool = False
    """Whether its peer is in another namespace."""
    has_xdp: bool = False
    """Whether an XDP program is attached."""
    altnames: tuple[str, ...] = ()
    """Its other names (ip link property add dev NAME altname OTHER)."""

    @property
    def names(self) -> tuple[str, ...]:
        """Its name, and its other names."""
        return (self.name, *self.altnames)

    def with_counters_at_least(self, earlier: Link) -> Link:
        """Return this removed device with counters no lower than before: a veth that lost its peer reports no
        received packets."""
        known = earlier.statistics
        return replace(
            self, statistics={name: max(n, known.get(name, 0)) for name, n in self.statistics.items()}
        )

    def has_bus_device(self) -> bool:
        """Return whether the device has a parent bus device, according to netlink or, in nettop's own namespace,
        sysfs."""
        return self.has_parent or (not self.kind and (_SYSFS / self.name / "device").exists())

    def negotiated(self) -> Negotiated:
        """Return the negotiated speed and duplex mode; nothing for a device that negotiates with nobody.

        Call it in the device's namespace. It does not use /sys, which may show another namespace's device of the same
        name.
        """
        if self.kind and self.kind not in _SPEED_OF_OTHERS:
            return Negotiated()
        command = ctypes.create_string_buffer(_ETHTOOL_GSET.to_bytes(4, sys.byteorder), _ETHTOOL_CMD_BYTES)
        request = struct.pack("16sQ16x", self.name.encode(), ctypes.addressof(command))
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
                fcntl.ioctl(channel, _SIOCETHTOOL, request)
        except OSError:
            return Negotiated()
        return self.parse_negotiated(command.raw)

    def parse_negotiated(self, command: bytes) -> Negotiated:
        """Return what a struct ethtool_cmd says; nothing is negotiated while the device is down."""
        if not self.is_up:
            return Negotiated()
        low, high = (struct.unpack_from("=H", command, at)[0] for at in _SPEED_AT)
        megabits = high << 16 | low
        duplex = command[_DUPLEX_AT]
        return Negotiated(
            None if megabits in (0, _SPEED_UNKNOWN) else megabits * 125_000,
            None if duplex == _DUPLEX_UNKNOWN else duplex,
        )


def read_links() -> list[Link]:
    """Read the devices of the calling thread's network namespace. Raise OSError if the kernel does not answer."""
    with netlink.open_channel(socket.NETLINK_ROUTE) as channel:
        links, _ = _dump_links(channel)
        return links


class LinkWatch:
    """The devices of the network namespace it was created in, and those removed since the last `read`.

    Both arrive on one socket, in order, so a device that was deleted and recreated with the same index counts as a new
    one. Raises OSError if the kernel does not answer.
    """

    def __init__(self) -> None:
        self._channel = netlink.open_channel(socket.NETLINK_ROUTE)
        try:
            self._channel.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _QUEUE_BYTES)
            with suppress(PermissionError):
                self._channel.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _QUEUE_BYTES)
            self._channel.bind((0, _RTMGRP_LINK))
        except BaseException:
            self.close()
            raise

    def read(self) -> tuple[list[Link], list[Link]]:
        """Return the current devices, and those removed since the last call with their final counters."""
        return _dump_links(self._channel)

    def close(self) -> None:
        """Close the socket; a second call is a no-op."""
        self._channel.close()


def _dump_links(channel: socket.socket) -> tuple[list[Link], list[Link]]:
    """Return the current devices, and those removed before or during the dump."""
    left: list[Link] = []
    # If devices come and go all the time, an inconsistent list is better than none.
    for _ in range(_ATTEMPTS):
        channel.send(_REQUEST)
        links: dict[int, Link] = {}
        is_whole = True
        for kind, flags, body in netlink.dump(channel, "RTM_GETLINK"):
            is_whole = is_whole and not flags & netlink.DUMP_INTERRUPTED
            if len(body) < netlink.LINK.size:
                continue
            if kind == netlink.RTM_NEWLINK and flags & _NLM_F_MULTI:  # others are about a change
                link = _link(body)
                links[link.index] = link
            elif kind == _RTM_DELLINK and body[0] == socket.AF_UNSPEC:  # not a port that leaves its bridge
                left.append(_link(body))
                links.pop(left[-1].index, None)
        if is_whole:
            break
    return list(links.values()), left


def _link(body: bytes) -> Link:
    _, hardware, index, flags, _ = netlink.LINK.unpack_from(body)
    parts = netlink.contents(body[netlink.LINK.size :])
    info, xdp = (netlink.contents(parts.get(kind, b"")) for kind in (_IFLA_LINKINFO, _IFLA_XDP))
    counters, properties = (parts.get(kind, b"") for kind in (_IFLA_STATS64, _IFLA_PROP_LIST))
    count = min(len(counters) // 8, len(STATISTICS))
    return Link(
        index,
        _text(parts.get(netlink.IFLA_IFNAME, b"")),
        dict(zip(STATISTICS, struct.unpack_from(f"={count}Q", counters), strict=False)),
        kind=_text(info.get(_IFLA_INFO_KIND, b"")),
        is_up=bool(flags & _IFF_UP),
        has_carrier=bool(flags & _IFF_LOWER_UP),
        carrier_ups=int.from_bytes(parts.get(_IFLA_CARRIER_UP_COUNT, b""), sys.byteorder),
        is_loopback=bool(flags & _IFF_LOOPBACK),
        has_ethernet=hardware in (_ARPHRD_ETHER, _ARPHRD_LOOPBACK),
        has_parent=_IFLA_PARENT_DEV_NAME in parts,
        has_master=_IFLA_MASTER in parts,
        peer_is_elsewhere=_IFLA_LINK_NETNSID in parts,
        has_xdp=xdp.get(_IFLA_XDP_ATTACHED, b"")[:1] > b"\0",
        altnames=tuple(
            _text(properties[begin:end])
            for kind, begin, end in netlink.attributes(properties)
            if kind == _IFLA_ALT_IFNAME
        ),
    )


def _text(content: bytes) -> str:
    return safe_bytes(content.rstrip(b"\0"))
