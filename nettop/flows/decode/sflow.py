# SPDX-License-Identifier: Apache-2.0
"""sFlow version 5, many datagrams at a time: first the n-th sample of them all, then the n-th record of all samples.

https://sflow.org/sflow_version_5.txt, and https://sflow.org/sflow_drops.txt for samples of discarded packets.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from nettop.flows.columns import ADDRESS, BY_NAME, Flows
from nettop.flows.decode.datagrams import Datagrams, ipv4, ipv6, items, numbers
from nettop.flows.decode.icmp import icmp_in_port
from nettop.flows.decode.packets import IPV4, IPV6, PACKET_COLUMNS, FirstHeader, decoded_packets
from nettop.snapshots.arrays import Index, Mask
from nettop.snapshots.snapshot import Array

VERSION = 5
PROTOCOL_VERSION = 105
"""What flows of sFlow 5 have in the column `protocol_version`."""
SAMPLES_MAX, RECORDS_MAX, SEGMENTS_MAX = 1024, 256, 64
"""A datagram of more samples, a sample of more records, and an AS path of more segments are malformed."""

# Formats of samples; sFlow's own have enterprise 0 in the upper 20 bits.
_FLOW, _COUNTERS, _EXPANDED_FLOW, _EXPANDED_COUNTERS, _DISCARDED = 1, 2, 3, 4, 5
_FLOW_SAMPLES, _COUNTER_SAMPLES = (_FLOW, _EXPANDED_FLOW), (_COUNTERS, _EXPANDED_COUNTERS)
# Formats of flow records.
_RAW_HEADER, _ETHERNET, _IPV4, _IPV6, _SWITCH, _ROUTER, _GATEWAY = 1, 2, 3, 4, 1001, 1002, 1003
_OF_PACKETS = (_RAW_HEADER, _ETHERNET, _IPV4, _IPV6)
# Formats of counter records.
_INTERFACE = 1

_NO_FIRST_HEADER = -1
_FIRST_HEADERS = np.full(256, _NO_FIRST_HEADER)
"""What a raw header begins with, by its header_protocol."""
_FIRST_HEADERS[[1, 7, 11, 12, 13, 14]] = [
    *(FirstHeader.ETHERNET, FirstHeader.PPP, FirstHeader.IP, FirstHeader.IP, FirstHeader.MPLS),
    # Packets over SONET (RFC 2615).
    FirstHeader.PPP,
]

_NO_INTERFACE = (0x3FFFFFFF, 0xFFFFFFFF)
"""The device itself, in samples and in expanded samples."""
_INTERFACE_IS_REASON = 1
"""The format of an interface that is a reason why the packet was dropped."""
_DROPPED = 128
"""In the column `forwarding_status` (RFC 7270, section 4.12)."""
_VLAN_MAX = 4094

_ADDRESS_WIDTHS = {0: 0, 1: 4, 2: 16}
"""By address_type: unknown, IPv4, IPv6."""

_INTERFACE_FIELDS = [
    *(("if_index", "u4"), ("if_type", "u4"), ("speed_bps", "u8"), ("direction", "u4"), ("status", "u4")),
    *(("in_bytes", "u8"), ("in_unicast", "u4"), ("in_multicast", "u4"), ("in_broadcast", "u4")),
    *(("in_discards", "u4"), ("in_errors", "u4"), ("in_unknown_protocols", "u4")),
    *(("out_bytes", "u8"), ("out_unicast", "u4"), ("out_multicast", "u4"), ("out_broadcast", "u4")),
    *(("out_discards", "u4"), ("out_errors", "u4"), ("promiscuous", "u4")),
]
"""if_counters: those of the interfaces MIB (RFC 2863), packets by kind."""
_IF_COUNTERS = np.dtype([(name, f">{dtype}") for name, dtype in _INTERFACE_FIELDS])

INTERFACE_COUNTERS = np.dtype(
    [("exporter", ADDRESS), ("domain", "u4"), ("received", "i8"), *_INTERFACE_FIELDS]
)
"""The counters of an interface: its agent, sub-agent, and ms as in flows; then as the agent counts.

`status` has bit 0 set if the interface is up for its administrator, bit 1 if it works. A counter that the agent does
not have is of ones only.
"""


@dataclass(frozen=True, eq=False)
class SFlow:
    """What datagrams of sFlow have said. `which` of them is (n,), the flows in their order are (f,).

    A flow is a flow sample that describes a packet. `datagram_of` (f,) are positions among all datagrams, as those in
    `which` are. `counters` has a row of INTERFACE_COUNTERS for every sample of them; `other_counters` is how many
    records of other counters there were.
    """

    flows: Flows
    datagram_of: Index
    counters: Array
    other_counters: int
    samples: dict[str, Index]
    """How many each datagram had (n,): "flow", "counters", "discarded", and "unknown" of other formats."""
    malformed: Mask
    """Which datagrams break sFlow's structure (n,); what stands before the break is decoded."""
    has_header: Mask
    """Which datagrams have a header that can be read (n,)."""
    agents: Array
    """Addresses (n,), of the sender where the datagram does not say."""
    sub_agents: Array
    """u4 (n,)."""
    sequences: Array
    """u4 (n,): the numbers of the datagrams, by agent and sub-agent."""

    @property
    def discarded(self) -> int:
        """How many samples of discarded packets there were."""
        return int(self.samples["discarded"].sum())


class _Parts(NamedTuple):
    """Samples, records or segments: which owner each belongs to, its format, and the place of its content."""

    owners: Index
    formats: Array
    starts: Index
    ends: Index

    def taken(self, at: Index | Mask) -> _Parts:
        return _Parts(*(values[at] for values in self))


class _Datagrams(NamedTuple):
    """The headers of datagrams, and where their samples begin."""

    agents: Array
    sub_agents: Array
    sequences: Array
    starts: Index
    sample_counts: Index
    are_valid: Mask


def decoded_sflow(datagrams: Datagrams, which: Index) -> SFlow:
    """The flows and counters in `which` (n,) of the datagrams, all of which should be sFlow 5.

    Flows have the time when they were received as start and end, since a sample says none.
    """
    buffer, ends = datagrams.buffer, datagrams.ends[which]
    headers = _headers(datagrams, which)
    samples, is_broken = _parts(buffer, headers.starts, ends, headers.sample_counts, SAMPLES_MAX)
    malformed = ~headers.are_valid | is_broken
    samples = samples.taken(np.argsort(samples.owners, kind="stable"))
    counts = _sample_counts(samples, len(which))
    of_flows, of_counters = (
        samples.taken(np.isin(samples.formats, formats)) for formats in (_FLOW_SAMPLES, _COUNTER_SAMPLES)
    )
    flows, owners = _flows(buffer, of_flows, malformed)
    counters, counters_of, others = _counters(buffer, of_counters, malformed)
    received_ms = datagrams.received_ns[which] // 1_000_000
    for name in ("received", "start", "end"):
        flows[name] = received_ms[owners]
    flows["exporter"], flows["domain"] = headers.agents[owners], headers.sub_agents[owners]
    flows["sequence"] = headers.sequences[owners]
    counters["received"] = received_ms[counters_of]
    counters["exporter"], counters["domain"] = headers.agents[counters_of], headers.sub_agents[counters_of]
    return SFlow(
        flows,
        which[owners],
        counters,
        others,
        counts,
        malformed,
        headers.are_valid,
        headers.agents,
        headers.sub_agents,
        headers.sequences,
    )


def _headers(datagrams: Datagrams, which: Index) -> _Datagrams:
    buffer, starts, ends = datagrams.buffer, datagrams.starts[which], datagrams.ends[which]
    agents = datagrams.senders[which].copy()
    sub_agents, sequences = np.zeros(len(which), "u4"), np.zeros(len(which), "u4")
    sample_counts, are_valid = np.zeros(len(which), np.intp), np.zeros(len(which), np.bool_)
    rows = np.flatnonzero(starts + 8 <= ends)
    rows = rows[_words(buffer, starts[rows]) == VERSION]
    addresses, lengths = _addresses(buffer, starts[rows] + 4, ends[rows])
    is_whole = (lengths > 0) & (starts[rows] + 4 + lengths + 16 <= ends[rows])
    rows, addresses, at = rows[is_whole], addresses[is_whole], (starts[rows] + 4 + lengths)[is_whole]
    is_known = addresses != np.zeros((), ADDRESS)
    agents[rows[is_known]] = addresses[is_known]
    sub_agents[rows], sequences[rows] = _words(buffer, at), _words(buffer, at + 4)
    sample_counts[rows], are_valid[rows] = _lengths(buffer, at + 12), True
    begins = starts.copy()
    begins[rows] = at + 16
    return _Datagrams(agents, sub_agents, sequences, begins, sample_counts, are_valid)


def _sample_counts(samples: _Parts, count: int) -> dict[str, Index]:
    kinds = {
        "flow": _FLOW_SAMPLES,
        "counters": _COUNTER_SAMPLES,
        "discarded": (_DISCARDED,),
    }
    counts = {
        kind: np.bincount(samples.owners[np.isin(samples.formats, formats)], minlength=count)
        for kind, formats in kinds.items()
    }
    total: Index = np.bincount(samples.owners, minlength=count)
    counts["unknown"] = total - counts["flow"] - counts["counters"] - counts["discarded"]
    return counts


def _parts(
    buffer: Array, starts: Index, ends: Index, counts: Index, most: int, *, unit: int = 1
) -> tuple[_Parts, Mask]:
    """The parts of many owners, which follow each other: format, length in units, and content.

    Returns them ordered by their number within the owner, and which owners have a part that does not fit, or too many.
    """
    at, is_broken = starts.copy(), np.zeros(len(starts), np.bool_)
    rows = np.flatnonzero(counts)
    nothing = np.zeros(0, np.intp)
    parts = [_Parts(nothing, np.zeros(0, np.uint64), nothing, nothing)]
    for number in range(1, most + 1):
        if not len(rows):
            break
        rows = _kept(rows, at[rows] + 8 <= ends[rows], is_broken)
        begins = at[rows] + 8
        part_ends = begins + _lengths(buffer, begins - 4) * unit
        fits = part_ends <= ends[rows]
        rows, begins, part_ends = _kept(rows, fits, is_broken), begins[fits], part_ends[fits]
        parts.append(_Parts(rows, _words(buffer, begins - 8), begins, part_ends))
        at[rows] = part_ends
        rows = rows[counts[rows] > number]
    is_broken[rows] = True
    return _Parts(*(np.concatenate(values) for values in zip(*parts, strict=True))), is_broken


def _kept(rows: Index, keep: Mask, is_broken: Mask) -> Index:
    """The rows to keep; marks the others."""
    is_broken[rows[~keep]] = True
    kept: Index = rows[keep]
    return kept


def _records(buffer: Array, samples: _Parts, lengths: Index, malformed: Mask) -> _Parts:
    """The records of samples, which follow a header of such length that ends with their number."""
    is_whole = samples.starts + lengths <= samples.ends
    at = np.where(is_whole, samples.starts + lengths, samples.ends)
    counts = np.zeros(len(at), np.intp)
    counts[is_whole] = _lengths(buffer, at[is_whole] - 4)
    records, is_broken = _parts(buffer, at, samples.ends, counts, RECORDS_MAX)
    malformed[samples.owners[~is_whole | is_broken]] = True
    return records


def _flows(buffer: Array, samples: _Parts, malformed: Mask) -> tuple[Flows, Index]:
    """The flows of the flow samples that describe a packet, and their owners."""
    is_expanded = samples.formats == _EXPANDED_FLOW
    lengths = np.where(is_expanded, 44, 32)
    records = _records(buffer, samples, lengths, malformed)
    flows: Flows = {name: np.zeros(len(samples.owners), BY_NAME[name].dtype) for name in _COLUMNS}
    describes_packet = np.zeros(len(samples.owners), np.bool_)
    for form, least_length, read in _READERS:
        # The last to be read stays: that shall be a sample's first record of a format.
        of_format = records.taken(np.flatnonzero(records.formats == form)[::-1])
        is_whole = of_format.starts + least_length <= of_format.ends
        malformed[samples.owners[of_format.owners[~is_whole]]] = True
        whole = of_format.taken(is_whole)
        is_broken = read(buffer, whole, flows)
        malformed[samples.owners[whole.owners[is_broken]]] = True
        if form in _OF_PACKETS:
            describes_packet[whole.owners] = True
    _read_flow_samples(buffer, samples.starts, is_expanded, describes_packet, flows)
    if not describes_packet.all():
        flows = {name: values[describes_packet] for name, values in flows.items()}
    return flows, samples.owners[describes_packet]


def _read_flow_samples(
    buffer: Array, starts: Index, is_expanded: Mask, are_flows: Mask, flows: Flows
) -> None:
    rows = np.flatnonzero(are_flows)
    starts, is_expanded = starts[rows], is_expanded[rows]
    flows["protocol_version"][rows], flows["packets"][rows] = PROTOCOL_VERSION, 1
    flows["sampling_rate"][rows] = _words(buffer, starts + np.where(is_expanded, 12, 8))
    flows["in_if"][rows], _ = _interfaces(buffer, starts, is_expanded, 20, 24)
    flows["out_if"][rows], formats = _interfaces(buffer, starts, is_expanded, 24, 32)
    flows["forwarding_status"][rows[formats == _INTERFACE_IS_REASON]] = _DROPPED


def _interfaces(
    buffer: Array, starts: Index, is_expanded: Mask, offset: int, expanded_offset: int
) -> tuple[Array, Array]:
    """Indices of interfaces, 0 for none, and formats; the offsets are those in both kinds of samples."""
    first = _words(buffer, starts + np.where(is_expanded, expanded_offset, offset))
    formats = np.where(is_expanded, first, first >> 30)
    indices = first & 0x3FFFFFFF
    indices[is_expanded] = _words(buffer, starts[is_expanded] + expanded_offset + 4)
    return np.where((formats == 0) & ~np.isin(indices, _NO_INTERFACE), indices, 0), formats


def _read_raw_headers(buffer: Array, records: _Parts, flows: Flows) -> Mask:
    flows["bytes"][records.owners] = _words(buffer, records.starts + 4)
    starts = records.starts + 16
    ends = starts + _lengths(buffer, records.starts + 12)
    protocols = _words(buffer, records.starts)
    first = _FIRST_HEADERS[np.minimum(protocols, len(_FIRST_HEADERS) - 1).astype(np.intp)]
    is_known = first != _NO_FIRST_HEADER
    captured_ends = np.minimum(ends, records.ends)
    packets = decoded_packets(buffer, starts[is_known], captured_ends[is_known], first[is_known])
    rows = records.owners[is_known]
    for name in PACKET_COLUMNS:
        flows[name][rows] = packets[name]
    return ends > records.ends


def _read_ethernet(buffer: Array, records: _Parts, flows: Flows) -> Mask:
    """The source's address comes first; both are padded to 8 bytes, as XDR wants it, or by some agents not."""
    rows, starts = records.owners, records.starts
    width = np.where(records.ends - starts >= 24, 8, 6)
    flows["bytes"][rows] = _words(buffer, starts)
    flows["src_mac"][rows] = numbers(buffer, starts + 4, 6)
    flows["dst_mac"][rows] = numbers(buffer, starts + 4 + width, 6)
    flows["etype"][rows] = _words(buffer, starts + 4 + 2 * width)
    return np.zeros(len(rows), np.bool_)


def _read_ipv4(buffer: Array, records: _Parts, flows: Flows) -> Mask:
    return _read_ip(buffer, records, flows, etype=IPV4, width=4, addresses=ipv4)


def _read_ipv6(buffer: Array, records: _Parts, flows: Flows) -> Mask:
    return _read_ip(buffer, records, flows, etype=IPV6, width=16, addresses=ipv6)


def _read_ip(
    buffer: Array,
    records: _Parts,
    flows: Flows,
    *,
    etype: int,
    width: int,
    addresses: Callable[[Array, Index], Array],
) -> Mask:
    rows, starts = records.owners, records.starts
    # The length of the frame, if there is one, is that of sampled Ethernet.
    lengths = flows["bytes"][rows]
    flows["bytes"][rows] = np.where(lengths > 0, lengths, _words(buffer, starts))
    flows["etype"][rows] = etype
    flows["protocol"][rows] = _words(buffer, starts + 4)
    flows["src"][rows] = addresses(buffer, starts + 8)
    flows["dst"][rows] = addresses(buffer, starts + 8 + width)
    for place, name in enumerate(("src_port", "dst_port", "tcp_flags", "tos")):
        flows[name][rows] = _words(buffer, starts + 8 + 2 * width + 4 * place)
    type_and_code = icmp_in_port(flows["protocol"][rows], flows["dst_port"][rows])
    flows["icmp_type"][rows], flows["icmp_code"][rows] = type_and_code
    return np.zeros(len(rows), np.bool_)


def _read_switch(buffer: Array, records: _Parts, flows: Flows) -> Mask:
    for name, offset in (("src_vlan", 0), ("dst_vlan", 8)):
        vlans = _words(buffer, records.starts + offset)
        # 0 is untagged and all ones unknown: then the header's VLAN stays.
        is_known = (vlans > 0) & (vlans <= _VLAN_MAX)
        flows[name][records.owners[is_known]] = vlans[is_known]
    return np.zeros(len(records.owners), np.bool_)


def _read_router(buffer: Array, records: _Parts, flows: Flows) -> Mask:
    whole, at, is_broken = _after_next_hop(buffer, records, 8, flows)
    flows["src_prefix"][whole.owners] = _words(buffer, at)
    flows["dst_prefix"][whole.owners] = _words(buffer, at + 4)
    return is_broken


def _read_gateway(buffer: Array, records: _Parts, flows: Flows) -> Mask:
    whole, at, is_broken = _after_next_hop(buffer, records, 16, flows)
    path_lengths = _lengths(buffer, at + 12)
    segments, is_path_broken = _parts(buffer, at + 16, whole.ends, path_lengths, SEGMENTS_MAX, unit=4)
    segments = segments.taken(segments.ends > segments.starts)
    own, sources = _words(buffer, at), _words(buffer, at + 4)
    # What is in the router's own AS has no path, and no AS of the source.
    first, last = np.zeros(len(at), np.uint64), own.copy()
    last[path_lengths > 0] = 0
    last[segments.owners] = _words(buffer, segments.ends - 4)
    first[segments.owners[::-1]] = _words(buffer, segments.starts[::-1])
    flows["src_as"][whole.owners] = np.where(sources > 0, sources, own)
    flows["dst_as"][whole.owners] = last
    flows["next_hop_as"][whole.owners] = first
    is_broken[np.flatnonzero(~is_broken)[is_path_broken]] = True
    return is_broken


def _after_next_hop(buffer: Array, records: _Parts, more: int, flows: Flows) -> tuple[_Parts, Index, Mask]:
    """Reads the next hops, with which records begin.

    Returns the records that have so many bytes more, where these begin, and which records have not.
    """
    addresses, lengths = _addresses(buffer, records.starts, records.ends)
    is_whole = (lengths > 0) & (records.starts + lengths + more <= records.ends)
    is_known = is_whole & (addresses != np.zeros((), ADDRESS))
    flows["next_hop"][records.owners[is_known]] = addresses[is_known]
    return records.taken(is_whole), (records.starts + lengths)[is_whole], ~is_whole


_Reader = Callable[[Array, _Parts, Flows], Mask]
"""Sets columns by the records of a format, which are as long as the format needs at least; returns which are broken."""
_READERS: tuple[tuple[int, int, _Reader], ...] = (
    (_ETHERNET, 20, _read_ethernet),
    (_IPV4, 32, _read_ipv4),
    (_IPV6, 56, _read_ipv6),
    (_RAW_HEADER, 16, _read_raw_headers),
    (_SWITCH, 16, _read_switch),
    (_ROUTER, 12, _read_router),
    (_GATEWAY, 20, _read_gateway),
)
"""Formats, the least length of their records, and what reads them: the later one is the better source of a column."""
_COLUMNS = (
    *("protocol_version", "sampling_rate", "bytes", "packets", "in_if", "out_if", "forwarding_status"),
    *(*PACKET_COLUMNS, "dst_vlan", "src_as", "dst_as", "src_prefix", "dst_prefix", "next_hop", "next_hop_as"),
)


def _counters(buffer: Array, samples: _Parts, malformed: Mask) -> tuple[Array, Index, int]:
    """The counters of interfaces, their owners, and how many other records there are."""
    lengths = np.where(samples.formats == _EXPANDED_COUNTERS, 16, 12)
    records = _records(buffer, samples, lengths, malformed)
    of_interfaces = records.taken(records.formats == _INTERFACE)
    is_whole = of_interfaces.starts + _IF_COUNTERS.itemsize <= of_interfaces.ends
    malformed[samples.owners[of_interfaces.owners[~is_whole]]] = True
    whole = of_interfaces.taken(is_whole)
    whole = whole.taken(np.argsort(whole.owners, kind="stable"))
    sent = items(buffer, whole.starts, f"V{_IF_COUNTERS.itemsize}").view(_IF_COUNTERS)
    counters = np.zeros(len(sent), INTERFACE_COUNTERS)
    for name, _ in _INTERFACE_FIELDS:
        counters[name] = sent[name]
    return counters, samples.owners[whole.owners], len(records.owners) - len(of_interfaces.owners)


def _addresses(buffer: Array, at: Index, ends: Index) -> tuple[Array, Index]:
    """The addresses at these places, zeros for an unknown one, and their lengths with their types.

    The length of what is none, or has not come whole, is 0. Four bytes must be there.
    """
    types = _words(buffer, at)
    addresses, lengths = np.zeros(len(at), ADDRESS), np.zeros(len(at), np.intp)
    for address_type, width in _ADDRESS_WIDTHS.items():
        rows = np.flatnonzero((types == address_type) & (at + 4 + width <= ends))
        lengths[rows] = 4 + width
        places = at[rows] + 4
        if width == 4:
            is_set = _words(buffer, places) > 0
            addresses[rows[is_set]] = ipv4(buffer, places[is_set])
        elif width:
            addresses[rows] = ipv6(buffer, places)
    return addresses, lengths


def _words(buffer: Array, places: Index) -> Array:
    """The unsigned int of XDR at these places: u8."""
    return numbers(buffer, places, 4)


def _lengths(buffer: Array, places: Index) -> Index:
    """As `_words`, for arithmetic with places."""
    return _words(buffer, places).astype(np.intp)
