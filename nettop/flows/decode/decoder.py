# SPDX-License-Identifier: Apache-2.0
"""Decode datagrams of every protocol, on any port: the first bytes identify the protocol."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields
from enum import IntEnum
from functools import partial

import numpy as np

from nettop.flows.columns import ADDRESS, Flows, concatenate_flows
from nettop.flows.decode import netflow5, sflow
from nettop.flows.decode.datagrams import Datagrams, numbers
from nettop.flows.decode.domains import KEY, DomainKey
from nettop.flows.decode.messages import MessageDecoder
from nettop.flows.decode.netflow5 import decode_netflow5, netflow5_headers
from nettop.flows.decode.sflow import INTERFACE_COUNTERS, decode_sflow
from nettop.flows.decode.templates import IPFIX, NETFLOW_9
from nettop.flows.decode.user_rates import UserRates
from nettop.snapshots.arrays import Array, Index, as_list

_FIRST_NUMBERS = (
    (2, netflow5.VERSION, netflow5.VERSION),
    (2, NETFLOW_9, NETFLOW_9),
    (2, IPFIX, IPFIX),
    (4, sflow.VERSION, sflow.PROTOCOL_VERSION),
)
"""Width and value of a protocol's leading number, and the version its flows carry."""

_SAMPLE_BYTES = 40
"""Length of the shortest sFlow flow sample; a NetFlow v5 record is longer."""


class Reading(IntEnum):
    """Result of decoding a datagram, which is malformed in all cases but the first."""

    DECODED = 0
    UNKNOWN_VERSION = 1
    """Not one of the protocols, or too short to tell."""
    BAD_HEADER = 2
    """The header is truncated or invalid."""


DATAGRAM = np.dtype(
    [
        ("exporter", ADDRESS),
        ("port", "u2"),
        ("protocol_version", "u1"),
        ("domain", "u4"),
        ("sequence", "u4"),
        ("received_ns", "i8"),
        ("reading", "u1"),
        ("bytes", "i8"),
        ("rows", "i8"),
        ("options", "i8"),
        ("broken", "i8"),
        ("sampling_rate", "u4"),
        ("units", "i8"),
        ("unit_options", "i8"),
        ("is_exact", "?"),
    ]
)
"""Source and contents of a datagram.

The first four fields identify the exporter. The port is 0 for sFlow, whose agents are identified by address and
sub-agent; for a malformed datagram only the sender is known. `rows` counts the flows decoded from it, including those
of sets that were waiting for its templates; `options` counts records. `broken` counts what could not be read: sets,
templates and, for NetFlow v5 and sFlow, the rest of a datagram. `sampling_rate` is that of its last flow with one, else
0.

`units` counts the records in the datagram itself, `unit_options` the options records among them: sequence numbers may
count either. Without `is_exact` there may be more of both. An sFlow datagram is one unit.
"""


@dataclass(slots=True)
class Counts:
    """Totals over datagrams. `datagrams` always equals `decoded` + `malformed`.

    A datagram is malformed if its header cannot be read; damage beyond the header counts as `broken`. Over all batches
    since the start, `held` equals `released` + `forgotten` + what is still waiting.
    """

    datagrams: int = 0
    decoded: int = 0
    unknown_version: int = 0
    bad_header: int = 0
    broken: int = 0
    """Sets, templates, and NetFlow v5 or sFlow datagrams that could not be read to the end."""
    records: int = 0
    """Flow records; for sFlow, flow samples that describe a packet."""
    rows: int = 0
    """Flows: the records, plus one for each biflow whose reverse direction had packets."""
    options: int = 0
    templates: int = 0
    held: int = 0
    """Data sets that arrived before their template."""
    released: int = 0
    """Held sets whose template has arrived."""
    forgotten: int = 0
    """Held sets dropped to make room."""
    interface_counters: int = 0
    other_counters: int = 0
    discarded_samples: int = 0
    """sFlow samples of discarded packets, which are not flows."""
    unknown_samples: int = 0

    @property
    def malformed(self) -> int:
        """Number of datagrams whose header could not be read."""
        return self.unknown_version + self.bad_header

    def add(self, other: Counts) -> None:
        """Add the totals of other datagrams."""
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))


@dataclass(frozen=True, eq=False)
class DecodedBatch:
    """Result of decoding a batch of datagrams.

    `flows` has all columns (f,); `datagram_of` (f,) is the index of each flow's datagram: for a held set, the datagram
    with its template. `counters` is INTERFACE_COUNTERS, `datagrams` (n,) is DATAGRAM. `forgotten` counts the sets
    dropped to make room, by exporter.
    """

    flows: Flows
    datagram_of: Index
    counters: Array
    datagrams: Array
    counts: Counts
    forgotten: Counter[DomainKey]


@dataclass(eq=False)
class _Batch:
    """Partial results of a batch, one protocol at a time."""

    datagrams: Datagrams
    headers: Array
    counts: Counts = field(default_factory=Counts)
    parts: list[Flows] = field(default_factory=list)
    of: list[Index] = field(default_factory=list)
    counters: list[Array] = field(default_factory=list)
    forgotten: Counter[DomainKey] = field(default_factory=Counter)

    def add(self, flows: Flows, of: Index) -> None:
        """Add flows and their datagrams."""
        self.parts.append(flows)
        self.of.append(of)

    def set(self, which: Index, **columns: Array | int) -> None:
        """Set fields of some datagrams."""
        for name, values in columns.items():
            self.headers[name][which] = values


class Decoder:
    """Decoder for all protocols; keeps the state that later datagrams depend on. Use it from one thread.

    User-supplied sampling rates take precedence over announced ones. `totals` sums the counts of all batches.
    """

    def __init__(self, user_rates: UserRates | None = None) -> None:
        self.messages = MessageDecoder()
        self.totals = Counts()
        self._user_rates = user_rates or UserRates()

    @property
    def waiting(self) -> int:
        """Number of data sets waiting for their template."""
        return sum(self.messages.waiting.values())

    def decode(self, datagrams: Datagrams) -> DecodedBatch:
        """Return the flows and counters in these datagrams, which are in order of arrival."""
        versions = versions_of(datagrams)
        batch = _Batch(datagrams, _headers(datagrams))
        for version, read in (
            (netflow5.VERSION, _read_netflow5),
            (NETFLOW_9, partial(self._read_messages, version=NETFLOW_9)),
            (IPFIX, partial(self._read_messages, version=IPFIX)),
            (sflow.PROTOCOL_VERSION, _read_sflow),
        ):
            which = np.flatnonzero(versions == version)
            if len(which):
                batch.set(which, reading=Reading.BAD_HEADER)
                read(batch, which)
        decoded = _joined(batch, self._user_rates)
        self.totals.add(decoded.counts)
        return decoded

    def forget_waiting(self) -> Counter[DomainKey]:
        """Drop the data sets that wait for a template, as on exit. Return how many each exporter had."""
        forgotten = self.messages.forget_waiting()
        self.totals.forgotten += forgotten.total()
        return forgotten

    def _read_messages(self, batch: _Batch, which: Index, version: int) -> None:
        decoded = self.messages.decode(batch.datagrams, which, version)
        which, messages, counts = decoded.which, decoded.messages, decoded.counts
        # Records that cannot be counted yet, or ever, have sequence numbers as well.
        is_exact = (counts["held"] == 0) & (counts["broken"] == 0)
        batch.set(which, reading=Reading.DECODED, is_exact=is_exact)
        batch.set(which, units=counts["units"], unit_options=counts["unit_options"])
        batch.set(which, **{name: messages[name] for name in (*KEY, "sequence")})
        batch.set(which, options=counts["options"], broken=counts["broken"])
        for flows, of in zip(decoded.parts, decoded.of, strict=True):
            batch.add(flows, which[of])
        batch.counts.add(
            Counts(
                records=decoded.records,
                options=decoded.options,
                templates=decoded.templates,
                held=decoded.held,
                released=decoded.released,
                forgotten=decoded.forgotten.total(),
            )
        )
        batch.forgotten.update(decoded.forgotten)


def versions_of(datagrams: Datagrams) -> Array:
    """Return the version each datagram's flows would have, 0 for unknown protocols: u1 (n,)."""
    versions = np.zeros(len(datagrams.starts), np.uint8)
    for width, number, version in _FIRST_NUMBERS:
        rows = np.flatnonzero(datagrams.lengths >= width)
        versions[rows[numbers(datagrams.buffer, datagrams.starts[rows], width) == number]] = version
    return versions


def flows_at_most(datagrams: Datagrams) -> Index:
    """Return an upper bound of the flows in each datagram (n,). A template may declare records of one byte."""
    has_templates = np.isin(versions_of(datagrams), (NETFLOW_9, IPFIX))
    at_most: Index = datagrams.lengths // np.where(has_templates, 1, _SAMPLE_BYTES)
    return at_most


def _headers(datagrams: Datagrams) -> Array:
    """Return DATAGRAM headers, initially marked as unreadable."""
    headers = np.zeros(len(datagrams.starts), DATAGRAM)
    headers["exporter"] = datagrams.senders
    headers["received_ns"] = datagrams.received_ns
    headers["bytes"] = datagrams.lengths
    headers["reading"] = Reading.UNKNOWN_VERSION
    return headers


def _read_netflow5(batch: _Batch, which: Index) -> None:
    flows, of, is_broken = decode_netflow5(batch.datagrams, which)
    headers = netflow5_headers(batch.datagrams, which)
    # A count beyond the protocol's maximum does not tell how many flows there were.
    counts = np.bincount(of, minlength=len(which))
    units = np.where(headers.counts <= netflow5.RECORDS_MAX, headers.counts, counts)
    whole, are_whole = which[headers.are_whole], headers.are_whole
    batch.set(whole, reading=Reading.DECODED, is_exact=True, protocol_version=netflow5.VERSION)
    batch.set(whole, port=batch.datagrams.ports[whole], domain=headers.engines[are_whole])
    batch.set(
        whole, sequence=headers.sequences[are_whole], units=units[are_whole], broken=is_broken[are_whole]
    )
    batch.add(flows, which[of])
    batch.counts.records += len(of)


def _read_sflow(batch: _Batch, which: Index) -> None:
    decoded = decode_sflow(batch.datagrams, which)
    is_whole = decoded.has_header
    whole = which[is_whole]
    batch.set(whole, reading=Reading.DECODED, is_exact=True, protocol_version=sflow.PROTOCOL_VERSION)
    batch.set(whole, exporter=decoded.agents[is_whole], domain=decoded.sub_agents[is_whole], units=1)
    batch.set(whole, sequence=decoded.sequences[is_whole], broken=decoded.malformed[is_whole])
    batch.add(decoded.flows, decoded.datagram_of)
    batch.counters.append(decoded.counters)
    counts = batch.counts
    counts.records += len(decoded.datagram_of)
    counts.interface_counters += len(decoded.counters)
    counts.other_counters += decoded.other_counters
    counts.discarded_samples += decoded.discarded
    counts.unknown_samples += int(decoded.samples["unknown"].sum())


def _joined(batch: _Batch, user_rates: UserRates) -> DecodedBatch:
    headers, counts = batch.headers, batch.counts
    flows = concatenate_flows(batch.parts, [len(of) for of in batch.of])
    user_rates.apply(flows)
    datagram_of = np.concatenate([np.zeros(0, np.intp), *batch.of])
    headers["rows"] = np.bincount(datagram_of, minlength=len(headers))
    has_rate = np.flatnonzero(flows["sampling_rate"])
    # The last flow of each datagram wins.
    headers["sampling_rate"][datagram_of[has_rate]] = flows["sampling_rate"][has_rate]
    by_reading = np.bincount(headers["reading"], minlength=len(Reading))
    counts.datagrams, counts.rows = len(headers), len(datagram_of)
    counts.decoded, counts.unknown_version, counts.bad_header = as_list(by_reading)
    counts.broken = int(headers["broken"].sum())
    counters = np.concatenate([np.zeros(0, INTERFACE_COUNTERS), *batch.counters])
    return DecodedBatch(flows, datagram_of, counters, headers, counts, batch.forgotten)
