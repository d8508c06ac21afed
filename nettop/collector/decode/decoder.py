# SPDX-License-Identifier: Apache-2.0
"""Decode datagrams of every protocol, on any port: the first bytes identify the protocol."""

from __future__ import annotations

from collections import Counter
from functools import partial

import numpy as np

from nettop.collector.columns import concatenate_flows
from nettop.collector.decode import netflow5, sflow
from nettop.collector.decode.batch import Batch, DecodeResult, DomainKey
from nettop.collector.decode.datagrams import Datagrams, numbers
from nettop.collector.decode.messages import MessageDecoder
from nettop.collector.decode.templates import IPFIX, NETFLOW_9
from nettop.collector.decode.user_rates import UserRates
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


class Decoder:
    """Decoder for all protocols; keeps the state that later datagrams depend on. Use it from one thread.

    User-supplied sampling rates take precedence over announced ones. `totals` sums the counts of all batches.
    """

    def __init__(self, user_rates: UserRates | None = None) -> None:
        self.messages = MessageDecoder()
        self.totals = Counter[str]()
        self._user_rates = user_rates or UserRates()

    @property
    def waiting(self) -> int:
        """Number of data sets waiting for their template."""
        return sum(self.messages.waiting.values())

    def decode(self, datagrams: Datagrams) -> Batch:
        """Return the flows and counters in these datagrams, which are in order of arrival."""
        batch, versions = Batch(datagrams), versions_of(datagrams)
        for version, read in (
            (netflow5.VERSION, netflow5.read_netflow5),
            (NETFLOW_9, partial(self.messages.read, version=NETFLOW_9)),
            (IPFIX, partial(self.messages.read, version=IPFIX)),
            (sflow.PROTOCOL_VERSION, sflow.read_sflow),
        ):
            which = np.flatnonzero(versions == version)
            if len(which):
                batch.set(which, reading=DecodeResult.BAD_HEADER)
                read(batch, which)
        _finish(batch, self._user_rates)
        self.totals.update(batch.counts)
        return batch

    def forget_waiting(self) -> Counter[DomainKey]:
        """Drop the data sets that wait for a template, as on exit. Return how many each exporter had."""
        forgotten = self.messages.forget_waiting()
        self.totals["forgotten"] += forgotten.total()
        return forgotten


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


def _finish(batch: Batch, user_rates: UserRates) -> None:
    """Join the parts of a batch, and complete its headers and counts."""
    headers, counts = batch.headers, batch.counts
    flows = batch.flows = concatenate_flows(batch.parts, [len(of) for of in batch.of])
    datagram_of = batch.datagram_of = np.concatenate([np.zeros(0, np.intp), *batch.of])
    user_rates.apply(flows)
    headers["rows"] = np.bincount(datagram_of, minlength=len(headers))
    has_rate = np.flatnonzero(flows["sampling_rate"])
    # The last flow of each datagram wins.
    headers["sampling_rate"][datagram_of[has_rate]] = flows["sampling_rate"][has_rate]
    by_reading = np.bincount(headers["reading"], minlength=len(DecodeResult))
    counts.update(dict(zip(("decoded", "unknown_version", "bad_header"), as_list(by_reading), strict=True)))
    counts.update({name: int(headers[name].sum()) for name in ("broken", "options", "rows")})
    counts.update(datagrams=len(headers), forgotten=batch.forgotten.total())
