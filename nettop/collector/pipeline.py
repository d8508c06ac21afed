# SPDX-License-Identifier: Apache-2.0
"""Turn datagrams into blocks in the spool: decode, enrich, filter, and count at every step."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nettop.collector.columns import Coded, Flows, concatenate_flows
from nettop.collector.decode import kept
from nettop.collector.decode.batch import COUNTS
from nettop.collector.decode.datagrams import Datagrams
from nettop.collector.decode.decoder import Decoder, flows_at_most
from nettop.collector.decode.user_rates import UserRates
from nettop.collector.enrichment.lookups import LookupFiles
from nettop.collector.enrichment.networks import Intervals
from nettop.collector.exporters import Exporters
from nettop.collector.kafka import KafkaOutput, Topic
from nettop.collector.saved_numbers import SavedNumbers
from nettop.collector.spool import DROPPED, Block, Spool
from nettop.collector.store.native import native_block
from nettop.collector.store.schema import TABLES
from nettop.errors import NettopError, SourceFailed
from nettop.snapshots.arrays import Array, Mask
from nettop.writing import why_not

BLOCK_ROWS = 200_000
"""Number of flows that triggers a block. Smaller blocks cost the store several times as much per row."""
BLOCK_S = 1.0
"""Seconds after which a block is written in any case. Flows in memory are lost if the process is killed."""
FLOWS_AT_ONCE = 1 << 18
"""Maximum flows decoded at once; each takes a few hundred bytes."""
_LEARNED_S = 5.0
"""Seconds between saves of exporters' declarations and updates of interface names, if they changed."""

LEDGER = {
    **COUNTS,
    "truncated": "datagrams longer than the receive slot",
    "refused": "datagrams of senders that --exporters does not name",
    "kernel_drops": "datagrams dropped by the kernel",
    "filtered": "flows removed by the filter",
    "mirrored_packets": "packets sampled from an interface",
    "kafka_sent": "flows acknowledged by a Kafka broker",
    "kafka_failed": "flows not accepted by Kafka",
    "own_drops": "packets of this host dropped by the kernel",
}
"""Counters in each block's ledger. Rows stored or dropped by the spool are counted separately."""

Columns = dict[str, Array | Coded]
"""Columns of rows (n,)."""

Wanted = Callable[[Columns], Mask]
"""Function that returns which flows to store (n,)."""


SPOOL = "spool"
"""Directory of the spool, within that of the flows."""


@dataclass(frozen=True, slots=True)
class WorkerOutput:
    """Output of a worker: its number, the directory of the spool and of saved state, the flows to keep, the Kafka
    topic, the data that enriches flows, and the addresses from which datagrams are accepted (all if None).
    """

    number: int
    directory: Path
    spool_bytes: int
    files: LookupFiles
    wanted: Wanted | None = None
    kafka: Topic | None = None
    user_rates: UserRates | None = None
    allowed: Intervals | None = None


class Pipeline:
    """Pipeline from datagrams to blocks of flows and interface counters in a spool. Use it from one thread."""

    def __init__(
        self,
        to: WorkerOutput,
        report: Callable[[NettopError], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Continue with what an earlier pipeline of the same number saved: exporters' declarations and sequence
        numbers.
        """
        self.decoder = Decoder(to.user_rates)
        self.exporters = Exporters()
        self.counted = Counter[str]()
        """LEDGER counters maintained outside the decoder, which counts flows from datagrams."""
        self.spooled = Counter[str]()
        """Rows put into the spool by table, and those it dropped, as in the ledger."""
        self.queued = 0
        """Datagrams queued on disk for decoding; not yet counted elsewhere."""
        self._spool = Spool(to.directory / SPOOL, to.spool_bytes, to.number)
        self._templates = to.directory / f"templates-{to.number}"
        self._lookups, self._wanted, self._allowed = to.files.current, to.wanted, to.allowed
        self._kafka = None if to.kafka is None else KafkaOutput(to.kafka)
        self._report, self._clock = report, clock
        self._flows: list[Flows] = []
        self._ports: list[Array] = []
        """Exporters' ports of these flows, which tell exporters behind one address apart."""
        self._counters: list[Array] = []
        self._rows = 0
        self._last_ledger = Counter[str]()
        self._written_at = self._learned_at = clock()
        if warning := kept.load(self._templates, self.decoder):
            report(SourceFailed(warning))
        self._use_names()
        self._numbers = SavedNumbers(to.directory, to.number)
        self.exporters.resume(self._numbers.load())

    @property
    def pending(self) -> int:
        """Number of flows in memory for the next block."""
        return self._rows

    @property
    def dropped(self) -> int:
        """Number of flows dropped by the spool."""
        return self.spooled[f"flows_raw{DROPPED}"]

    @property
    def failure(self) -> SourceFailed | None:
        """Reason that the last block was dropped; None if it was written."""
        if (failure := self._spool.failure) is None:
            return None
        # Leave out the file name, which differs each time.
        return SourceFailed(f"flows are dropped: {why_not(failure)}", "check the disk that holds the spool")

    @property
    def due_s(self) -> float:
        """Seconds until the next block is due."""
        if self._rows >= BLOCK_ROWS:
            return 0.0
        return max(0.0, self._written_at + BLOCK_S - self._clock())

    def ledger(self) -> Counter[str]:
        """Return the counters since the start, by the names of LEDGER."""
        counted = self.decoder.totals + self.counted
        if self._kafka is not None:
            counted += self._kafka.counted
        return Counter({name: counted[name] for name in LEDGER})

    def add(self, datagrams: Datagrams) -> None:
        """Decode datagrams of allowed senders, and keep the results for the next block."""
        if self._allowed is not None:
            is_allowed = self._allowed.look_up(datagrams.senders) >= 0
            self.counted["refused"] += int(np.count_nonzero(~is_allowed))
            datagrams = datagrams.at(is_allowed)
        for piece in datagrams.pieces(flows_at_most(datagrams), FLOWS_AT_ONCE):
            if self._rows >= BLOCK_ROWS:
                self.write_block()
            batch = self.decoder.decode(piece)
            self.exporters.update(batch)
            self._keep(batch.flows, batch.headers["port"][batch.datagram_of])
            if len(batch.counters):
                self._counters.append(batch.counters)

    def add_flows(self, flows: Flows, count: int) -> None:
        """Keep flows that did not arrive in exporters' datagrams for the next block."""
        self.counted["rows"] += count
        self._keep(flows, np.zeros(count, np.uint16))

    def _keep(self, flows: Flows, ports: Array) -> None:
        if len(ports):
            self._flows.append(flows)
            self._ports.append(ports)
            self._rows += len(ports)

    def write_block(self, *, is_last: bool = False) -> None:
        """Put everything since the last block into the spool. If the spool is full, drop and count it.

        Sequence numbers are saved as of this block; data received later is lost if this process is killed.
        """
        if self._clock() >= self._learned_at + _LEARNED_S:
            self._learn()
        blocks = {}
        if self._flows and (block := _block("flows_raw", self._flow_columns())).rows:
            blocks["flows_raw"] = block
        if self._counters:
            counters = np.concatenate(self._counters)
            self._counters = []
            names = TABLES["interface_counters"].types
            columns: Columns = {name: np.ascontiguousarray(counters[name]) for name in names}
            blocks["interface_counters"] = _block("interface_counters", columns)
        ledger = self.ledger()
        new = ledger - self._last_ledger
        if blocks or new:
            try:
                self._numbers.prepare(self.exporters.saved(), is_last=is_last)
            except SourceFailed as error:
                self._report(error)
            is_written = self._spool.put(blocks, new, self._numbers.replace) is not None
            if failure := self.failure:
                self._report(failure)
            for name, block in blocks.items():
                self.spooled[name if is_written else f"{name}{DROPPED}"] += block.rows
        self._last_ledger = ledger
        self._written_at = self._clock()

    def finish(self) -> None:
        """Write the last block, and the state for the next start."""
        self.exporters.forget(self.decoder.forget_waiting())
        self.write_block(is_last=True)
        self._learn()
        if self._kafka is not None:
            self._kafka.close()
            self.write_block(is_last=True)  # deliveries confirmed at the end

    def _flow_columns(self) -> Columns:
        """Return the flows for the next block, enriched and filtered."""
        flows = concatenate_flows(self._flows, [len(part["received"]) for part in self._flows])
        ports = np.concatenate(self._ports)
        self._flows, self._ports, self._rows = [], [], 0
        enriched = self._lookups().enrichment.enrich(flows)
        columns: Columns = {
            **flows,
            **enriched.values,
            **enriched.texts,
            **self._interfaces.names_of(flows, ports),
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
            name: values.take(is_wanted) if isinstance(values, Coded) else values[is_wanted]
            for name, values in columns.items()
        }

    def _learn(self) -> None:
        """Save exporters' declarations, and update interface names."""
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
        self._interfaces = self._files.with_reported(self.decoder.messages.known.names())


def _block(table: str, columns: Columns) -> Block:
    received = columns["received"]
    assert isinstance(received, np.ndarray)
    return Block(native_block(TABLES[table].types, columns), len(received))
