# SPDX-License-Identifier: Apache-2.0
"""The record frontend: write every snapshot and event that the sampler publishes to a recording."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple, TextIO

from nettop import version_of_build
from nettop.diagnostics import StatusLine
from nettop.engine.bus import QUEUED_ROWS
from nettop.engine.consumer import Consumer
from nettop.engine.own_cost import WRITE
from nettop.engine.session import Session
from nettop.errors import ExitCode, NettopError
from nettop.process import service_manager
from nettop.process.interrupts import Requests
from nettop.process.wake_event import WakeEvent
from nettop.query.batches import concatenate_batches
from nettop.query.units import human, plural
from nettop.recording.chunks import Group
from nettop.recording.files import Destination, Full, HourlyFiles, OneFile, Output, file_name
from nettop.recording.numbers import TooLarge
from nettop.recording.redaction.redactor import Redactor
from nettop.recording.writer import RecordingWriter, Sink
from nettop.settings import STDOUT
from nettop.settings.record import DIRECTORY_BYTES, RecordSettings
from nettop.snapshots import lenses
from nettop.snapshots.findings import LENS as FINDINGS
from nettop.snapshots.schema import Lens
from nettop.snapshots.snapshot import Rows, Snapshot
from nettop.snapshots.source import SourceOptions

UNRECORDED_READINGS, UNRECORDED_EVENTS = "unrecorded readings", "unrecorded events"
"""Names in a snapshot's losses: what was published, but not written in time."""
_READING_ROWS = 64
"""Rows charged to the queue for a reading itself."""
_STEP_S = 1.0
"""Seconds between updates of the status line, and between looks for events that wait."""
_EVENTS_WAIT_S = 1.5
"""Seconds that events may wait for the next reading of their lens, with which they are written."""
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def run_record(
    settings: RecordSettings,
    session: Session,
    requests: Requests,
    stdout: TextIO | None,
    stderr: TextIO | None,
    *,
    redaction_key: bytes | None = None,
) -> ExitCode:
    """Record until the time is over or the end is requested, then take a last reading.

    Raise NettopError before attaching anything if the recording cannot be written, later if it can no longer be
    written, and the error of a lens if none of the chosen ones can be read; BrokenPipeError if the reader is gone.
    """
    event = WakeEvent()
    requests.wake = event.set
    redactor = None if redaction_key is None else Redactor(redaction_key)
    destination = _destination(settings, redactor, requests, stdout)
    with closing(destination), event, ExitStack() as resources:
        options = SourceOptions(mechanisms=settings.mechanisms, whole=True, values=settings.options)
        parts = [
            _RecordedLens(lens, Consumer(session, lens.id, lens.tables, options, event))
            for lens in lenses()
            if lens.id in settings.lenses
        ]
        queue = _Queue(parts)
        resources.callback(session.bus.subscribe(queue.put_readings))
        resources.callback(session.bus.subscribe(partial(service_manager.alive, session.interval_s)))
        for part in parts:
            resources.enter_context(part.consumer)
        recorder = _Recorder(settings, session, queue, destination, redactor, StatusLine(stderr))
        try:
            recorder.record(requests, event)
        except Full:
            recorder.ended_by = f" (--max-size {human(settings.max_bytes, 'bytes')} reached)"
        except NettopError:
            if recorder.has_begun:
                recorder.report_summary()
            raise
        recorder.report_summary()
    return ExitCode.DONE


def _destination(
    settings: RecordSettings, redactor: Redactor | None, requests: Requests, stdout: TextIO | None
) -> Destination:
    name = os.uname().nodename
    host = name if redactor is None else redactor.host(name)
    if settings.path == STDOUT:
        assert stdout is not None
        return Output(stdout, requests, settings.max_bytes)
    if settings.is_hourly:
        most = settings.max_bytes or DIRECTORY_BYTES
        return HourlyFiles(Path(settings.path), host, most, settings.max_age_s)
    path = Path(settings.path or file_name(host, time.time_ns()))
    return OneFile(path, settings.max_bytes, continues=redactor is None)


def host_facts() -> dict[str, str]:
    """Return facts about this host, as text."""
    system = os.uname()
    facts = {"name": system.nodename, "kernel": system.release, "machine": system.machine}
    with suppress(OSError):  # unknown, as in some sandboxes
        facts["boot_id"] = _BOOT_ID.read_text().strip()
    cpus = os.cpu_count()
    return facts if cpus is None else facts | {"cpus": str(cpus)}


class _RecordedLens:
    """A lens that is recorded, and how much of it was written and lost."""

    def __init__(self, lens: Lens, consumer: Consumer) -> None:
        self.lens = lens
        self.consumer = consumer
        self.events = [table for table in lens.tables if table.append]
        self.newest: Snapshot | None = None
        self.taken_at = time.monotonic()
        self.failure: NettopError | None = None
        self.written: Counter[str] = Counter()
        self.lost = Counter({UNRECORDED_READINGS: 0, UNRECORDED_EVENTS: 0})
        self.lost_in_feeds = 0
        self.first_lost: dict[str, int] | None = None
        """What the source had lost by the first reading."""
        self.last_lost: dict[str, int] = {}

    def take_events(self) -> tuple[Rows, ...]:
        """Return the events since the last call; count those that their feeds have dropped."""
        lost = sum(self.consumer.lost(table) for table in self.events)
        self.lost[UNRECORDED_EVENTS] += lost - self.lost_in_feeds
        self.lost_in_feeds = lost
        return tuple(batch for table in self.events for batch in self.consumer.rows(table))


class _Item(NamedTuple):
    """Events of a lens, and the reading that follows them, if one has."""

    part: _RecordedLens
    events: tuple[Rows, ...]
    reading: Snapshot | None
    wall_ns: int

    @property
    def rows(self) -> int:
        """How many rows it counts as in the queue."""
        tables = [] if self.reading is None else self.reading.tables.values()
        return _READING_ROWS + sum(map(len, self.events)) + sum(map(len, tables))


class _Queue:
    """What was published and is not written yet, in its order.

    Beyond QUEUED_ROWS, the oldest are dropped and counted: a slow disk or reader never delays the sampler.
    """

    def __init__(self, parts: Sequence[_RecordedLens]) -> None:
        self.parts = parts
        self._lock = threading.Lock()
        self._items: deque[_Item] = deque()
        self._rows = 0

    def put_readings(self) -> None:
        """Queue what was just published; called by the sampler's thread."""
        for part in self.parts:
            frame = part.consumer.frame
            if frame is not None and frame.now is not part.newest:
                part.newest = frame.now
                self._put(part, frame.now)

    def put_events(self) -> None:
        """Queue events that have waited long for a reading."""
        now = time.monotonic()
        for part in self.parts:
            if part.events and now - part.taken_at > _EVENTS_WAIT_S:
                self._put(part, None)

    def pop(self) -> _Item | None:
        """Remove and return the oldest; None if there is none."""
        with self._lock:
            if not self._items:
                return None
            item = self._items.popleft()
            self._rows -= item.rows
            return item

    def _put(self, part: _RecordedLens, reading: Snapshot | None) -> None:
        with self._lock:  # also while events are taken: those of a reading come before it
            part.taken_at = time.monotonic()
            events = part.take_events()
            if reading is None and not events:
                return
            item = _Item(part, events, reading, time.time_ns() if reading is None else reading.wall_ns)
            self._items.append(item)
            self._rows += item.rows
            while self._rows > QUEUED_ROWS and len(self._items) > 1:
                self._drop(self._items.popleft())

    def _drop(self, item: _Item) -> None:
        self._rows -= item.rows
        item.part.lost[UNRECORDED_READINGS] += item.reading is not None
        item.part.lost[UNRECORDED_EVENTS] += sum(map(len, item.events))


@dataclass
class _Recorder:
    """A recording in progress."""

    settings: RecordSettings
    session: Session
    queue: _Queue
    destination: Destination
    redactor: Redactor | None
    status: StatusLine
    ended_by: str = ""
    sink: Sink | None = None
    writer: RecordingWriter | None = None
    began: float | None = None
    reported: Counter[str] = field(default_factory=Counter)
    too_large: set[str] = field(default_factory=set)

    @property
    def has_begun(self) -> bool:
        """True if something was recorded."""
        return self.began is not None

    @property
    def _elapsed_s(self) -> float:
        return 0.0 if self.began is None else time.monotonic() - self.began

    def record(self, requests: Requests, event: WakeEvent) -> None:
        """Record until the end. Raise NettopError, BrokenPipeError, and Full."""
        while not requests.ending and (left := self._left_s()) > 0:
            self.queue.put_events()
            self._write_queued()
            self.status.show(self._words())
            event.wait(timeout_s=min(left, _STEP_S))
        service_manager.stopping()
        self._write_queued()
        if self.began is not None:
            part = next(part for part in self.queue.parts if part.failure is None)
            if missing := part.consumer.read_last(self._write_queued):
                self.status.report(missing)
            self._write_queued()
            self._require_a_lens(has_begun=False)

    def _left_s(self) -> float:
        duration_s = self.settings.duration_s
        return float("inf") if duration_s is None else duration_s - self._elapsed_s

    def _write_queued(self) -> None:
        self._note_failures()
        while (item := self.queue.pop()) is not None:
            with self.session.steps.time(item.part.lens.id, WRITE):
                self._write(item)
        self._report_losses()
        self._require_a_lens(has_begun=self.has_begun)

    def _write(self, item: _Item) -> None:
        writer, part = self._writer_at(item.wall_ns), item.part
        for table in part.events:
            batches = [batch for batch in item.events if batch.table is table]
            if batches:
                batch = concatenate_batches(table, batches)
                with self._counting_too_large(part, UNRECORDED_EVENTS, len(batch)):
                    writer.write_events(part.lens.id, batch, item.wall_ns)
                    part.written[table.name] += len(batch)
        if item.reading is not None:
            part.last_lost = item.reading.notable_losses
            if part.first_lost is None:
                part.first_lost = part.last_lost
            with self._counting_too_large(part, UNRECORDED_READINGS, 1):
                writer.write(replace(item.reading, lost={**item.reading.lost, **+part.lost}))
                part.written[""] += 1
        if self.began is None:
            self.began = time.monotonic()
            service_manager.ready(f"recording {', '.join(self._recorded())}")

    def _writer_at(self, wall_ns: int) -> RecordingWriter:
        """Return the writer, which writes to the file for this time."""
        sink = self.destination.sink_at(wall_ns)
        if self.writer is None:
            origin = Group(
                tuple(self._recorded()),
                self.session.interval_s,
                version_of_build(),
                host_facts(),
                self._failures(),
            )
            self.writer = RecordingWriter(sink, origin, self.redactor)
        elif sink is not self.sink:
            self.writer.go_on_in(sink)
        self.sink = sink
        return self.writer

    # --- failures -----------------------------------------------------------------------------------------------

    def _recorded(self) -> list[str]:
        """Return the lenses that have not failed."""
        return [part.lens.id for part in self.queue.parts if part.failure is None]

    def _failures(self) -> dict[str, list[str]]:
        failures = {part.lens.id: part.failure for part in self.queue.parts}
        return {
            lens: [failure.what, failure.remedy] for lens, failure in failures.items() if failure is not None
        }

    def _note_failures(self) -> None:
        """Report the lenses that have failed or come back, and name those missing in the recording."""
        for part in self.queue.parts:
            failure = part.consumer.failure
            if (failure is None) == (part.failure is None):
                continue
            part.failure = failure
            if self.writer is not None:
                self.writer.fail(self._failures())
            title = part.lens.title
            self.status.report(
                f"recorded again: {title}" if failure is None else f"not recorded: {title}: {failure.what}"
            )

    def _require_a_lens(self, *, has_begun: bool) -> None:
        """Raise the first error if none of the chosen lenses is left; findings alone are about nothing. While a
        recording that `has_begun` goes on, a lens may come back."""
        chosen = [part for part in self.queue.parts if part.lens is not FINDINGS] or self.queue.parts
        if all(part.failure is not None for part in chosen):
            may_come = has_begun and any(part.failure.is_retried for part in chosen if part.failure)
            chosen[0].consumer.raise_failure(has_begun=may_come)

    @contextmanager
    def _counting_too_large(self, part: _RecordedLens, what: str, count: int) -> Iterator[None]:
        """Count as lost what is too large for a recording; report the first of each lens."""
        try:
            yield
        except TooLarge as error:
            part.lost[what] += count
            self.reported[what] += count  # not as what was written too slowly
            if part.lens.id not in self.too_large:
                self.too_large.add(part.lens.id)
                self.status.report(f"not recorded: {part.lens.title}: {error}")

    # --- losses -------------------------------------------------------------------------------------------------

    def _report_losses(self) -> None:
        """Report what was not written since the last report."""
        totals = sum((part.lost for part in self.queue.parts), Counter[str]())
        for what, count in (totals - self.reported).items():
            self.status.report(f"lost {count} {what}: the recording is written too slowly")
        self.reported = totals

    def _losses(self) -> str:
        """Return all losses since the first reading, those of sources by lens."""
        losses = []
        for part in self.queue.parts:
            first = part.first_lost or {}
            grown = {what: count - first.get(what, 0) for what, count in part.last_lost.items()}
            losses += [
                f"{count} {what} ({part.lens.id})"
                for what, count in {**grown, **part.lost}.items()
                if count > 0
            ] + ([] if part.written[""] else [f"every reading ({part.lens.id})"])
        return ", ".join(losses) or "nothing"

    # --- messages -----------------------------------------------------------------------------------------------

    def _words(self) -> str:
        if self.began is None:
            return "attaching …  (Ctrl-C ends)"
        of_all = "" if self.settings.duration_s is None else f" of {self.settings.duration_s:g} s"
        size = human(self.destination.written, "bytes")
        return f"recording  {self._elapsed_s:.0f} s{of_all}  {size}  (Ctrl-C ends)"

    def report_summary(self) -> None:
        """Report how long and what was recorded, how large it is, and what was lost."""
        if self.began is None:
            self.status.report("ended before the first reading: nothing was recorded")
            return
        by_count: dict[int, list[str]] = {}
        for part in self.queue.parts:
            if part.written[""]:
                by_count.setdefault(part.written[""], []).append(part.lens.id)
        readings = [
            f"{count} {plural('reading', count)} of {', '.join(names)}" for count, names in by_count.items()
        ]
        events = [
            f"{part.written[table.name]} {part.lens.id}.{table.name}"
            for part in self.queue.parts
            for table in part.events
        ]
        size = human(self.destination.written, "bytes")
        what = "; ".join(
            [*readings, *events, f"{size} to {self.destination.place}", f"lost {self._losses()}"]
        )
        self.status.report(f"recorded {self._elapsed_s:.1f} s{self.ended_by}: {what}")
