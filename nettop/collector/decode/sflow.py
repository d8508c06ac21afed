# SPDX-License-Identifier: Apache-2.0
"""Decode sFlow version 5, many datagrams at once: the n-th sample of each, then the n-th record of each sample.

https://sflow.org/sflow_version_5.txt, and https://sflow.org/sflow_drops.txt for samples of discarded packets.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from nettop.collector.columns import ADDRESS, BY_NAME, Flows
from nettop.collector.decode.batch import INTERFACE_COUNTERS, INTERFACE_FIELDS, Batch, DecodeResult
from nettop.collector.decode.datagrams import ipv4, ipv6, items, numbers
from nettop.collector.decode.packets import (
    IPV4,
    IPV6,
    PACKET_COLUMNS,
    FirstHeader,
    decode_packets,
    icmp_in_port,
)
from nettop.snapshots.arrays import Array, Index, Mask, take_rows

VERSION = 5
PROTOCOL_VERSION = 105
"""Value of the column `protocol_version` for sFlow 5."""
SAMPLES_MAX, RECORDS_MAX, SEGMENTS_MAX = 1024, 256, 64
"""Maximum samples per datagram, records per sample and segments per AS path; more is malformed."""

# Sample formats; sFlow's own have enterprise 0 in the upper 20 bits.
_FLOW, _COUNTERS, _EXPANDED_FLOW, _EXPANDED_COUNTERS, _DISCARDED = 1, 2, 3, 4, 5
_FLOW_SAMPLES, _COUNTER_SAMPLES = (_FLOW, _EXPANDED_FLOW), (_COUNTERS, _EXPANDED_COUNTERS)
# Flow record formats.
_RAW_HEADER, _ETHERNET, _IPV4, _IPV6, _SWITCH, _ROUTER, _GATEWAY = 1, 2, 3, 4, 1001, 1002, 1003
_PACKET_RECORDS = (_RAW_HEADER, _ETHERNET, _IPV4, _IPV6)
# Counter record formats.
_INTERFACE = 1

_NO_FIRST_HEADER = -1
_FIRST_HEADERS = np.full(256, _NO_FIRST_HEADER)
"""First header of a raw packet, by header_protocol."""
_FIRST_HEADERS[[1, 7, 11, 12, 13, 14]] = [
    *(FirstHeader.ETHERNET, FirstHeader.PPP, FirstHeader.IP, FirstHeader.IP, FirstHeader.MPLS),
    # Packet over SONET (RFC 2615).
    FirstHeader.PPP,
]

_NO_INTERFACE = (0x3FFFFFFF, 0xFFFFFFFF)
"""The device itself, in samples and expanded samples."""
_INTERFACE_IS_REASON = 1
"""Interface format that holds the reason for a drop."""
_DROPPED = 128
"""Value of the column `forwarding_status` (RFC 7270, section 4.12)."""
_VLAN_MAX = 4094

_ADDRESS_WIDTHS = {0: 0, 1: 4, 2: 16}
"""Address length by address_type: unknown, IPv4, IPv6."""

_IF_COUNTERS = np.dtype([(name, f">{dtype}") for name, dtype in INTERFACE_FIELDS])


class _Parts(NamedTuple):
    """Samples, records or segments: index of each one's owner, format, and content offsets."""

    owners: Index
    formats: Array
    starts: Index
    ends: Index

    def taken(self, at: Index | Mask) -> _Parts:
        return _Parts(*(values[at] for values in self))


def read_sflow(batch: Batch, which: Index) -> None:
    """Decode the flows and counters in these datagrams, all of which should be sFlow 5.

    Samples have no timestamps, so a flow starts and ends when its datagram arrived. What precedes a violation of the
    structure is decoded.
    """
    buffer = batch.datagrams.buffer
    which, starts, counts = _read_headers(batch, which)
    headers = take_rows(batch.headers, which)
    samples, is_broken = _parts(buffer, starts, batch.datagrams.ends[which], counts, SAMPLES_MAX)
    samples = samples.taken(np.argsort(samples.owners, kind="stable"))
    of_flows, of_counters, of_discarded = (
        samples.taken(np.isin(samples.formats, formats))
        for formats in (_FLOW_SAMPLES, _COUNTER_SAMPLES, (_DISCARDED,))
    )
    flows, owners = _flows(buffer, of_flows, is_broken)
    counters, counters_of, others = _counters(buffer, of_counters, is_broken)
    received_ms = headers["received_ns"] // 1_000_000
    flows |= dict.fromkeys(("received", "start", "end"), received_ms[owners])
    flows |= {name: headers[name][owners] for name in ("exporter", "domain", "sequence")}
    counters["received"] = received_ms[counters_of]
    for name in ("exporter", "domain"):
        counters[name] = headers[name][counters_of]
    batch.set(which, broken=is_broken)
    batch.add(flows, which[owners])
    batch.counters = counters
    batch.counts["records"] += len(owners)
    batch.counts["interface_counters"] += len(counters)
    batch.counts["other_counters"] += others
    batch.counts["discarded_samples"] += len(of_discarded.owners)
    known = (of_flows, of_counters, of_discarded)
    batch.counts["unknown_samples"] += len(samples.owners) - sum(len(candidate.owners) for candidate in known)


def _read_headers(batch: Batch, which: Index) -> tuple[Index, Index, Index]:
    """Read the headers. Return the datagrams with a valid one, and each one's first sample and number of samples."""
    buffer, ends = batch.datagrams.buffer, batch.datagrams.ends
    starts = batch.datagrams.starts + 4
    which = which[starts[which] + 4 <= ends[which]]
    which = which[_words(buffer, starts[which] - 4) == VERSION]
    addresses, lengths = _addresses(buffer, starts[which], ends[which])
    is_whole = (lengths > 0) & (starts[which] + lengths + 16 <= ends[which])
    which, addresses, at = which[is_whole], addresses[is_whole], (starts[which] + lengths)[is_whole]
    is_known = addresses != np.zeros((), ADDRESS)
    batch.set(which[is_known], exporter=addresses[is_known])
    batch.set(which, reading=DecodeResult.DECODED, is_exact=True, protocol_version=PROTOCOL_VERSION, units=1)
    batch.set(which, domain=_words(buffer, at), sequence=_words(buffer, at + 4))
    return which, at + 16, _lengths(buffer, at + 12)


def _parts(
    buffer: Array, starts: Index, ends: Index, counts: Index, most: int, *, unit: int = 1
) -> tuple[_Parts, Mask]:
    """Return the parts of many owners; each part has a format, a length in units, and content.

    They are ordered by number within the owner. Also return which owners have too many parts, or one that does not fit.
    """
    at, is_broken = starts.copy(), np.zeros(len(starts), np.bool_)
    rows = np.flatnonzero(counts)
    nothing = np.zeros(0, np.intp)
    parts = [_Parts(nothing, np.zeros(0, np.uint64), nothing, nothing)]
    for number in range(1, most + 1):
        if not len(rows):
            break
        rows = _keep(rows, at[rows] + 8 <= ends[rows], is_broken)
        begins = at[rows] + 8
        part_ends = begins + _lengths(buffer, begins - 4) * unit
        fits = part_ends <= ends[rows]
        rows, begins, part_ends = _keep(rows, fits, is_broken), begins[fits], part_ends[fits]
        parts.append(_Parts(rows, _words(buffer, begins - 8), begins, part_ends))
        at[rows] = part_ends
        rows = rows[counts[rows] > number]
    is_broken[rows] = True
    return _Parts(*(np.concatenate(values) for values in zip(*parts, strict=True))), is_broken


def _keep(rows: Index, keep: Mask, is_broken: Mask) -> Index:
    """Return the rows to keep; mark the others as broken."""
    is_broken[rows[~keep]] = True
    kept: Index = rows[keep]
    return kept


def _records(buffer: Array, samples: _Parts, lengths: Index, malformed: Mask) -> _Parts:
    """Return the records of samples, given the length of each sample's header, which ends with their number."""
    is_whole = samples.starts + lengths <= samples.ends
    at = np.where(is_whole, samples.starts + lengths, samples.ends)
    counts = np.zeros(len(at), np.intp)
    counts[is_whole] = _lengths(buffer, at[is_whole] - 4)
    records, is_broken = _parts(buffer, at, samples.ends, counts, RECORDS_MAX)
    malformed[samples.owners[~is_whole | is_broken]] = True
    return records


def _flows(buffer: Array, samples: _Parts, malformed: Mask) -> tuple[Flows, Index]:
    """Return the flows of flow samples that describe a packet, and their owners."""
    is_expanded = samples.formats == _EXPANDED_FLOW
    lengths = np.where(is_expanded, 44, 32)
    records = _records(buffer, samples, lengths, malformed)
    flows: Flows = {name: np.zeros(len(samples.owners), BY_NAME[name].dtype) for name in _COLUMNS}
    describes_packet = np.zeros(len(samples.owners), np.bool_)
    for form, least_length, read in _READERS:
        # Iterate in reverse, as the last record read wins and a sample's first record of a format should.
        of_format = records.taken(np.flatnonzero(records.formats == form)[::-1])
        is_whole = of_format.starts + least_length <= of_format.ends
        malformed[samples.owners[of_format.owners[~is_whole]]] = True
        whole = of_format.taken(is_whole)
        is_broken = read(buffer, whole, flows)
        malformed[samples.owners[whole.owners[is_broken]]] = True
        if form in _PACKET_RECORDS:
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
    """Return interface indices, 0 for none, and formats, given the offsets in both kinds of samples."""
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
    packets = decode_packets(buffer, starts[is_known], captured_ends[is_known], first[is_known])
    rows = records.owners[is_known]
    for name in PACKET_COLUMNS:
        flows[name][rows] = packets[name]
    return ends > records.ends


def _read_ethernet(buffer: Array, records: _Parts, flows: Flows) -> Mask:
    """Read Ethernet records, source address first. XDR pads both addresses to 8 bytes; some agents do not."""
    rows, starts = records.owners, records.starts
    width = np.where(records.ends - starts >= 24, 8, 6)
    flows["bytes"][rows] = _words(buffer, starts)
    flows["src_mac"][rows] = numbers(buffer, starts + 4, 6)
    flows["dst_mac"][rows] = numbers(buffer, starts + 4 + width, 6)
    flows["etype"][rows] = _words(buffer, starts + 4 + 2 * width)
    return np.zeros(len(rows), np.bool_)


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
    # Prefer the frame length from a sampled Ethernet record.
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
        # 0 is untagged, all ones is unknown: keep the VLAN from the header.
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
    # Destinations within the router's own AS have no path, and sources within it have no AS.
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
    """Read the next hops at the start of records.

    Return the records with at least `more` bytes after that, the offset of these bytes, and which records are too
    short.
    """
    addresses, lengths = _addresses(buffer, records.starts, records.ends)
    is_whole = (lengths > 0) & (records.starts + lengths + more <= records.ends)
    is_known = is_whole & (addresses != np.zeros((), ADDRESS))
    flows["next_hop"][records.owners[is_known]] = addresses[is_known]
    return records.taken(is_whole), (records.starts + lengths)[is_whole], ~is_whole


_Reader = Callable[[Array, _Parts, Flows], Mask]
"""Function that sets columns from records of one format with the minimum length, and returns which are broken."""
_READERS: tuple[tuple[int, int, _Reader], ...] = (
    (_ETHERNET, 20, _read_ethernet),
    (_IPV4, 32, partial(_read_ip, etype=IPV4, width=4, addresses=ipv4)),
    (_IPV6, 56, partial(_read_ip, etype=IPV6, width=16, addresses=ipv6)),
    (_RAW_HEADER, 16, _read_raw_headers),
    (_SWITCH, 16, _read_switch),
    (_ROUTER, 12, _read_router),
    (_GATEWAY, 20, _read_gateway),
)
"""Formats, the minimum length of their records, and their readers. Later ones are the better source of a column."""
_COLUMNS = (
    *("protocol_version", "sampling_rate", "bytes", "packets", "in_if", "out_if", "forwarding_status"),
    *(*PACKET_COLUMNS, "dst_vlan", "src_as", "dst_as", "src_prefix", "dst_prefix", "next_hop", "next_hop_as"),
)


def _counters(buffer: Array, samples: _Parts, malformed: Mask) -> tuple[Array, Index, int]:
    """Return the interface counters, their owners, and the number of other counter records."""
    lengths = np.where(samples.formats == _EXPANDED_COUNTERS, 16, 12)
    records = _records(buffer, samples, lengths, malformed)
    of_interfaces = records.taken(records.formats == _INTERFACE)
    is_whole = of_interfaces.starts + _IF_COUNTERS.itemsize <= of_interfaces.ends
    malformed[samples.owners[of_interfaces.owners[~is_whole]]] = True
    whole = of_interfaces.taken(is_whole)
    whole = whole.taken(np.argsort(whole.owners, kind="stable"))
    sent = items(buffer, whole.starts, f"V{_IF_COUNTERS.itemsize}").view(_IF_COUNTERS)
    counters = np.zeros(len(sent), INTERFACE_COUNTERS)
    for name, _ in INTERFACE_FIELDS:
        counters[name] = sent[name]
    return counters, samples.owners[whole.owners], len(records.owners) - len(of_interfaces.owners)


def _addresses(buffer: Array, at: Index, ends: Index) -> tuple[Array, Index]:
    """Return the addresses at these offsets, zeros if unknown, and their lengths including the type.

    The length of an invalid or truncated address is 0. Four bytes must be available.
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
    """Read XDR unsigned ints at these offsets: u8."""
    return numbers(buffer, places, 4)


def _lengths(buffer: Array, places: Index) -> Index:
    """Read XDR unsigned ints as an index type for offset arithmetic."""
    return _words(buffer, places).astype(np.intp)
