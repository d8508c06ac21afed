# SPDX-License-Identifier: Apache-2.0
"""Plain output as a door: prints a block for each refresh, until it has printed enough or somebody ends it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from typing import TextIO

from nettop.engine.bus import Feed
from nettop.engine.own_cost import PRINT
from nettop.engine.resolver import Resolver
from nettop.engine.session import Session
from nettop.errors import ExitCode, NettopError
from nettop.output.banner import banner, change
from nettop.output.diagnostics import Told
from nettop.output.jsonl import JsonLines
from nettop.output.plan import Plan, field_of, make_plan
from nettop.output.refresh_input import RefreshInput
from nettop.output.separated import Separated
from nettop.output.table import AlignedTable, Terminal
from nettop.query.address import address_bytes
from nettop.query.view import View
from nettop.settings import Format, Settings, TextSettings
from nettop.snapshots.connections import WITHOUT_ROOT
from nettop.snapshots.schema import Kind
from nettop.snapshots.snapshot import NOT_AVAILABLE, Frame, Snapshot

Formatter = Callable[[View], str]
RESOLVE_WAIT_S = 2.0
"""How long a single output waits for the names of the addresses that it shows."""


def run_text(
    settings: Settings,
    session: Session,
    stdout: TextIO,
    stdin: TextIO | None = None,
    stderr: TextIO | None = None,
) -> ExitCode:
    """Print what `settings` ask for, until `settings.text.count` blocks are out.

    Raises UsageError before anything is attached, BrokenPipeError when the reader of `stdout` has gone, and
    whatever the lens fails with.
    """
    plan = make_plan(settings)
    printer = _Printer(settings, plan, session, stdout, stderr)
    with ExitStack() as ends:
        wakes = ends.enter_context(RefreshInput(_descriptor(stdin), _descriptor(stdout)))
        ends.callback(session.bus.subscribe(wakes.wake))
        table = plan.query.table
        if table.append:
            printer.feed = session.bus.feed(plan.lens.id, table.name, wake=lambda: None)
            ends.callback(printer.feed.close)
        options = {
            "all_rows": plan.query.all_rows,
            "table": table.name,
            "mechanisms": settings.mechanisms,
            **settings.options,
        }
        ends.callback(session.enable(plan.lens.id, **options).release)
        while True:
            failure = session.bus.failure(plan.lens.id)
            if failure is not None:
                raise failure
            frame = session.bus.frame(plan.lens.id)
            printer.tell_restraint()
            if frame is not None:
                printer.show(frame)
            if printer.printed == settings.text.count:
                return ExitCode.DONE
            if wakes.wait():
                session.sample_now()


class _Printer:
    """Prints each new snapshot once, and beside it, on standard error, what is worth knowing.

    Of a table to which rows are only added each row is printed once: the ones that its feed brought since the last
    output.
    """

    def __init__(
        self, settings: Settings, plan: Plan, session: Session, stdout: TextIO, stderr: TextIO | None
    ) -> None:
        self.printed = 0
        self._session = session
        self._restraint = ""
        self.feed: Feed | None = None
        self._settings = settings
        self._plan = plan
        self._stdout = stdout
        told = settings.text.format is Format.TABLE and not settings.text.data_only
        self._stderr = stderr if told else None
        self._remark = Told(stderr)
        self._formatter = _formatter(plan, settings.text, stdout)
        # A table goes to people, as their locale has it; programs expect UTF-8 everywhere.
        self._encoding = stdout.encoding if settings.text.format is Format.TABLE else "utf-8"
        self._resolver = Resolver() if settings.view.resolve else None
        self._last: Snapshot | None = None
        self._told: Snapshot | None = None
        self._lost = 0
        self._remarks: list[str] = []

    def tell_restraint(self) -> None:
        """Say what is done for --max-overhead, whatever was asked for: the output comes less often, or lacks some."""
        restraint = self._session.restraint
        if restraint is not None and str(restraint) != self._restraint:
            self._restraint = str(restraint)
            self._remark(restraint.told)

    def show(self, frame: Frame) -> None:
        """Print the frame, unless it is not new or lacks the earlier snapshot that the output needs."""
        last, self._last = self._last, frame.now
        if frame.now is last or (self._plan.two and frame.before is None):
            return
        with self._session.steps.time(self._plan.lens.id, PRINT):
            self._print(frame, last)

    def _print(self, frame: Frame, last: Snapshot | None) -> None:
        if self._settings.view.deltas and last is not None:
            # From one output to the next, whatever was published between them, so that deltas add up.
            frame = replace(frame, before=last)
        view = View(self._with_new_rows(frame), self._plan.query, self._resolver, newest=None)
        if self._resolver is not None and self._settings.text.count == 1:
            self._resolver.wait(_shown_addresses(view, self._plan.columns), RESOLVE_WAIT_S)
        self._tell(frame.now)
        self._tell_of_the_view(view)
        _write(self._stdout, self._formatter(view), self._encoding)
        self.printed += 1

    def _with_new_rows(self, frame: Frame) -> Frame:
        """The frame with the rows that were not printed yet."""
        if self.feed is None:
            return frame
        if self.feed.lost > self._lost:
            # Of these there is no trace in the output, so this is told whatever was asked for.
            self._remark(f"{self.feed.lost - self._lost} rows came too fast to be printed")
            self._lost = self.feed.lost
        return replace(frame, batches={self._plan.query.table.name: tuple(self.feed.take())})

    def _tell(self, snapshot: Snapshot) -> None:
        if self._stderr is None:
            return
        told, self._told = self._told, snapshot
        line = banner(snapshot, self._settings.interval_s) if told is None else change(told, snapshot)
        if line:
            self._stderr.write(line + "\n")
            self._stderr.flush()

    def _tell_of_the_view(self, view: View) -> None:
        """Why there are no rows, or no owners, where that is no accident: told in every format, once."""
        remarks = view.filter_remarks
        why = view.snapshot.why_unavailable(view.table)
        if why is not None:
            remarks = [*remarks, f"{view.table.name} are {NOT_AVAILABLE} on this kernel or host: {why}"]
        gaps = view.snapshot.gaps
        if self._stderr is None and WITHOUT_ROOT in gaps:  # else the banner says so
            remarks = [*remarks, f"{WITHOUT_ROOT} {gaps[WITHOUT_ROOT]}"]
        for remark in remarks:
            if remark not in self._remarks:
                self._remark(remark)
        self._remarks = remarks


def _formatter(plan: Plan, text: TextSettings, stdout: TextIO) -> Formatter:
    if text.format is Format.CSV:
        return Separated(plan.columns)
    if text.format is Format.JSONL:
        return JsonLines(plan.columns, why=text.why)
    return AlignedTable(plan.query.table, plan.columns, _terminal(stdout))


def _terminal(stdout: TextIO) -> Terminal | None:
    """The terminal behind `stdout`, if it is one."""
    if not stdout.isatty():
        return None
    bold = "NO_COLOR" not in os.environ and os.environ.get("TERM", "dumb") != "dumb"
    return Terminal(lambda: _columns(stdout.fileno()), bold)


def _columns(descriptor: int) -> int:
    """The width to cut lines at: what COLUMNS says, or the terminal itself; no bound where neither knows."""
    asked = os.environ.get("COLUMNS", "")
    width = int(asked) if asked.isdecimal() else os.get_terminal_size(descriptor).columns
    return width or sys.maxsize


def _write(stdout: TextIO, block: str, encoding: str) -> None:
    """Write the block at once, so that a reader never waits for the rest of a line."""
    try:
        stdout.buffer.write(block.encode(encoding, "replace"))
        stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise NettopError(f"the output cannot be written: {error.strerror}") from error


def _shown_addresses(view: View, columns: tuple[str, ...]) -> set[bytes]:
    """The addresses that stand in the rows and columns shown."""
    fields = (field_of(view.table, name) for name in columns)
    ends = (field.parts[0] for field in fields if field.kind is Kind.ENDPOINT)
    return {raw for name in ends for raw in address_bytes(view.raw(name)[view.order])}


def _descriptor(stream: TextIO | None) -> int | None:
    """The descriptor behind a stream; None when it is closed or has none."""
    try:
        return None if stream is None else stream.fileno()
    except (OSError, ValueError):
        return None
