# SPDX-License-Identifier: Apache-2.0
"""Decodes datagrams of all protocols, whichever port they came to: the first bytes of each tell which it is of."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields
from enum import IntEnum
from functools import partial

import numpy as np

from nettop.flows.columns import ADDRESS, Flows, joined_flows
from nettop.flows.decode import netflow5, sflow
from nettop.flows.decode.datagrams import Datagrams, numbers
from nettop.flows.decode.domains import KEY, DomainKey
from nettop.flows.decode.given_rates import GivenRates
from nettop.flows.decode.messages import MessageDecoder
from nettop.flows.decode.netflow5 import decoded_netflow5, netflow5_headers
from nettop.flows.decode.sflow import INTERFACE_COUNTERS, decoded_sflow
from nettop.flows.decode.templates import IPFIX, NETFLOW_9
from nettop.snapshots.arrays import Index, as_list
from nettop.snapshots.snapshot import Array

_FIRST_NUMBERS = (
    (2, netflow5.VERSION, netflow5.VERSION),
    (2, NETFLOW_9, NETFLOW_9),
    (2, IPFIX, IPFIX),
    (4, sflow.VERSION, sflow.PROTOCOL_VERSION),
)
"""How many bytes the first number of a protocol has, what it is, and the protocol's version as flows have it."""

_SAMPLE_BYTES = 40
"""The shortest flow sample of sFlow; a record of NetFlow v5 is longer."""


class Reading(IntEnum):
    """What became of a datagram; all but the first are malformed."""

    DECODED = 0
    UNKNOWN_VERSION = 1
    """It is of none of the protocols, or too short to say."""
    BAD_HEADER = 2
    """Its header is cut off, or not what the protocol allows."""


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
"""What a datagram is of, and what was in it.

The first four fields say which exporter it is of. The port is 0 of sFlow, whose agents are known by their address and
sub-agent; of a malformed datagram only the sender is known. `rows` are the flows that it gave, with those of sets that
waited for its templates; `options` are records. `broken` counts what could not be read of it: sets, templates, and of
NetFlow v5 and sFlow the end of a datagram. `sampling_rate` is that of its last flow that has one, else 0.

`units` are the records in the datagram itself, `unit_options` those of them that are of options: what sequence numbers
may count. Where `is_exact` is not set there may be more of both. A datagram of sFlow is one.
"""


@dataclass(slots=True)
class Counts:
    """What was counted of datagrams. `datagrams` is always `decoded` + `malformed`.

    A datagram is malformed if its header cannot be read; what is damaged in others is `broken`. Of all batches since
    the start, `held` is `released` + `forgotten` + what is waiting.
    """

    datagrams: int = 0
    decoded: int = 0
    unknown_version: int = 0
    bad_header: int = 0
    broken: int = 0
    """Sets, templates, and datagrams of NetFlow v5 and sFlow, that could not be read to their end."""
    records: int = 0
    """Records of flows; of sFlow the flow samples that describe a packet."""
    rows: int = 0
    """Flows: the records, and once more those of a biflow whose other direction had packets."""
    options: int = 0
    templates: int = 0
    held: int = 0
    """Data sets whose template has not come before them."""
    released: int = 0
    """Such sets whose template has come."""
    forgotten: int = 0
    """Such sets that have made room for others."""
    interface_counters: int = 0
    other_counters: int = 0
    discarded_samples: int = 0
    """Samples of sFlow that say why a packet was discarded: they are not flows."""
    unknown_samples: int = 0

    @property
    def malformed(self) -> int:
        """Datagrams of which nothing could be read."""
        return self.unknown_version + self.bad_header

    def add(self, other: Counts) -> None:
        """Add what was counted of other datagrams."""
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))


@dataclass(frozen=True, eq=False)
class DecodedBatch:
    """What a batch of datagrams gave.

    `flows` have all columns (f,); `datagram_of` (f,) are the datagrams that gave them, of a set that had waited the one
    that brought its template. `counters` are INTERFACE_COUNTERS, `datagrams` (n,) DATAGRAM. `forgotten` counts the sets
    that were dropped to make room, by their exporter.
    """

    flows: Flows
    datagram_of: Index
    counters: Array
    datagrams: Array
    counts: Counts
    forgotten: Counter[DomainKey]


@dataclass(eq=False)
class _Batch:
    """What a batch has given so far, protocol by protocol."""

    datagrams: Datagrams
    headers: Array
    counts: Counts = field(default_factory=Counts)
    parts: list[Flows] = field(default_factory=list)
    of: list[Index] = field(default_factory=list)
    counters: list[Array] = field(default_factory=list)
    forgotten: Counter[DomainKey] = field(default_factory=Counter)

    def add(self, flows: Flows, of: Index) -> None:
        """Flows, and their datagrams."""
        self.parts.append(flows)
        self.of.append(of)

    def set(self, which: Index, **columns: Array | int) -> None:
        """Set fields of these datagrams."""
        for name, values in columns.items():
            self.headers[name][which] = values


class Decoder:
    """Decodes datagrams, and remembers what some say of later ones. It is used by one thread.

    Sampling rates are those that are given, else what exporters say. `totals` are the counts of all batches.
    """

    def __init__(self, given_rates: GivenRates | None = None) -> None:
        self.messages = MessageDecoder()
        self.totals = Counts()
        self._given_rates = given_rates or GivenRates()

    @property
    def waiting(self) -> int:
        """How many data sets wait for their template."""
        return sum(self.messages.waiting.values())

    def decode(self, datagrams: Datagrams) -> DecodedBatch:
        """The flows and counters in these datagrams, which are in the order in which they came."""
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
        decoded = _joined(batch, self._given_rates)
        self.totals.add(decoded.counts)
        return decoded

    def forget_waiting(self) -> Counter[DomainKey]:
        """Drop the data sets that wait for their template, as at the end. Returns how many each exporter had."""
        forgotten = self.messages.forget_waiting()
        self.totals.forgotten += forgotten.total()
        return forgotten

    def _read_messages(self, batch: _Batch, which: Index, version: int) -> None:
        decoded = self.messages.decode(batch.datagrams, which, version)
        which, messages, counts = decoded.which, decoded.messages, decoded.counts
        # Records that cannot be counted yet, or never, are numbered too.
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
    """Of each datagram the version that its flows would have, 0 where it is of none of the protocols: u1 (n,)."""
    versions = np.zeros(len(datagrams.starts), np.uint8)
    for width, number, version in _FIRST_NUMBERS:
        rows = np.flatnonzero(datagrams.lengths >= width)
        versions[rows[numbers(datagrams.buffer, datagrams.starts[rows], width) == number]] = version
    return versions


def flows_at_most(datagrams: Datagrams) -> Index:
    """How many flows each datagram may give by itself (n,): a template may declare records of one byte."""
    has_templates = np.isin(versions_of(datagrams), (NETFLOW_9, IPFIX))
    at_most: Index = datagrams.lengths // np.where(has_templates, 1, _SAMPLE_BYTES)
    return at_most


def _headers(datagrams: Datagrams) -> Array:
    """DATAGRAM, as of what nothing can be read of."""
    headers = np.zeros(len(datagrams.starts), DATAGRAM)
    headers["exporter"] = datagrams.senders
    headers["received_ns"] = datagrams.received_ns
    headers["bytes"] = datagrams.lengths
    headers["reading"] = Reading.UNKNOWN_VERSION
    return headers


def _read_netflow5(batch: _Batch, which: Index) -> None:
    flows, of, is_broken = decoded_netflow5(batch.datagrams, which)
    headers = netflow5_headers(batch.datagrams, which)
    # A number that no exporter would send does not say how many flows there were.
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
    decoded = decoded_sflow(batch.datagrams, which)
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


def _joined(batch: _Batch, given_rates: GivenRates) -> DecodedBatch:
    headers, counts = batch.headers, batch.counts
    flows = joined_flows(batch.parts, [len(of) for of in batch.of])
    given_rates.apply(flows)
    datagram_of = np.concatenate([np.zeros(0, np.intp), *batch.of])
    headers["rows"] = np.bincount(datagram_of, minlength=len(headers))
    has_rate = np.flatnonzero(flows["sampling_rate"])
    # Of a datagram's flows the last one stays.
    headers["sampling_rate"][datagram_of[has_rate]] = flows["sampling_rate"][has_rate]
    by_reading = np.bincount(headers["reading"], minlength=len(Reading))
    counts.datagrams, counts.rows = len(headers), len(datagram_of)
    counts.decoded, counts.unknown_version, counts.bad_header = as_list(by_reading)
    counts.broken = int(headers["broken"].sum())
    counters = np.concatenate([np.zeros(0, INTERFACE_COUNTERS), *batch.counters])
    return DecodedBatch(flows, datagram_of, counters, headers, counts, batch.forgotten)
