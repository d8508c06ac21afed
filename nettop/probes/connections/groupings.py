# SPDX-License-Identifier: Apache-2.0
"""Grouping of sockets by remote address, network, service port and so on."""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import cache

import numpy as np

from nettop.query.address import address_halves, address_text, distinct_addresses, is_link_local
from nettop.query.view import View
from nettop.snapshots.arrays import Array, Index
from nettop.snapshots.connections import DIRECTIONS, PROTOCOLS, STATES
from nettop.snapshots.schema import NO_GROUP
from nettop.snapshots.snapshot import known

_INBOUND = [number for number, name in DIRECTIONS.items() if name.startswith("inbound")]
_PORT_BITS = 16
_WILDCARDS = (bytes(16), bytes(10) + b"\xff\xff" + bytes(4))

RowSelection = Index | slice
"""Some rows of a view."""
ALL = slice(None)
Grouped = tuple[Array, Callable[[list[int]], list[str]]]
"""A group number for each row, and a function that names the groups with given numbers."""


def _by_remote(view: View, rows: RowSelection = ALL) -> Grouped:
    """Group by remote address. A link-local address is a different peer on each link."""
    distinct, places = distinct_addresses(view.raw("remote_address")[rows])
    zones, zone_at = view.texts("device")
    is_local = np.array([is_link_local(raw) for raw in distinct], bool)[places]
    in_zone = places + len(distinct) * np.where(is_local, zone_at[rows] + 1, 0)

    def name(number: int) -> str:
        zone, at = divmod(number, len(distinct))
        return _address(distinct[at]) + (f"%{zones[zone - 1]}" if zone else "")

    return in_zone, lambda numbers: list(map(name, numbers))


def _by_network(view: View, rows: RowSelection = ALL) -> Grouped:
    """Group by the first 24 bits of IPv4 (mapped into IPv6), or 64 of IPv6."""
    high, low = address_halves(view.raw("remote_address")[rows])
    is_v4 = (high == 0) & (low >> np.uint64(32) == 0xFFFF)
    prefix = np.stack([high, np.where(is_v4, low & ~np.uint64(0xFF), 0)], axis=1).astype(">u8")
    distinct, places = distinct_addresses(prefix)

    def name(raw: bytes) -> str:
        address = _address(raw)
        return address if address == NO_GROUP else f"{address}/{64 if ':' in address else 24}"

    return places, lambda numbers: [name(distinct[at]) for at in numbers]


def _by_port(view: View, rows: RowSelection = ALL) -> Grouped:
    ports = service_ports(view, rows)
    numbers = np.where(known(ports), view.raw("protocol")[rows].astype(np.int64) << _PORT_BITS | ports, -1)
    return numbers, lambda some: [NO_GROUP if number < 0 else _service(number) for number in some]


def _by_text(name: str) -> Callable[[View, RowSelection], Grouped]:
    def fold(view: View, rows: RowSelection = ALL) -> Grouped:
        texts, places = view.texts(name)
        return places[rows], lambda numbers: [texts[at] if at >= 0 else NO_GROUP for at in numbers]

    return fold


def _by_state(view: View, rows: RowSelection = ALL) -> Grouped:
    return view.raw("state")[rows], lambda numbers: [STATES.get(number, NO_GROUP) for number in numbers]


GROUPERS: dict[str, Callable[[View, RowSelection], Grouped]] = {
    "remote": _by_remote,
    "network": _by_network,
    "port": _by_port,
    "container": _by_text("container"),
    "netns": _by_text("namespace"),
    "state": _by_state,
}
"""Grouping functions of a view of sockets. There is none for processes, which only the probe knows."""


def _address(raw: bytes) -> str:
    """Return the address as text, or NO_GROUP for a wildcard."""
    return NO_GROUP if raw in _WILDCARDS else address_text(raw)


def service_ports(view: View, rows: RowSelection = ALL) -> Array:
    """Return the service port of each row: the local one of accepted connections and sockets without a peer, else the
    peer's; the lower of both if it is unknown who opened it, as with UDP."""
    local, remote, direction = (view.raw(name)[rows] for name in ("local_port", "remote_port", "direction"))
    has_no_peer = ~known(remote)
    by_number = ~known(direction) & (local < remote)
    ports: Array = np.where(has_no_peer | by_number | np.isin(direction, _INBOUND), local, remote)
    return ports


@cache
def _service(number: int) -> str:
    """Return a port with its protocol and service name: `443/udp quic`."""
    protocol, port = PROTOCOLS.get(number >> _PORT_BITS, "?"), number & ((1 << _PORT_BITS) - 1)
    if (protocol, port) == ("udp", 443):
        return "443/udp quic"  # which /etc/services calls https
    try:
        return f"{port}/{protocol} {socket.getservbyport(port, protocol)}"
    except OSError:
        return f"{port}/{protocol}"
