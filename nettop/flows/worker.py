# SPDX-License-Identifier: Apache-2.0
"""A process that receives: from sockets into the spool. It says every second what became of what came.

Datagrams and packets are parsed here alone, without any privilege, not in the process that stores.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from nettop.errors import NettopError, SourceFailed
from nettop.flows.decode.given_rates import GivenRates
from nettop.flows.enrichment.lookups import LookupFiles
from nettop.flows.inputs.input import Input
from nettop.flows.kept_numbers import KeptNumbers
from nettop.flows.outputs.kafka import KafkaOutput, Topic
from nettop.flows.pipeline import Pipeline, Wanted
from nettop.flows.receive import SocketCounts, Wait
from nettop.flows.spool import Spool
from nettop.snapshots.snapshot import Array
from nettop.wake_event import WakeEvent

SPOOL = "spool"
"""The spool's directory, in that of the flows."""
_CHECK_S = 5.0
"""How often to look whether files have changed."""
END_SIGNAL = signal.SIGUSR1
"""Ends a worker. Those that end the collector reach its workers too, from a terminal or a service manager, and they are
to end after it has begun to."""
_PR_SET_PDEATHSIG = 1
_MOST_AT_END = 64
"""How many batches are still received at the end, of what had come before."""


@dataclass(frozen=True, slots=True)
class Destination:
    """Where a worker of this number writes flows to, which flows, and what is known of them."""

    number: int
    directory: Path
    spool_bytes: int
    files: LookupFiles
    wanted: Wanted | None = None
    kafka: Topic | None = None
    given_rates: GivenRates | None = None


@dataclass(frozen=True, slots=True)
class Work:
    """What a worker does: it receives from an input, which `opened` gives, to a destination."""

    opened: Callable[[Wait], Input]
    destination: Destination


@dataclass(frozen=True, eq=False)
class WorkerState:
    """What a worker has done since it began, and what its exporters are.

    `ledger` is as LEDGER declares, `spooled` counts rows by table. `queued` datagrams wait on the disk to be decoded;
    `pending` flows and `waiting` sets are in memory. `exporters` are EXPORTER (e,), `evicted` those that have made
    room. `forgotten` are what bounds have dropped of what exporters declare, by name. `failure` is why its last block
    was dropped, if it was.
    """

    ledger: Counter[str]
    spooled: Counter[str]
    queued: int
    pending: int
    waiting: int
    sockets: tuple[SocketCounts, ...]
    exporters: Array
    evicted: int
    evicted_unrecognized: int
    forgotten: Counter[str]
    failure: NettopError | None


Message = WorkerState | NettopError
"""What a worker sends: its state after each block, and what a person should know."""


def run_worker(work: Work, channel: Connection, parent: int) -> None:
    """Receive until END_SIGNAL, or until the `parent` ends, which has forked this process."""
    # No event: a second signal, within the handler of the first, would wait for its lock for ever.
    ending: list[int] = []
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(END_SIGNAL, lambda number, _: ending.append(number))
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, END_SIGNAL, 0, 0, 0)
    if os.getppid() != parent:
        return
    lock = threading.Lock()

    def send(message: Message) -> None:
        # A broken pipe: who has started this process is gone, and the signal of that is on its way.
        with lock, suppress(BrokenPipeError):
            channel.send(message)

    with WakeEvent() as event:
        try:
            _receive(work, send, event, ending)
        except NettopError as failure:
            send(failure)


def opened_pipeline(to: Destination, report: Callable[[NettopError], None]) -> Pipeline:
    """The pipeline that writes there."""
    spool = Spool(to.directory / SPOOL, to.spool_bytes, to.number)
    templates = to.directory / f"templates-{to.number}"
    kafka = None if to.kafka is None else KafkaOutput(to.kafka)
    numbers = KeptNumbers(to.directory, to.number)
    return Pipeline(
        spool,
        templates,
        to.files.current,
        given_rates=to.given_rates,
        wanted=to.wanted,
        kafka=kafka,
        numbers=numbers,
        report=report,
    )


def _receive(work: Work, send: Callable[[Message], None], event: WakeEvent, ending: Sequence[int]) -> None:
    """Receive until there is a signal that ends it."""
    source = work.opened(event.wait)
    pipeline = opened_pipeline(work.destination, send)
    threading.Thread(target=watch_files, args=(work.destination.files, send), daemon=True).start()

    send(state_of(pipeline, source.counts))
    while not ending:
        source.receive(pipeline, pipeline.due_s)
        if not pipeline.due_s:
            source.count(pipeline)
            pipeline.write_block()
            send(state_of(pipeline, source.counts))
    for _ in range(_MOST_AT_END):
        if not source.receive(pipeline, 0):
            break
    source.count(pipeline)
    pipeline.finish()
    send(state_of(pipeline, source.counts))


def state_of(pipeline: Pipeline, sockets: Sequence[SocketCounts]) -> WorkerState:
    """What was done since the start, with what came by these sockets."""
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
    """Read files again when they change, without end, and use what they say: what a thread does."""
    while True:
        use()
        threading.Event().wait(_CHECK_S)
        for warning in files.check():
            report(SourceFailed(warning))
