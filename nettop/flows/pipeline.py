# SPDX-License-Identifier: Apache-2.0
"""From datagrams to blocks in the spool: decoded, enriched, filtered, and counted at every step."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np

from nettop.errors import NettopError, SourceFailed
from nettop.flows.columns import Flows, joined_flows
from nettop.flows.decode import kept
from nettop.flows.decode.datagrams import Datagrams
from nettop.flows.decode.decoder import Decoder, flows_at_most
from nettop.flows.decode.given_rates import GivenRates
from nettop.flows.decode.sflow import INTERFACE_COUNTERS
from nettop.flows.enrichment.lookups import Lookups
from nettop.flows.enrichment.texts import Coded
from nettop.flows.exporters import Exporters
from nettop.flows.kept_numbers import KeptNumbers
from nettop.flows.outputs.kafka import KafkaOutput
from nettop.flows.spool import DROPPED, Block, Spool
from nettop.flows.store.native import native_block
from nettop.flows.store.schema import TABLES
from nettop.snapshots.arrays import Mask
from nettop.snapshots.snapshot import Array

BLOCK_ROWS = 200_000
"""With so many flows a block is written at once: smaller ones cost the store several times as much for each row."""
BLOCK_S = 1.0
"""After which time a block is written in any case. What is in memory is lost when the process is killed."""
FLOWS_AT_ONCE = 1 << 18
"""How many flows the datagrams may give that are decoded at once, at worst: a flow takes a few hundred bytes."""
_LEARNED_S = 5.0
"""How often what exporters have declared is saved, and their names of interfaces are used, where they have changed."""

LEDGER = {
    "datagrams": "datagrams that were received",
    "decoded": "of them those whose header could be read",
    "unknown_version": "of them those that no protocol begins like",
    "bad_header": "of them those whose header is cut off or impossible",
    "truncated": "of them those that were longer than what is kept of a datagram",
    "kernel_drops": "datagrams that the kernel dropped before",
    "broken": "sets, templates and ends of datagrams that could not be read",
    "records": "records of flows",
    "rows": "flows: those that the records gave, and those that this host has seen",
    "filtered": "of them those that were not wanted",
    "options": "records that say something of the exporter",
    "templates": "templates that were declared",
    "held": "sets whose template was not known",
    "released": "of them those whose template has come",
    "forgotten": "of them those that have made room for others, or waited at the end",
    "interface_counters": "samples of the counters of an interface",
    "other_counters": "records of other counters",
    "discarded_samples": "samples of packets that were discarded",
    "unknown_samples": "samples of other formats",
    "mirrored_packets": "packets of an interface that were drawn",
    "logged_packets": "packets that the firewall has logged",
    "conntrack_events": "connections that conntrack has seen end",
    "kafka_sent": "flows that a broker of Kafka has acknowledged",
    "kafka_failed": "flows that none has taken",
    "own_drops": "packets and events of this host that the kernel dropped before they were read",
}
"""What is counted, in the ledger of every block. What is in the tables, or dropped by the spool, is counted there."""

Columns = dict[str, Array | Coded]
"""Columns of rows (n,)."""

Wanted = Callable[[Columns], Mask]
"""Which flows of these columns are to be stored (n,)."""


class Pipeline:
    """Takes datagrams, and puts blocks of flows and of interface counters into a spool. It is used by one thread."""

    def __init__(
        self,
        spool: Spool,
        templates: Path,
        lookups: Callable[[], Lookups],
        *,
        given_rates: GivenRates | None = None,
        wanted: Wanted | None = None,
        kafka: KafkaOutput | None = None,
        numbers: KeptNumbers | None = None,
        report: Callable[[NettopError], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """What exporters declare is kept in the file `templates`, and their sequence numbers in `numbers`, if given;
        `lookups` gives what files say now.
        """
        self.decoder = Decoder(given_rates)
        self.exporters = Exporters()
        self.counted = Counter[str]()
        """What was counted of LEDGER outside the decoder, which counts flows that come in datagrams."""
        self.spooled = Counter[str]()
        """The rows that were put into the spool, by table, and those that it dropped, as in the ledger."""
        self.queued = 0
        """How many datagrams wait on the disk to be decoded; they are not yet counted."""
        self._spool, self._templates, self._lookups, self._wanted = spool, templates, lookups, wanted
        self._kafka, self._report, self._clock = kafka, report, clock
        self._flows: list[Flows] = []
        self._counters: list[Array] = []
        self._rows = 0
        self._last_ledger = Counter[str]()
        self._written_at = self._learned_at = clock()
        if warning := kept.load(templates, self.decoder):
            report(SourceFailed(warning))
        self._use_names()
        self._numbers = numbers
        if numbers is not None:
            self.exporters.resume(*numbers.load())

    @property
    def pending(self) -> int:
        """How many flows are in memory, for the next block."""
        return self._rows

    @property
    def dropped(self) -> int:
        """How many flows the spool has dropped."""
        return self.spooled[f"flows_raw{DROPPED}"]

    @property
    def failure(self) -> SourceFailed | None:
        """Why the last block was dropped; None if it was written."""
        failure = self._spool.failure
        # Without the name of the file, which is another one each time.
        why = failure.strerror if failure and failure.strerror else failure
        return SourceFailed(f"flows are dropped: {why}", "see to the disk of the spool") if failure else None

    @property
    def due_s(self) -> float:
        """In how many seconds the next block is to be written."""
        if self._rows >= BLOCK_ROWS:
            return 0.0
        return max(0.0, self._written_at + BLOCK_S - self._clock())

    def ledger(self) -> Counter[str]:
        """What was counted since the start, by the names of LEDGER."""
        counted = Counter(asdict(self.decoder.totals)) + self.counted
        if self._kafka is not None:
            counted += self._kafka.counted
        return Counter({name: counted[name] for name in LEDGER})

    def add(self, datagrams: Datagrams) -> None:
        """Decode datagrams, and keep what they say for the next block."""
        for piece in datagrams.pieces(flows_at_most(datagrams), FLOWS_AT_ONCE):
            if self._rows >= BLOCK_ROWS:
                self.write_block()
            batch = self.decoder.decode(piece)
            self.exporters.update(batch)
            self._keep(batch.flows, len(batch.datagram_of))
            if len(batch.counters):
                self._counters.append(batch.counters)

    def add_flows(self, flows: Flows, count: int) -> None:
        """Keep so many flows for the next block, that did not come in datagrams of exporters."""
        self.counted["rows"] += count
        self._keep(flows, count)

    def _keep(self, flows: Flows, count: int) -> None:
        if count:
            self._flows.append(flows)
            self._rows += count

    def write_block(self, *, is_last: bool = False) -> None:
        """Put what has come since the last time into the spool. What it does not take is dropped, and counted.

        Sequence numbers are kept as they are after it: what comes after it is lost if this process is killed.
        """
        if self._clock() >= self._learned_at + _LEARNED_S:
            self._learn()
        blocks = {}
        if self._flows and (block := _block("flows_raw", self._flow_columns())).rows:
            blocks["flows_raw"] = block
        if self._counters:
            blocks["interface_counters"] = _block("interface_counters", self._counter_columns())
        ledger = self.ledger()
        new = ledger - self._last_ledger
        if blocks or new:
            then = self._prepare_numbers(is_last=is_last)
            is_written = self._spool.put(blocks, new, then) is not None
            if failure := self.failure:
                self._report(failure)
            for name, block in blocks.items():
                self.spooled[name if is_written else f"{name}{DROPPED}"] += block.rows
        self._last_ledger = ledger
        self._written_at = self._clock()

    def _prepare_numbers(self, *, is_last: bool) -> Callable[[], None]:
        """Write down the sequence numbers. Returns what has them take the place of those before."""
        if self._numbers is None:
            return lambda: None
        try:
            self._numbers.prepare(self.exporters.kept(), is_last=is_last)
        except SourceFailed as failure:
            self._report(failure)
        return self._numbers.replace

    def finish(self) -> None:
        """Write the last block, and what is remembered for the next start."""
        self.exporters.forget(self.decoder.forget_waiting())
        self.write_block(is_last=True)
        self._learn()
        if self._kafka is not None:
            self._kafka.close()
            self.write_block()  # of what was delivered at last

    def _flow_columns(self) -> Columns:
        """The flows for the next block, with what is known of them from files, as far as they are wanted."""
        flows = joined_flows(self._flows, [len(part["received"]) for part in self._flows])
        self._flows, self._rows = [], 0
        enriched = self._lookups().enrichment.added(flows)
        columns: Columns = {
            **flows,
            **enriched.values,
            **enriched.texts,
            **self._interfaces.added(flows),
        }
        if self._wanted is not None:
            columns = self._filtered(columns, self._wanted(columns))
        if self._kafka is not None:
            flows = {name: values for name, values in columns.items() if isinstance(values, np.ndarray)}
            self._kafka.send(flows)
        return columns

    def _filtered(self, columns: Columns, is_wanted: Mask) -> Columns:
        self.counted["filtered"] += int(np.count_nonzero(~is_wanted))
        return {
            name: values.taken(is_wanted) if isinstance(values, Coded) else values[is_wanted]
            for name, values in columns.items()
        }

    def _counter_columns(self) -> Columns:
        """The counters of interfaces for the next block."""
        counters = np.concatenate([np.zeros(0, INTERFACE_COUNTERS), *self._counters])
        self._counters = []
        return {name: np.ascontiguousarray(counters[name]) for name in TABLES["interface_counters"].types}

    def _learn(self) -> None:
        """Save what exporters have declared, and use their names of interfaces."""
        self._learned_at = self._clock()
        has_changed = True
        try:
            has_changed = kept.save(self._templates, self.decoder)
        except SourceFailed as failure:
            self._report(failure)
        if has_changed or self._lookups().interfaces is not self._files:
            self._use_names()

    def _use_names(self) -> None:
        self._files = self._lookups().interfaces
        self._interfaces = self._files.with_reported(self.decoder.messages.known.names)


def _block(table: str, columns: Columns) -> Block:
    received = columns["received"]
    assert isinstance(received, np.ndarray)
    return Block(native_block(TABLES[table].types, columns), len(received))
