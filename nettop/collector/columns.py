# SPDX-License-Identifier: Apache-2.0
"""Columns of a stored flow, declared once for decoding, enrichment, the store's tables and the documentation."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np

from nettop.snapshots.arrays import Array

ADDRESS = "V16"
"""Dtype of an address: 16 bytes in network order, IPv4 as ::ffff:a.b.c.d."""
UNKNOWN_DIRECTION = 255
TIME_MIN_MS = 946_684_800_000
"""Start of 2000. Earlier times come from a clock that was never set, and count as missing."""
TIME_MAX_MS = 10_413_791_999_999
"""End of 2299, the range of DateTime64. Later times count as missing."""
_ROUNDING_MS = 1000
"""Maximum difference between a flow's times that is due to clocks of different precision."""


@dataclass(frozen=True, slots=True)
class FlowColumn:
    """A column of a flow: numpy dtype (empty if only the store has it), ClickHouse's type, NetMeta's name for it, and
    ClickHouse's codec.

    A 0 or an all-zero address means that the exporter did not report a value; the protocols have no other way to say
    so. In a Nullable column it is stored as NULL.

    Of the codecs, these are the smallest over flows of twenty routers and switches; LZ4, ZSTD(3), DoubleDelta and GCD
    take more space or time.
    """

    name: str
    dtype: str
    clickhouse: str
    help: str
    netmeta: str = ""
    default: int = 0
    codec: str = "ZSTD(1)"


_RISING = "Delta, ZSTD(1)"
"""Values increase within an exporter's datagrams."""
SMALL = "T64, ZSTD(1)"
"""The upper bits of values are zero."""
# fmt: off
COLUMNS = (
    FlowColumn("received", "i8", "DateTime64(3)", "when the datagram arrived, ms", "TimeReceived", codec=_RISING),
    FlowColumn("start", "i8", "Nullable(DateTime64(3))", "first packet of the flow, ms", "TimeFlowStart"),
    FlowColumn("end", "i8", "Nullable(DateTime64(3))", "last packet of the flow, ms", "TimeFlowEnd"),
    FlowColumn("exporter", ADDRESS, "IPv6", "sender of the datagram; sFlow agent, or original exporter behind a relay",
               "SamplerAddress"),
    FlowColumn("domain", "u4", "UInt32", "observation domain, source ID, engine, or sFlow sub-agent"),
    FlowColumn("protocol_version", "u1", "UInt8", "5 and 9 are NetFlow, 10 IPFIX, 105 sFlow 5, 201 conntrack, 202 "
               "NFLOG, 203 a mirrored port, 204 another producer", "FlowType"),
    FlowColumn("sequence", "u4", "UInt32", "sequence number of the datagram", "SequenceNum", codec=_RISING),
    FlowColumn("sampling_rate", "u4", "UInt32", "one packet in N was sampled; 0 if unknown", "SamplingRate"),
    FlowColumn("direction", "u1", "UInt8", "0 ingress, 1 egress, 255 unknown", "FlowDirection", UNKNOWN_DIRECTION),
    FlowColumn("bytes", "u8", "UInt64", "as reported, not multiplied by the sampling rate", "Bytes", codec=SMALL),
    FlowColumn("packets", "u8", "UInt64", "as reported, not multiplied by the sampling rate", "Packets", codec=SMALL),
    FlowColumn("src", ADDRESS, "IPv6", "source address", "SrcAddr"),
    FlowColumn("dst", ADDRESS, "IPv6", "destination address", "DstAddr"),
    FlowColumn("etype", "u2", "UInt16", "EtherType", "EType"),
    FlowColumn("protocol", "u1", "UInt8", "IP protocol", "Proto"),
    FlowColumn("src_port", "u2", "UInt16", "source port", "SrcPort"),
    FlowColumn("dst_port", "u2", "UInt16", "destination port", "DstPort"),
    FlowColumn("tcp_flags", "u2", "UInt16", "TCP flags of all packets, ORed", "TCPFlags"),
    FlowColumn("icmp_type", "u1", "UInt8", "ICMP or ICMPv6 type", "IcmpType"),
    FlowColumn("icmp_code", "u1", "UInt8", "ICMP or ICMPv6 code", "IcmpCode"),
    FlowColumn("tos", "u1", "UInt8", "type of service or traffic class", "IPTos"),
    FlowColumn("ttl", "u1", "UInt8", "time to live or hop limit", "IPTTL"),
    FlowColumn("flow_label", "u4", "UInt32", "IPv6 flow label", "IPv6FlowLabel"),
    FlowColumn("fragment_id", "u4", "UInt32", "fragment identification", "FragmentId"),
    FlowColumn("fragment_offset", "u2", "UInt16", "fragment offset", "FragmentOffset"),
    FlowColumn("in_if", "u4", "UInt32", "ingress interface index", "InIf"),
    FlowColumn("out_if", "u4", "UInt32", "egress interface index", "OutIf"),
    FlowColumn("src_mac", "u8", "UInt64", "source MAC address", "SrcMac"),
    FlowColumn("dst_mac", "u8", "UInt64", "destination MAC address", "DstMac"),
    FlowColumn("src_vlan", "u2", "UInt16", "ingress VLAN", "SrcVlan"),
    FlowColumn("dst_vlan", "u2", "UInt16", "egress VLAN", "DstVlan"),
    FlowColumn("customer_vlan", "u2", "UInt16", "inner VLAN (QinQ)"),
    FlowColumn("in_vrf", "u4", "UInt32", "ingress VRF", "IngressVrfID"),
    FlowColumn("out_vrf", "u4", "UInt32", "egress VRF", "EgressVrfID"),
    FlowColumn("mpls_label_1", "u4", "UInt32", "outermost MPLS label", "MPLS1Label"),
    FlowColumn("mpls_label_2", "u4", "UInt32", "second MPLS label", "MPLS2Label"),
    FlowColumn("mpls_label_3", "u4", "UInt32", "third MPLS label", "MPLS3Label"),
    FlowColumn("src_as", "u4", "UInt32", "source autonomous system", "SrcAS"),
    FlowColumn("dst_as", "u4", "UInt32", "destination autonomous system", "DstAS"),
    FlowColumn("src_prefix", "u1", "UInt8", "prefix length of the route to the source", "SrcNet"),
    FlowColumn("dst_prefix", "u1", "UInt8", "prefix length of the route to the destination", "DstNet"),
    FlowColumn("next_hop", ADDRESS, "IPv6", "next hop; the BGP next hop if both are reported", "NextHop"),
    FlowColumn("next_hop_as", "u4", "UInt32", "autonomous system of the next hop", "NextHopAS"),
    FlowColumn("nat_src", ADDRESS, "IPv6", "source address after NAT"),
    FlowColumn("nat_dst", ADDRESS, "IPv6", "destination address after NAT"),
    FlowColumn("nat_src_port", "u2", "UInt16", "source port after NAT"),
    FlowColumn("nat_dst_port", "u2", "UInt16", "destination port after NAT"),
    FlowColumn("forwarding_status", "u1", "UInt8", "64 forwarded, 128 dropped (RFC 7270)", "ForwardingStatus"),
    FlowColumn("event", "u1", "UInt8", "firewall or NAT event"),
    FlowColumn("end_reason", "u1", "UInt8", "why the flow ended (RFC 5102)"),
    FlowColumn("biflow_direction", "u1", "UInt8", "direction within a biflow, 1 or 2", "BiFlowDirection"),
)
# fmt: on
_TEXT = "LowCardinality(String)"
_SIDE = "Enum8('unknown' = 0, 'in' = 1, 'out' = 2, 'internal' = 3, 'through' = 4)"
# fmt: off
ADDED_COLUMNS = (
    FlowColumn("src_country", "u4", _TEXT, "source country, ISO 3166-1; empty if unknown"),
    FlowColumn("dst_country", "u4", _TEXT, "destination country, ISO 3166-1; empty if unknown"),
    FlowColumn("src_network", "u4", _TEXT, "source network name; empty if unknown"),
    FlowColumn("dst_network", "u4", _TEXT, "destination network name; empty if unknown"),
    FlowColumn("in_if_name", "u4", _TEXT, "ingress interface name; empty if unknown"),
    FlowColumn("out_if_name", "u4", _TEXT, "egress interface name; empty if unknown"),
    FlowColumn("side", "i1", _SIDE, "direction relative to own networks: in, out, internal or through"),
)
"""Columns added by enrichment. The dtype of a text is that of its codes."""
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
"""Names of common IP protocols, by number."""
ICMP_PROTOCOLS = (1, 58)
"""IP protocols with types and codes in place of ports."""
BY_NAME = {column.name: column for column in COLUMNS}

Flows = dict[str, Array]
"""Flows by column, each of shape (n,)."""


def default_values(name: str, count: int) -> Array:
    """Return a column of default values, which mean unknown."""
    column = BY_NAME[name]
    values = np.zeros(count, column.dtype)
    if column.default:
        values[:] = column.default
    return values


def concatenate_flows(parts: list[Flows], counts: list[int]) -> Flows:
    """Concatenate parts with their numbers of flows; columns missing in a part get their default."""
    ends = np.cumsum([0, *counts])
    flows = {column.name: default_values(column.name, ends[-1]) for column in COLUMNS}
    for part, begin, end in zip(parts, ends, ends[1:], strict=False):
        for name, values in part.items():
            flows[name][begin:end] = values
    _settle_times(flows)
    return flows


def _settle_times(flows: Flows) -> None:
    """Ensure that no flow ends before it starts: of two contradictory times, drop the one farther from the receive
    time.

    A difference within rounding becomes a flow of zero duration.
    """
    start, end, received = (flows[name] for name in ("start", "end", "received"))
    at = np.flatnonzero((end < start) & (end > 0))
    is_rounded = start[at] - end[at] <= _ROUNDING_MS
    is_start = np.abs(start[at] - received[at]) > np.abs(end[at] - received[at])
    end[at] = np.where(is_rounded, start[at], np.where(is_start, end[at], 0))
    start[at[is_start & ~is_rounded]] = 0


# --- texts -----------------------------------------------------------------------------------------------------

TEXT_MAX = 128
"""Longer texts are cut to this many characters."""


class Coded(NamedTuple):
    """Texts as codes, u4 (n,), into distinct `words`. The first word is empty and means unknown.

    Words are as in the file or from the exporter, unsanitized.
    """

    codes: Array
    words: tuple[str, ...]

    @classmethod
    def of(cls, texts: Iterable[str]) -> Self:
        """Encode texts, each cut to TEXT_MAX."""
        code_of = {"": 0}
        codes = [code_of.setdefault(text[:TEXT_MAX], len(code_of)) for text in texts]
        return cls(np.array(codes, np.uint32), tuple(code_of))

    def take(self, at: Array) -> Self:
        """Return the texts at these positions."""
        return self._replace(codes=self.codes[at])
