# SPDX-License-Identifier: Apache-2.0
"""Devices and their counters, read from messages built in the kernel's layout."""

from __future__ import annotations

import ctypes
import errno
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettop.kernel.net.links import STATISTICS, Link, LinkWatch, Negotiated, read_links
from tests.builders.netlink import DONE, ERROR, INTERRUPTED, MULTI, NESTED, attribute, end, message, open_each

NEWLINK, DELLINK = 16, 17
IFNAME, ADDRESS, MASTER, LINKINFO, STATS64, LINK_NETNSID, PARENT_DEV_NAME = 3, 1, 10, 18, 23, 37, 56
INFO_KIND = 1
XDP, XDP_ATTACHED = 43, 2
PROP_LIST, ALT_IFNAME = 52, 53
BRIDGE = 7


def device(
    index: int,
    *attributes: bytes,
    kind: int = NEWLINK,
    flags: int = MULTI,
    form: tuple[int, int] = (1, 0x1003),
) -> bytes:
    """Return a message about a device; its form is the type of its hardware, and its flags."""
    head = struct.pack("=BxHiII", 0, form[0], index, form[1], 0)
    return message(kind, head + b"".join(attributes), flags)


def counters(count: int = len(STATISTICS)) -> bytes:
    """Return the statistics 1, 2, 3 …"""
    return attribute(STATS64, struct.pack(f"={count}Q", *range(1, count + 1)))


def links_in(*replies: list[bytes]) -> list[Link]:
    """Return the devices in a dump of these datagrams, or in the last of several dumps."""
    with open_each(*replies):
        return read_links()


NUMBERED = {name: place for place, name in enumerate(STATISTICS, 1)}
LO = device(1, attribute(IFNAME, b"lo\0"), attribute(ADDRESS, b"\0" * 6), counters())
ETH0 = device(2, attribute(MASTER, b"\7\0\0\0"), counters(), attribute(IFNAME, b"eth0\0"))
ETHERNET = {"is_up": True, "has_ethernet": True}
LO_LINK = Link(1, "lo", NUMBERED, **ETHERNET)
ETH0_LINK = Link(2, "eth0", NUMBERED, **ETHERNET, has_master=True)


def test_devices_have_numbers_names_and_counters() -> None:
    """Attributes come in any order, mixed with others; messages about changes, which may lack counters, are ignored."""
    about_change = device(2, attribute(IFNAME, b"eth1\0"), flags=0)
    assert links_in([LO + ETH0, about_change, end()]) == [LO_LINK, ETH0_LINK]
    assert links_in([LO, end(kind=ERROR)]) == [LO_LINK]
    with pytest.raises(TimeoutError):
        links_in([LO + ETH0])


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
    links = links_in([device(3, *attributes, form=(hardware, flags)), end()])
    assert links == [Link(3, "", **facts)]  # type: ignore[arg-type]


@pytest.mark.parametrize("interrupted", [[LO[:6] + bytes([MULTI | INTERRUPTED]) + LO[7:], end()],
                                         [LO, end(flags=MULTI | INTERRUPTED)]])  # fmt: skip
def test_a_dump_during_which_devices_changed_is_repeated(interrupted: list[bytes]) -> None:
    """The kernel sets a flag on any of its messages; after five attempts the last dump stands."""
    assert links_in([*interrupted], [ETH0, end()]) == [ETH0_LINK]
    assert links_in(*([*interrupted] for _ in range(5))) == [LO_LINK]


@pytest.mark.parametrize("kind", [ERROR, DONE])
def test_kernel_refusals(kind: int) -> None:
    """A refusal, at once or at the end, is raised as the kernel's error."""
    with pytest.raises(PermissionError, match="RTM_GETLINK"):
        links_in([end(errno.EPERM, kind)])


@pytest.mark.parametrize("count", [0, 1, 24, 40])
def test_other_kernels_count_less_or_more(count: int) -> None:
    """Counters that an older kernel lacks are missing; unknown ones of newer kernels are ignored."""
    (link,) = links_in([device(1, counters(count)), end()])
    assert link.statistics == {name: NUMBERED[name] for name in STATISTICS[:count]}


@pytest.mark.parametrize(
    ("kind", "name", "shown"),
    [(IFNAME, b"\x1b[2J\xff\0", "␛[2J\N{REPLACEMENT CHARACTER}"), (IFNAME | NESTED, b"lo\0", "lo")],
)
def test_names_are_safe_to_show(kind: int, name: bytes, shown: str) -> None:
    """A name cannot send control characters to the terminal; flags of the attribute are not its type."""
    (link,) = links_in([device(1, attribute(kind, name)), end()])
    assert link.name == shown


def test_other_names() -> None:
    """A device may have several names (ip link property add)."""
    names = [b"enp0s31f6-a-very-long-altname", b"wan"]
    properties = b"".join(attribute(ALT_IFNAME, name + b"\0") for name in names)
    (link,) = links_in(
        [device(2, attribute(IFNAME, b"x0\0"), attribute(NESTED | PROP_LIST, properties)), end()]
    )
    assert link.names == ("x0", *(name.decode() for name in names))


def test_truncated_messages_are_skipped() -> None:
    """A message cut anywhere is skipped, with what follows in its datagram; others are read."""
    for stop in range(len(LO), len(LO + ETH0), 3):
        assert links_in([(LO + ETH0)[:stop], end()]) == [LO_LINK]
    bad = device(5, struct.pack("=HH", 400, IFNAME) + b"too long\0\0\0\0")
    assert links_in([bad, message(NEWLINK, b"short"), end()]) == [Link(5, "", **ETHERNET)]


def test_devices_that_have_left() -> None:
    """Removed devices have their last counters; a port that leaves its bridge, or changes, stays."""
    left = device(2, attribute(IFNAME, b"eth0\0"), counters(), kind=DELLINK)
    leaves_bridge = left[:16] + bytes([BRIDGE]) + left[17:]
    gone = Link(2, "eth0", NUMBERED, **ETHERNET)
    for datagrams, expected in (
        ([ETH0, leaves_bridge, end()], ([ETH0_LINK], [])),
        ([LO, ETH0, left, end()], ([LO_LINK], [gone])),
        ([left, ETH0, end()], ([ETH0_LINK], [gone])),
    ):
        with open_each(datagrams):
            assert LinkWatch().read() == expected


@given(st.binary(max_size=120))
def test_any_bytes_give_devices_or_a_refusal(data: bytes) -> None:
    """Any bytes give devices, nothing, or an errno of the kernel."""
    try:
        links = links_in([data, end()])
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


@pytest.mark.parametrize(("kind", "has_speed"), [("", True), ("vlan", True), ("tun", False), ("veth", False)])
def test_virtual_devices_have_no_speed(kind: str, has_speed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel makes up 10 Mb/s for a tap, and 10 Gb/s for a veth, which limit nothing."""

    def ioctl(_: object, __: int, request: bytes) -> None:
        (address,) = struct.unpack_from("Q", request, 16)
        ctypes.memmove(address, struct.pack("=12xHB13xH14x", 10, 1, 0), 44)

    monkeypatch.setattr("nettop.kernel.net.links.fcntl.ioctl", ioctl)
    negotiated = Link(1, "x", kind=kind, is_up=True).negotiated()
    assert negotiated == (Negotiated(1_250_000, 1) if has_speed else Negotiated())
