# SPDX-License-Identifier: Apache-2.0
"""Addresses as text: 16 bytes in network order, IPv4 as ::ffff:a.b.c.d."""

from __future__ import annotations

import socket
from functools import lru_cache
from socket import inet_ntop

import numpy as np

from nettop.snapshots.arrays import Array, as_list

MAPPED = bytes(10) + b"\xff\xff"
"""The prefix of an IPv4 address in 16 bytes."""
LOOPBACK = bytes(15) + b"\x01"
"""::1"""
# Plain numbers: the enum costs a third of the call.
_IPV4 = int(socket.AF_INET)
_IPV6 = int(socket.AF_INET6)


# The same peers come back with every refresh, and a hit costs a sixth of formatting the address.
@lru_cache(maxsize=1 << 16)
def address_text(raw: bytes) -> str:
    """Format an address."""
    return inet_ntop(_IPV4, raw[12:]) if raw.startswith(MAPPED) else inet_ntop(_IPV6, raw)


def address_bytes(column: Array) -> list[bytes]:
    """Return the 16 bytes of each address in an (n, 2) big-endian u64 column."""
    return as_list(_whole(column))


def address_halves(column: Array) -> tuple[Array, Array]:
    """Split an (n, 2) big-endian column into two native u64 columns (n,), which are fast to compare."""
    native = column.astype(np.uint64)
    return native[:, 0], native[:, 1]


def distinct_addresses(column: Array) -> tuple[list[bytes], Array]:
    """Return the distinct addresses, in ascending byte order, and each row's index into them (n,)."""
    distinct, places = np.unique(_whole(column), return_inverse=True)
    return as_list(distinct), places.ravel()


def is_link_local(raw: bytes) -> bool:
    """Return whether an address is valid on one link only: in fe80::/10, or link-local multicast."""
    return (raw[0] == 0xFE and raw[1] & 0xC0 == 0x80) or (raw[0] == 0xFF and raw[1] & 0x0F == 2)


def endpoint_text(address: str, port: int | str | None, zone: str | None = None) -> str:
    """Format `address%zone:port` as ss does, with brackets around IPv6 and `*` for no port."""
    host = f"[{address}]" if ":" in address else address
    return f"{host}{f'%{zone}' if zone else ''}:{'*' if port is None else port}"


def _whole(column: Array) -> Array:
    # Restore the byte order: numpy converts concatenated columns to native order.
    return np.ascontiguousarray(column, ">u8").view("V16").ravel()
