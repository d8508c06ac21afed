# SPDX-License-Identifier: Apache-2.0
"""NetFlow v5: a header of 24 bytes, then up to 30 records of 48 bytes, always with the same fields."""

from __future__ import annotations

import numpy as np

from nettop.collector.columns import Flows
from nettop.collector.decode.batch import Batch, DecodeResult
from nettop.collector.decode.datagrams import consecutive, exported_ms, ipv4, numbers, uptime_at_ms
from nettop.collector.decode.packets import IPV4, icmp_in_port
from nettop.snapshots.arrays import Array, Index

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


def read_netflow5(batch: Batch, which: Index) -> None:
    """Decode the flows in these datagrams. One with fewer records than stated is broken; those present count."""
    datagrams = batch.datagrams
    which = which[datagrams.lengths[which] >= HEADER]
    buffer, starts = datagrams.buffer, datagrams.starts[which]
    stated, sequences, engines = (
        numbers(buffer, starts + place, width).astype(np.int64) for place, width in ((2, 2), (16, 4), (20, 2))
    )
    present = (datagrams.lengths[which] - HEADER) // RECORD
    counts = np.minimum(stated, present)
    of, at = consecutive(starts + HEADER, counts, RECORD)
    batch.set(which, reading=DecodeResult.DECODED, is_exact=True, protocol_version=VERSION)
    batch.set(which, port=datagrams.ports[which], domain=engines, sequence=sequences)
    batch.set(which, broken=(stated > present) | (stated > RECORDS_MAX))
    # A count beyond the protocol's maximum does not tell how many flows there were.
    batch.set(which, units=np.where(stated <= RECORDS_MAX, stated, counts))
    flows: Flows = {name: numbers(buffer, at + place, width) for name, (place, width) in _PLACES.items()}
    flows |= {name: ipv4(buffer, at + place) for name, place in _ADDRESSES.items()}
    received_ms = datagrams.received_ns[which] // 1_000_000
    flows["start"], flows["end"] = _times(buffer, starts, received_ms, of, at)
    flows["received"] = received_ms[of]
    flows["sequence"], flows["domain"] = sequences[of], engines[of]
    flows["sampling_rate"] = numbers(buffer, starts[of] + 22, 2) & np.uint64(_SAMPLING)
    flows["etype"] = np.full(len(of), IPV4, np.uint16)
    flows["protocol_version"] = np.full(len(of), VERSION, np.uint8)
    flows["exporter"] = datagrams.senders[which][of]
    flows["icmp_type"], flows["icmp_code"] = icmp_in_port(flows["protocol"], flows["dst_port"])
    batch.add(flows, which[of])
    batch.counts["records"] += len(of)


def _times(
    buffer: Array, headers: Index, received_ms: Array, of: Index, records: Index
) -> tuple[Array, Array]:
    """Return start and end times of flows, 0 if both fields are empty. `of` is the index of each one's header."""
    uptime, seconds, nanoseconds = (
        numbers(buffer, headers + place, 4).astype(np.int64) for place in (4, 8, 12)
    )
    export_ms = exported_ms(seconds * 1000 + nanoseconds // 1_000_000, received_ms)
    first, last = (numbers(buffer, records + place, 4).astype(np.int64) for place in (24, 28))
    start, end = (
        uptime_at_ms(uptime_ms, (export_ms - uptime)[of], export_ms[of]) for uptime_ms in (first, last)
    )
    is_said = (first | last) > 0
    return np.where(is_said, start, 0), np.where(is_said, end, 0)
