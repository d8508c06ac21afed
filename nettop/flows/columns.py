# SPDX-License-Identifier: Apache-2.0
"""The columns of a stored flow, declared once: decoding, enrichment, the store's tables and documentation read them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nettop.snapshots.snapshot import Array

ADDRESS = "V16"
"""The dtype of an address: 16 bytes in network order, IPv4 as ::ffff:a.b.c.d."""
UNKNOWN_DIRECTION = 255
TIME_MIN_MS = 946_684_800_000
"""The begin of 2000: an earlier time is of a clock that was never set, and none."""
TIME_MAX_MS = 10_413_791_999_999
"""The end of 2299, and of what DateTime64 holds: a later time is none."""
_ROUNDING_MS = 1000
"""How much two times of a flow differ that come of clocks of different precision."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a flow: numpy's word for its values, ClickHouse's type, and NetMeta's name for the same.

    0, and an address of zeros, is what an exporter did not report: the protocols have no other word for it. Of a type
    that is Nullable it is NULL in the store.
    """

    name: str
    dtype: str
    clickhouse: str
    help: str
    netmeta: str = ""
    default: int = 0


# fmt: off
COLUMNS = (
    Column("received", "i8", "DateTime64(3)", "when the datagram arrived, ms", "TimeReceived"),
    Column("start", "i8", "Nullable(DateTime64(3))", "first packet of the flow, ms", "TimeFlowStart"),
    Column("end", "i8", "Nullable(DateTime64(3))", "last packet of the flow, ms", "TimeFlowEnd"),
    Column("exporter", ADDRESS, "IPv6", "who sent the datagram; of sFlow the agent, of a relay the one it names",
           "SamplerAddress"),
    Column("domain", "u4", "UInt32", "observation domain, source ID, engine, or sub-agent of sFlow"),
    Column("protocol_version", "u1", "UInt8", "5 and 9 are NetFlow, 10 IPFIX, 105 sFlow 5, 201 conntrack, 202 NFLOG, "
           "203 a mirrored port, 204 another producer", "FlowType"),
    Column("sequence", "u4", "UInt32", "sequence number of the datagram", "SequenceNum"),
    Column("sampling_rate", "u4", "UInt32", "one packet in so many was looked at; 0 is not known", "SamplingRate"),
    Column("direction", "u1", "UInt8", "0 ingress, 1 egress, 255 is not known", "FlowDirection", UNKNOWN_DIRECTION),
    Column("bytes", "u8", "UInt64", "as reported, not multiplied by the sampling rate", "Bytes"),
    Column("packets", "u8", "UInt64", "as reported, not multiplied by the sampling rate", "Packets"),
    Column("src", ADDRESS, "IPv6", "source address", "SrcAddr"),
    Column("dst", ADDRESS, "IPv6", "destination address", "DstAddr"),
    Column("etype", "u2", "UInt16", "EtherType", "EType"),
    Column("protocol", "u1", "UInt8", "IP protocol", "Proto"),
    Column("src_port", "u2", "UInt16", "source port", "SrcPort"),
    Column("dst_port", "u2", "UInt16", "destination port", "DstPort"),
    Column("tcp_flags", "u2", "UInt16", "flags of all packets, or-ed", "TCPFlags"),
    Column("icmp_type", "u1", "UInt8", "type of ICMP or ICMPv6", "IcmpType"),
    Column("icmp_code", "u1", "UInt8", "code of ICMP or ICMPv6", "IcmpCode"),
    Column("tos", "u1", "UInt8", "type of service, or traffic class", "IPTos"),
    Column("ttl", "u1", "UInt8", "time to live, or hop limit", "IPTTL"),
    Column("flow_label", "u4", "UInt32", "flow label of IPv6", "IPv6FlowLabel"),
    Column("fragment_id", "u4", "UInt32", "identification of fragments", "FragmentId"),
    Column("fragment_offset", "u2", "UInt16", "offset of a fragment", "FragmentOffset"),
    Column("in_if", "u4", "UInt32", "index of the interface that the flow came in by", "InIf"),
    Column("out_if", "u4", "UInt32", "index of the interface that the flow went out by", "OutIf"),
    Column("src_mac", "u8", "UInt64", "source MAC address", "SrcMac"),
    Column("dst_mac", "u8", "UInt64", "destination MAC address", "DstMac"),
    Column("src_vlan", "u2", "UInt16", "VLAN of the packets that came in", "SrcVlan"),
    Column("dst_vlan", "u2", "UInt16", "VLAN of the packets that went out", "DstVlan"),
    Column("customer_vlan", "u2", "UInt16", "inner VLAN of two (QinQ)"),
    Column("in_vrf", "u4", "UInt32", "VRF that the flow came in by", "IngressVrfID"),
    Column("out_vrf", "u4", "UInt32", "VRF that the flow went out by", "EgressVrfID"),
    Column("mpls_label_1", "u4", "UInt32", "outermost MPLS label", "MPLS1Label"),
    Column("mpls_label_2", "u4", "UInt32", "second MPLS label", "MPLS2Label"),
    Column("mpls_label_3", "u4", "UInt32", "third MPLS label", "MPLS3Label"),
    Column("src_as", "u4", "UInt32", "autonomous system of the source", "SrcAS"),
    Column("dst_as", "u4", "UInt32", "autonomous system of the destination", "DstAS"),
    Column("src_prefix", "u1", "UInt8", "length of the prefix of the source's route", "SrcNet"),
    Column("dst_prefix", "u1", "UInt8", "length of the prefix of the destination's route", "DstNet"),
    Column("next_hop", ADDRESS, "IPv6", "next hop, that of BGP where both are reported", "NextHop"),
    Column("next_hop_as", "u4", "UInt32", "autonomous system of the next hop", "NextHopAS"),
    Column("nat_src", ADDRESS, "IPv6", "source address after translation"),
    Column("nat_dst", ADDRESS, "IPv6", "destination address after translation"),
    Column("nat_src_port", "u2", "UInt16", "source port after translation"),
    Column("nat_dst_port", "u2", "UInt16", "destination port after translation"),
    Column("forwarding_status", "u1", "UInt8", "64 forwarded, 128 dropped (RFC 7270)", "ForwardingStatus"),
    Column("event", "u1", "UInt8", "firewall event or NAT event"),
    Column("end_reason", "u1", "UInt8", "why the flow ended (RFC 5102)"),
    Column("biflow_direction", "u1", "UInt8", "1 and 2 are the directions of a biflow", "BiFlowDirection"),
)
# fmt: on
_TEXT = "LowCardinality(String)"
_SIDE = "Enum8('unknown' = 0, 'in' = 1, 'out' = 2, 'internal' = 3, 'through' = 4)"
# fmt: off
ADDED_COLUMNS = (
    Column("src_country", "u4", _TEXT, "country of the source, ISO 3166-1; empty is not known"),
    Column("dst_country", "u4", _TEXT, "country of the destination, ISO 3166-1; empty is not known"),
    Column("src_network", "u4", _TEXT, "name of the source's network; empty is not known"),
    Column("dst_network", "u4", _TEXT, "name of the destination's network; empty is not known"),
    Column("in_if_name", "u4", _TEXT, "name of the interface that the flow came in by; empty is not known"),
    Column("out_if_name", "u4", _TEXT, "name of the interface that the flow went out by; empty is not known"),
    Column("side", "i1", _SIDE, "whether the flow enters own networks, leaves them, stays in them, or passes through"),
)
"""The columns that enrichment adds to those of a flow. The dtype of a text is that of its codes."""
# fmt: on
PROTOCOL_NAMES = {
    1: "icmp",
    2: "igmp",
    4: "ipip",
    6: "tcp",
    17: "udp",
    47: "gre",
    50: "esp",
    58: "icmpv6",
    89: "ospf",
    132: "sctp",
}
"""IP protocols that have a name here, by number."""
ICMP_PROTOCOLS = (1, 58)
"""They have types and codes in place of ports."""
BY_NAME = {column.name: column for column in COLUMNS}

Flows = dict[str, Array]
"""Flows by column, each of the shape (n,)."""


def default_values(name: str, count: int) -> Array:
    """A column of what stands for unknown."""
    column = BY_NAME[name]
    values = np.zeros(count, column.dtype)
    if column.default:
        values[:] = column.default
    return values


def joined_flows(parts: list[Flows], counts: list[int]) -> Flows:
    """All parts, each of so many flows, one behind the other; columns that a part lacks have their default."""
    ends = np.cumsum([0, *counts])
    flows = {column.name: default_values(column.name, ends[-1]) for column in COLUMNS}
    for part, begin, end in zip(parts, ends, ends[1:], strict=False):
        for name, values in part.items():
            flows[name][begin:end] = values
    _settle_times(flows)
    return flows


def _settle_times(flows: Flows) -> None:
    """Make flows end no sooner than they start: of two times that contradict each other one is not known.

    It is the one farther from when the flow was received. What rounding explains is a flow of no duration.
    """
    start, end, received = (flows[name] for name in ("start", "end", "received"))
    at = np.flatnonzero((end < start) & (end > 0))
    is_rounded = start[at] - end[at] <= _ROUNDING_MS
    is_start = np.abs(start[at] - received[at]) > np.abs(end[at] - received[at])
    end[at] = np.where(is_rounded, start[at], np.where(is_start, end[at], 0))
    start[at[is_start & ~is_rounded]] = 0
