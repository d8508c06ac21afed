# SPDX-License-Identifier: Apache-2.0
"""A running nettop: the bus, the requests of frontends, and the sampler, the only thread that reads sources.

The sampler reads at absolute deadlines of the monotonic clock, and drains events when the kernel wakes it. It attaches
one lens at a time, in a separate thread, and goes on reading the others. It tries a lens that failed again, after
growing pauses.
"""

from __future__ import annotations

import select
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple, Self, TypeVar

from nettop.engine.bus import Bus
from nettop.engine.own_cost import DRAIN, READ, START, OpenStatistics, OwnCost
from nettop.engine.own_cost_table import OwnCostSource
from nettop.engine.pace import OverheadLimit, Pace
from nettop.engine.source import probe_of
from nettop.errors import ExitCode, NettopError, PermissionMissing, SourceFailed, failure_of
from nettop.process.clocks import monotonic_ns
from nettop.process.wake_event import WakeEvent
from nettop.query.times import rfc3339
from nettop.settings import checked_seconds
from nettop.snapshots import lenses
from nettop.snapshots.findings import LENS as FINDINGS
from nettop.snapshots.own_cost import SELF
from nettop.snapshots.snapshot import Snapshot
from nettop.snapshots.source import (
    DropPrivileges,
    EventSource,
    JoiningSource,
    PrivilegedSource,
    ReplayingSource,
    SkippingSource,
    Source,
    SourceOptions,
)

T = TypeVar("T")
DETACH_AFTER_S = 60.0
"""Seconds a lens stays attached without a lease, so that switching screens back and forth costs nothing."""
DRAIN_PAUSE_S = 0.1
"""Seconds between two drains: events are taken in batches, and the kernel need not wake the thread for each."""
CHECK_PAUSE_S = 0.01
"""Seconds between two checks, within that pause, of whether a buffer is filling up."""
RETRY_S = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)
"""Pauses before a lens that failed is tried again, at a deadline, the more often it failed in a row."""
_REFUSALS = (ExitCode.USAGE, ExitCode.UNSUPPORTED, ExitCode.PERMISSION)
"""Exit codes of a start that fails again if it is tried again."""
_START_AGAIN = "start nettop again: it no longer has the privileges to attach this lens"


class Lease:
    """A lease that keeps a lens attached until released."""

    def __init__(self, release: Callable[[], None]) -> None:
        self._release: Callable[[], None] | None = release

    def release(self) -> None:
        """End the lease. Without other leases the lens detaches a little later."""
        if self._release is not None:
            self._release()
            self._release = None


NO_OPTIONS = SourceOptions()


@dataclass
class _Attaching:
    """A lens that waits to be attached, or is being attached, and the calls for its source until then.

    After a start that failed, it waits until `due_at`; else that is 0.
    """

    options: SourceOptions = NO_OPTIONS
    calls: list[Callable[[], None]] = field(default_factory=list)
    due_at: float = 0.0


class _Start(NamedTuple):
    """The start of a source in a thread of its own."""

    lens: str
    options: SourceOptions
    thread: ThreadPoolExecutor
    started: Future[Source]


@dataclass
class _Attached:
    source: Source
    options: SourceOptions
    events: EventSource | None
    idle_since: float | None = None
    due_at: float = 0.0
    """Time from which it may be read at a deadline, so that its first interval is not too short."""
    is_failing: bool = False
    """True if its last reading failed: until it is due, it is left alone."""


class Session:
    """A running nettop, used as a context manager. Leaving it closes every source.

    `source_of` creates the source of a lens: by default the probe. `is_local` is False if no source attaches anything
    to this kernel.
    `open_statistics` enables BPF statistics until its descriptor is closed; `max_overhead` is the share of one CPU
    that nettop may use. The sampler's thread calls `drop_privileges` once, after the first lens has started or failed,
    and before any reading. If lenses start `together`, it does so after the last of them. The thread that attaches a
    lens begins with the sampler's privileges and ends before the lens is read.

    A source that fails is not closed but read again later: that needs no privileges, and its counts go on.
    """

    def __init__(
        self,
        interval_s: float,
        source_of: Callable[[str], Source] = probe_of,
        *,
        is_local: bool = True,
        open_statistics: OpenStatistics | None = None,
        max_overhead: float | None = None,
        drop_privileges: DropPrivileges | None = None,
        together: Collection[str] = (),
    ) -> None:
        self.bus = Bus()
        self.is_local = is_local
        self._cost = OwnCost(self._sources, open_statistics)
        self.steps = self._cost.steps
        """The steps, in which frontends measure their own."""
        self._pace = Pace(checked_seconds("--interval", interval_s), self._cost, max_overhead)
        self._source_of = source_of
        self._drop_privileges = drop_privileges
        self._together = set(together)
        self._unread: list[str] = []
        self._leased: Counter[str] = Counter()
        self._leases: Counter[str] = Counter()
        self._attaching: dict[str, _Attaching] = {}
        self._start: _Start | None = None
        self._executor = ThreadPoolExecutor
        self._attached: dict[str, _Attached] = {}
        self._failures_in_a_row: Counter[str] = Counter()
        self._tasks: deque[Callable[[], None]] = deque()
        self._event = WakeEvent()
        self._requests: list[Future[None]] = []
        self._read_requests: list[Future[None]] = []
        self._is_superseded = False
        self._stopping = False
        self._deadline = 0.0
        self._skipped = 0
        self._drained_at = float("-inf")
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping = True
        self._event.set()
        self._thread.join()

    # --- called by frontends ------------------------------------------------------------------------------

    @property
    def interval_s(self) -> float:
        """Seconds between two refreshes."""
        return self._pace.interval_s

    @property
    def kept_interval_s(self) -> float:
        """Seconds between the last two deadlines that were kept: longer than the interval if readings take longer."""
        return (self._skipped + 1) * self.interval_s

    @property
    def overhead_limit(self) -> OverheadLimit | None:
        """The current effect of --max-overhead; None without that option."""
        return self._pace.limit

    def cost(self) -> float | None:
        """Return nettop's recent share of one CPU, including its programs if `counts_programs`."""
        return self._cost.share()

    @property
    def counts_programs(self) -> bool:
        """Whether the time of nettop's programs in the kernel is known, and part of the cost."""
        return self._cost.counts_programs

    @property
    def late(self) -> int:
        """Refreshes skipped because the previous one took too long."""
        return self._cost.late

    def sample_now(self, *, is_last: bool = False, restarts: bool = False) -> Future[None]:
        """Refresh every attached lens at once; the next deadline stays, unless this `restarts` the interval.

        The future completes after a reading that began after this call, also of the lenses that are being attached.
        `is_last` ends a reading in progress before its next lens: the new one reads them all.
        """
        request: Future[None] = Future()
        self._is_superseded = is_last
        self._post(partial(self._request, request, restarts=restarts))
        return request

    def set_interval(self, interval_s: float) -> None:
        """Refresh every `interval_s` seconds from now on. Raise UsageError if it is out of range."""
        checked = checked_seconds("--interval", interval_s)
        self._post(lambda: self._pace.set_interval(checked))

    def enable(self, lens: str, options: SourceOptions = NO_OPTIONS, columns: Collection[str] = ()) -> Lease:
        """Attach a lens with these options unless it is attached, and keep it until the lease is released.

        `bus.failure(lens)` reports errors. The lease also covers the lenses that its tables use, and those that supply
        a value of the `columns`. A lease of the own cost also covers the lenses that are attached, or else the first
        lens, because it is their cost.
        """
        others = _used_by(lens, options.tables, columns)
        if lens == SELF.id:
            others = {other: frozenset() for other in self._leased if other != SELF.id} or {
                lenses()[0].id: frozenset()
            }
        leased = {other: replace(options, tables=used, whole=False) for other, used in others.items()}
        leased[lens] = options
        self._leased.update(leased.keys())
        for item in leased.items():
            self._post(partial(self._attach, *item))
        return Lease(lambda: self._release(list(leased)))

    def _release(self, leased: list[str]) -> None:
        self._leased -= Counter(leased)  # drops lenses without a lease
        for lens in leased:
            self._post(partial(self._end_lease, lens))

    def change(self, lens: str, change: Callable[[SourceOptions], SourceOptions]) -> None:
        """Change the options of an attached lens, before its next refresh."""
        self._post(partial(self._change, lens, change))

    def describe(self, lens: str, key: int) -> Future[dict[str, str]]:
        """Return details of a row, which are read only on demand."""
        result: Future[dict[str, str]] = Future()
        self._post(partial(self._describe, lens, key, result))
        return result

    def _post(self, task: Callable[[], None]) -> None:
        self._tasks.append(task)
        self._event.set()

    # --- in the sampler thread --------------------------------------------------------------------------

    def _request(self, request: Future[None], *, restarts: bool) -> None:
        self._requests.append(request)
        if restarts:
            self._deadline = time.monotonic()

    def _run(self) -> None:
        self._deadline = time.monotonic() + self.interval_s
        with self._event:
            if self._pace.bound is not None:
                self._cost.acquire_statistics()
            while self._wait():
                self._run_tasks()
                if self._together:
                    continue
                self._detach_idle()
                if self._requests or time.monotonic() >= self._deadline:
                    self._read_all()
                else:
                    self._drained_at = time.monotonic()
                    for lens, attached in self._working().items():
                        self._drain(lens, attached.events)
                self._complete_requests()
                self._deadline = self._next_deadline()
            if self._start is not None:
                self._start.thread.shutdown()
                if self._start.started.exception() is None:
                    self._start.started.result().close()
            for lens in list(self._attached):
                self._detach(lens)
            if self._pace.bound is not None:
                self._cost.release_statistics()

    def _wait(self) -> bool:
        """Wait for the deadline or for work; return False when stopping."""
        while not (self._stopping or self._tasks):
            if self._together:
                self._event.wait()
                continue
            now = time.monotonic()
            rest = self._drained_at + DRAIN_PAUSE_S - now
            remaining = self._deadline - now
            if remaining <= 0:
                break
            wakeups: dict[int, int] = {}
            sources = [attached.events for attached in self._working().values() if attached.events]
            if rest <= 0 or any(source.is_filling() for source in sources):
                wakeups = {number: select.POLLIN for source in sources for number in source.wakeups()}
            else:
                remaining = min(remaining, rest, CHECK_PAUSE_S)
            if self._event.wait(wakeups, remaining):
                break
        return not self._stopping

    def _next_deadline(self) -> float:
        """Return the next deadline in the future; count the missed ones."""
        now = time.monotonic()
        if now < self._deadline:
            return min(self._deadline, now + self.interval_s)
        self._skipped = int((now - self._deadline) / self.interval_s)
        self._cost.late += self._skipped
        return self._deadline + self.kept_interval_s

    def _attach(self, lens: str, options: SourceOptions) -> None:
        self._leases[lens] += 1
        attached = self._attached.get(lens)
        if attached is None:
            self._attaching.setdefault(lens, _Attaching()).due_at = 0.0
        else:
            attached.idle_since = None
            attached.due_at = 0.0 if attached.is_failing else attached.due_at
        self._change(lens, lambda present: present | options)
        self._start_next()

    def _change(self, lens: str, change: Callable[[SourceOptions], SourceOptions]) -> None:
        if lens in self._attaching:
            self._attaching[lens].options = change(self._attaching[lens].options)
        elif lens in self._attached:
            attached = self._attached[lens]
            attached.options = change(attached.options)
            self._try(lens, partial(attached.source.configure, attached.options))

    def _describe(self, lens: str, key: int, result: Future[dict[str, str]]) -> None:
        if lens in self._attaching and not self._attaching[lens].due_at:
            self._attaching[lens].calls.append(partial(self._describe, lens, key, result))
        elif result.set_running_or_notify_cancel():
            try:
                if lens not in self._attached:
                    raise SourceFailed(f"lens {lens!r} is not attached")
                result.set_result(self._attached[lens].source.describe(key))
            except Exception as error:  # noqa: BLE001 - the sampler goes on
                result.set_exception(failure_of(lens, error))

    def _start_next(self) -> None:
        """Begin to attach the next lens unless another is being attached: loaders need much memory."""
        now = time.monotonic()
        due = [lens for lens, attaching in self._attaching.items() if now >= attaching.due_at]
        if self._start is not None or not due:
            return
        self._pace.ignore_attaching()
        lens, attaching = due[0], self._attaching[due[0]]
        attaching.due_at = 0.0
        thread = self._executor(1, f"attach-{lens}")
        try:
            started = thread.submit(self._started, lens, attaching.options)
        except RuntimeError as error:  # no thread can be started
            started = Future()
            started.set_exception(error)
        self._start = _Start(lens, attaching.options, thread, started)
        started.add_done_callback(lambda _: self._post(self._finish_start))

    def _started(self, lens: str, options: SourceOptions) -> Source:
        """Return the source of a lens once it has started; called in the thread that attaches it."""
        source = self._source(lens)
        try:
            source.configure(options)
            with self._cost.steps.time(lens, START):
                source.start()
        except BaseException:
            source.close()
            raise
        return source

    def _finish_start(self) -> None:
        assert self._start is not None
        lens, options, thread, started = self._start
        thread.shutdown()
        self._start = None
        attaching = self._attaching.pop(lens)
        source = self._try(lens, started.result, attaching.options)
        if source is not None:
            # What another source of the lens counted is not compared with what this one does.
            self.bus.forget(lens)
            self._attached[lens] = _Attached(
                source,
                attaching.options,
                events=source if isinstance(source, EventSource) else None,
                idle_since=None if self._leases[lens] else time.monotonic(),
            )
            self._unread.append(lens)
            if attaching.options != options:
                self._try(lens, partial(source.configure, attaching.options))
        self._after_start(lens)
        for call in attaching.calls:
            call()
        self._start_next()

    def _after_start(self, lens: str) -> None:
        """Continue after a lens has started or failed. Once all lenses that start together have, read them."""
        self._together.discard(lens)
        if self._together:
            return
        started, self._unread = self._unread, []
        for started_lens in started or [lens]:
            self._try(started_lens, self._drop_privileges_once)
        for started_lens in started:
            self._read(started_lens)
        self._pace.ignore_attaching()
        self._cost.restart()
        # The first interval of a lens is a whole one, or at least half of one if others have deadlines already.
        now = time.monotonic()
        if self._attached.keys() <= set(started):
            self._deadline = now + self.interval_s
        for started_lens in self._attached.keys() & set(started):
            self._attached[started_lens].due_at = now + self.interval_s / 2

    def _drop_privileges_once(self) -> None:
        if self._drop_privileges is not None:
            sources = self._sources().values()
            rights = (source.capabilities() for source in sources if isinstance(source, PrivilegedSource))
            self._drop_privileges(frozenset().union(*rights))
            self._drop_privileges = None  # only on success: until then no lens is read

    def _end_lease(self, lens: str) -> None:
        self._leases[lens] -= 1
        attached, attaching = self._attached.get(lens), self._attaching.get(lens)
        if self._leases[lens]:
            return
        if attached is not None and attached.is_failing:
            self._detach(lens)
        elif attached is not None:
            attached.idle_since = time.monotonic()
        elif attaching is not None and attaching.due_at:
            del self._attaching[lens]

    def _detach_idle(self) -> None:
        now = time.monotonic()
        for lens, attached in list(self._attached.items()):
            if attached.idle_since is not None and now - attached.idle_since >= DETACH_AFTER_S:
                self._detach(lens)
                self.bus.forget(lens)

    def _detach(self, lens: str) -> None:
        attached = self._attached.pop(lens, None)
        if attached is not None:
            attached.source.close()

    def _read_all(self) -> None:
        """Read every lens on request; at a deadline, those that are due."""
        if self._start is not None:
            self._pace.ignore_attaching()
        self._pace.tick()
        self._is_superseded = False
        now, is_requested = time.monotonic(), bool(self._requests)
        self._start_next()
        # After a missed deadline, lenses without a lease do not delay the others.
        due = [
            lens
            for lens, attached in self._attached.items()
            if (now >= attached.due_at and (attached.idle_since is None or not self._skipped))
            or (is_requested and not attached.is_failing)
        ]
        # The own cost comes first, so that its rows and its total are from the same moment. Findings come last, because
        # they are about what the others have just read.
        for lens in sorted(due, key=lambda lens: (lens != SELF.id, lens == FINDINGS.id)):
            if self._stopping or self._is_superseded:
                return
            self._read(lens)
        self._read_requests += self._requests
        self._requests = []

    def _complete_requests(self) -> None:
        """Complete the requests whose reading is done, unless lenses are still being attached."""
        if all(attaching.due_at for attaching in self._attaching.values()):
            requests, self._read_requests = self._read_requests, []
            for request in requests:
                if request.set_running_or_notify_cancel():
                    request.set_result(None)

    def _run_tasks(self) -> None:
        while self._tasks and not self._stopping:
            self._tasks.popleft()()

    def _source(self, lens: str) -> Source:
        return OwnCostSource(self._cost, self._pace, self.bus) if lens == SELF.id else self._source_of(lens)

    def _working(self) -> dict[str, _Attached]:
        """Return the attached lenses whose last reading did not fail."""
        return {lens: attached for lens, attached in self._attached.items() if not attached.is_failing}

    def _sources(self) -> dict[str, Source]:
        """Return the attached sources by lens."""
        return {lens: attached.source for lens, attached in self._attached.items()}

    def _read(self, lens: str) -> None:
        attached = self._attached.get(lens)
        if attached is None:
            return
        with self._cost.steps.time(lens, READ):
            snapshot = self._try(lens, lambda: self._snapshot(attached.source))
        if snapshot is None:
            return
        oldest_gap_ns = int(self.interval_s * 0.5e9)
        if isinstance(attached.source, ReplayingSource):
            frame = self.bus.frame(lens)
            if frame is not None and frame.now is snapshot:
                return
            self._leap(lens, *attached.source.leap())
            oldest_gap_ns = 0
        # Drain first, so that the frame has the events that its snapshot counts.
        if self._drain(lens, attached.events):
            attached.is_failing = False
            del self._failures_in_a_row[lens]
            self.bus.publish(snapshot, oldest_gap_ns)

    def _snapshot(self, source: Source) -> Snapshot:
        """Pass a source what it needs of the others, and return its reading."""
        if isinstance(source, JoiningSource):
            frames = {lens: self.bus.frame(lens) for lens in self._working()}
            source.join({other: frame for other, frame in frames.items() if frame is not None})
        if isinstance(source, SkippingSource):
            source.note_skipped(self._cost.late)
        return source.read(monotonic_ns())

    def _leap(self, lens: str, is_elsewhere: bool, before: Snapshot | None) -> None:
        """Prepare the bus for a reading of another moment: its rates are those of the recorded interval."""
        if is_elsewhere:
            self.bus.forget(lens)
        if before is not None:
            self.bus.precede(before)

    def _drain(self, lens: str, source: EventSource | None) -> bool:
        """Publish the events of the source; return False if that failed."""
        if source is None:
            return True
        with self._cost.steps.time(lens, DRAIN):
            batches = self._try(lens, lambda: source.drain(monotonic_ns()))
        if batches:
            self.bus.append(lens, batches)
        return batches is not None

    def _try(self, lens: str, step: Callable[[], T], options: SourceOptions | None = None) -> T | None:
        """Return the result of `step`. If it fails, report that on the bus, and try the lens again later.

        `options` are those of a lens whose start it is.
        """
        try:
            return step()
        except Exception as error:  # noqa: BLE001 - the other lenses go on
            failure = failure_of(lens, error)
        attached, tries = self._attached.get(lens), self._failures_in_a_row[lens]
        is_refused = attached is None and failure.exit_code in _REFUSALS
        is_retried = self._leases[lens] > 0 and not is_refused
        failure = self._in_words(lens, failure, tries if attached is None else None)
        due_at = time.monotonic() + RETRY_S[min(tries, len(RETRY_S) - 1)]
        if attached is not None and is_retried and self._drop_privileges is None:
            attached.is_failing, attached.due_at = True, due_at
        else:
            self._detach(lens)
            if is_retried:
                options = attached.options if attached is not None else options or NO_OPTIONS
                self._attaching.setdefault(lens, _Attaching(options)).due_at = due_at
        self._failures_in_a_row[lens] += 1
        failure.is_retried = is_retried
        self.bus.fail(lens, failure)
        return None

    def _in_words(self, lens: str, failure: NettopError, starts: int | None) -> NettopError:
        """Return a failure that says since when the lens is missing. After `starts` that failed before, without the
        privileges dropped meanwhile, return the cause of the first one."""
        frame, earlier = self.bus.frame(lens), self.bus.failure(lens)
        lacks_privileges = isinstance(failure, PermissionMissing) and self._drop_privileges is None
        if starts is not None and earlier is not None and lacks_privileges:
            return earlier.in_words(earlier.what, _START_AGAIN) if starts else earlier
        if frame is None:
            return failure
        since = rfc3339(frame.now.wall_ns)[:19]
        return failure.in_words(f"{failure.what}; not read since {since}Z", failure.remedy)


def _used_by(lens: str, tables: Collection[str], columns: Collection[str]) -> dict[str, frozenset[str]]:
    """Return the lenses that tables use with these columns, each with the tables of it that are named."""
    declared = next((known for known in lenses() if known.id == lens), None)
    shown = [table for table in declared.tables if table.name in tables] if declared is not None else []
    fields = (table.by_name.get(table.current(name)) for table in shown for name in columns)
    uses = [used.partition(".") for table in shown for used in table.uses]
    uses += [(field.lens, "", "") for field in fields if field and field.lens]
    return {
        other: frozenset(name for used, _, name in uses if used == other and name) for other, _, _ in uses
    }
