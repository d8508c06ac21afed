# SPDX-License-Identifier: Apache-2.0
"""One running nettop: the bus to read, requests of frontends, and the sampler, the one thread that reads sources.

It reads at absolute deadlines of the monotonic clock, and drains events when the kernel wakes it.
"""

from __future__ import annotations

import select
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Self, TypeVar, cast

from nettop.engine.bus import Bus
from nettop.engine.governor import OverheadLimit
from nettop.engine.own_cost import DRAIN, READ, START, OpenStatistics, OwnCost, Steps
from nettop.engine.own_cost_table import OwnCostSource
from nettop.engine.pace import Pace
from nettop.engine.source import probe_of
from nettop.errors import NettopError, PermissionMissing, SourceFailed, failure_of
from nettop.settings import checked_seconds
from nettop.snapshots import lenses
from nettop.snapshots.own_cost import SELF
from nettop.snapshots.source import (
    WHOLE,
    DropPrivileges,
    EventSource,
    JoiningSource,
    PrivilegedSource,
    SamplingSource,
    Source,
)
from nettop.wake_event import WakeEvent

T = TypeVar("T")
DETACH_AFTER_S = 10.0
"""A lens without a lease stays attached this long: going to another screen and back costs nothing."""
DRAIN_PAUSE_S = 0.1
"""Between two drains: what comes meanwhile is taken at once, and the kernel need not wake the thread for it."""
CHECK_PAUSE_S = 0.01
"""Meanwhile, between two looks at whether so much has come that it cannot wait."""


class Lease:
    """Keeps a lens attached until it is released."""

    def __init__(self, release: Callable[[], None]) -> None:
        self._release: Callable[[], None] | None = release

    def release(self) -> None:
        """End the lease; the lens detaches a little later if there is no other."""
        if self._release is not None:
            self._release()
            self._release = None


@dataclass
class _Attached:
    source: Source
    events: EventSource | None
    sampling: SamplingSource | None
    thinning: int = 1
    leases: int = 0
    idle_since: float | None = None


class Session:
    """One running nettop. Used as a context: leaving it closes every source.

    `source_of` makes the source of a lens: the probe by default, a replay or a test's own otherwise.
    `open_statistics` has the kernel count the runs of BPF programs as long as the descriptor is open that it gives;
    `max_overhead` is the share of one CPU that nettop may take. `drop_privileges` is called once, in the
    thread that reads: when the first lens has started, or failed to, and before anything is read. Where there are
    lenses that start `together` it is the last one of them.
    """

    def __init__(
        self,
        interval_s: float,
        source_of: Callable[[str], Source] = probe_of,
        *,
        open_statistics: OpenStatistics | None = None,
        max_overhead: float | None = None,
        drop_privileges: DropPrivileges | None = None,
        together: Collection[str] = (),
    ) -> None:
        self.bus = Bus()
        self._cost = OwnCost(self._sources, open_statistics)
        self._pace = Pace(checked_seconds("--interval", interval_s), self._cost, max_overhead)
        self._source_of = source_of
        self._drop_privileges = drop_privileges
        self._starting = set(together)
        self._unread: list[str] = []
        self._leased: Counter[str] = Counter()
        self._attached: dict[str, _Attached] = {}
        self._tasks: deque[Callable[[], None]] = deque()
        self._event = WakeEvent()
        self._requests: list[Future[None]] = []
        self._stopping = False
        self._deadline = 0.0
        self._drained_at = float("-inf")
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._stopping = True
        self._event.set()
        self._thread.join()

    # --- called by frontends ------------------------------------------------------------------------------

    @property
    def interval_s(self) -> float:
        """Seconds between two refreshes."""
        return self._pace.interval_s

    @property
    def overhead_limit(self) -> OverheadLimit | None:
        """What is done for --max-overhead; None where no bound was given."""
        return self._pace.limit

    @property
    def steps(self) -> Steps:
        """Where frontends measure what they do."""
        return self._cost.steps

    def cost(self) -> float | None:
        """The share of one CPU that nettop took lately, its programs' included as far as that is known."""
        return self._cost.share()

    @property
    def late(self) -> int:
        """Refreshes skipped because the one before took too long."""
        return self._cost.late

    def sample_now(self) -> Future[None]:
        """Refresh every attached lens at once; the next regular deadline stays.

        The result is there when a reading has ended that began after the call.
        """
        request: Future[None] = Future()
        self._post(lambda: self._requests.append(request))
        return request

    def set_interval(self, interval_s: float) -> None:
        """Refresh every `interval_s` seconds from now on. Raises UsageError when out of bounds."""
        checked = checked_seconds("--interval", interval_s)
        self._post(lambda: self._pace.choose(checked))

    def enable(self, lens: str, **options: object) -> Lease:
        """Attach a lens, if it is not, with these options set, and keep it until the lease is released.

        `bus.failure(lens)` says what goes wrong. A source ignores options that it does not know. The lenses that its
        table uses are attached too, and those that know a value of the columns in option `columns`. With the own cost
        the lenses that are attached stay, or the first one is attached: it is their cost.
        """
        others = _used_by(lens, options.get("table"), cast("Collection[str]", options.get("columns", ())))
        if lens == SELF.id:
            others = [other for other in self._leased if other != SELF.id] or [lenses()[0].id]
        of_others = {name: value for name, value in options.items() if name not in ("table", WHOLE)}
        leased = dict.fromkeys(others, of_others) | {lens: options}
        self._leased.update(leased.keys())
        for each in leased.items():
            self._post(partial(self._attach, *each))
        return Lease(lambda: self._release(list(leased)))

    def _release(self, leased: list[str]) -> None:
        self._leased -= Counter(leased)  # lenses without a lease go
        for lens in leased:
            self._post(partial(self._let_go, lens))

    def set(self, lens: str, option: str, value: object) -> None:
        """Change an option of an attached lens, before its next refresh."""
        self._call(lens, lambda source: source.set(option, value))

    def describe(self, lens: str, key: int) -> Future[dict[str, str]]:
        """Details of a row that are only read when somebody looks at it."""
        return self._call(lens, lambda source: source.describe(key))

    def _call(self, lens: str, function: Callable[[Source], T]) -> Future[T]:
        """Call `function` with the source of a lens, in the thread that owns it."""
        result: Future[T] = Future()

        def task() -> None:
            if not result.set_running_or_notify_cancel():
                return
            try:
                if lens not in self._attached:
                    raise SourceFailed(f"lens {lens!r} is not attached")
                result.set_result(function(self._attached[lens].source))
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
            self._pace.start()
            while self._wait():
                self._run_tasks()
                if self._starting:
                    continue
                self._detach_idle()
                requests, self._requests = self._requests, []
                if requests or time.monotonic() >= self._deadline:
                    self._read_all()
                    for request in requests:
                        if request.set_running_or_notify_cancel():
                            request.set_result(None)
                else:
                    self._drained_at = time.monotonic()
                    for lens, attached in list(self._attached.items()):
                        self._drain(lens, attached.events)
                self._deadline = self._next_deadline()
            for lens in list(self._attached):
                self._detach(lens)
            self._pace.stop()

    def _wait(self) -> bool:
        """Wait for the deadline or for work; False when it is time to stop."""
        while not (self._stopping or self._tasks):
            now = time.monotonic()
            rest = self._drained_at + DRAIN_PAUSE_S - now
            remaining = self._deadline - now
            if remaining <= 0:
                break
            wakeups: dict[int, int] = {}
            sources = [attached.events for attached in self._attached.values() if attached.events]
            if rest <= 0 or any(source.is_filling() for source in sources):
                wakeups = {number: select.POLLIN for source in sources for number in source.wakeups()}
            else:
                remaining = min(remaining, rest, CHECK_PAUSE_S)
            if self._event.wait(wakeups, remaining):
                break
        return not self._stopping

    def _next_deadline(self) -> float:
        """The next tick that is still to come; those that have passed are skipped and counted."""
        now = time.monotonic()
        if now < self._deadline:
            return min(self._deadline, now + self.interval_s)
        missed = int((now - self._deadline) / self.interval_s)
        self._cost.late += missed
        return self._deadline + (missed + 1) * self.interval_s

    def _attach(self, lens: str, options: Mapping[str, object]) -> None:
        attached = self._attached.get(lens)
        is_new = attached is None
        if attached is None:
            source = self._try(lens, lambda: self._source(lens))
            if source is None:
                self._begin(lens)
                return
            events = source if isinstance(source, EventSource) else None
            sampling = source if isinstance(source, SamplingSource) else None
            attached = self._attached[lens] = _Attached(source, events, sampling)
            self._allow_thinning()
        attached.leases += 1
        attached.idle_since = None
        for option, value in options.items():
            attached.source.set(option, value)
        if is_new:
            self._start(lens, attached.source)

    def _start(self, lens: str, source: Source) -> None:
        self._pace.ignore_attaching()
        with self._cost.steps.time(lens, START):
            self._try(lens, source.start)
        self._unread.append(lens)
        self._begin(lens)
        # Attaching may take as long as an interval: the next reading is due a whole one after the first.
        self._deadline = time.monotonic() + self.interval_s

    def _begin(self, lens: str) -> None:
        """Go on with a lens that has started, or failed to: once all have that start together, read them."""
        self._starting.discard(lens)
        if self._starting:
            return
        started, self._unread = self._unread, []
        for each in started or [lens]:
            self._try(each, self._drop_privileges_once)
        self._thin()
        for each in started:
            self._read(each)
        self._cost.begin_anew()

    def _drop_privileges_once(self) -> None:
        if self._drop_privileges is not None:
            sources = self._sources().values()
            rights = (source.rights() for source in sources if isinstance(source, PrivilegedSource))
            self._drop_privileges(frozenset().union(*rights))
            self._drop_privileges = None  # only where it worked: until then no lens is read

    def _let_go(self, lens: str) -> None:
        attached = self._attached.get(lens)
        if attached is not None:
            attached.leases -= 1
            attached.idle_since = None if attached.leases else time.monotonic()

    def _detach_idle(self) -> None:
        now = time.monotonic()
        for lens, attached in list(self._attached.items()):
            if attached.idle_since is not None and now - attached.idle_since >= DETACH_AFTER_S:
                self._detach(lens)
                self.bus.forget(lens)

    def _detach(self, lens: str) -> None:
        attached = self._attached.pop(lens, None)
        if attached is not None:
            self._allow_thinning()
            attached.source.close()

    def _allow_thinning(self) -> None:
        self._pace.allow_thinning(any(attached.sampling is not None for attached in self._attached.values()))

    def _thin(self) -> None:
        """Have each source that samples follow as few packets as --max-overhead takes."""
        thinning = self._pace.thinning
        for lens, attached in list(self._attached.items()):
            if attached.sampling is not None and attached.thinning != thinning:
                attached.thinning = thinning
                self._try(lens, partial(attached.sampling.thin, thinning))

    def _read_all(self) -> None:
        self._pace.tick()
        self._thin()
        # The own cost comes first, so that its rows and its total are of the same moment.
        for lens in sorted(self._attached, key=lambda lens: lens != SELF.id):
            self._read(lens)

    def _run_tasks(self) -> None:
        while self._tasks and not self._stopping:
            self._tasks.popleft()()

    def _source(self, lens: str) -> Source:
        return OwnCostSource(self._cost, self._pace, self.bus) if lens == SELF.id else self._source_of(lens)

    def _sources(self) -> dict[str, Source]:
        """The attached sources, by lens."""
        return {lens: attached.source for lens, attached in self._attached.items()}

    def _read(self, lens: str) -> None:
        attached = self._attached.get(lens)
        if attached is None:
            return
        if isinstance(attached.source, JoiningSource):
            frames = {other: self.bus.frame(other) for other in self._attached}
            attached.source.join({other: frame.now for other, frame in frames.items() if frame is not None})
        with self._cost.steps.time(lens, READ):
            snapshot = self._try(lens, lambda: attached.source.read(time.monotonic_ns()))
        # Drained first, so that the frame has what its snapshot explains.
        if snapshot is not None and self._drain(lens, attached.events):
            self.bus.publish(snapshot, int(self.interval_s * 0.5e9))

    def _drain(self, lens: str, source: EventSource | None) -> bool:
        """Publish the events of the source; False where that failed."""
        if source is None:
            return True
        with self._cost.steps.time(lens, DRAIN):
            batches = self._try(lens, lambda: source.drain(time.monotonic_ns()))
        if batches:
            self.bus.append(lens, batches)
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
        earlier = self.bus.failure(lens)
        if earlier is not None and self._drop_privileges is None and isinstance(failure, PermissionMissing):
            failure = earlier  # another lease tried again: what was given up meanwhile is not the cause
        self.bus.fail(lens, failure)
        return None


def _used_by(lens: str, table: object, columns: Collection[str]) -> list[str]:
    """The lenses that a table of a lens uses, with these columns."""
    declared = next((each for each in lenses() if each.id == lens), None)
    shown = None if declared is None else declared.table(str(table))
    if shown is None:
        return []
    fields = (shown.by_name.get(name) for name in columns)
    return list(dict.fromkeys((*shown.uses, *(field.lens for field in fields if field and field.lens))))
