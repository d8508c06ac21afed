# SPDX-License-Identifier: Apache-2.0
"""The process that stores: workers receive into the spool, and it takes blocks from there into the store."""

from __future__ import annotations

import multiprocessing
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess

import numpy as np

from nettop.errors import NettopError, SourceFailed, failure_of
from nettop.flows.as_names import AsNames
from nettop.flows.exporters import EXPORTER
from nettop.flows.inputs.produced import ProducedFlows
from nettop.flows.spool import Spool, Storing
from nettop.flows.store import Store
from nettop.flows.worker import (
    END_SIGNAL,
    SPOOL,
    Destination,
    Message,
    Work,
    WorkerState,
    run_worker,
    watch_files,
)

_NAMES = 300
"""The number of what writes names, beside those of workers and of the collector itself."""
_END_S = 10.0
"""For workers to write what they have, and for blocks to be stored, at the end; the next start stores what is left."""
_REPEAT_S = 300.0
"""After which time the same failure is reported again."""
_NUMBERS = re.compile(r"\d[\d.]*")


@dataclass(frozen=True, eq=False)
class CollectorState:
    """What a collector has done since it began, and what it does now.

    `received` is of all workers together. `stored` counts rows by table, and `stored_earlier` those that had waited in
    the spool when it began. Of the spool, `waiting_blocks` of `waiting_bytes` wait to be stored, and `failure` is why
    they cannot be, or why others are dropped.
    """

    received: WorkerState
    stored: Counter[str]
    stored_earlier: Counter[str]
    waiting_blocks: int
    waiting_bytes: int
    failure: NettopError | None


class Collector:
    """Workers, and what they have done; threads that listen to them and that store."""

    def __init__(
        self,
        spool: Spool,
        earlier: Collection[str],
        store: Store,
        channels: Sequence[Connection],
        own: Destination,
        *,
        report: Callable[[NettopError], None],
    ) -> None:
        """`earlier` files were in the spool before; `own` is where flows go that this process takes itself. Workers
        send by `channels`.
        """
        self._spool = spool
        self._report_to = report
        self._storing = Storing(spool, store, self._report_of_store, earlier=earlier)
        self._reported: dict[str, float] = {}
        self._lock = threading.Lock()
        self._states: dict[Connection, WorkerState | None] = dict.fromkeys(channels)
        self._is_ending = False
        self.failed: NettopError | None = None
        """Why it cannot go on; None while it can."""
        self.on_failed: Callable[[], None] = lambda: None
        self.on_state: Callable[[], None] = lambda: None
        """Called at each state of a worker."""
        self.produced = ProducedFlows(own, self.report)

    def state(self) -> CollectorState:
        """What it has done since it began."""
        with self._lock:
            states = [state for state in self._states.values() if state is not None]
        received = _together([*states, self.produced.state()])
        storing = self._storing
        return CollectorState(
            received,
            storing.stored.copy(),
            storing.stored_earlier.copy(),
            len(self._spool.waiting()),
            self._spool.waiting_bytes(),
            storing.failure or received.failure,
        )

    def is_receiving(self) -> bool:
        """Whether every worker has begun."""
        with self._lock:
            return None not in self._states.values()

    def report(self, failure: NettopError, kind: str = "") -> None:
        """Report it, unless one of this kind, or else the same, was reported a short time ago."""
        now, kind = time.monotonic(), kind or failure.what
        with self._lock:
            last = self._reported.get(kind)
            if last is not None and now < last + _REPEAT_S:
                return
            self._reported = {each: at for each, at in self._reported.items() if now < at + _REPEAT_S}
            self._reported[kind] = now
        self._report_to(failure)

    def _report_of_store(self, failure: NettopError) -> None:
        """Report it as of the same kind as one with other sizes and names of parts."""
        self.report(failure, _NUMBERS.sub("", failure.what))

    def store(self) -> None:
        """Store blocks until the end: what a thread does."""
        with self._failing("store"):
            self._storing.run()

    def listen(self) -> None:
        """Take what workers send until all have ended: what a thread does."""
        with self._failing("flows"):
            open_channels = list(self._states)
            while open_channels:
                for channel in wait(open_channels):
                    assert isinstance(channel, Connection)
                    try:
                        self._take(channel, channel.recv())
                    except EOFError:
                        open_channels.remove(channel)
                        if not self._is_ending:
                            raise SourceFailed("a process that receives flows has ended") from None

    def end(self) -> None:
        """That workers end is right from now on."""
        self._is_ending = True

    def finish(self) -> None:
        """Let the thread that stores end when nothing is left to be stored."""
        self._storing.finish()

    def stop(self) -> None:
        """Let the thread that stores end."""
        self._storing.stop()

    def _take(self, channel: Connection, message: Message) -> None:
        if isinstance(message, NettopError):
            self.report(message)
            return
        with self._lock:
            self._states[channel] = message
        self._storing.wake()
        self.on_state()

    @contextmanager
    def _failing(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # noqa: BLE001 - a bug, or the end of a worker: all is reported
            self.failed = error if isinstance(error, NettopError) else failure_of(what, error)
            self.on_failed()


@contextmanager
def collecting(
    works: Sequence[Work],
    own: Destination,
    open_store: Callable[[], Store],
    report: Callable[[NettopError], None],
) -> Iterator[Collector]:
    """A collector at work, which takes flows itself for its `own` destination. Call it while there is one thread.

    Raises what `open_store` does.
    At the end workers write what they have received, and it is stored, as far as that is possible in a few seconds.
    """
    spool = Spool(own.directory / SPOOL, own.spool_bytes)
    spool.recover()
    earlier = spool.waiting()
    fork = multiprocessing.get_context("fork")
    with ExitStack() as ends:
        workers, channels = [], []
        for work in works:
            ours, theirs = fork.Pipe(duplex=False)
            worker = fork.Process(target=run_worker, args=(work, theirs, os.getpid()), daemon=True)
            worker.start()
            theirs.close()
            ends.callback(_end, worker)
            workers.append(worker)
            channels.append(ours)
        store = open_store()
        ends.callback(store.close)
        collector = Collector(spool, earlier, store, channels, own, report=report)
        threads = [
            threading.Thread(target=collector.listen, name="workers"),
            threading.Thread(target=collector.store, name="store"),
        ]
        names = AsNames(Spool(own.directory / SPOOL, own.spool_bytes, _NAMES), own.files)
        watching = own.files, collector.report, names.write
        threading.Thread(target=watch_files, args=watching, daemon=True).start()
        for thread in threads:
            thread.start()
        listening, storing = threads
        try:
            yield collector
        finally:
            collector.end()
            for worker in workers:
                _request_end(worker)
            for worker in workers:
                _end(worker)
            listening.join()
            collector.finish()
            storing.join(_END_S)
            collector.stop()
            storing.join()


def _request_end(worker: ForkProcess) -> None:
    if worker.is_alive():  # it is ours to wait for, so no other process has its number
        assert worker.pid is not None
        os.kill(worker.pid, END_SIGNAL)


def _end(worker: ForkProcess) -> None:
    _request_end(worker)
    worker.join(_END_S)
    if worker.is_alive():
        worker.kill()
        worker.join()


def _together(states: Sequence[WorkerState]) -> WorkerState:
    return WorkerState(
        ledger=sum((state.ledger for state in states), Counter()),
        spooled=sum((state.spooled for state in states), Counter()),
        queued=sum(state.queued for state in states),
        pending=sum(state.pending for state in states),
        waiting=sum(state.waiting for state in states),
        sockets=tuple(counts for state in states for counts in state.sockets),
        exporters=np.concatenate([np.zeros(0, EXPORTER), *(state.exporters for state in states)]),
        evicted=sum(state.evicted for state in states),
        evicted_unrecognized=sum(state.evicted_unrecognized for state in states),
        forgotten=sum((state.forgotten for state in states), Counter()),
        failure=next((state.failure for state in states if state.failure), None),
    )
