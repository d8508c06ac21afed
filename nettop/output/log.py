# SPDX-License-Identifier: Apache-2.0
"""The log frontend: write events as they occur, tables at intervals, and losses, to the console and to files."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import TextIO

from nettop.diagnostics import Diagnostics
from nettop.engine.consumer import Consumer, Outages
from nettop.engine.own_cost import WRITE
from nettop.engine.session import Session
from nettop.errors import ExitCode, NettopError, UsageError
from nettop.formats.jsonl import JsonLines
from nettop.formats.rows import with_own_time
from nettop.output.banner import mechanisms
from nettop.output.lens_output import lens_output
from nettop.output.log_lines import CAUSES, QUEUE_FULL, Losses, TextLines, limit_line, lost_line, missing_line
from nettop.output.log_sinks import Sinks
from nettop.output.table import whole_columns
from nettop.process import service_manager
from nettop.process.interrupts import Requests
from nettop.process.wake_event import WakeEvent
from nettop.query.batches import pieces
from nettop.query.query import Query, checked_columns, query_from_settings, text_query
from nettop.query.view import View
from nettop.settings import LineFormat, ViewSettings
from nettop.settings.log import LogSettings
from nettop.snapshots import logged_views, view_name
from nettop.snapshots.hooks import NOT_AVAILABLE
from nettop.snapshots.schema import Lens, Table
from nettop.snapshots.snapshot import Frame, Snapshot
from nettop.snapshots.source import SourceOptions

LineMaker = TextLines | JsonLines
"""Formatter of rows as lines."""


@dataclass(frozen=True, slots=True, eq=False)
class LogStream:
    """One logged table of a lens: the name of its file, which rows to log, and their format."""

    lens: str
    name: str
    query: Query
    maker: LineMaker

    @property
    def table(self) -> Table:
        """The table. Rows of an append table are logged as they occur."""
        return self.query.table


def make_log_plan(settings: LogSettings) -> tuple[list[LogStream], list[str]]:
    """Return the tables to log, and notes for the user on those that lack a field of the filter, or all of the columns.

    Raise UsageError for an unknown name, or if there is nothing to log.
    """
    logged = _logged_tables(settings)
    wanted = _wanted_columns(settings, [table for _, table in logged])
    streams, notes, refused = [], [], []
    for lens, table in logged:
        name = _name(lens, table)
        try:
            streams.append(_stream(settings, lens, table, wanted))
        except UsageError as error:
            refused.append(error)
            notes.append(f"no {name} are logged: {error.what}")
        else:
            lacking = [column for column in wanted or () if column not in table.names]
            notes += [f"{name}: no column {', '.join(lacking)}"] if lacking else []
    if not streams:
        raise refused[0]
    return streams, notes


def lines_of(
    form: LineFormat, kind: str, view: str, table: Table, columns: tuple[str, ...] | None = None, *, why: bool
) -> LineMaker:
    """Return a formatter of the table `view` as lines of this kind; `columns` None means its default columns.

    With `why`, JSON lines give the reason why null values are not available.
    """
    if form is LineFormat.TEXT:
        return TextLines(view.partition(".")[0], table, kind, columns)
    return JsonLines(
        with_own_time(table, columns or whole_columns(table)), {"type": kind, "lens": view}, why=why
    )


def _logged_tables(settings: LogSettings) -> list[tuple[Lens, Table]]:
    views = logged_views(settings.views)
    logged = [
        (lens, table) for lens, table in views if (settings.events if table.append else settings.metrics)
    ]
    if not logged:
        option, what = "--events-only" if settings.events else "--metrics-only", ", ".join(settings.views)
        raise UsageError(f"{option} leaves nothing of {what} to log", f"leave out {option}")
    return logged


def _wanted_columns(settings: LogSettings, tables: list[Table]) -> tuple[str, ...] | None:
    """Return the columns named by --columns except the time, which every line has; None without the option.

    Raise UsageError for a column that no table has, with the nearest names.
    """
    if settings.columns is None:
        return None
    beside_time = (name for name in settings.columns if name != "time")
    return checked_columns(beside_time, *tables)


def _stream(settings: LogSettings, lens: Lens, table: Table, wanted: tuple[str, ...] | None) -> LogStream:
    """Return the stream of a table. Raise UsageError if the table lacks a field of the filter, or all columns."""
    query = query_from_settings(text_query(table), ViewSettings(filters=settings.filters))
    columns = None if wanted is None else tuple(name for name in wanted if name in table.names)
    if columns == ():
        raise UsageError("the table has none of the columns")
    view = view_name(lens, table)
    kind = "event" if table.append else "metrics"
    if settings.format is LineFormat.TEXT and view not in lens_output(lens.id).log_names:
        kind = view
    # Events are identified by their lens alone.
    shown = lens.id if table.append else view
    maker = lines_of(settings.format, kind, shown, table, columns, why=settings.why)
    return LogStream(lens.id, _name(lens, table), query, maker)


def _name(lens: Lens, table: Table) -> str:
    """Return the name of the table's file and lines."""
    view = view_name(lens, table)
    return lens_output(lens.id).log_names.get(view, view)


BLOCK_ROWS = 4096
"""Rows formatted at once, about as many as a storm of connections makes between two drains."""


def run_log(
    settings: LogSettings, session: Session, requests: Requests, stdout: TextIO | None, stderr: TextIO | None
) -> ExitCode:
    """Log until requested to end, then flush the events so far.

    Raise UsageError before attaching anything, BrokenPipeError if the reader of `stdout` is gone, Unsupported if none
    of the tables is available, and the lens's errors.
    """
    logged, notes = make_log_plan(settings)
    report = Diagnostics(stderr)
    options = SourceOptions(mechanisms=settings.mechanisms, whole=True, values=settings.options)
    event = WakeEvent()
    requests.wake = event.set
    names = [stream.name for stream in logged]
    with closing(Sinks(settings, names, requests, event, stdout=stdout, report=report)) as sinks:
        for note in notes:
            report(note)
        with event, ExitStack() as resources:
            resources.callback(session.bus.subscribe(partial(service_manager.alive, session.interval_s)))
            parts = []
            for lens in dict.fromkeys(stream.lens for stream in logged):
                streams = [stream for stream in logged if stream.lens == lens]
                consumer = Consumer(session, lens, [stream.table for stream in streams], options, event)
                resources.enter_context(consumer)
                parts.append(_LensLog(settings, session, sinks, streams, consumer, Diagnostics(stderr)))
            outages = Outages(session, {stream.lens for stream in logged}, report)
            log = _Log(settings, session, sinks, parts, requests, outages)
            try:
                while not requests.ending:
                    log.write_new()
                    sinks.wait()
                log.write_last(report)
            except (BrokenPipeError, NettopError):
                log.write_last(lambda _: None)
                raise
        sinks.close()
        report(log.summary())
    return ExitCode.DONE


@dataclass
class _Log:
    """The logs of all lenses, with a common summary."""

    settings: LogSettings
    session: Session
    sinks: Sinks
    parts: list[_LensLog]
    requests: Requests
    outages: Outages
    limit: str = ""
    is_ready: bool = False

    def write_new(self) -> None:
        """Write what is new since the last call.

        Raise the errors of lenses, and Unsupported if none of a lens's tables is available.
        """
        if self.requests.take_reopening():
            self._reopen()
        limit = self.session.overhead_limit
        if limit is not None and str(limit) != self.limit:
            self.limit = str(limit)
            line = limit_line(self.settings.format, time.time_ns(), limit.state)
            self.sinks.write(self.parts[0].of_losses, line)
        for part in self.parts:
            part.write_new()
        self.outages.report_new()
        if not self.is_ready and all(part.has_begun for part in self.parts):
            self.is_ready = True
            self._notify_ready()

    def _reopen(self) -> None:
        if self.is_ready:
            service_manager.reloading()
        self.sinks.reopen()
        if self.is_ready:
            self._notify_ready()

    def _notify_ready(self) -> None:
        service_manager.ready(f"logging {', '.join(name for part in self.parts for name in part.names)}")

    def write_last(self, report: Callable[[str], None]) -> None:
        """Take a final reading, and write the events up to now and the losses; report why the reading is missing."""
        service_manager.stopping()
        # Without a frame, the programs are still loading.
        if any(part.consumer.frame is not None for part in self.parts) and (
            missing := self.parts[0].consumer.read_last(self._write_events)
        ):
            report(missing)
        self._write_events()
        for part in self.parts:
            if part.consumer.frame is not None:
                part.last = part.consumer.frame.now
                part.write_losses(part.last)

    def _write_events(self) -> None:
        for part in self.parts:
            part.write_events()

    def summary(self) -> str:
        """Summarise the lines written, the losses, and the kernel's counts."""
        totals: Counter[tuple[str, str]] = Counter()
        for part in self.parts:
            totals.update(part.losses())
        losses = [
            f"{total} {what}{f' ({cause})' if cause else ''}" for (what, cause), total in totals.items()
        ]
        lost = ", ".join([*losses, *self.sinks.lost()])
        words = [f"logged {', '.join(part.written() for part in self.parts)}", f"lost {lost or 'nothing'}"]
        counted = ", ".join(count for part in self.parts for count in part.counted())
        words += [f"the kernel counted {counted}"] if counted else []
        return "; ".join([*words, *self.sinks.places()])


@dataclass
class _LensLog:
    """The log of one lens: each event once, each table when it is due, and each loss when it is known."""

    settings: LogSettings
    session: Session
    sinks: Sinks
    streams: list[LogStream]
    consumer: Consumer
    report: Diagnostics
    missing: dict[str, str] = field(default_factory=dict)
    last: Snapshot | None = None
    due_ns: int | None = None
    lost: Losses = field(default_factory=Losses)
    seen: int = 0

    def __post_init__(self) -> None:
        """Tell the streams of events from the others."""
        self.events = [stream for stream in self.streams if stream.table.append]
        self.tables = [stream for stream in self.streams if not stream.table.append]
        self.of_losses = self.streams[0].name
        """The name of the file for lines about the log itself."""
        self.lines = {stream.name: 0 for stream in self.streams}

    def write_new(self) -> None:
        """Write what is new since the last call.

        Raise the lens's errors, and Unsupported if none of the tables is available.
        """
        frame = self.consumer.frame
        if frame is not None:
            with self.session.steps.time(self.streams[0].lens, WRITE):
                self._write_frame(frame)
            self.last = frame.now
        self.consumer.raise_failure(has_begun=self.has_begun)
        if (failure := self.consumer.failure) is not None:
            self._note_missing(time.time_ns(), dict.fromkeys(self.lines, failure.what))

    @property
    def has_begun(self) -> bool:
        """True if the first reading has been written."""
        return self.last is not None

    @property
    def names(self) -> list[str]:
        """Names of the streams."""
        return list(self.lines)

    def _write_frame(self, frame: Frame) -> None:
        is_new = frame.now is not self.last
        if is_new:
            self._write_missing(frame.now)
            self._report_remarks(frame)
        self.write_events()
        is_due = is_new and self._is_due(frame.now)
        if is_due:
            self._write_tables(frame)
        self.write_losses(frame.now, only_events=not is_due)

    def written(self) -> str:
        """Return how many lines were written, by stream."""
        written = ", ".join(
            f"{NOT_AVAILABLE if name in self.missing and not count else count} {name}"
            for name, count in self.lines.items()
        )
        of_all = f" of {self.seen} events" if self.settings.filters and self._has_events() else ""
        return written + of_all

    def losses(self) -> dict[tuple[str, str], int]:
        """Return the losses, by name and cause."""
        # Where events are not available, reporting 0 lost would be misleading.
        causes = (CAUSES["events"], QUEUE_FULL) if self._has_events() else ()
        return {("events", cause): 0 for cause in causes} | self.lost.totals

    def counted(self) -> list[str]:
        """Return the kernel's counts."""
        counts = self.last.counts if self.last else {}
        return [
            f"{name} {counts[name]}" for name in lens_output(self.streams[0].lens).totals if name in counts
        ]

    def _has_events(self) -> bool:
        return any(stream.name not in self.missing for stream in self.events)

    # --- rows ---------------------------------------------------------------------------------------------

    def write_events(self) -> None:
        """Write the queued events, before their bounded queue overflows."""
        frame = self.consumer.frame
        if frame is None:
            return
        for stream in self.events:
            for piece in pieces(self.consumer.rows(stream.table), BLOCK_ROWS):
                self.seen += len(piece)
                batches = {stream.table.name: (piece,)}
                view = View(Frame(frame.now, None, batches), stream.query)
                self._put(stream, stream.maker.encoded(view, view.order), len(view.order))
            self._write_loss("events", QUEUE_FULL, self.consumer.lost(stream.table))

    def _is_due(self, snapshot: Snapshot) -> bool:
        """Return whether to log the tables now: at the start, then at the reading closest to each interval's end."""
        step_ns = round(self.settings.metrics_interval_s * 1e9)
        if self.due_ns is None:
            self.due_ns = snapshot.boot_ns
        early_ns = snapshot.boot_ns + round(self.session.interval_s * 0.5e9) - self.due_ns
        if early_ns < 0:
            return False
        self.due_ns += step_ns * (early_ns // step_ns + 1)
        return True

    def _write_tables(self, frame: Frame) -> None:
        for stream in self.tables:
            view = View(frame, stream.query)
            order = view.order
            for start in range(0, len(order), BLOCK_ROWS):
                at = order[start : start + BLOCK_ROWS]
                self._put(stream, stream.maker.encoded(view, at), len(at))
                self.write_events()  # before their bounded queue overflows

    def _put(self, stream: LogStream, block: bytes, rows: int) -> None:
        if rows:
            self.lines[stream.name] += rows
            self.sinks.write_block(stream.name, block)

    # --- what is not available ------------------------------------------------------------------------------

    def _write_missing(self, snapshot: Snapshot) -> None:
        """Write a line for each table that is not available, with the reason."""
        reasons = {stream.name: snapshot.why_unavailable(stream.table) for stream in self.streams}
        missing = {name: why for name, why in reasons.items() if why is not None}
        self._note_missing(snapshot.wall_ns, missing)
        if self.last is None:
            self.consumer.check_available(snapshot)

    def _note_missing(self, wall_ns: int, missing: dict[str, str]) -> None:
        for name, why in missing.items():
            if self.missing.get(name) != why:
                self.sinks.write(name, missing_line(self.settings.format, wall_ns, name, why))
        self.missing = missing

    def _report_remarks(self, frame: Frame) -> None:
        """Report the mechanisms in use, and filter terms that cannot match; later only changes."""
        if news := mechanisms(frame.now, self.last):
            self.report(news)
        views = (View(Frame(frame.now), stream.query) for stream in self.streams)
        self.report.report_new(dict.fromkeys(chain.from_iterable(view.filter_remarks for view in views)))

    # --- losses -------------------------------------------------------------------------------------------

    def write_losses(self, snapshot: Snapshot, *, only_events: bool = False) -> None:
        """Write the losses. Write losses other than events, which a busy host always has, only with the metrics."""
        for what, total in snapshot.lost.items():
            # Lost events do not matter if no events are logged.
            if self.events if what == "events" else not only_events:
                self._write_loss(what, CAUSES.get(what, ""), total)

    def _write_loss(self, what: str, cause: str, total: int) -> None:
        """Write a line for losses since the last such line."""
        for lost in self.lost.new_losses(what, cause, total):
            self.sinks.write(self.of_losses, lost_line(self.settings.format, time.time_ns(), lost))
