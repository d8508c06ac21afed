# SPDX-License-Identifier: Apache-2.0
"""What sockets have in common: the remote, its network, the service's port and so on."""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import cache

import numpy as np

from nettop.query.address import address_halves, address_text, distinct_addresses, is_link_local
from nettop.query.view import View
from nettop.snapshots.arrays import Index
from nettop.snapshots.connections import DIRECTIONS, NO_GROUP, PROTOCOLS, STATES
from nettop.snapshots.snapshot import Array, known

_INBOUND = [number for number, name in DIRECTIONS.items() if name.startswith("inbound")]
_PORT_BITS = 16
_WILDCARDS = (bytes(16), bytes(10) + b"\xff\xff" + bytes(4))

Some = Index | slice
"""Some rows of a view."""
ALL = slice(None)
Folded = tuple[Array, Callable[[list[int]], list[str]]]
"""For each of these rows a number that its group shares, and what names the groups with these numbers."""


def _by_remote(view: View, rows: Some = ALL) -> Folded:
    """Fold by address; a link-local one is another peer on each link."""
    distinct, places = distinct_addresses(view.raw("remote_address")[rows])
    zones, zone_at = view.texts("device")
    is_local = np.array([is_link_local(raw) for raw in distinct], bool)[places]
    in_zone = places + len(distinct) * np.where(is_local, zone_at[rows] + 1, 0)

    def name(number: int) -> str:
        zone, at = divmod(number, len(distinct))
        return _address(distinct[at]) + (f"%{zones[zone - 1]}" if zone else "")

    return in_zone, lambda numbers: list(map(name, numbers))


def _by_network(view: View, rows: Some = ALL) -> Folded:
    """By the first 24 bits of IPv4, which is mapped into IPv6, or 64 of IPv6."""
    high, low = address_halves(view.raw("remote_address")[rows])
    is_v4 = (high == 0) & (low >> np.uint64(32) == 0xFFFF)
    prefix = np.stack([high, np.where(is_v4, low & ~np.uint64(0xFF), 0)], axis=1).astype(">u8")
    distinct, places = distinct_addresses(prefix)

    def name(raw: bytes) -> str:
        address = _address(raw)
        return address if address == NO_GROUP else f"{address}/{64 if ':' in address else 24}"

    return places, lambda numbers: [name(distinct[at]) for at in numbers]


def _by_port(view: View, rows: Some = ALL) -> Folded:
    ports = service_ports(view, rows)
    numbers = np.where(known(ports), view.raw("protocol")[rows].astype(np.int64) << _PORT_BITS | ports, -1)
    return numbers, lambda some: [NO_GROUP if number < 0 else _service(number) for number in some]


def _by_text(name: str) -> Callable[[View, Some], Folded]:
    def fold(view: View, rows: Some = ALL) -> Folded:
        texts, places = view.texts(name)
        return places[rows], lambda numbers: [texts[at] if at >= 0 else NO_GROUP for at in numbers]

    return fold


def _by_state(view: View, rows: Some = ALL) -> Folded:
    return view.raw("state")[rows], lambda numbers: [STATES.get(number, NO_GROUP) for number in numbers]


FOLDS: dict[str, Callable[[View, Some], Folded]] = {
    "remote": _by_remote,
    "network": _by_network,
    "port": _by_port,
    "container": _by_text("container"),
    "netns": _by_text("namespace"),
    "state": _by_state,
}
"""What folds the rows of a view of the sockets, by what they are grouped by; a process is known to its probe only."""


def _address(raw: bytes) -> str:
    """The address, if it is one."""
    return NO_GROUP if raw in _WILDCARDS else address_text(raw)


def service_ports(view: View, rows: Some = ALL) -> Array:
    """The service's port of each row: our own of what was accepted or has no peer, else the peer's; where nobody knows
    who opened it, as with UDP, the lower of the two."""
    local, remote, direction = (view.raw(name)[rows] for name in ("local_port", "remote_port", "direction"))
    has_no_peer = ~known(remote)
    by_number = ~known(direction) & (local < remote)
    ports: Array = np.where(has_no_peer | by_number | np.isin(direction, _INBOUND), local, remote)
    return ports


@cache
def _service(number: int) -> str:
    """A port with its protocol, and the name of the service: `443/udp quic`."""
    protocol, port = PROTOCOLS.get(number >> _PORT_BITS, "?"), number & ((1 << _PORT_BITS) - 1)
    if (protocol, port) == ("udp", 443):
        return "443/udp quic"  # which /etc/services calls https
    try:
        return f"{port}/{protocol} {socket.getservbyport(port, protocol)}"
    except OSError:
        return f"{port}/{protocol}"
