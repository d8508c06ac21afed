# SPDX-License-Identifier: Apache-2.0
"""Addresses as text: 16 bytes in network order, IPv4 as ::ffff:a.b.c.d."""

from __future__ import annotations

import socket
from functools import lru_cache
from socket import inet_ntop

import numpy as np

from nettop.snapshots.arrays import as_list
from nettop.snapshots.snapshot import Array

MAPPED = bytes(10) + b"\xff\xff"
"""What is before the four bytes of an IPv4 address."""
# Plain numbers: the enum costs a third of the call.
_IPV4 = int(socket.AF_INET)
_IPV6 = int(socket.AF_INET6)


# The same peers come back with every refresh: a hit costs a sixth of writing the address anew.
@lru_cache(maxsize=1 << 16)
def address_text(raw: bytes) -> str:
    """The address as people write it."""
    return inet_ntop(_IPV4, raw[12:]) if raw.startswith(MAPPED) else inet_ntop(_IPV6, raw)


def address_bytes(column: Array) -> list[bytes]:
    """Each address of an (n, 2) big-endian u64 column as its 16 bytes."""
    return as_list(_whole(column))


def address_halves(column: Array) -> tuple[Array, Array]:
    """An (n, 2) big-endian column as two native u64 columns (n,), which match quickly."""
    native = column.astype(np.uint64)
    return native[:, 0], native[:, 1]


def distinct_addresses(column: Array) -> tuple[list[bytes], Array]:
    """The distinct addresses, ascending as bytes, and for each row the place of its address there (n,)."""
    distinct, places = np.unique(_whole(column), return_inverse=True)
    return as_list(distinct), places.ravel()


def is_link_local(raw: bytes) -> bool:
    """Return whether an address is valid on one link only: of fe80::/10, or multicast on the link."""
    return (raw[0] == 0xFE and raw[1] & 0xC0 == 0x80) or (raw[0] == 0xFF and raw[1] & 0x0F == 2)


def endpoint_text(address: str, port: int | str | None, zone: str | None = None) -> str:
    """Return `address%zone:port` as ss writes it, with brackets around IPv6 and `*` for no port."""
    host = f"[{address}]" if ":" in address else address
    return f"{host}{f'%{zone}' if zone else ''}:{'*' if port is None else port}"


def _whole(column: Array) -> Array:
    # The order of bytes is said again: numpy turns joined columns into native ones.
    return np.ascontiguousarray(column, ">u8").view("V16").ravel()
