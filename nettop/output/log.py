# SPDX-License-Identifier: Apache-2.0
"""The log as a door: events as they come, tables every so often, and what was lost, to the console and to files."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import TextIO

from nettop.engine.bus import Feed
from nettop.engine.governor import percent
from nettop.engine.own_cost import WRITE
from nettop.engine.session import Session
from nettop.engine.wake_event import WakeEvent
from nettop.errors import ExitCode, NettopError, Unsupported
from nettop.interrupts import Requests
from nettop.output.banner import mechanisms
from nettop.output.diagnostics import Told
from nettop.output.log_lines import lost_line, missing_line, restraint_line
from nettop.output.log_plan import LogPlan, Stream, make_log_plan
from nettop.output.log_sinks import Sinks, opened_sinks
from nettop.query.batches import pieces
from nettop.query.times import rfc3339
from nettop.query.view import View
from nettop.settings import LogSettings
from nettop.snapshots.own_cost import LEFT_OUT
from nettop.snapshots.snapshot import NOT_AVAILABLE, Frame, Snapshot

PIECE_ROWS = 1024
"""Rows that are made into lines at once: few enough for little memory, many enough to be quick."""
REFRESH_WAIT_S = 5.0
"""How long the end waits for a last reading."""
_RING, _QUEUE = "ring full or hook busy", "queue full"


@dataclass(slots=True)
class _LeftOut:
    """When a table was left out for --max-overhead: the first time, and the last one, which may go on (wall ns)."""

    first_ns: int
    since_ns: int
    until_ns: int | None = None
    times: int = 1

    def __str__(self) -> str:
        since = rfc3339(self.since_ns)
        last = f"since {since}" if self.until_ns is None else f"from {since} to {rfc3339(self.until_ns)}"
        if self.times == 1:
            return last
        return f"{self.times} times since {rfc3339(self.first_ns)}, the last time {last}"


def run_log(
    settings: LogSettings,
    session: Session,
    requests: Requests,
    stdout: TextIO | None,
    stderr: TextIO | None,
) -> ExitCode:
    """Log until somebody requests the end, and write what has happened up to that.

    Raises UsageError before anything is attached, BrokenPipeError when the reader of `stdout` has gone, and
    whatever the lens fails with.
    """
    plan = make_log_plan(settings)
    tell = Told(stderr)
    with ExitStack() as ends:
        bell = ends.enter_context(WakeEvent())
        requests.wake = bell.ring
        names = [stream.name for stream in plan.streams]
        sinks = ends.enter_context(opened_sinks(settings, names, requests, bell, stdout=stdout, tell=tell))
        for note in plan.notes:
            tell(note)
        log = ends.enter_context(_attached(settings, session, plan, sinks, bell=bell, tell=tell))
        try:
            while not requests.ending:
                log.write_new()
                sinks.sleep()
            log.write_last()
        except (BrokenPipeError, NettopError):
            log.write_last()
            raise
        sinks.close()
        tell(log.summary())
    return ExitCode.DONE


@contextmanager
def _attached(
    settings: LogSettings, session: Session, plan: LogPlan, sinks: Sinks, *, bell: WakeEvent, tell: Told
) -> Iterator[_Log]:
    with ExitStack() as ends:
        ends.callback(session.bus.subscribe(bell.ring))
        feeds: dict[Stream, Feed] = {}
        for stream in plan.streams:
            if stream.table.append:
                feeds[stream] = session.bus.feed(stream.lens.id, stream.table.name, bell.ring)
                ends.callback(feeds[stream].close)
        for stream in plan.streams:
            options = {
                "table": stream.table.name,
                "all_rows": False,
                "mechanisms": settings.mechanisms,
                **settings.options,
            }
            ends.callback(session.enable(stream.lens.id, **options).release)
        yield _Log(settings, session, plan, feeds=feeds, sinks=sinks, bell=bell, tell=tell)


class _Log:
    """Writes each event once, each table when it is due, and each loss when it is known."""

    def __init__(
        self,
        settings: LogSettings,
        session: Session,
        plan: LogPlan,
        *,
        feeds: dict[Stream, Feed],
        sinks: Sinks,
        bell: WakeEvent,
        tell: Told,
    ) -> None:
        self._settings = settings
        self._session = session
        self._lens = plan.streams[0].lens.id
        self._feeds = feeds
        self._tables = [stream for stream in plan.streams if stream not in feeds]
        self._streams = plan.streams
        self._of_losses = plan.streams[0].name
        self._tell = tell
        self._remarks: list[str] = []
        self._restraint = ""
        self._missing: dict[str, str] = {}
        self._left_out: dict[str, _LeftOut] = {}
        self._sinks = sinks
        self._bell = bell
        self._last: Snapshot | None = None
        self._due_ns: int | None = None
        self._lost: dict[tuple[str, str], int] = {}
        self._seen = 0
        self._written = {stream.name: 0 for stream in plan.streams}

    def write_new(self) -> None:
        """Write what has come since the last call.

        Raises what the lens fails with, and Unsupported where this kernel gives nothing of all that is to be logged.
        """
        self._sinks.reopen_if_asked()
        frame = self._session.bus.frame(self._lens)
        self._write_restraint()
        if frame is not None:
            with self._session.steps.time(self._lens, WRITE):
                self._write_frame(frame)
            self._last = frame.now
        failure = self._session.bus.failure(self._lens)
        if failure is not None:
            raise failure

    def _write_frame(self, frame: Frame) -> None:
        if frame.now is not self._last:
            self._write_missing(frame.now)
            self._tell_remarks(frame)
        self._write_events(frame)
        self._write_loss_of_events(frame.now)
        if frame.now is not self._last and self._is_due(frame.now):
            self._write_tables(frame)
            self._write_losses(frame.now)

    def _write_restraint(self) -> None:
        """A line for what is done for --max-overhead, when that changes."""
        restraint = self._session.restraint
        if restraint is not None and str(restraint) != self._restraint:
            self._restraint = str(restraint)
            line = restraint_line(self._settings.format, time.time_ns(), restraint.told)
            self._sinks.write(self._of_losses, line)

    def write_last(self) -> None:
        """Have everything read once more, and write the events that have happened up to now.

        Twice, since one reading may have been half done already.
        """
        for _ in range(2):
            self._refresh()
        frame = self._session.bus.frame(self._lens)
        if frame is not None:
            self._note_left_out(frame.now)
            self._write_events(frame)
            self._write_losses(frame.now)
            self._last = frame.now

    def summary(self) -> str:
        """What was written, what is missing, and what the kernel counted."""
        written = ", ".join(
            f"{NOT_AVAILABLE if name in self._missing and not count else count} {name}"
            for name, count in self._written.items()
        )
        of_all = f" of {self._seen} events" if self._settings.filters and self._has_events else ""
        lost = ", ".join([*self._losses(), *self._sinks.lost()])
        counts = self._last.counts if self._last else {}
        totals = [
            f"{name} {counts[name]}"
            for name in ("connected", "accepted", "closed", "failed")
            if name in counts
        ]
        left_out = [self._told_left_out(name, when) for name, when in self._left_out.items()]
        nothing = "nothing else" if left_out else "nothing"
        parts = [f"logged {written}{of_all}", *left_out, f"lost {lost or nothing}"]
        parts += [f"the kernel counted {', '.join(totals)}"] if totals else []
        return "; ".join([*parts, *self._sinks.places()])

    def _refresh(self) -> None:
        """Sleep until the next snapshot, not for long, writing the events that come before it."""
        before = self._session.bus.frame(self._lens)
        self._session.sample_now()
        deadline = time.monotonic() + REFRESH_WAIT_S
        while time.monotonic() < deadline and self._session.bus.failure(self._lens) is None:
            frame = self._session.bus.frame(self._lens)
            if frame is not before:
                return
            if frame is not None:
                self._write_events(frame)
            self._bell.wait(timeout_s=deadline - time.monotonic())

    # --- rows ---------------------------------------------------------------------------------------------

    def _write_events(self, frame: Frame) -> None:
        for stream, feed in self._feeds.items():
            for piece in pieces(feed.take(), PIECE_ROWS):
                self._seen += len(piece)
                batches = {stream.table.name: (piece,)}
                view = View(Frame(frame.now, None, batches), stream.query)
                self._put(stream, stream.maker.lines(view, view.order), len(view.order))
            self._tell_loss("events", _QUEUE, feed.lost)

    def _is_due(self, snapshot: Snapshot) -> bool:
        """Whether the tables are logged this time: at the start, then at the readings next to each interval's end."""
        step_ns = round(self._settings.metrics_interval_s * 1e9)
        if self._due_ns is None:
            self._due_ns = snapshot.boot_ns
        early_ns = snapshot.boot_ns + round(self._session.interval_s * 0.5e9) - self._due_ns
        if early_ns < 0:
            return False
        self._due_ns += step_ns * (early_ns // step_ns + 1)
        return True

    def _write_tables(self, frame: Frame) -> None:
        for stream in self._tables:
            view = View(frame, stream.query)
            order = view.order
            for start in range(0, len(order), PIECE_ROWS):
                at = order[start : start + PIECE_ROWS]
                self._put(stream, stream.maker.lines(view, at), len(at))
                self._write_events(frame)  # meanwhile more have come, and their queue is bounded

    def _put(self, stream: Stream, text: str, rows: int) -> None:
        if rows:
            self._written[stream.name] += rows
            self._sinks.write(stream.name, text)

    # --- what cannot be had ---------------------------------------------------------------------------------

    @property
    def _has_events(self) -> bool:
        """Whether the kernel tells of events at all: else 0 of them would look as if nothing had happened."""
        return any(stream.name not in self._missing for stream in self._feeds)

    def _write_missing(self, snapshot: Snapshot) -> None:
        """A line for each table of which there will be none, and why."""
        missing = {name: why for name, why in self._whys(snapshot) if why is not None}
        for name, why in missing.items():
            if self._missing.get(name) != why:
                self._sinks.write(name, missing_line(self._settings.format, snapshot.wall_ns, name, why))
        self._missing = missing
        self._note_left_out(snapshot)
        if self._last is None and len(missing) == len(self._streams):
            name, why = next(iter(missing.items()))
            what = f"{name} are {NOT_AVAILABLE} on this kernel or host: {why}"
            raise Unsupported(what, "nettop doctor says what was tried")

    def _whys(self, snapshot: Snapshot) -> Iterator[tuple[str, str | None]]:
        """Why there are no rows of each table; None where there are."""
        for stream in self._streams:
            yield stream.name, snapshot.why_unavailable(stream.table)

    def _note_left_out(self, snapshot: Snapshot) -> None:
        """Keep in mind since when, or until when, a table is left out for --max-overhead."""
        for name, why in self._whys(snapshot):
            known, is_out = self._left_out.get(name), why is not None and LEFT_OUT in why
            if known is None:
                if is_out:
                    self._left_out[name] = _LeftOut(snapshot.wall_ns, snapshot.wall_ns)
            elif is_out and known.until_ns is not None:
                known.since_ns, known.until_ns = snapshot.wall_ns, None
                known.times += 1
            elif not is_out and known.until_ns is None:
                known.until_ns = snapshot.wall_ns

    def _told_left_out(self, name: str, when: _LeftOut) -> str:
        """`events left out for --max-overhead 0.1% since …`."""
        bound = self._settings.max_overhead
        return f"{name} {LEFT_OUT}{'' if bound is None else f' {percent(bound)}'} {when}"

    def _tell_remarks(self, frame: Frame) -> None:
        """By which ways the kernel tells, and what the filter asks for in vain; what changes is told again."""
        views = (View(Frame(frame.now), stream.query) for stream in self._streams)
        remarks = dict.fromkeys(chain([mechanisms(frame.now)], *(view.filter_remarks for view in views)))
        for remark in filter(None, remarks):
            if remark not in self._remarks:
                self._tell(remark)
        self._remarks = list(remarks)

    # --- losses -------------------------------------------------------------------------------------------

    def _write_loss_of_events(self, snapshot: Snapshot) -> None:
        if self._feeds:  # or nobody misses them
            self._tell_loss("events", _RING, snapshot.lost.get("events", 0))

    def _write_losses(self, snapshot: Snapshot) -> None:
        """What is missing. A busy host always lacks some other thing, so that is told with the metrics only."""
        self._write_loss_of_events(snapshot)
        for what, total in snapshot.lost.items():
            if what != "events":
                self._tell_loss(what, "", total)

    def _losses(self) -> list[str]:
        """What was lost in all; of events also that it was nothing."""
        none = {("events", cause): 0 for cause in (_RING, _QUEUE)} if self._has_events else {}
        totals = none | self._lost
        return [f"{total} {what}{f' ({cause})' if cause else ''}" for (what, cause), total in totals.items()]

    def _tell_loss(self, what: str, cause: str, total: int) -> None:
        """A line for what is lost beyond what was told."""
        told = self._lost.get((what, cause), 0)
        if total > told:
            self._lost[what, cause] = total
            now = time.time_ns()
            line = lost_line(self._settings.format, now, what, cause, count=total - told, total=total)
            self._sinks.write(self._of_losses, line)
