# SPDX-License-Identifier: Apache-2.0
"""The text frontend: print a block at each refresh until the count is reached or the user ends it."""

from __future__ import annotations

import os
import select
import stat
import sys
import termios
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TextIO

from nettop.diagnostics import Diagnostics, StatusLine
from nettop.engine.consumer import Consumer, Outages
from nettop.engine.own_cost import PRINT
from nettop.engine.resolver import Resolver
from nettop.engine.session import Session
from nettop.errors import ExitCode
from nettop.formats.jsonl import JsonLines
from nettop.formats.rows import with_own_time
from nettop.formats.separated import Separated
from nettop.output.banner import banner, change
from nettop.output.lens_output import lens_output
from nettop.output.log_lines import CAUSES, NOT_LISTED, QUEUE_FULL, Losses, Lost, lost_line
from nettop.output.table import AlignedTable, Plan, Terminal, field_of, make_plan
from nettop.output.watching import not_watched, watched, watches_all
from nettop.process.interrupts import Requests
from nettop.query.address import address_bytes
from nettop.query.times import rfc3339
from nettop.query.view import View
from nettop.settings import Format, LineFormat, Settings, TextSettings
from nettop.snapshots.hooks import NOT_AVAILABLE
from nettop.snapshots.hosts import LOST_HOST
from nettop.snapshots.schema import Kind
from nettop.snapshots.snapshot import Frame, Snapshot
from nettop.snapshots.source import SourceOptions
from nettop.writing import write_output

Formatter = JsonLines | Separated | AlignedTable
RESOLVE_WAIT_S = 2.0
"""Seconds that --once waits for the names of the addresses shown."""


class Replay(NamedTuple):
    """A recording to print: its host, and `advance`, which publishes the next reading and returns False at the end."""

    host: str
    advance: Callable[[], bool]


def run_text(
    settings: Settings,
    session: Session,
    stdout: TextIO,
    stdin: TextIO | None = None,
    stderr: TextIO | None = None,
    *,
    replay: Replay | None = None,
    host: str = "",
    requests: Requests | None = None,
) -> ExitCode:
    """Print the view described by `settings`, `settings.text.count` times, or until requested to end, then once more
    what came since; of a replay, every reading without waiting.

    The banner names `host`, by default this one. Only endless text reads `stdin`.

    Raise UsageError before attaching anything, BrokenPipeError if the reader of `stdout` is gone, an error with the
    reason if the table is not available, and the lens's errors.
    """
    plan = make_plan(settings)
    options = SourceOptions(
        mechanisms=settings.mechanisms,
        whole=plan.needs_two_snapshots,
        all_rows=plan.query.all_rows,
        values=settings.options,
    )
    is_endless = settings.text.count is None and replay is None
    streams = StandardStreams(stdin if is_endless else None, stdout)
    watches = replay is None and watches_all(plan.query.table)
    with (
        watched(session, SourceOptions(mechanisms=settings.mechanisms)) if watches else nullcontext(),
        Consumer(session, plan.lens.id, (plan.query.table,), options, columns=plan.named) as consumer,
    ):
        if requests is not None:
            requests.wake = consumer.wake
        shown_host = host or os.uname().nodename if replay is None else replay.host
        printer = _Printer(settings, plan, session, consumer, stdout, stderr, replay, shown_host, requests)
        outages = Outages(session, (plan.lens.id,), Diagnostics(stderr))
        is_available, began = False, time.monotonic()
        shown: Frame | None = None
        while True:
            consumer.raise_failure(has_begun=printer.printed > 0 and replay is None)
            outages.report_new()
            if consumer.frame is not None and not is_available:
                consumer.check_available(consumer.frame.now)
                is_available = True
            printer.report_pace()
            printer.show(consumer.frame)
            if printer.printed == settings.text.count:
                return ExitCode.DONE
            if replay is not None and consumer.frame is not shown:
                shown = consumer.frame
                if not replay.advance():
                    return ExitCode.DONE
            if requests is not None and requests.ending:
                printer.show_last()
                return ExitCode.DONE
            if not printer.printed and (seconds := int(time.monotonic() - began)):
                printer.status.show(f"{plan.lens.title}: waiting for a reading … {seconds} s")
            if streams.entered(consumer.wait(streams.descriptors(), None if printer.printed else 1.0)):
                consumer.read_now()


@dataclass
class _Printer:
    """A printer of snapshots. It prints each new one once, with the banner and remarks on standard error.

    Each row of an append table is printed once, in the first output after it was added.
    """

    settings: Settings
    plan: Plan
    session: Session
    consumer: Consumer
    stdout: TextIO
    stderr: TextIO | None
    replay: Replay | None
    host: str
    requests: Requests | None
    printed: int = 0
    limit: str = ""
    is_late: bool = False
    last: Snapshot | None = None
    described: Snapshot | None = None
    losses: Losses = field(default_factory=Losses)
    lost_hosts: dict[str, str] = field(default_factory=dict)
    unlisted: int = 0

    def __post_init__(self) -> None:
        """Prepare the format."""
        text = self.settings.text
        # What a recording's first reading has found is as good as the rest.
        is_found = self.replay is not None and watches_all(self.plan.query.table)
        self.needs_before = self.plan.needs_two_snapshots and not is_found
        has_banner = text.format is Format.TABLE and not text.data_only
        self.banner_stream = self.stderr if has_banner else None
        self.report = Diagnostics(self.stderr)
        self.status = StatusLine(self.stderr)
        self.formatter = _formatter(self.plan, text, self.stdout)
        # Tables for people use the encoding of the locale; programs always expect UTF-8.
        self.encoding = self.stdout.encoding if text.format is Format.TABLE else "utf-8"
        self.resolver = Resolver() if self.settings.view.resolve else None

    def report_pace(self) -> None:
        """Report, in every format, that output is less frequent than asked for: once that readings take longer, and
        each change that --max-overhead makes.
        """
        limit, interval_s = self.session.overhead_limit, self.session.interval_s
        if self.session.kept_interval_s > interval_s and not self.is_late:
            self.is_late = True
            self.report(f"readings take longer than {interval_s:g} s: some are left out")
        if limit is not None and str(limit) != self.limit:
            self.limit = str(limit)
            self.report(limit.state)

    def show(self, frame: Frame | None) -> None:
        """Print the frame, unless it was printed before or lacks the earlier snapshot that the output needs."""
        if frame is None:
            return
        last, self.last = self.last, frame.now
        if frame.now is last or (self.needs_before and frame.before is None):
            return
        with self.session.steps.time(self.plan.lens.id, PRINT):
            self._print(frame, last)

    def show_last(self) -> None:
        """Print what came since the last output, or report that it is missing. Raise the lens's error."""
        missing = self.consumer.read_last() if self.consumer.frame else ""
        self.consumer.raise_failure()
        self.report.report_new([missing] if missing else [])
        self.show(self.consumer.frame)

    def _print(self, frame: Frame, last: Snapshot | None) -> None:
        if self.settings.view.deltas and last is not None:
            # Compare with the last output rather than the last snapshot, so that deltas add up.
            frame = replace(frame, before=last)
        view = View(self._with_new_rows(frame), self.plan.query, self.resolver, all_batches=True)
        if self.resolver is not None and self.settings.text.count == 1:
            self.resolver.wait(_shown_addresses(view, self.plan.columns), RESOLVE_WAIT_S)
        self.status.show("")
        self._report_state(frame.now)
        self._report_hosts(frame.now)
        self._report_view(view)
        for piece in self.formatter.pieces(view):
            self._write(piece)
        self.unlisted += view.unlisted
        lost = self._new_losses(frame.now)
        if lost:
            self.report(f"lost {'; '.join(map(str, lost))}")
        if self.settings.text.format is Format.JSONL:
            for loss in lost:
                self._write(lost_line(LineFormat.JSONL, frame.now.wall_ns, loss))
        self.printed += 1

    def _write(self, lines: str) -> None:
        write_output(self.stdout, lines, self.encoding, self.requests)

    def _with_new_rows(self, frame: Frame) -> Frame:
        """Return the frame with the rows of an append table that have not been printed yet."""
        table = self.plan.query.table
        if not table.append:
            return frame
        return replace(frame, batches={table.name: tuple(self.consumer.rows(table))})

    def _new_losses(self, snapshot: Snapshot) -> list[Lost]:
        """Return losses since the last output that cannot be seen in the rows."""
        table = self.plan.query.table
        totals = {(what, CAUSES.get(what, "")): total for what, total in snapshot.notable_losses.items()}
        if table.append:
            totals[table.name, QUEUE_FULL] = self.consumer.lost(table)
        totals[f"rows of closed {table.name}", NOT_LISTED] = self.unlisted
        return [lost for loss, total in totals.items() for lost in self.losses.new_losses(*loss, total)]

    def _report_hosts(self, snapshot: Snapshot) -> None:
        """Report, in every format, the hosts whose rows are missing, and those that are back."""
        lost = {host: why for host, why in snapshot.gaps.items() if why.startswith(LOST_HOST)}
        before, self.lost_hosts = self.lost_hosts, lost
        for host in lost.keys() - before.keys():
            self.report(f"{host} is {lost[host]}")
        for host in before.keys() - lost.keys():
            self.report(f"{host} is back")

    def _report_state(self, snapshot: Snapshot) -> None:
        if self.banner_stream is None:
            return
        described, self.described = self.described, snapshot
        if described is None:
            lines = [banner(snapshot, self.host, self.settings.interval_s)]
        else:
            lines = [change(described, snapshot)]
        if self.replay is not None:
            lines.append(rfc3339(snapshot.wall_ns))
        self.banner_stream.writelines(line + "\n" for line in lines if line)
        self.banner_stream.flush()

    def _report_view(self, view: View) -> None:
        """Report once, in every format, why rows or owners are missing."""
        remarks = view.filter_remarks
        if self.replay is None and watches_all(view.table):
            remarks = [*remarks, *map(str, not_watched(self.session.bus))]
        why = view.snapshot.why_unavailable(view.table)
        if why is not None:
            remarks = [*remarks, f"{self.plan.lens.id}.{view.table.name} is no longer available: {why}"]
        elif self.banner_stream is None:  # else the banner reports them
            reported, gaps = lens_output(self.plan.lens.id).reported_gaps, view.snapshot.gaps
            remarks = [
                *remarks,
                *_unavailable_hooks(view),
                *(f"{name} {gaps[name]}" for name in reported if name in gaps),
            ]
        self.report.report_new(remarks)


def _unavailable_hooks(view: View) -> list[str]:
    """Return which hooks of the table are not available, grouped by reason."""
    names: dict[str, list[str]] = {}
    for hook in view.snapshot.hooks:
        if hook.mechanism is None and hook.hook in view.table.hooks:
            names.setdefault(hook.why, []).append(hook.hook)
    return [f"{NOT_AVAILABLE} here: {', '.join(some)} ({why})" for why, some in names.items()]


def _formatter(plan: Plan, text: TextSettings, stdout: TextIO) -> Formatter:
    columns = with_own_time(plan.query.table, plan.columns)
    if text.format is Format.CSV:
        return Separated(columns)
    if text.format is Format.JSONL:
        return JsonLines(columns, why=text.why)
    terminal = None
    if stdout.isatty():
        bold = "NO_COLOR" not in os.environ and os.environ.get("TERM", "dumb") != "dumb"
        terminal = Terminal(lambda: _columns(stdout.fileno()), bold)
    return AlignedTable(plan.query.table, plan.columns, terminal)


def _columns(descriptor: int) -> int:
    """Return the width to cut lines at: COLUMNS, else the terminal's width; unlimited if both are unknown."""
    columns = os.environ.get("COLUMNS", "")
    width = int(columns) if columns.isdecimal() else os.get_terminal_size(descriptor).columns
    return width or sys.maxsize


def _shown_addresses(view: View, columns: tuple[str, ...]) -> set[bytes]:
    """Return the addresses in the rows and columns shown."""
    fields = (field_of(view.table, name) for name in columns)
    ends = (field.parts[0] for field in fields if field.kind is Kind.ENDPOINT)
    return {raw for name in ends for raw in address_bytes(view.raw(name)[view.order])}


# --- standard streams -----------------------------------------------------------------------------------------


class StandardStreams:
    """The standard streams to wait for, and the meaning of their readiness.

    nettop reads standard input only if it is a terminal or a pipe: a file is meant for another program. It does not
    read a terminal with another foreground job (SIGTTIN would stop nettop), or in raw mode for a pager (nettop would
    take the pager's keys).
    """

    def __init__(self, stdin: TextIO | int | None, stdout: TextIO | int | None) -> None:
        self._stdin = _descriptor(stdin)
        if self._stdin is not None and not _is_dialogue(self._stdin):
            self._stdin = None
        self._stdout = _descriptor(stdout)

    def descriptors(self) -> dict[int, int]:
        """Return the descriptors to wait for, with their poll(2) events. Call it before each wait."""
        waited_for = {} if self._stdout is None else {self._stdout: 0}
        if self._stdin is not None and may_read(self._stdin):
            waited_for[self._stdin] = select.POLLIN
        return waited_for

    def entered(self, ready: dict[int, int]) -> bool:
        """Return whether the user pressed Enter; `ready` is the result of the wait.

        Stop watching standard input at its end. Raise BrokenPipeError if the reader of standard output is gone.
        """
        if self._stdout is not None and ready.get(self._stdout, 0) & (select.POLLERR | select.POLLHUP):
            raise BrokenPipeError
        # A pager or another job may have taken the terminal since the wait began.
        if self._stdin is None or self._stdin not in ready or not may_read(self._stdin):
            return False
        try:
            read = os.read(self._stdin, 65536)
        except OSError:
            read = b""
        if not read:
            self._stdin = None
        return b"\n" in read


def may_read(descriptor: int) -> bool:
    """Return whether nettop may read it: not a terminal in use by another job, or by a program in raw mode."""
    try:
        canonical = termios.tcgetattr(descriptor)[3] & termios.ICANON
    except termios.error:
        return True  # not a terminal
    try:
        return bool(canonical) and os.tcgetpgrp(descriptor) == os.getpgrp()
    except OSError:
        return bool(canonical)  # not the controlling terminal, so reading cannot stop nettop


def _is_dialogue(descriptor: int) -> bool:
    mode = os.fstat(descriptor).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or os.isatty(descriptor)


def _descriptor(stream: TextIO | int | None) -> int | None:
    """Return the descriptor of a stream; None if it is closed or has none."""
    try:
        return stream if stream is None or isinstance(stream, int) else stream.fileno()
    except (OSError, ValueError):
        return None
