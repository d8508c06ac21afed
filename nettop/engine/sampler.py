# SPDX-License-Identifier: Apache-2.0
"""The one thread that reads sources, at absolute deadlines of the monotonic clock, and when the kernel wakes it."""

from __future__ import annotations

import select
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

from nettop.engine.bus import Bus
from nettop.engine.own_cost import DRAIN, READ, START, Cost, OpenStatistics, OwnCost, OwnCostSource
from nettop.engine.pace import Pace
from nettop.engine.wake_event import WakeEvent
from nettop.errors import NettopError, SourceFailed, failure_of
from nettop.snapshots.own_cost import SELF
from nettop.snapshots.source import DropPrivileges, EventSource, PrivilegedSource, Source

T = TypeVar("T")
DETACH_AFTER_S = 10.0
"""A lens without a lease stays attached this long: going to another screen and back costs nothing."""
DRAIN_PAUSE_S = 0.025
"""Between two drains: what comes meanwhile is taken at once, and the kernel need not wake the thread for it."""


@dataclass
class _Attached:
    source: Source
    events: EventSource | None
    leases: int = 1
    idle_since: float | None = None


class Sampler:
    """Starts, reads and closes sources, all in its own thread; requests of other threads wake it.

    It waits for requests, and for what wakes the sources. `open_statistics` has the kernel count the
    runs of BPF programs, while that is wanted; `max_overhead` is the share of one CPU that nettop may take.
    `drop_privileges` is called once, in the thread, when the first lens has started, or failed to, and before
    anything is read.
    """

    def __init__(
        self,
        bus: Bus,
        interval_s: float,
        source_of: Callable[[str], Source],
        *,
        open_statistics: OpenStatistics | None = None,
        max_overhead: float | None = None,
        drop_privileges: DropPrivileges | None = None,
    ) -> None:
        self.late = 0
        self.cost = OwnCost(self.sources, open_statistics)
        self.pace = Pace(interval_s, self.cost, max_overhead)
        self._bus = bus
        self._source_of = source_of
        self._drop_privileges = drop_privileges
        self._attached: dict[str, _Attached] = {}
        self._tasks: deque[Callable[[], None]] = deque()
        self._event = WakeEvent()
        self._requests: list[Future[None]] = []
        self._stopping = False
        self._deadline = 0.0
        self._drained_at = float("-inf")
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    # --- called by other threads --------------------------------------------------------------------------

    @property
    def interval_s(self) -> float:
        """Seconds between two readings."""
        return self.pace.interval_s

    def start(self) -> None:
        """Begin to read what is leased."""
        self._thread.start()

    def stop(self) -> None:
        """Close every source and end the thread."""
        self._stopping = True
        self._event.set()
        self._thread.join()

    def sample_now(self) -> Future[None]:
        """Read at once; the next regular deadline stays. The result is there when a reading has ended that began
        after the call."""
        request: Future[None] = Future()
        self._post(lambda: self._requests.append(request))
        return request

    def set_interval(self, interval_s: float) -> None:
        """Read every `interval_s` from now on."""
        self._post(lambda: self.pace.choose(interval_s))

    def lease(self, lens: str, options: Mapping[str, object]) -> None:
        """Attach the lens, or count one more lease, and set its options."""
        self._post(lambda: self._attach(lens, options))

    def release(self, lens: str) -> None:
        """Count one lease less."""
        self._post(lambda: self._let_go(lens))

    def call(self, lens: str, function: Callable[[Source], T]) -> Future[T]:
        """Call `function` with the source of a lens, in the thread that owns it."""
        result: Future[T] = Future()

        def task() -> None:
            attached = self._attached.get(lens)
            if attached is None:
                result.set_exception(SourceFailed(f"lens {lens!r} is not attached"))
                return
            try:
                result.set_result(function(attached.source))
            except NettopError as error:
                result.set_exception(error)

        self._post(task)
        return result

    def _post(self, task: Callable[[], None]) -> None:
        self._tasks.append(task)
        self._event.set()

    # --- in the thread ------------------------------------------------------------------------------------

    def _run(self) -> None:
        self._deadline = time.monotonic() + self.interval_s
        with self._event:
            self.pace.start()
            while self._wait():
                self._run_tasks()
                self._detach_idle()
                requests, self._requests = self._requests, []
                if requests or time.monotonic() >= self._deadline:
                    self._read_all()
                    for request in requests:
                        request.set_result(None)
                else:
                    self._drain_all()
                self._deadline = self._next_deadline()
            for lens in list(self._attached):
                self._detach(lens)
            self.pace.stop()

    def _wait(self) -> bool:
        """Wait for the deadline or for work; False when it is time to stop."""
        while not (self._stopping or self._tasks):
            now = time.monotonic()
            rested = self._drained_at + DRAIN_PAUSE_S
            remaining = self._deadline - now
            if remaining <= 0:
                break
            wakeups: dict[int, int] = {}
            if now >= rested:
                sources = [attached.events for attached in self._attached.values() if attached.events]
                wakeups = dict.fromkeys(chain(*(source.wakeups() for source in sources)), select.POLLIN)
            else:
                remaining = min(remaining, rested - now)
            if self._event.wait(wakeups, remaining):
                break
        return not self._stopping

    def _next_deadline(self) -> float:
        """The next tick that is still to come; those that have passed are skipped and counted."""
        now = time.monotonic()
        if now < self._deadline:
            return min(self._deadline, now + self.interval_s)
        missed = int((now - self._deadline) / self.interval_s)
        self.late += missed
        return self._deadline + (missed + 1) * self.interval_s

    def _attach(self, lens: str, options: Mapping[str, object]) -> None:
        attached = self._attached.get(lens)
        if attached is not None:
            attached.leases += 1
            attached.idle_since = None
            self._set(lens, options)
            return
        try:
            source = self._source(lens)
        except NettopError as error:
            self._bus.fail(lens, error)
            self._try(lens, self._drop_privileges_once)
            return
        self._attached[lens] = _Attached(source, source if isinstance(source, EventSource) else None)
        self._set(lens, options)
        self.pace.ignore_attaching()
        with self.cost.steps.time(lens, START):
            self._try(lens, source.start)
        self._try(lens, self._drop_privileges_once)
        self._read(lens)
        # Attaching may take as long as an interval: the next reading is due a whole one after the first.
        self._deadline = time.monotonic() + self.interval_s

    def _drop_privileges_once(self) -> None:
        if self._drop_privileges is not None:
            sources = self.sources().values()
            rights = (source.rights() for source in sources if isinstance(source, PrivilegedSource))
            self._drop_privileges(frozenset().union(*rights))
            self._drop_privileges = None  # only where it worked: until then no lens is read

    def _set(self, lens: str, options: Mapping[str, object]) -> None:
        attached = self._attached.get(lens)
        if attached is None:
            return
        for option, value in options.items():
            attached.source.set(option, value)

    def _let_go(self, lens: str) -> None:
        attached = self._attached.get(lens)
        if attached is None:
            return
        attached.leases -= 1
        if attached.leases == 0:
            attached.idle_since = time.monotonic()

    def _detach_idle(self) -> None:
        now = time.monotonic()
        for lens, attached in list(self._attached.items()):
            if attached.idle_since is not None and now - attached.idle_since >= DETACH_AFTER_S:
                self._detach(lens)
                self._bus.forget(lens)

    def _detach(self, lens: str) -> None:
        attached = self._attached.pop(lens, None)
        if attached is not None:
            attached.source.close()

    def _read_all(self) -> None:
        self.pace.tick()
        # The own cost comes first, so that its rows and its total are of the same moment.
        for lens in sorted(self._attached, key=lambda lens: lens != SELF.id):
            self._read(lens)

    def _run_tasks(self) -> None:
        while self._tasks:
            self._tasks.popleft()()

    def _source(self, lens: str) -> Source:
        return OwnCostSource(self) if lens == SELF.id else self._source_of(lens)

    @property
    def limits(self) -> list[Cost]:
        """What --max-overhead does, as rows of the table of costs."""
        return self.pace.rows()

    def sources(self) -> dict[str, Source]:
        """The attached sources, by lens."""
        return {lens: attached.source for lens, attached in self._attached.items()}

    def lost(self, lens: str) -> int:
        """All that a lens has lost by its last reading."""
        frame = self._bus.frame(lens)
        return 0 if frame is None else frame.now.lost_in_all

    def _read(self, lens: str) -> None:
        attached = self._attached.get(lens)
        if attached is None:
            return
        with self.cost.steps.time(lens, READ):
            snapshot = self._try(lens, lambda: attached.source.read(time.monotonic_ns()))
        # Drained first, so that the frame has what its snapshot explains.
        if snapshot is not None and self._drain(lens, attached.events):
            self._bus.publish(snapshot, int(self.interval_s * 0.5e9))

    def _drain_all(self) -> None:
        self._drained_at = time.monotonic()
        for lens, attached in list(self._attached.items()):
            self._drain(lens, attached.events)

    def _drain(self, lens: str, source: EventSource | None) -> bool:
        """Publish the events of the source; False where that failed."""
        if source is None:
            return True
        with self.cost.steps.time(lens, DRAIN):
            batches = self._try(lens, lambda: source.drain(time.monotonic_ns()))
        if batches:
            self._bus.append(lens, batches)
        return batches is not None

    def _try(self, lens: str, step: Callable[[], T]) -> T | None:
        """The result of `step`. Where it fails the lens detaches, and the bus says why."""
        try:
            return step()
        except NettopError as error:
            failure: NettopError = error
        except Exception as error:  # noqa: BLE001 - the other lenses go on
            failure = failure_of(lens, error)
        self._detach(lens)
        self._bus.fail(lens, failure)
        return None
