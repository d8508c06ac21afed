# SPDX-License-Identifier: Apache-2.0
"""NetFlow v5: a header of 24 bytes, then up to 30 records of 48 bytes, always with the same fields."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from nettop.flows.columns import Flows
from nettop.flows.decode.datagrams import Datagrams, consecutive, ipv4, numbers
from nettop.flows.decode.icmp import icmp_in_port
from nettop.flows.decode.packets import IPV4
from nettop.flows.decode.times import exported_ms, uptime_at_ms
from nettop.snapshots.arrays import Array, Index, Mask

VERSION = 5
HEADER, RECORD = 24, 48
RECORDS_MAX = 30
_SAMPLING = 0x3FFF
"""Bits of the header's last field that hold the sampling interval; the bits above are the mode."""
_PLACES = {
    "in_if": (12, 2), "out_if": (14, 2), "packets": (16, 4), "bytes": (20, 4), "src_port": (32, 2), "dst_port": (34, 2),
    "tcp_flags": (37, 1), "protocol": (38, 1), "tos": (39, 1), "src_as": (40, 2), "dst_as": (42, 2),
    "src_prefix": (44, 1), "dst_prefix": (45, 1),
}  # fmt: skip
"""Offset and width of the numbers in a record."""
_ADDRESSES = {"src": 0, "dst": 4, "next_hop": 8}


class Headers(NamedTuple):
    """Header fields (n,), 0 for a truncated header: u8, except for the mask."""

    are_whole: Mask
    counts: Array
    """Stated number of records."""
    sequences: Array
    """Number of flows sent before this datagram."""
    engines: Array
    """Engine type and slot, which distinguish parts of one exporter."""


def netflow5_headers(datagrams: Datagrams, which: Index) -> Headers:
    """Return the headers of these datagrams."""
    are_whole = datagrams.lengths[which] >= HEADER
    starts = datagrams.starts[which[are_whole]]
    fields = np.zeros((3, len(which)), np.uint64)
    for field, (place, width) in zip(fields, ((2, 2), (16, 4), (20, 2)), strict=True):
        field[are_whole] = numbers(datagrams.buffer, starts + place, width)
    return Headers(are_whole, *fields)


def decode_netflow5(datagrams: Datagrams, which: Index) -> tuple[Flows, Index, Mask]:
    """Decode flows; return them, the index of each one's datagram in `which`, and which datagrams are malformed.

    A datagram with fewer records than stated is malformed; those present count.
    """
    buffer, starts = datagrams.buffer, datagrams.starts[which]
    lengths = datagrams.lengths[which]
    headers = netflow5_headers(datagrams, which)
    stated = headers.counts.astype(np.intp)
    present = np.maximum(lengths - HEADER, 0) // RECORD
    counts = np.minimum(stated, present)
    is_malformed = ~headers.are_whole | (stated > present) | (stated > RECORDS_MAX)
    of, at = consecutive(starts + HEADER, counts, RECORD)
    header = starts[of]
    flows: Flows = {name: numbers(buffer, at + place, width) for name, (place, width) in _PLACES.items()}
    flows |= {name: ipv4(buffer, at + place) for name, place in _ADDRESSES.items()}
    received_ms = datagrams.received_ns[which] // 1_000_000
    export_ms, zero_ms = _clocks(buffer, starts, headers.are_whole, received_ms)
    flows["start"], flows["end"] = _times(buffer, at, export_ms[of], zero_ms[of])
    flows["received"] = received_ms[of]
    flows["sequence"], flows["domain"] = headers.sequences[of], headers.engines[of]
    flows["sampling_rate"] = numbers(buffer, header + 22, 2) & np.uint64(_SAMPLING)
    flows["etype"] = np.full(len(of), IPV4, np.uint16)
    flows["protocol_version"] = np.full(len(of), VERSION, np.uint8)
    flows["exporter"] = datagrams.senders[which][of]
    flows["icmp_type"], flows["icmp_code"] = icmp_in_port(flows["protocol"], flows["dst_port"])
    return flows, of, is_malformed


def _clocks(buffer: Array, starts: Index, are_whole: Mask, received_ms: Array) -> tuple[Array, Array]:
    """Return export times, and a time at which the uptime was 0; arbitrary values for truncated headers."""
    at = starts[are_whole]
    uptime, seconds, nanoseconds = (numbers(buffer, at + place, 4).astype(np.int64) for place in (4, 8, 12))
    export_ms, zero_ms = received_ms.copy(), received_ms.copy()
    export_ms[are_whole] = exported_ms(seconds * 1000 + nanoseconds // 1_000_000, received_ms[are_whole])
    zero_ms[are_whole] = export_ms[are_whole] - uptime
    return export_ms, zero_ms


def _times(buffer: Array, records: Index, export_ms: Array, zero_ms: Array) -> tuple[Array, Array]:
    """Return start and end times of flows, 0 if both fields are empty."""
    first, last = (numbers(buffer, records + place, 4).astype(np.int64) for place in (24, 28))
    is_said = (first | last) > 0
    start, end = (uptime_at_ms(each, zero_ms, export_ms) for each in (first, last))
    return np.where(is_said, start, 0), np.where(is_said, end, 0)
