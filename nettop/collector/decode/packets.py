# SPDX-License-Identifier: Apache-2.0
"""Decode the headers of many sampled packets at once, layer by layer, and ICMP types and codes in one number."""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from nettop.collector.columns import BY_NAME, ICMP_PROTOCOLS, Flows
from nettop.collector.decode.datagrams import ipv4, ipv6, numbers
from nettop.snapshots.arrays import Array, Index, Mask

PACKET_COLUMNS = (
    *("src", "dst", "etype", "protocol", "src_port", "dst_port", "tcp_flags", "icmp_type", "icmp_code"),
    *("tos", "ttl", "flow_label", "fragment_id", "fragment_offset"),
    *("src_mac", "dst_mac", "src_vlan", "customer_vlan", "mpls_label_1", "mpls_label_2", "mpls_label_3"),
)
"""Columns of a flow filled from its packet's headers."""


class FirstHeader(IntEnum):
    """Type of the first header in a captured packet."""

    ETHERNET = 0
    IP = 1
    """Version 4 or 6, according to the header."""
    MPLS = 2
    PPP = 3


# EtherTypes (IANA, IEEE 802 Numbers).
IPV4, IPV6 = 0x0800, 0x86DD
_MPLS = (0x8847, 0x8848)
_PPPOE_SESSION = 0x8864
_TAGS = (0x8100, 0x88A8, 0x9100)
"""802.1Q, 802.1ad, and the pre-standard value for 802.1ad."""
_LEAST_ETHERTYPE = 0x0600
"""Lower numbers are the length of an LLC frame (IEEE 802.3, section 3.2.6)."""
_SNAP = 0xAAAA03000000
"""LLC and SNAP headers preceding an EtherType (RFC 1042)."""
_PPP_HDLC = 0xFF03
"""Address and control fields, which may be omitted (RFC 1662, section 3.1)."""
_PPP_ETHERTYPES = {0x0021: IPV4, 0x0057: IPV6, 0x0281: _MPLS[0], 0x0283: _MPLS[1]}
"""IANA, PPP DLL Protocol Numbers."""

# Protocol numbers (IANA).
_HOP_BY_HOP, _TCP, _UDP, _DCCP, _ROUTING, _FRAGMENT = 0, 6, 17, 33, 43, 44
_AUTHENTICATION, _DESTINATION_OPTIONS, _SCTP, _UDP_LITE = 51, 60, 132, 136


def _among(*protocols: int) -> Mask:
    """Return a mask over protocol numbers."""
    return np.isin(np.arange(256), protocols)


_HAS_PORTS = _among(_TCP, _UDP, _DCCP, _SCTP, _UDP_LITE)
_HAS_TYPE = _among(*ICMP_PROTOCOLS)
_IS_EXTENSION = _among(_HOP_BY_HOP, _ROUTING, _FRAGMENT, _AUTHENTICATION, _DESTINATION_OPTIONS)

TAGS_MAX, LABELS_MAX, EXTENSIONS_MAX = 4, 16, 8
"""Maximum tags, labels or extension headers of a packet; beyond it, decoding stops."""


class _Packets:
    """Packets being decoded. `at` is the offset of each one's next header; rows are packet indices."""

    def __init__(self, buffer: Array, starts: Index, ends: Index) -> None:
        self.buffer = buffer
        self.at = starts.astype(np.intp)
        self.ends = np.minimum(ends.astype(np.intp), len(buffer))
        self.columns: Flows = {name: np.zeros(len(starts), BY_NAME[name].dtype) for name in PACKET_COLUMNS}
        self.columns["ip_bytes"] = np.zeros(len(starts), "u4")

    def whole(self, rows: Index, length: int) -> Index:
        """Return the rows with at least `length` more captured bytes."""
        return rows[self.at[rows] + length <= self.ends[rows]]

    def read(self, rows: Index, offset: int, width: int) -> Array:
        """Read numbers of `width` bytes at an offset into the next headers: u8."""
        return numbers(self.buffer, self.at[rows] + offset, width)

    def lengths(self, rows: Index, offset: int, width: int) -> Index:
        """Read numbers like `read`, but as an index type for offset arithmetic."""
        return self.read(rows, offset, width).astype(np.intp)

    def keep(self, rows: Index, **columns: Array) -> None:
        """Set columns of these rows."""
        for name, values in columns.items():
            self.columns[name][rows] = values

    def of_etype(self, *etypes: int) -> Index:
        """Return the rows whose next header has one of these EtherTypes."""
        return np.flatnonzero(np.isin(self.columns["etype"], etypes))


def decode_packets(buffer: Array, starts: Index, ends: Index, first: Array | FirstHeader) -> Flows:
    """Decode packet headers into columns: PACKET_COLUMNS in their dtypes, and `ip_bytes`, each (n,).

    Packet i lies in `buffer` (u1) from `starts[i]` to `ends[i]`; nothing outside these bounds is read. `first` is a
    FirstHeader per packet, or one for all. A column whose header was not captured is 0, as are the ports of later
    fragments. `etype` is that of the IP packet inside VLANs, MPLS and PPPoE, if there is one. `ip_bytes` (u4) is the IP
    packet's length according to its header, 0 without one.
    """
    packets = _Packets(buffer, starts, ends)
    first = np.broadcast_to(np.asarray(first), starts.shape)
    _read_ethernet(packets, np.flatnonzero(first == FirstHeader.ETHERNET))
    _read_ppp(packets, np.flatnonzero(first == FirstHeader.PPP))
    # The PPPoE header comes before that of PPP (RFC 2516, section 4).
    sessions = packets.whole(packets.of_etype(_PPPOE_SESSION), 6)
    packets.at[sessions] += 6
    _read_ppp(packets, sessions)
    packets.columns["etype"][packets.whole(np.flatnonzero(first == FirstHeader.MPLS), 4)] = _MPLS[0]
    _read_mpls(packets, packets.of_etype(*_MPLS))
    _recognize_ip(packets, np.flatnonzero(first == FirstHeader.IP))
    before_transport = (
        _read_ipv4(packets, packets.of_etype(IPV4)),
        _read_ipv6(packets, packets.of_etype(IPV6)),
    )
    _read_transport(packets, np.concatenate(before_transport))
    return packets.columns


def _read_ethernet(packets: _Packets, rows: Index) -> None:
    rows = packets.whole(rows, 14)
    addresses = {"dst_mac": packets.read(rows, 0, 8) >> 16, "src_mac": packets.read(rows, 6, 8) >> 16}
    packets.keep(rows, **addresses, etype=packets.read(rows, 12, 2))
    packets.at[rows] += 14
    rows = _read_tags(packets, rows)
    _read_llc(packets, rows[packets.columns["etype"][rows] < _LEAST_ETHERTYPE])


def _read_tags(packets: _Packets, rows: Index) -> Index:
    """Read VLAN tags, keeping the outer two. Return the packets whose EtherType after all tags was captured."""
    etypes = packets.columns["etype"]
    reached = []
    for depth in range(TAGS_MAX + 1):
        is_tagged = np.isin(etypes[rows], _TAGS)
        reached.append(rows[~is_tagged])
        rows = rows[is_tagged]
        if depth == TAGS_MAX or not len(rows):
            break
        etypes[rows] = 0
        rows = packets.whole(rows, 4)
        if depth <= 1:
            name = ("src_vlan", "customer_vlan")[depth]
            packets.columns[name][rows] = packets.read(rows, 0, 2) & 0x0FFF
        etypes[rows] = packets.read(rows, 2, 2)
        packets.at[rows] += 4
    return np.concatenate(reached)


def _read_llc(packets: _Packets, rows: Index) -> None:
    packets.columns["etype"][rows] = 0
    rows = packets.whole(rows, 8)
    headers = packets.read(rows, 0, 8)
    is_snap = headers >> 16 == _SNAP
    rows = rows[is_snap]
    packets.keep(rows, etype=headers[is_snap] & 0xFFFF)
    packets.at[rows] += 8


def _read_ppp(packets: _Packets, rows: Index) -> None:
    rows = packets.whole(rows, 2)
    packets.at[rows[packets.read(rows, 0, 2) == _PPP_HDLC]] += 2
    rows = packets.whole(rows, 2)
    protocols = packets.read(rows, 0, 2)
    # An odd first byte is a compressed protocol number (RFC 1661, section 6.5).
    is_compressed = protocols & 0x0100 != 0
    protocols[is_compressed] >>= np.uint64(8)
    packets.at[rows] += np.where(is_compressed, 1, 2)
    for protocol, etype in _PPP_ETHERTYPES.items():
        packets.columns["etype"][rows[protocols == protocol]] = etype


def _read_mpls(packets: _Packets, rows: Index) -> None:
    """Read labels to the bottom of the stack, and detect IP below it (RFC 3032, section 2.1)."""
    for depth in range(LABELS_MAX):
        rows = packets.whole(rows, 4)
        if not len(rows):
            return
        entries = packets.read(rows, 0, 4)
        packets.at[rows] += 4
        if depth <= 2:
            packets.columns[f"mpls_label_{depth + 1}"][rows] = entries >> 12
        is_bottom = entries & 0x100 != 0
        _recognize_ip(packets, rows[is_bottom])
        rows = rows[~is_bottom]


def _recognize_ip(packets: _Packets, rows: Index) -> None:
    """Set the EtherType of packets that start with an IP version."""
    rows = packets.whole(rows, 1)
    versions = packets.read(rows, 0, 1) >> 4
    packets.columns["etype"][rows[versions == 4]] = IPV4
    packets.columns["etype"][rows[versions == 6]] = IPV6


def _read_ipv4(packets: _Packets, rows: Index) -> Index:
    """Read IPv4 headers (RFC 791, section 3.1). Return the packets whose transport header comes next."""
    rows = packets.whole(rows, 20)
    versions, words = packets.read(rows, 0, 1) >> 4, packets.read(rows, 0, 1) & 0x0F
    is_valid = (versions == 4) & (words >= 5)
    rows, words = rows[is_valid], words[is_valid]
    at, offsets = packets.at[rows], packets.read(rows, 6, 2) & 0x1FFF
    packets.keep(
        rows,
        tos=packets.read(rows, 1, 1),
        ip_bytes=packets.read(rows, 2, 2),
        fragment_id=packets.read(rows, 4, 2),
        fragment_offset=offsets,
        ttl=packets.read(rows, 8, 1),
        protocol=packets.read(rows, 9, 1),
        src=ipv4(packets.buffer, at + 12),
        dst=ipv4(packets.buffer, at + 16),
    )
    # The length is still 0 if the kernel leaves segmentation to the interface.
    _end_no_later(packets, rows, packets.lengths(rows, 2, 2))
    packets.at[rows] += words.astype(np.intp) * 4
    first_fragments: Index = rows[offsets == 0]
    return first_fragments


def _read_ipv6(packets: _Packets, rows: Index) -> Index:
    """Read IPv6 headers (RFC 8200, section 3). Return the packets whose transport header comes next."""
    rows = packets.whole(rows, 40)
    rows = rows[packets.read(rows, 0, 1) >> 4 == 6]
    at, first_word, payload = packets.at[rows], packets.read(rows, 0, 4), packets.lengths(rows, 4, 2)
    packets.keep(
        rows,
        tos=first_word >> 20 & 0xFF,
        flow_label=first_word & 0xFFFFF,
        ip_bytes=payload + 40,
        protocol=packets.read(rows, 6, 1),
        ttl=packets.read(rows, 7, 1),
        src=ipv6(packets.buffer, at + 8),
        dst=ipv6(packets.buffer, at + 24),
    )
    # A jumbogram has its length in an option (RFC 2675).
    _end_no_later(packets, rows, np.where(payload > 0, payload + 40, 0))
    packets.at[rows] += 40
    return _read_extensions(packets, rows)


def _end_no_later(packets: _Packets, rows: Index, lengths: Index) -> None:
    """Trim packets to their IP length, as Ethernet pads short ones; a length of 0 is ignored."""
    ends = packets.ends[rows]
    packets.ends[rows] = np.where(lengths > 0, np.minimum(ends, packets.at[rows] + lengths), ends)


def _read_extensions(packets: _Packets, rows: Index) -> Index:
    """Skip IPv6 extension headers. Return the packets whose transport header comes next."""
    reached = []
    for depth in range(EXTENSIONS_MAX + 1):
        is_extension = _IS_EXTENSION[packets.columns["protocol"][rows]]
        reached.append(rows[~is_extension])
        rows = rows[is_extension]
        if depth == EXTENSIONS_MAX or not len(rows):
            break
        rows = _skip_extension(packets, packets.whole(rows, 8))
    return np.concatenate(reached)


def _skip_extension(packets: _Packets, rows: Index) -> Index:
    """Skip one extension header per packet. Return the packets except for later fragments."""
    protocols, units = packets.columns["protocol"][rows], packets.lengths(rows, 1, 1)
    is_fragment = protocols == _FRAGMENT
    fragments = rows[is_fragment]
    offsets = packets.read(fragments, 2, 2) >> 3
    packets.keep(fragments, fragment_offset=offsets, fragment_id=packets.read(fragments, 4, 4))
    packets.keep(rows, protocol=packets.read(rows, 0, 1))
    # An authentication header's length is in 32-bit words, minus 2 (RFC 4302, section 2.2).
    lengths = np.where(protocols == _AUTHENTICATION, (units + 2) * 4, (units + 1) * 8)
    packets.at[rows] += np.where(is_fragment, 8, lengths)
    is_later = np.zeros(len(rows), np.bool_)
    is_later[is_fragment] = offsets > 0
    return rows[~is_later]


def _read_transport(packets: _Packets, rows: Index) -> None:
    protocols = packets.columns["protocol"][rows]
    ported = packets.whole(rows[_HAS_PORTS[protocols]], 4)
    packets.keep(ported, src_port=packets.read(ported, 0, 2), dst_port=packets.read(ported, 2, 2))
    tcp = packets.whole(rows[protocols == _TCP], 14)
    # The data offset precedes the flags (RFC 9293, section 3.1).
    packets.keep(tcp, tcp_flags=packets.read(tcp, 12, 2) & 0x0FFF)
    typed = packets.whole(rows[_HAS_TYPE[protocols]], 2)
    packets.keep(typed, icmp_type=packets.read(typed, 0, 1), icmp_code=packets.read(typed, 1, 1))


# --- ICMP in a number, as exporters without fields for it send it -----------------------------------------------


def icmp_in_port(protocol: Array, dst_port: Array) -> tuple[Array, Array]:
    """Return the ICMP type and code that the destination ports of flows hold, 0 for other protocols."""
    return type_and_code(np.where(_HAS_TYPE[protocol], dst_port, 0))


def type_and_code(number: Array) -> tuple[Array, Array]:
    """Split combined numbers into ICMP type and code.

    The type is the upper byte. If that is 0, the whole number is the type: type 0 has no code but 0, and Cisco and
    Procera routers send such numbers.
    """
    upper, lower = number // 256, number % 256
    return np.where(upper > 0, upper, lower), np.where(upper > 0, lower, 0)
