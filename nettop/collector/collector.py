# SPDX-License-Identifier: Apache-2.0
"""The collector's main process: workers put blocks into the spool, and it moves them into the store."""

from __future__ import annotations

import multiprocessing
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess

import numpy as np

from nettop.collector.columns import Coded
from nettop.collector.enrichment.enrich import Enrichment
from nettop.collector.enrichment.lookups import LookupFiles
from nettop.collector.pipeline import SPOOL, WorkerOutput
from nettop.collector.spool import Block, Spool, Storing
from nettop.collector.store import Store
from nettop.collector.store.native import Values, native_block
from nettop.collector.store.schema import TABLES
from nettop.collector.worker import (
    END_SIGNAL,
    Message,
    ProducedFlows,
    Work,
    WorkerState,
    run_worker,
    watch_files,
)
from nettop.errors import NettopError, SourceFailed, failure_of

_AS_NAMES, _NAMES_WRITER = "as_names", 300
"""Table of AS names, and the number of their writer, distinct from those of workers and of the collector itself."""
_END_S = 10.0
"""Seconds for workers to flush and for blocks to be stored on exit; the next start stores the rest."""
_REPEAT_S = 300.0
"""Seconds before the same failure is reported again."""
_SUMMED = {field.name for field in fields(WorkerState)} - {"exporters", "failure"}
_NUMBERS = re.compile(r"\d[\d.]*")


@dataclass(frozen=True, eq=False)
class CollectorState:
    """Work done by a collector since it started, and its current state.

    `received` combines all workers. `stored` counts rows by table, `stored_earlier` those already in the spool at the
    start. `waiting_blocks` blocks of `waiting_bytes` wait in the spool; `failure` says why they cannot be stored, why
    others are dropped, or what is damaged.
    """

    received: WorkerState
    stored: Counter[str]
    stored_earlier: Counter[str]
    waiting_blocks: int
    waiting_bytes: int
    failure: NettopError | None


class Collector:
    """Workers and their state, with a thread that listens to them and one that stores."""

    def __init__(
        self,
        spool: Spool,
        earlier: Collection[str],
        store: Store,
        channels: Sequence[Connection],
        own: WorkerOutput,
        *,
        report: Callable[[NettopError], None],
    ) -> None:
        """Initialize with the `earlier` files found in the spool, and the `channels` on which workers report. `own` is
        the destination of flows that this process accepts itself.
        """
        self._spool, self._store = spool, store
        self._report_to = report
        # Failures of the store that differ only in numbers are of the same kind.
        self.storing = Storing(
            spool,
            store,
            lambda failure: self.report(failure, _NUMBERS.sub("", failure.what)),
            earlier=earlier,
        )
        self._reported: dict[str, float] = {}
        self._lock = threading.Lock()
        self._states: dict[Connection, WorkerState | None] = dict.fromkeys(channels)
        self.is_ending = False
        """Whether workers may exit without that being a failure."""
        self.failed: NettopError | None = None
        """Reason that the collector cannot continue; None if it can."""
        self.on_failed: Callable[[], None] = lambda: None
        self.on_state: Callable[[], None] = lambda: None
        """Called whenever a worker reports its state."""
        self.produced = ProducedFlows(own, self.report)

    def state(self) -> CollectorState:
        """Return the collector's counts since it started, and its current state."""
        with self._lock:
            states = [state for state in self._states.values() if state is not None]
        received = _combined([*states, self.produced.state()])
        storing = self.storing
        return CollectorState(
            received,
            storing.stored.copy(),
            storing.stored_earlier.copy(),
            len(self._spool.waiting()),
            self._spool.waiting_bytes(),
            storing.failure or self._store.damage or received.failure,
        )

    def is_receiving(self) -> bool:
        """Return whether every worker has started."""
        with self._lock:
            return None not in self._states.values()

    def report(self, failure: NettopError, kind: str = "") -> None:
        """Report a failure, unless one of the same kind, or with the same text, was reported recently."""
        now, kind = time.monotonic(), kind or failure.what
        with self._lock:
            last = self._reported.get(kind)
            if last is not None and now < last + _REPEAT_S:
                return
            self._reported = {report: at for report, at in self._reported.items() if now < at + _REPEAT_S}
            self._reported[kind] = now
        self._report_to(failure)

    def store(self) -> None:
        """Store blocks until stopped; runs in a thread."""
        with self._failing("store"):
            self.storing.run()

    def listen(self) -> None:
        """Receive messages from workers until all have exited; runs in a thread."""
        with self._failing("flows"):
            open_channels = list(self._states)
            while open_channels:
                for channel in wait(open_channels):
                    assert isinstance(channel, Connection)
                    try:
                        self._take(channel, channel.recv())
                    except EOFError:
                        open_channels.remove(channel)
                        if not self.is_ending:
                            raise SourceFailed("a process that receives flows has exited") from None

    def _take(self, channel: Connection, message: Message) -> None:
        if isinstance(message, NettopError):
            self.report(message)
            return
        with self._lock:
            self._states[channel] = message
        self.storing.wake()
        self.on_state()

    @contextmanager
    def _failing(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - a bug, or the exit of a worker: report everything
            self.failed = failure_of(what, error)
            self.on_failed()


@contextmanager
def collecting(
    works: Sequence[Work],
    own: WorkerOutput,
    open_store: Callable[[], Store],
    report: Callable[[NettopError], None],
) -> Iterator[Collector]:
    """Run a collector, which also accepts flows for its `own` destination. Call this while there is only one thread.

    Raise what `open_store` raises. On exit, workers flush what they received, and the collector stores as much of it as
    it can within a few seconds.
    """
    spool = Spool(own.directory / SPOOL, own.spool_bytes)
    spool.recover()
    earlier = spool.waiting()
    fork = multiprocessing.get_context("fork")
    with ExitStack() as resources:
        workers, channels = [], []
        for work in works:
            ours, theirs = fork.Pipe(duplex=False)
            worker = fork.Process(target=run_worker, args=(work, theirs, os.getpid()), daemon=True)
            worker.start()
            theirs.close()
            resources.callback(_end, worker)
            workers.append(worker)
            channels.append(ours)
        store = open_store()
        resources.callback(store.close)
        collector = Collector(spool, earlier, store, channels, own, report=report)
        listening = threading.Thread(target=collector.listen, name="workers")
        storing = threading.Thread(target=collector.store, name="store")
        names = AsNames(Spool(own.directory / SPOOL, own.spool_bytes, _NAMES_WRITER), own.files)
        watching = own.files, collector.report, names.write
        threading.Thread(target=watch_files, args=watching, daemon=True).start()
        listening.start()
        storing.start()
        try:
            yield collector
        finally:
            collector.is_ending = True
            for worker in workers:
                _request_end(worker)
            for worker in workers:
                _end(worker)
            listening.join()
            collector.storing.finish()
            storing.join(_END_S)
            collector.storing.stop()
            storing.join()


def _request_end(worker: ForkProcess) -> None:
    if worker.is_alive():  # not yet waited for, so its PID cannot have been reused
        assert worker.pid is not None
        os.kill(worker.pid, END_SIGNAL)


def _end(worker: ForkProcess) -> None:
    _request_end(worker)
    worker.join(_END_S)
    if worker.is_alive():
        worker.kill()
        worker.join()


def _combined(states: Sequence[WorkerState]) -> WorkerState:
    """Return the sums of all states, and any one's failure."""
    first, *others = states
    sums = {name: sum((getattr(other, name) for other in others), getattr(first, name)) for name in _SUMMED}
    return WorkerState(
        **sums,
        exporters=np.concatenate([state.exporters for state in states]),
        failure=next((state.failure for state in states if state.failure), None),
    )


class AsNames:
    """Writer of AS names from lookup files into a spool, at the start and whenever a file changes: flows hold only the
    numbers.
    """

    def __init__(self, spool: Spool, files: LookupFiles) -> None:
        self._spool, self._files = spool, files
        self._written: Enrichment | None = None

    def write(self) -> None:
        """Write the names if they changed. If the spool rejects them, retry at the next call."""
        enrichment = self._files.current().enrichment
        names = enrichment.as_names() if enrichment is not self._written else {}
        if not names or self._spool.put({_AS_NAMES: _block(names)}, {}) is not None:
            self._written = enrichment


def _block(names: dict[int, str]) -> Block:
    columns: dict[str, Values] = {
        "time": np.full(len(names), time.time_ns() // 1_000_000, "i8"),
        "as_number": np.array(list(names), "u4"),
        "name": Coded.of(names.values()),
    }
    return Block(native_block(TABLES[_AS_NAMES].types, columns), len(names))
