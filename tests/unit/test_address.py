# SPDX-License-Identifier: Apache-2.0
"""Addresses as text, compared with `ipaddress`."""

from __future__ import annotations

import ipaddress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettop.query.address import (
    address_bytes,
    address_halves,
    address_text,
    distinct_addresses,
    endpoint_text,
)
from nettop.snapshots.arrays import Array
from tests.unit.build import address_pair

V4 = st.ip_addresses(v=4)
V6 = st.ip_addresses(v=6)
# Few of them, so that rows repeat.
ADDRESSES = st.lists(
    st.one_of(V4, V6, st.sampled_from([*map(ipaddress.ip_address, ("::", "::1", "0.0.0.0"))]))
)


def column_of(addresses: list[ipaddress.IPv4Address | ipaddress.IPv6Address]) -> Array:
    """Return the addresses as a table stores them."""
    return np.array([address_pair(str(address)) for address in addresses], ">u8").reshape(-1, 2)


@given(V4)
def test_ipv4_is_written_as_four_numbers(address: ipaddress.IPv4Address) -> None:
    """A v4-mapped address reads as IPv4."""
    assert address_text(bytes(10) + b"\xff\xff" + address.packed) == str(address)


@given(V6)
def test_ipv6_means_the_same_address(address: ipaddress.IPv6Address) -> None:
    """The text reads back as the same address, and is IPv4 exactly when that is mapped."""
    text = address_text(address.packed)
    read = ipaddress.ip_address(text)
    assert read == (address.ipv4_mapped or address)
    assert text == text.lower()


@given(ADDRESSES)
def test_a_column_gives_the_bytes_and_halves_of_each_address(addresses: list[ipaddress.IPv6Address]) -> None:
    """Bytes in network order and native halves say the same number."""
    column = column_of(addresses)
    raws = address_bytes(column)
    high, low = address_halves(column)
    assert [ipaddress.ip_address(address_text(raw)) for raw in raws] == [
        getattr(address, "ipv4_mapped", None) or address for address in addresses
    ]
    wholes = [int(h) << 64 | int(v) for h, v in zip(high, low, strict=True)]
    assert wholes == [int.from_bytes(raw, "big") for raw in raws]
    assert high.dtype.isnative


@given(ADDRESSES)
def test_distinct_addresses_are_ascending_and_have_places(addresses: list[ipaddress.IPv6Address]) -> None:
    """Each row's place points to its own address, in byte order, on any byte order of numpy."""
    for column in (column_of(addresses), column_of(addresses).astype(np.uint64)):
        distinct, places = distinct_addresses(column)
        assert distinct == sorted(set(distinct))
        assert [distinct[place] for place in places] == address_bytes(column)


@pytest.mark.parametrize(
    ("address", "port", "text"),
    [
        ("10.0.0.7", 443, "10.0.0.7:443"),
        ("2001:db8::7", 443, "[2001:db8::7]:443"),
        ("0.0.0.0", None, "0.0.0.0:*"),
        ("::", None, "[::]:*"),
        ("web.example.com", 80, "web.example.com:80"),
    ],
)
def test_an_endpoint_is_written_as_in_a_url(address: str, port: int | None, text: str) -> None:
    """Brackets keep an IPv6 address and its port apart."""
    assert endpoint_text(address, port) == text
