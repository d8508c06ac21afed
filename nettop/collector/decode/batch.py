# SPDX-License-Identifier: Apache-2.0
"""A batch of datagrams while it is decoded: the header of each, and what was found in them."""

from __future__ import annotations

from collections import Counter
from enum import IntEnum

import numpy as np

from nettop.collector.columns import ADDRESS, Flows
from nettop.collector.decode.datagrams import Datagrams
from nettop.snapshots.arrays import Array, Index, as_list

DomainKey = tuple[bytes, int, int, int]
"""An observation domain: sender, port, version and domain number."""
KEY_FIELDS = [("exporter", ADDRESS), ("port", "u2"), ("protocol_version", "u1"), ("domain", "u4")]
KEY = tuple(name for name, _ in KEY_FIELDS)
"""Fields of a row that identify an observation domain."""


class DecodeResult(IntEnum):
    """Result of decoding a datagram, which is malformed in all cases but the first."""

    DECODED = 0
    UNKNOWN_VERSION = 1
    """Not one of the protocols, or too short to tell."""
    BAD_HEADER = 2
    """The header is truncated or invalid."""


DATAGRAM = np.dtype(
    [
        *KEY_FIELDS,
        ("sequence", "u4"),
        *((name, "i8") for name in ("received_ns", "export_ms", "boot_ms")),
        ("reading", "u1"),
        *((name, "i8") for name in ("bytes", "rows", "options", "broken")),
        *(("sampling_rate", "u4"), ("units", "i8"), ("is_exact", "?")),
    ]
)
"""Source and contents of a datagram.

The first four fields identify the exporter. The port is 0 for sFlow, whose agents are identified by address and
sub-agent; for a malformed datagram only the sender is known. Only NetFlow v9 and IPFIX have `export_ms`; `boot_ms`, a
time at which the exporter's uptime was 0, is negative if unknown.

`rows` counts the flows decoded from it, including those of sets that were waiting for its templates; `options` counts
records. `broken` counts what could not be read: sets, templates and, for NetFlow v5 and sFlow, the rest of a datagram.
`sampling_rate` is that of its last flow with one, else 0.

`units` counts the records in the datagram itself, including options records; without `is_exact` there may be more. An
sFlow datagram is one unit.
"""


INTERFACE_FIELDS = [
    *(("if_index", "u4"), ("if_type", "u4"), ("speed_bps", "u8"), ("direction", "u4"), ("status", "u4")),
    *(("in_bytes", "u8"), ("in_unicast", "u4"), ("in_multicast", "u4"), ("in_broadcast", "u4")),
    *(("in_discards", "u4"), ("in_errors", "u4"), ("in_unknown_protocols", "u4")),
    *(("out_bytes", "u8"), ("out_unicast", "u4"), ("out_multicast", "u4"), ("out_broadcast", "u4")),
    *(("out_discards", "u4"), ("out_errors", "u4"), ("promiscuous", "u4")),
]
"""if_counters: those of the interfaces MIB (RFC 2863), with packets by kind."""
INTERFACE_COUNTERS = np.dtype(
    [("exporter", ADDRESS), ("domain", "u4"), ("received", "i8"), *INTERFACE_FIELDS]
)
"""Counters of an interface: agent, sub-agent and receive time in ms, then the counters as the agent sent them.

Bit 0 of `status` is the administrative state (1 is up), bit 1 the operational one. A counter that the agent lacks is
all ones.
"""


COUNTS = {
    "datagrams": "datagrams received",
    "decoded": "of these, those with a valid header",
    "unknown_version": "of these, those of no known protocol",
    "bad_header": "of these, those with a truncated or invalid header",
    "broken": "sets, templates and ends of datagrams that could not be decoded",
    "records": "flow records",
    "rows": "flows, from records or seen by this host",
    "options": "options records",
    "templates": "templates declared",
    "held": "sets that arrived before their template",
    "released": "of these, those whose template arrived later",
    "forgotten": "of these, those evicted, or still waiting on exit",
    "interface_counters": "interface counter samples",
    "other_counters": "other counter records",
    "discarded_samples": "discarded packet samples",
    "unknown_samples": "samples of other formats",
}
"""What the decoder counts. A datagram is malformed if its header cannot be read; damage beyond it counts as `broken`.
A biflow whose reverse direction had packets is one record and two flows.
"""


class Batch:
    """Datagrams, the header of each, DATAGRAM (n,), and what was found in them.

    Flows are found in `parts`; `of` has the datagram of each, by part: for a held set, the datagram with its template.
    In the end `flows` has all of them with all columns (f,), and `datagram_of` (f,) their datagrams. `counters` is
    INTERFACE_COUNTERS. `counts` are declared by COUNTS. `forgotten` counts the sets dropped to make room, by exporter.
    """

    def __init__(self, datagrams: Datagrams) -> None:
        self.datagrams = datagrams
        self.headers = np.zeros(len(datagrams.starts), DATAGRAM)
        self.headers["exporter"] = datagrams.senders
        self.headers["received_ns"], self.headers["bytes"] = datagrams.received_ns, datagrams.lengths
        self.headers["reading"] = DecodeResult.UNKNOWN_VERSION
        self.counts = Counter[str]()
        self.parts: list[Flows] = []
        self.of: list[Index] = []
        self.flows: Flows = {}
        self.datagram_of = np.zeros(0, np.intp)
        self.counters = np.zeros(0, INTERFACE_COUNTERS)
        self.forgotten = Counter[DomainKey]()

    def add(self, flows: Flows, of: Index) -> None:
        """Add flows and their datagrams."""
        self.parts.append(flows)
        self.of.append(of)

    def set(self, which: Index, **columns: Array | int) -> None:
        """Set fields of some datagrams."""
        for name, values in columns.items():
            self.headers[name][which] = values

    def tally(self, name: str, of: Index) -> None:
        """Add one to a count of a datagram for each time it is in `of`."""
        self.headers[name] += np.bincount(of, minlength=len(self.headers))


def numbered_keys(rows: Array) -> tuple[Index, Index]:
    """Return the index of the first row of each distinct key, and the key number of each row (n,).

    `rows` have the fields of KEY.
    """
    upper, lower = np.ascontiguousarray(rows["exporter"]).view("u8").reshape(-1, 2).T
    rest = rows["port"].astype("u8") << 40 | rows["protocol_version"].astype("u8") << 32 | rows["domain"]
    order = np.lexsort((lower, upper, rest))
    is_first = np.ones(len(rows), bool)
    is_first[1:] = False
    for column in (lower, upper, rest):
        is_first[1:] |= column[order[1:]] != column[order[:-1]]
    numbers_of = np.empty(len(rows), np.intp)
    numbers_of[order] = np.cumsum(is_first) - 1
    return order[is_first], numbers_of


def keys_of(rows: Array) -> list[DomainKey]:
    """Return the key of each row."""
    return list(zip(*(as_list(rows[name]) for name in KEY), strict=True))
