# SPDX-License-Identifier: Apache-2.0
"""Devices and their counters, parsed from messages built in the kernel's layout."""

from __future__ import annotations

import ctypes
import errno
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettop.kernel.net.links import STATISTICS, Link, Negotiated, parse_links, parse_removed, read_links

NEWLINK, ERROR, DONE = 16, 2, 3
MULTI, INTERRUPTED = 0x2, 0x10
IFNAME, ADDRESS, MASTER, LINKINFO, STATS64, LINK_NETNSID, PARENT_DEV_NAME = 3, 1, 10, 18, 23, 37, 56
INFO_KIND = 1
XDP, XDP_ATTACHED = 43, 2
PROP_LIST, ALT_IFNAME = 52, 53
DELLINK, BRIDGE = 17, 7
NESTED = 0x8000


def attribute(kind: int, value: bytes) -> bytes:
    """Return one attribute, padded to 4 bytes."""
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def message(kind: int, body: bytes, flags: int = MULTI) -> bytes:
    """Return one netlink message, padded to 4 bytes."""
    return struct.pack("=IHHII", 16 + len(body), kind, flags, 1, 99) + body + bytes(-len(body) % 4)


def device(index: int, *attributes: bytes, flags: int = MULTI) -> bytes:
    """Return a message about a device."""
    return message(NEWLINK, struct.pack("=BxHiII", 0, 1, index, 0x1003, 0) + b"".join(attributes), flags)


def counters(count: int = len(STATISTICS)) -> bytes:
    """Return the statistics 1, 2, 3 …"""
    return attribute(STATS64, struct.pack(f"={count}Q", *range(1, count + 1)))


NUMBERED = {name: place for place, name in enumerate(STATISTICS, 1)}
LO = device(1, attribute(IFNAME, b"lo\0"), attribute(ADDRESS, b"\0" * 6), counters())
ETH0 = device(2, attribute(MASTER, b"\7\0\0\0"), counters(), attribute(IFNAME, b"eth0\0"))
ETHERNET = {"is_up": True, "has_ethernet": True}
LO_LINK = Link(1, "lo", NUMBERED, **ETHERNET)
ETH0_LINK = Link(2, "eth0", NUMBERED, **ETHERNET, has_master=True)


def test_devices_have_numbers_names_and_counters() -> None:
    """Attributes come in any order, mixed with others; a dump without its end message is incomplete."""
    assert parse_links(LO + ETH0) == ([LO_LINK, ETH0_LINK], False, True)


@pytest.mark.parametrize(
    ("hardware", "flags", "attributes", "facts"),
    [
        (1, 0, (), {"has_ethernet": True}),
        (772, 0x9, (), {"has_ethernet": True, "is_up": True, "is_loopback": True}),
        (65534, 1, (attribute(LINKINFO, attribute(INFO_KIND, b"tun")),), {"is_up": True, "kind": "tun"}),
        (1, 0, (attribute(PARENT_DEV_NAME, b"0000:00:03.0\0"),), {"has_ethernet": True, "has_parent": True}),
        (1, 0, (attribute(LINK_NETNSID, bytes(4)),), {"has_ethernet": True, "peer_is_elsewhere": True}),
        (1, 0, (attribute(XDP, attribute(XDP_ATTACHED, b"\1")),), {"has_ethernet": True, "has_xdp": True}),
        (1, 0, (attribute(XDP, attribute(XDP_ATTACHED, b"\0")),), {"has_ethernet": True}),
    ],
)
def test_kind_of_a_device(
    hardware: int, flags: int, attributes: tuple[bytes, ...], facts: dict[str, object]
) -> None:
    """A device has its kind, its state, and its lower device."""
    body = struct.pack("=BxHiII", 0, hardware, 3, flags, 0) + b"".join(attributes)
    assert parse_links(message(NEWLINK, body))[0] == [Link(3, "", **facts)]  # type: ignore[arg-type]


def test_the_end_of_a_dump() -> None:
    """A dump ends with its own message or an acknowledgement."""
    done, zero = message(DONE, struct.pack("=i", 0)), message(ERROR, struct.pack("=i", 0) + bytes(16))
    assert parse_links(LO + done) == ([LO_LINK], True, True)
    assert parse_links(zero) == ([], True, True)
    assert parse_links(message(DONE, b"")) == ([], True, True)


def test_messages_about_changes_are_ignored() -> None:
    """They may lack the counters; the dump has the device too."""
    assert parse_links(LO + device(2, attribute(IFNAME, b"eth0\0"), flags=0))[0] == [LO_LINK]


def test_a_dump_during_which_devices_changed() -> None:
    """The kernel's flag for it, on any message, means that the dump is not whole."""
    interrupted = device(3, attribute(IFNAME, b"br0\0"), flags=MULTI | INTERRUPTED)
    assert parse_links(LO + interrupted)[2] is False


@pytest.mark.parametrize("kind", [ERROR, DONE])
def test_kernel_refusals(kind: int) -> None:
    """A refusal, at once or at the end, is the kernel's own error."""
    with pytest.raises(PermissionError) as refusal:
        parse_links(message(kind, struct.pack("=i", -errno.EPERM)))
    assert "RTM_GETLINK" in str(refusal.value)


@pytest.mark.parametrize("count", [0, 1, 23, 24])
def test_older_kernels_count_less(count: int) -> None:
    """Counters that an older kernel lacks are missing."""
    (link,), *_ = parse_links(device(1, counters(count)))
    assert link.statistics == {name: NUMBERED[name] for name in STATISTICS[:count]}


def test_younger_kernels_count_more() -> None:
    """Unknown counters of newer kernels are left out."""
    (link,), *_ = parse_links(device(1, counters(40)))
    assert link.statistics == NUMBERED


def test_names_are_safe_to_show() -> None:
    """A device's name cannot send control characters to the terminal."""
    (link,), *_ = parse_links(device(1, attribute(IFNAME, b"\x1b[2J\xff\0")))
    assert link.name == "␛[2J\N{REPLACEMENT CHARACTER}"


def test_flags_of_an_attribute_are_not_its_type() -> None:
    """The two upper bits of a type are flags."""
    (link,), *_ = parse_links(device(1, attribute(IFNAME | NESTED, b"lo\0")))
    assert link.name == "lo"


def test_truncated_messages_are_left_out() -> None:
    """A message cut anywhere gives what stands whole before the cut."""
    for end in range(len(LO), len(LO + ETH0)):
        assert parse_links((LO + ETH0)[:end])[0] == [LO_LINK]
    bad = device(5, struct.pack("=HH", 400, IFNAME) + b"too long\0\0\0\0")
    assert parse_links(bad)[0] == [Link(5, "", **ETHERNET)]
    assert parse_links(message(NEWLINK, b"short"))[0] == []


def test_devices_that_have_left() -> None:
    """Removed devices have their last counters; a port that leaves its bridge, or changes, stays."""
    head, attributes = struct.pack("=BxHiII", 0, 1, 2, 0, 0), attribute(IFNAME, b"eth0\0") + counters()
    left = message(DELLINK, head + attributes)
    leaves_bridge = message(DELLINK, bytes([BRIDGE]) + head[1:] + attributes)
    assert parse_removed(ETH0 + leaves_bridge + left) == [Link(2, "eth0", NUMBERED, has_ethernet=True)]
    assert parse_links(left)[0] == []


@given(st.binary(max_size=120))
def test_no_bytes_raise_anything_but_a_refusal(data: bytes) -> None:
    """Any bytes give devices, nothing, or an errno of the kernel."""
    try:
        links, _, _ = parse_links(data)
    except OSError:
        return
    assert all(isinstance(link, Link) for link in links)


def test_this_machine_has_loopback() -> None:
    """Without privileges every namespace shows a loopback device with the same number."""
    actual = {link.name: link for link in read_links()}
    assert actual["lo"].index == socket.if_nametoindex("lo")
    assert actual["lo"].statistics.keys() <= set(STATISTICS)
    assert actual["lo"].statistics["rx_packets"] == actual["lo"].statistics["tx_packets"]


@pytest.mark.parametrize(
    ("speed", "duplex", "expected"),
    [
        (100, 0, Negotiated(12_500_000, 0)),
        (100_000, 1, Negotiated(12_500_000_000, 1)),
        (0xFFFFFFFF, 0xFF, Negotiated(None, None)),
        (0, 1, Negotiated(None, 1)),
    ],
)
def test_what_a_link_has_negotiated(speed: int, duplex: int, expected: Negotiated) -> None:
    """The speed is in two halves around the duplex mode; while the device is down, both are unknown."""
    command = struct.pack("=12xHB13xH14x", speed & 0xFFFF, duplex, speed >> 16)
    assert Link(1, "eth0", is_up=True).parse_negotiated(command) == expected
    assert Link(1, "eth0").parse_negotiated(command) == Negotiated()


@pytest.mark.parametrize(("kind", "has_speed"), [
    ("", True), ("bond", True), ("vlan", True), ("tun", False), ("veth", False), ("bridge", False), ("dummy", False),
])  # fmt: skip
def test_virtual_devices_have_no_speed(kind: str, has_speed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel makes up 10 Mb/s for a tap, and 10 Gb/s for a veth, which limit nothing."""

    def ioctl(_: object, __: int, request: bytes) -> None:
        (address,) = struct.unpack_from("Q", request, 16)
        ctypes.memmove(address, struct.pack("=12xHB13xH14x", 10, 1, 0), 44)

    monkeypatch.setattr("nettop.kernel.net.links.fcntl.ioctl", ioctl)
    negotiated = Link(1, "x", kind=kind, is_up=True).negotiated()
    assert negotiated == (Negotiated(1_250_000, 1) if has_speed else Negotiated())


def test_other_names() -> None:
    """A device may have many (ip link property add)."""
    names = [b"enp0s31f6-a-very-long-altname", b"wan"]
    properties = b"".join(attribute(ALT_IFNAME, name + b"\0") for name in names)
    (link,), _, _ = parse_links(
        device(2, attribute(IFNAME, b"x0\0"), attribute(NESTED | PROP_LIST, properties))
    )
    assert link.names == ("x0", *(name.decode() for name in names))
    assert LO_LINK.names == ("lo",)
