# SPDX-License-Identifier: Apache-2.0
"""sFlow datagrams and the packets in them, built here: valid, unusual, and truncated anywhere."""

from __future__ import annotations

import struct
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettop.collector.columns import BY_NAME, Flows
from nettop.collector.decode.batch import INTERFACE_COUNTERS, Batch, DecodeResult
from nettop.collector.decode.datagrams import Datagrams
from nettop.collector.decode.packets import (
    EXTENSIONS_MAX,
    LABELS_MAX,
    PACKET_COLUMNS,
    TAGS_MAX,
    FirstHeader,
    decode_packets,
)
from nettop.collector.decode.sflow import RECORDS_MAX, SAMPLES_MAX, read_sflow
from nettop.snapshots.arrays import Array, Index
from tests.builders.sflow import (
    A4,
    A6,
    AGENT,
    B4,
    B6,
    ICMP,
    ICMPV6,
    INTERFACE,
    MACS,
    RAW,
    SYN_ACK,
    TCP,
    TCP4,
    TCP6,
    UDP,
    address,
    datagram,
    ethernet,
    flow,
    ip4,
    ip6,
    mapped,
    packed,
    part,
    raw,
    tcp,
    words,
)

SENDER = "10.0.0.1"
RECEIVED_MS = 1_700_000_000_123


# Packets.


def mpls(labels: tuple[int, ...], payload: bytes) -> bytes:
    last = len(labels) - 1
    entries = [label << 12 | (at == last) << 8 | 64 for at, label in enumerate(labels)]
    return struct.pack(f"!{len(labels)}I", *entries) + payload


def udp(payload: bytes = b"") -> bytes:
    return struct.pack("!HHHH", 5353, 53, 8 + len(payload), 0) + payload


def decoded(packets: list[bytes], first: FirstHeader = FirstHeader.ETHERNET) -> list[dict[str, Any]]:
    """Return the columns of each packet; the gaps between packets are ones, which must not leak into a column."""
    gap = b"\xff" * 64
    starts = np.cumsum([len(gap) + (len(packets[at - 1]) if at else 0) for at in range(len(packets))])
    ends = starts + [len(packet) for packet in packets]
    buffer = np.frombuffer(gap + b"".join(packet + gap for packet in packets), np.uint8)
    return rows_of(decode_packets(buffer, starts, ends, first))


def rows_of(flows: Flows) -> list[dict[str, Any]]:
    columns = {
        name: [bytes(v) for v in values] if values.dtype.kind == "V" else values.tolist()
        for name, values in flows.items()
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def set_in(row: dict[str, Any]) -> dict[str, Any]:
    """Return the columns that differ from their default."""
    return {name: value for name, value in row.items() if value not in (0, bytes(16))}


OF_MACS = {"dst_mac": 0x020000000002, "src_mac": 0x0200000000AA}
OF_IP4 = {
    "etype": 0x0800, "src": mapped(A4), "dst": mapped(B4), "tos": 0xB8, "ttl": 61, "fragment_id": 0x1234,
}  # fmt: skip
OF_IP6 = {
    "etype": 0x86DD, "src": mapped(A6), "dst": mapped(B6), "tos": 0xB8, "ttl": 61, "flow_label": 0xABCDE,
}  # fmt: skip
OF_TCP = {"protocol": TCP, "src_port": 50123, "dst_port": 443, "tcp_flags": SYN_ACK}
OF_UDP = {"protocol": UDP, "src_port": 5353, "dst_port": 53}
OF_TCP4, OF_TCP6 = OF_IP4 | OF_TCP | {"ip_bytes": 40}, OF_IP6 | OF_TCP | {"ip_bytes": 60}
PORTS = {"src_port": 5353, "dst_port": 53}


@pytest.mark.parametrize(
    ("packet", "expected"),
    [
        (ethernet(0x0800, TCP4), OF_TCP4),
        (ethernet(0x86DD, TCP6), OF_TCP6),
        (ethernet(0x0800, TCP4, ((0x8100, 0x6064),)), OF_TCP4 | {"src_vlan": 0x64}),
        (
            ethernet(0x86DD, TCP6, ((0x88A8, 7), (0x8100, 8))),
            OF_TCP6 | {"src_vlan": 7, "customer_vlan": 8},
        ),
        (
            ethernet(0x0800, TCP4, ((0x9100, 7), (0x8100, 8), (0x8100, 9))),
            OF_TCP4 | {"src_vlan": 7, "customer_vlan": 8},
        ),
        (
            ethernet(0x0800, TCP4, ((0x8100, 5),) * TAGS_MAX),
            OF_TCP4 | {"src_vlan": 5, "customer_vlan": 5},
        ),
        (
            ethernet(0x0800, TCP4, ((0x8100, 5),) * (TAGS_MAX + 1)),
            {"src_vlan": 5, "customer_vlan": 5, "etype": 0x8100},
        ),
        (ethernet(0x0806, bytes(28)), {"etype": 0x0806}),
        (ethernet(8 + len(TCP4), bytes.fromhex("aaaa030000000800") + TCP4), OF_TCP4),
        (ethernet(38, bytes.fromhex("424203") + bytes(35)), {}),
        (ethernet(0x8847, mpls((16, 17), TCP4)), OF_TCP4 | {"mpls_label_1": 16, "mpls_label_2": 17}),
        (
            ethernet(0x8848, mpls((1, 2, 3, 4, 5), TCP6)),
            OF_TCP6 | {"mpls_label_1": 1, "mpls_label_2": 2, "mpls_label_3": 3},
        ),
        (ethernet(0x8847, mpls((99,), bytes(40))), {"etype": 0x8847, "mpls_label_1": 99}),
        (
            ethernet(0x8847, mpls((9,) * (LABELS_MAX + 1), TCP4)),
            {"etype": 0x8847, "mpls_label_1": 9, "mpls_label_2": 9, "mpls_label_3": 9},
        ),
        (ethernet(0x8864, bytes.fromhex("1100000100160021") + TCP4), OF_TCP4),
        (ethernet(0x8864, bytes.fromhex("1100000100160057") + TCP6), OF_TCP6),
        (ethernet(0x8864, bytes.fromhex("110000010016c021") + bytes(10)), {"etype": 0x8864}),
        (ethernet(0x0800, ip4(udp(), UDP, options=bytes(8))), OF_IP4 | OF_UDP | {"ip_bytes": 36}),
        (ethernet(0x0800, b"\x44" + TCP4[1:]), {"etype": 0x0800}),
        (ethernet(0x0800, TCP6), {"etype": 0x0800}),
        (ethernet(0x86DD, TCP4 + bytes(40)), {"etype": 0x86DD}),
    ],
)  # fmt: skip
def test_a_frame(packet: bytes, expected: dict[str, Any]) -> None:
    """The link layers lead to the IP packet, if there is one."""
    (row,) = decoded([packet])
    assert set_in(row) == OF_MACS | expected


@pytest.mark.parametrize(
    ("protocol", "payload", "expected"),
    [
        (UDP, udp(), PORTS),
        (33, udp(), PORTS),
        (132, udp(), PORTS),
        (136, udp(), PORTS),
        (TCP, tcp(0xFFF), {"src_port": 50123, "dst_port": 443, "tcp_flags": 0xFFF}),
        (TCP, tcp()[:13], {"src_port": 50123, "dst_port": 443}),
        (TCP, tcp()[:3], {}),
        (ICMP, b"\x03\x01", {"icmp_type": 3, "icmp_code": 1}),
        (ICMPV6, b"\x87\x02", {"icmp_type": 0x87, "icmp_code": 2}),
        (ICMPV6, b"\x87", {}),
        (47, udp(), {}),
    ],
)
def test_a_transport_header(protocol: int, payload: bytes, expected: dict[str, Any]) -> None:
    """Ports, flags and types of the protocols that have them."""
    rows = decoded([ip4(payload, protocol), ip6(payload, protocol)], FirstHeader.IP)
    expected = expected | {"protocol": protocol}
    assert [set_in(row) for row in rows] == [
        OF_IP4 | expected | {"ip_bytes": 20 + len(payload)},
        OF_IP6 | expected | {"ip_bytes": 40 + len(payload)},
    ]


def extension(protocol: int, units: int = 0) -> bytes:
    return bytes((protocol, units)) + bytes(6 + 8 * units)


@pytest.mark.parametrize(
    ("first", "headers", "expected"),
    [
        (0, extension(UDP), OF_UDP),
        (0, extension(43) + extension(60, 2) + extension(UDP, 1), OF_UDP),
        (51, bytes((UDP, 4)) + bytes(22), OF_UDP),
        (44, struct.pack("!BBHI", UDP, 0, 1, 77), OF_UDP | {"fragment_id": 77}),
        (
            44,
            struct.pack("!BBHI", UDP, 0, 185 << 3 | 1, 77),
            {"protocol": UDP, "fragment_id": 77, "fragment_offset": 185},
        ),
        (60, extension(60) * (EXTENSIONS_MAX - 1) + extension(UDP), OF_UDP),
        (60, extension(60) * EXTENSIONS_MAX + extension(UDP), {"protocol": 60}),
        (50, bytes(8), {"protocol": 50}),
        (59, b"", {"protocol": 59}),
    ],
)
def test_extension_headers(first: int, headers: bytes, expected: dict[str, Any]) -> None:
    """The protocol is the one after the extension headers."""
    (row,) = decoded([ip6(headers + udp(), first)], FirstHeader.IP)
    assert set_in(row) == OF_IP6 | expected | {"ip_bytes": 40 + len(headers) + 8}


def test_fragments_of_ipv4() -> None:
    """The first fragment has ports, later ones do not."""
    first, later = decoded(
        [ip4(udp(), UDP, fragment=0x2000), ip4(udp(), UDP, fragment=0x2005)], FirstHeader.IP
    )
    assert set_in(first) == OF_IP4 | OF_UDP | {"ip_bytes": 28}
    assert set_in(later) == OF_IP4 | {"protocol": UDP, "fragment_offset": 5, "ip_bytes": 28}


def test_padding_is_no_transport_header() -> None:
    """Bytes after the end of the IP packet are Ethernet padding; a length of 0 is ignored."""
    rows = decoded(
        [ip4(udp(), UDP, length=20), ip4(udp(), UDP, length=0), ip6(udp(), UDP, length=3)], FirstHeader.IP
    )
    assert [(row["src_port"], row["ip_bytes"]) for row in rows] == [(0, 20), (5353, 0), (0, 43)]


@pytest.mark.parametrize(
    ("first", "packet", "expected"),
    [
        (FirstHeader.IP, b"\x50" + bytes(40), {}),
        (FirstHeader.MPLS, mpls((7,), TCP6), OF_TCP6 | {"mpls_label_1": 7}),
        (FirstHeader.PPP, b"\x00\x21" + TCP4, OF_TCP4),
        (FirstHeader.PPP, b"\xff\x03\x00\x57" + TCP6, OF_TCP6),
        (FirstHeader.PPP, b"\xff\x03\x21" + TCP4, OF_TCP4),
        (FirstHeader.PPP, b"\x02\x81" + mpls((7,), TCP4), OF_TCP4 | {"mpls_label_1": 7}),
        (FirstHeader.PPP, b"\xc0\x21" + TCP4, {}),
    ],
)
def test_first_headers(first: FirstHeader, packet: bytes, expected: dict[str, Any]) -> None:
    """Packets need no Ethernet header."""
    (row,) = decoded([packet], first)
    assert set_in(row) == expected


def test_columns_of_packets() -> None:
    """All columns are present in the store's dtypes, even without packets."""
    for packets in ([], [b""], [TCP4]):
        columns = decode_packets(
            np.frombuffer(b"".join(packets), np.uint8),
            np.zeros(len(packets), np.intp),
            np.array([len(packet) for packet in packets], np.intp),
            FirstHeader.IP,
        )
        assert {name: values.dtype for name, values in columns.items()} == {
            **{name: np.dtype(BY_NAME[name].dtype) for name in PACKET_COLUMNS},
            "ip_bytes": np.dtype("u4"),
        }


# A parser of one packet, which stops at its end.


TRANSPORTS = st.tuples(
    st.sampled_from([ICMP, TCP, UDP, 33, 47, 50, ICMPV6, 132, 136]), st.binary(min_size=0, max_size=24)
)


@st.composite
def ip_packets(draw: st.DrawFn) -> bytes:
    protocol, payload = draw(TRANSPORTS)
    length = draw(st.sampled_from([-1, -1, -1, 0, 21, 44]))
    if draw(st.booleans()):
        options = bytes(4 * draw(st.integers(0, 10)))
        fragment = draw(st.sampled_from([0, 0, 0x4000, 0x2000, 0x2001, 0x1FFF]))
        return ip4(payload, protocol, options=options, fragment=fragment, length=length)
    for kind in draw(st.lists(st.sampled_from([0, 43, 44, 51, 60]), max_size=EXTENSIONS_MAX + 1)):
        units = draw(st.integers(0, 3))
        if kind == 44:
            offset = draw(st.sampled_from([0, 1, 8, 0xFFF9]))
            payload = struct.pack("!BBHI", protocol, units, offset, 0xDEADBEEF) + payload
        else:
            size = (units + 2) * 4 if kind == 51 else (units + 1) * 8
            payload = (
                bytes((protocol, units)) + draw(st.binary(min_size=size - 2, max_size=size - 2)) + payload
            )
        protocol = kind
    return ip6(payload, protocol, length)


@st.composite
def labelled_packets(draw: st.DrawFn) -> bytes:
    labels = draw(st.lists(st.integers(0, 0xFFFFF), min_size=1, max_size=LABELS_MAX + 1))
    return mpls(tuple(labels), draw(st.one_of(ip_packets(), st.binary(max_size=30))))


@st.composite
def ppp_packets(draw: st.DrawFn) -> bytes:
    kinds = [
        ("0021", ip_packets()),
        ("21", ip_packets()),
        ("0281", labelled_packets()),
        ("c021", st.binary()),
    ]
    protocol, payloads = draw(st.sampled_from(kinds))
    framing = draw(st.sampled_from([b"", b"\xff\x03"]))
    return framing + bytes.fromhex(protocol) + draw(payloads)


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    tags = draw(
        st.lists(
            st.tuples(st.sampled_from([0x8100, 0x88A8, 0x9100]), st.integers(0, 0xFFFF)),
            max_size=TAGS_MAX + 1,
        )
    )
    kind = draw(st.sampled_from(["ip", "mpls", "pppoe", "snap", "other"]))
    if kind == "mpls":
        return ethernet(draw(st.sampled_from([0x8847, 0x8848])), draw(labelled_packets()), tuple(tags))
    if kind == "pppoe":
        return ethernet(0x8864, bytes(6) + draw(ppp_packets()), tuple(tags))
    if kind == "other":
        return ethernet(draw(st.integers(0, 0xFFFF)), draw(st.binary(max_size=60)), tuple(tags))
    payload = draw(ip_packets())
    etype = {4: 0x0800, 6: 0x86DD}[payload[0] >> 4]
    if kind == "snap":
        return ethernet(len(payload), b"\xaa\xaa\x03\0\0\0" + struct.pack("!H", etype) + payload, tuple(tags))
    return ethernet(etype, payload, tuple(tags))


PACKETS = {
    FirstHeader.ETHERNET: frames(),
    FirstHeader.IP: ip_packets(),
    FirstHeader.MPLS: labelled_packets(),
    FirstHeader.PPP: ppp_packets(),
}


@pytest.mark.parametrize("first", FirstHeader)
@given(data=st.data())
def test_many_packets_are_read_as_each_alone(first: FirstHeader, data: st.DataObject) -> None:
    """Whatever the packets contain, and however much of them was captured."""
    packets = data.draw(st.lists(st.one_of(PACKETS[first], st.binary(max_size=80)), max_size=6))
    captured = [packet[: data.draw(st.integers(0, len(packet) + 20))] for packet in packets]
    assert decoded(captured, first) == [row for packet in captured for row in decoded([packet], first)]


@pytest.mark.parametrize("first", FirstHeader)
@given(data=st.data())
def test_a_packet_truncated_at_every_byte(first: FirstHeader, data: st.DataObject) -> None:
    """Nothing beyond the end is read, although the packet's own bytes are there."""
    packet = data.draw(PACKETS[first])
    lengths = np.arange(len(packet) + 1)
    columns = decode_packets(np.frombuffer(packet, np.uint8), np.zeros_like(lengths), lengths, first)
    assert rows_of(columns) == [row for length in lengths for row in decoded([packet[:length]], first)]


def test_packets_of_several_kinds() -> None:
    """Each packet has its own first header."""
    packets = [ethernet(0x0800, TCP4), TCP6, mpls((5,), TCP4), b"\x00\x21" + TCP4]
    ends = np.cumsum([len(packet) for packet in packets])
    starts = ends - [len(packet) for packet in packets]
    columns = decode_packets(
        np.frombuffer(b"".join(packets), np.uint8), starts, ends, np.array(list(FirstHeader))
    )
    assert columns["etype"].tolist() == [0x0800, 0x86DD, 0x0800, 0x0800]
    assert columns["dst_port"].tolist() == [443] * 4


# Datagrams.


def expanded_flow(*records: bytes, interfaces: tuple[int, int, int, int] = (0, 10, 0, 20)) -> bytes:
    return part(3, words(1, 0, 10, 512, 99, 0, *interfaces, len(records)) + b"".join(records))


INTERFACE_ROW = (4, 6, 10**10, 1, 3, 10**15, *range(1, 7), 10**16, *range(11, 16), 2)
SAMPLED_IPV4 = words(60, UDP) + packed(A4) + packed(B4) + words(5353, 53, 0, 0xB8)
SAMPLED_IPV6 = words(80, TCP) + packed(A6) + packed(B6) + words(50123, 443, SYN_ACK, 0xB8)
SAMPLED_ETHERNET = words(90) + MACS[6:] + bytes(2) + MACS[:6] + bytes(2) + words(0x0800)
SWITCH = words(100, 0, 200, 0)
ROUTER = address("192.0.2.254") + words(24, 16)


def gateway(*segments: tuple[int, ...], next_hop: str = "2001:db8::ff", source: int = 64501) -> bytes:
    path = b"".join(words(2, len(segment), *segment) for segment in segments)
    return part(1003, address(next_hop) + words(64500, source, 64502, len(segments)) + path + words(0, 100))


OF_SAMPLE = {
    "protocol_version": 105, "sampling_rate": 512, "packets": 1, "in_if": 10, "out_if": 20, "domain": 3,
    "sequence": 77, "exporter": mapped(AGENT), "received": RECEIVED_MS, "start": RECEIVED_MS, "end": RECEIVED_MS,
}  # fmt: skip
WITHOUT_IP_BYTES = {name: value for name, value in OF_TCP4.items() if name != "ip_bytes"}
OF_RAW = OF_SAMPLE | OF_MACS | WITHOUT_IP_BYTES | {"bytes": 1500}


def batch(*payloads: bytes, gap: bytes = b"") -> Datagrams:
    starts = np.cumsum([0, *(len(payload) + len(gap) for payload in payloads)])[:-1]
    senders = np.frombuffer(mapped(SENDER) * len(payloads), "V16")
    return Datagrams(
        np.frombuffer(b"".join(payload + gap for payload in payloads), np.uint8),
        starts,
        np.array([len(payload) for payload in payloads], np.intp),
        senders,
        np.full(len(payloads), 6343, np.uint16),
        np.full(len(payloads), RECEIVED_MS * 1_000_000 + 456_789),
    )


class SFlow:
    """What was read in datagrams."""

    def __init__(self, datagrams: Datagrams, which: Index) -> None:
        decoded = Batch(datagrams)
        decoded.headers["reading"] = DecodeResult.BAD_HEADER
        read_sflow(decoded, which)
        ((self.flows,), (self.datagram_of,)) = decoded.parts, decoded.of
        self.counts, self.headers, self.counters = decoded.counts, decoded.headers, decoded.counters
        self.malformed = (self.headers["reading"] != DecodeResult.DECODED) | (self.headers["broken"] > 0)


def read(*payloads: bytes, gap: bytes = b"") -> SFlow:
    return SFlow(batch(*payloads, gap=gap), np.arange(len(payloads)))


def flows_of(*samples: bytes) -> list[dict[str, Any]]:
    """Return the flows of one datagram, which must be valid."""
    sflow = read(datagram(*samples))
    assert not sflow.malformed.any()
    return [set_in(row) for row in rows_of(sflow.flows)]


def contents(sflow: SFlow) -> tuple[Any, ...]:
    headers = sflow.headers[["exporter", "domain", "sequence", "reading", "broken"]].tolist()
    return rows_of(sflow.flows), sflow.datagram_of.tolist(), sflow.counters.tolist(), sflow.counts, headers


@pytest.mark.parametrize("sample", [flow, expanded_flow])
@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ([RAW], OF_RAW),
        ([raw(TCP4, 11)], OF_SAMPLE | WITHOUT_IP_BYTES | {"bytes": 1500}),
        ([raw(mpls((5,), TCP4), 13)], OF_SAMPLE | WITHOUT_IP_BYTES | {"bytes": 1500, "mpls_label_1": 5}),
        ([raw(b"\xff\x03\x00\x21" + TCP4, 7)], OF_SAMPLE | WITHOUT_IP_BYTES | {"bytes": 1500}),
        ([raw(b"\xff\x03\x00\x21" + TCP4, 14)], OF_SAMPLE | WITHOUT_IP_BYTES | {"bytes": 1500}),
        ([raw(TCP4, 4)], OF_SAMPLE | {"bytes": 1500}),
        ([raw(TCP4, 2**32 - 1)], OF_SAMPLE | {"bytes": 1500}),
        ([RAW, raw(TCP6, 12, 99)], OF_RAW),
        (
            [part(3, SAMPLED_IPV4)],
            OF_SAMPLE | OF_UDP
            | {"bytes": 60, "etype": 0x0800, "src": mapped(A4), "dst": mapped(B4), "tos": 0xB8},
        ),
        (
            [part(4, SAMPLED_IPV6)],
            OF_SAMPLE | OF_TCP
            | {"bytes": 80, "etype": 0x86DD, "src": mapped(A6), "dst": mapped(B6), "tos": 0xB8},
        ),
        ([part(2, SAMPLED_ETHERNET)], OF_SAMPLE | OF_MACS | {"bytes": 90, "etype": 0x0800}),
        ([part(2, words(90) + MACS[6:] + MACS[:6] + words(6))], OF_SAMPLE | OF_MACS | {"bytes": 90, "etype": 6}),
        (
            [part(3, SAMPLED_IPV4), part(2, SAMPLED_ETHERNET)],
            OF_SAMPLE | OF_UDP | OF_MACS
            | {"bytes": 90, "etype": 0x0800, "src": mapped(A4), "dst": mapped(B4), "tos": 0xB8},
        ),
        (
            [part(3, words(60, ICMP) + packed(A4) + packed(B4) + words(0, 0x0301, 0, 0))],
            OF_SAMPLE
            | {"bytes": 60, "etype": 0x0800, "src": mapped(A4), "dst": mapped(B4), "protocol": ICMP}
            | {"dst_port": 0x0301, "icmp_type": 3, "icmp_code": 1},
        ),
        ([part(3, SAMPLED_IPV4), RAW], OF_RAW),
        ([RAW, part(3, words(60, ICMP) + packed(A4) + packed(B4) + words(0, 0x0301, 0, 0))], OF_RAW),
        ([RAW, part(1001, SWITCH)], OF_RAW | {"src_vlan": 100, "dst_vlan": 200}),
        ([RAW, part(1001, words(2**32 - 1, 0, 0, 0))], OF_RAW),
        (
            [part(1002, ROUTER), RAW],
            OF_RAW | {"next_hop": mapped("192.0.2.254"), "src_prefix": 24, "dst_prefix": 16},
        ),
        ([RAW, part(1002, address("") + words(24, 16))], OF_RAW | {"src_prefix": 24, "dst_prefix": 16}),
        ([RAW, part(1002, address("0.0.0.0") + words(0, 16))], OF_RAW | {"dst_prefix": 16}),
        (
            [gateway((1, 2), (), (3, 4)), part(1002, ROUTER), RAW],
            OF_RAW
            | {"next_hop": mapped("2001:db8::ff"), "src_prefix": 24, "dst_prefix": 16}
            | {"src_as": 64501, "dst_as": 4, "next_hop_as": 1},
        ),
        (
            [RAW, gateway(next_hop="", source=0)],
            OF_RAW | {"src_as": 64500, "dst_as": 64500},
        ),
        ([part(7 << 12 | 1, bytes(4)), part(1021, bytes(12)), RAW, part(999, b"")], OF_RAW),
    ],
)  # fmt: skip
def test_flow_records(sample: Any, records: list[bytes], expected: dict[str, Any]) -> None:
    """The records of a sample form one flow."""
    assert flows_of(sample(*records)) == [expected]


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        (flow(RAW, input_if=0x3FFFFFFF), (0, 20, 0)),
        (flow(RAW, output_if=0x3FFFFFFF), (10, 0, 0)),
        (flow(RAW, output_if=0x40000102), (10, 0, 128)),
        (flow(RAW, output_if=0x80000003), (10, 0, 0)),
        (expanded_flow(RAW, interfaces=(0, 2**31, 0, 2**31 + 1)), (2**31, 2**31 + 1, 0)),
        (expanded_flow(RAW, interfaces=(0, 2**32 - 1, 0, 0x3FFFFFFF)), (0, 0, 0)),
        (expanded_flow(RAW, interfaces=(0, 1, 1, 256)), (1, 0, 128)),
        (expanded_flow(RAW, interfaces=(0, 1, 2, 3)), (1, 0, 0)),
    ],
)
def test_interfaces(sample: bytes, expected: tuple[int, int, int]) -> None:
    """An index is only an index in format 0; a dropped packet has no egress interface."""
    (row,) = rows_of(read(datagram(sample)).flows)
    assert (row["in_if"], row["out_if"], row["forwarding_status"]) == expected


def test_a_sample_without_a_packet_is_no_flow() -> None:
    """It is counted."""
    sflow = read(datagram(flow(part(1001, SWITCH)), flow(), flow(RAW)))
    assert [set_in(row) for row in rows_of(sflow.flows)] == [OF_RAW]
    assert sflow.counts == Counter(records=1)
    assert not sflow.malformed.any()


@pytest.mark.parametrize("form", [2, 4])
def test_counters(form: int) -> None:
    """Those of interfaces are kept, others counted."""
    head = words(5, 4) if form == 2 else words(5, 0, 4)
    sample = part(form, head + words(3) + part(2, bytes(52)) + part(1, INTERFACE) + part(7 << 12 | 1, b""))
    sflow = read(datagram(), datagram(sample, sample, agent=A6))
    row = (np.void(mapped(A6)), 3, RECEIVED_MS, *INTERFACE_ROW)
    assert sflow.counters.dtype == INTERFACE_COUNTERS
    assert sflow.counters.tolist() == [(bytes(row[0]), *row[1:])] * 2
    assert sflow.counts == Counter(interface_counters=2, other_counters=4)
    assert len(sflow.datagram_of) == 0


def test_other_samples_are_counted() -> None:
    """Samples of discarded packets, and vendor-specific ones."""
    discarded = part(5, words(1, 0, 3, 0, 4, 5, 289, 1) + RAW)
    sflow = read(datagram(discarded, part(9 << 12 | 1, bytes(8)), flow(RAW), discarded), datagram(discarded))
    assert sflow.counts == Counter(records=1, discarded_samples=3, unknown_samples=1)
    assert [set_in(row) for row in rows_of(sflow.flows)] == [OF_RAW]
    assert not sflow.malformed.any()


@pytest.mark.parametrize(("agent", "expected"), [(A4, A4), (A6, A6), ("", SENDER), ("0.0.0.0", SENDER)])
def test_the_agent(agent: str, expected: str) -> None:
    """The agent is the exporter; if the datagram has no agent address, the sender is."""
    sflow = read(datagram(flow(RAW), agent=agent))
    assert sflow.headers["exporter"].tobytes() == sflow.flows["exporter"].tobytes() == mapped(expected)
    assert sflow.headers[["domain", "sequence"]].tolist() == [(3, 77)]


def test_flows_are_in_the_order_of_datagrams_and_samples() -> None:
    """Also if only some datagrams are sFlow."""
    payloads = [datagram(*(flow(RAW, input_if=10 * at + n) for n in range(at))) for at in range(4)]
    sflow = SFlow(batch(*payloads), np.array([3, 1, 2]))
    assert sflow.flows["in_if"].tolist() == [30, 31, 32, 10, 20, 21]
    assert sflow.datagram_of.tolist() == [3, 3, 3, 1, 2, 2]


def test_nothing() -> None:
    """No datagrams yield no flows."""
    sflow = read()
    assert len(sflow.datagram_of) == len(sflow.counters) == len(sflow.malformed) == 0


WHOLE = datagram(
    flow(RAW, part(1001, SWITCH), part(1002, ROUTER), gateway((1, 2), (3,))),
    part(2, words(5, 4, 1) + part(1, INTERFACE)),
    expanded_flow(part(3, SAMPLED_IPV4), part(2, SAMPLED_ETHERNET)),
    flow(part(4, SAMPLED_IPV6)),
)


@pytest.mark.parametrize(
    ("payload", "flows"),
    [
        (b"", 0),
        (datagram(flow(RAW), version=4), 0),
        (words(5, 3) + bytes(60), 0),
        (datagram(flow(RAW), count=2), 1),
        (datagram(flow(RAW), count=2**32 - 1), 1),
        (datagram(flow(RAW), part(1, b"", 2**32 - 1), flow(RAW)), 1),
        (datagram(flow(RAW), part(1, bytes(28)), flow(RAW)), 2),
        (datagram(flow(RAW, count=2), flow(RAW)), 2),
        (datagram(flow(RAW, part(1001, b"", 2**31)), flow(RAW)), 2),
        (datagram(flow(part(1, bytes(12))), flow(RAW)), 1),
        (datagram(flow(raw(b"", captured=2**32 - 1)), flow(RAW)), 2),
        (datagram(flow(RAW, part(1002, address(A6)))), 1),
        (datagram(flow(RAW, part(1002, words(9) + bytes(30)))), 1),
        (datagram(flow(RAW, part(1003, address(A4) + words(1, 2, 3, 1, 2, 99)))), 1),
        (datagram(flow(RAW), part(2, words(5, 4, 1) + part(1, INTERFACE[:-1]))), 1),
        (datagram(*[part(9, b"")] * (SAMPLES_MAX + 1)), 0),
        (datagram(flow(*[part(999, b"")] * (RECORDS_MAX + 1), RAW)), 0),
    ],
)
def test_malformed(payload: bytes, flows: int) -> None:
    """Data before the violation is decoded, as are the other datagrams."""
    sflow = read(datagram(flow(RAW)), payload, datagram(flow(RAW)))
    assert sflow.malformed.tolist() == [False, True, False]
    assert sflow.datagram_of.tolist() == [0, *[1] * flows, 2]


def test_a_datagram_truncated_at_every_byte() -> None:
    """Nothing beyond the end is read: neither the rest of the datagram nor another one."""
    whole = contents(read(WHOLE))
    for length in range(len(WHOLE)):
        rest = Datagrams(
            np.frombuffer(WHOLE, np.uint8),
            np.zeros(1, np.intp),
            np.array([length]),
            np.frombuffer(mapped(SENDER), "V16"),
            np.zeros(1, np.uint16),
            np.array([RECEIVED_MS * 1_000_000]),
        )
        truncated = SFlow(rest, np.arange(1))
        assert truncated.malformed.all()
        assert (
            contents(truncated)
            == contents(read(WHOLE[:length]))
            == contents(read(WHOLE[:length], gap=b"\xff" * 99))
        )
    assert len(whole[0]) == 3


@given(data=st.data())
def test_any_bytes(data: st.DataObject) -> None:
    """Whatever a datagram contains, nothing is raised, and its neighbors are decoded as if alone."""
    payload = bytearray(WHOLE)
    for at in data.draw(st.lists(st.integers(0, len(WHOLE) - 1), max_size=4)):
        payload[at] = data.draw(st.sampled_from([0, 1, 2, 3, 4, 5, 0x7F, 0xFF]))
    strange = bytes(payload[: data.draw(st.integers(0, len(payload)))])
    alone, together = read(strange), read(WHOLE, strange, WHOLE)
    of_strange = together.datagram_of == 1
    assert not together.malformed[[0, 2]].any()
    assert together.malformed[1] == alone.malformed[0]
    assert rows_where(together.flows, of_strange) == rows_of(alone.flows)
    assert rows_where(together.flows, ~of_strange) == rows_of(read(WHOLE, WHOLE).flows)


def rows_where(flows: Flows, where: Array) -> list[dict[str, Any]]:
    return rows_of({name: values[where] for name, values in flows.items()})
