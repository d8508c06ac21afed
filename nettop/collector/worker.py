# SPDX-License-Identifier: Apache-2.0
"""A process that receives from sockets into the spool, and reports its state every second.

Only workers parse datagrams and packets, without privileges; the process that stores does not.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection

from nettop.collector.enrichment.lookups import LookupFiles
from nettop.collector.inputs import Input
from nettop.collector.pipeline import Pipeline, WorkerOutput
from nettop.collector.protobuf import decode_batch
from nettop.collector.receive import ReceiveCounts, Wait
from nettop.errors import NettopError, SourceFailed
from nettop.process.interrupts import ending_with_threads
from nettop.process.parent import signal_at_exit_of_parent
from nettop.process.wake_event import WakeEvent
from nettop.snapshots.arrays import Array

_CHECK_S = 5.0
"""Seconds between checks for changed files."""
END_SIGNAL = signal.SIGUSR1
"""Signal that stops a worker. The collector's own signals, from a terminal or a service manager, also reach the
workers, which must exit only after the collector has begun to.
"""
_FINAL_BATCHES_MAX = 64
"""Batches of already received datagrams to process on exit."""


Work = tuple[Callable[[Wait], Input], WorkerOutput]
"""Task of a worker: a function that opens an input, and the destination of what it receives."""


@dataclass(frozen=True, eq=False)
class WorkerState:
    """Work done by a worker since it started, and its exporters.

    `ledger` is declared by LEDGER; `spooled` counts rows by table. `queued` datagrams wait on disk to be decoded;
    `pending` flows and `waiting` sets are in memory. `exporters` is EXPORTER (e,), `evicted` the number evicted.
    `forgotten` counts declarations of exporters dropped by bounds, by name. `failure` is the reason its last block was
    dropped, if it was.
    """

    ledger: Counter[str]
    spooled: Counter[str]
    queued: int
    pending: int
    waiting: int
    sockets: tuple[ReceiveCounts, ...]
    exporters: Array
    evicted: int
    evicted_unrecognized: int
    forgotten: Counter[str]
    failure: NettopError | None


Message = WorkerState | NettopError
"""Message from a worker: its state after each block, or a failure to report."""


def run_worker(work: Work, channel: Connection, parent: int) -> None:
    """Receive until END_SIGNAL, or until `parent`, which forked this process, exits."""
    # Not an Event: a second signal, within the first one's handler, would wait for its lock forever.
    ending: list[int] = []
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(END_SIGNAL, lambda number, _: ending.append(number))
    signal_at_exit_of_parent(END_SIGNAL)
    if os.getppid() != parent:
        return
    lock = threading.Lock()

    def send(message: Message) -> None:
        # On a broken pipe the parent has exited, and the signal for that is on its way.
        with lock, suppress(BrokenPipeError):
            channel.send(message)

    with WakeEvent() as event:
        try:
            with ending_with_threads(END_SIGNAL):
                _receive(work, send, event, ending)
        except NettopError as failure:
            send(failure)


def _receive(work: Work, send: Callable[[Message], None], event: WakeEvent, ending: Sequence[int]) -> None:
    """Receive until a signal arrives."""
    opened, destination = work
    source = opened(event.wait)
    pipeline = Pipeline(destination, send)
    threading.Thread(target=watch_files, args=(destination.files, send), daemon=True).start()

    send(state_of(pipeline, source.receiver.counts))
    while not ending:
        source.receive(pipeline, pipeline.due_s)
        if not pipeline.due_s:
            source.count(pipeline)
            pipeline.write_block()
            send(state_of(pipeline, source.receiver.counts))
    for _ in range(_FINAL_BATCHES_MAX):
        if not source.receive(pipeline, 0):
            break
    source.count(pipeline)
    pipeline.finish()
    send(state_of(pipeline, source.receiver.counts))


def state_of(pipeline: Pipeline, sockets: Sequence[ReceiveCounts]) -> WorkerState:
    """Return a pipeline's counts since the start, including those of these sockets."""
    decoder, exporters = pipeline.decoder, pipeline.exporters
    return WorkerState(
        ledger=pipeline.ledger(),
        spooled=pipeline.spooled,
        queued=pipeline.queued,
        pending=pipeline.pending,
        waiting=decoder.waiting,
        sockets=tuple(sockets),
        exporters=exporters.table(decoder),
        evicted=exporters.evicted,
        evicted_unrecognized=exporters.evicted_unrecognized,
        forgotten=decoder.messages.known.dropped,
        failure=pipeline.failure,
    )


def watch_files(
    files: LookupFiles, report: Callable[[NettopError], None], use: Callable[[], None] = lambda: None
) -> None:
    """Reload files when they change, and call `use`; runs in a thread forever."""
    while True:
        use()
        threading.Event().wait(_CHECK_S)
        for warning in files.check():
            report(SourceFailed(warning))


class ProducedFlows:
    """Intake of batches from other producers, one at a time, from any thread of the collector's process. A batch is on
    disk in the spool before it is accepted.
    """

    def __init__(self, to: WorkerOutput, report: Callable[[NettopError], None]) -> None:
        self._pipeline = Pipeline(to, report)
        self._lock = threading.Lock()

    def take(self, content: bytes) -> int:
        """Put a FlowBatch into the spool. Return its number of flows.

        Raise UsageError for an invalid batch, SourceFailed if the spool is full. On failure nothing is stored.
        """
        flows, count = decode_batch(content, time.time_ns() // 1_000_000)
        with self._lock:
            before = self._pipeline.dropped
            self._pipeline.add_flows(flows, count)
            self._pipeline.write_block()
            if self._pipeline.dropped > before:
                raise SourceFailed("the spool is full", "retry the batch later")
        return count

    def state(self) -> WorkerState:
        """Return the counts since the start, as for a worker."""
        with self._lock:
            return state_of(self._pipeline, ())
