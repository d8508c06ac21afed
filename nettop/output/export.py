# SPDX-License-Identifier: Apache-2.0
"""The export frontend: sample a table for a while and write its counts, completely or not at all."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import BinaryIO, TextIO

from nettop.diagnostics import Diagnostics
from nettop.engine.consumer import Consumer
from nettop.engine.session import Session
from nettop.errors import ExitCode, SourceFailed
from nettop.output.lens_output import Exporter, lens_output
from nettop.process.interrupts import Requests
from nettop.query.filter import combined, parse_filter
from nettop.query.query import text_query
from nettop.query.view import View
from nettop.settings import STDOUT, ExportSettings
from nettop.snapshots import find_table
from nettop.snapshots.schema import Table
from nettop.snapshots.snapshot import Frame, Snapshot
from nettop.snapshots.source import SourceOptions
from nettop.writing import OUTPUT, open_to_write, replace_file, temporary_path, write_all, writing

_STEP_S = 0.2
"""Seconds between updates of the progress."""
_REMEDY = "choose another FILE, or - for standard output"


def run_export(
    settings: ExportSettings,
    session: Session,
    requests: Requests,
    stdout: TextIO | None,
    stderr: TextIO | None,
) -> ExitCode:
    """Sample for `settings.duration_s` or until requested to end, and write the counts.

    Before attaching anything, raise UsageError, and NettopError if the file cannot be written. Raise Unsupported if
    the table is not available on this host, and the lens's errors.
    """
    lens, table = find_table(settings.view)
    shown = combined(table, [parse_filter(table, text) for text in settings.filters])
    exporter = lens_output(lens.id).exporters[table.name]
    report = Diagnostics(stderr)
    options = SourceOptions(mechanisms=settings.mechanisms, all_rows=True, values=settings.options)
    consumer = Consumer(session, lens.id, (table,), options)
    requests.wake = consumer.wake
    with open_output(settings.path, stdout) as write:
        with consumer:
            sampled = _sample(settings, table, exporter, consumer, requests=requests, stderr=stderr)
        if sampled is None:
            report("interrupted before the first sample: nothing was written")
            return ExitCode.DONE
        began, ended = sampled
        counted = exporter.difference(ended.tables[table.name], began.tables[table.name])
        frame = Frame(replace(ended, tables={table.name: counted}))
        view = View(frame, replace(text_query(table), filter=shown))
        text, amount = exporter.write(settings.format, view, began)
        for remark in view.filter_remarks:
            report(remark)
        write(text)
    report(_summary(amount, settings, began, ended, is_early=requests.ending))
    return ExitCode.DONE


# --- sampling -------------------------------------------------------------------------------------------------


def _sample(
    settings: ExportSettings,
    table: Table,
    exporter: Exporter,
    consumer: Consumer,
    *,
    requests: Requests,
    stderr: TextIO | None,
) -> tuple[Snapshot, Snapshot] | None:
    """Return the first and last snapshots; None if requested to end before the first."""
    first = consumer.first_frame(lambda: requests.ending)
    if first is None:
        return None
    for remark in exporter.remarks(first.now):
        Diagnostics(stderr)(remark)

    def count() -> int:
        frame = consumer.frame or first
        return exporter.count(frame.now.tables[table.name])

    start, count_before = time.monotonic(), count()
    with _progress(settings, exporter.unit, stderr) as show:
        while not requests.ending and (left := start + settings.duration_s - time.monotonic()) > 0:
            if consumer.failure is not None:
                raise consumer.failure
            show(settings.duration_s - left, count() - count_before)
            consumer.wait(timeout_s=min(left, _STEP_S))
    is_read, last = consumer.read_last(), consumer.frame
    if consumer.failure is not None:
        raise consumer.failure
    if not is_read or last is None:
        raise SourceFailed("the last reading timed out", "try again")
    return first.now, last.now


# --- the reports ----------------------------------------------------------------------------------------------


def _summary(
    amount: str, settings: ExportSettings, began: Snapshot, ended: Snapshot, *, is_early: bool
) -> str:
    """Return a summary: the amount written, the path, and the losses."""
    early = f", ended early ({settings.duration_s:g} s were requested)" if is_early else ""
    lost = {name: count - began.lost.get(name, 0) for name, count in ended.lost.items()}
    losses = ", ".join(f"{count} {name}" for name, count in lost.items() if count > 0)
    place = "" if settings.path == STDOUT else f"; written to {settings.path}"
    return f"{amount}{early}{f'; lost {losses}' if losses else ''}{place}"


@contextmanager
def _progress(
    settings: ExportSettings, unit: str, stderr: TextIO | None
) -> Iterator[Callable[[float, int], None]]:
    """Show the progress on a terminal's last line; yield its update function, a no-op without a terminal."""
    if stderr is None or not stderr.isatty():
        yield lambda _elapsed_s, _counted: None
        return

    def write(text: str) -> None:
        with suppress(OSError):  # the terminal may be closed
            stderr.write(f"\r{text}\x1b[K")
            stderr.flush()

    def show(elapsed_s: float, counted: int) -> None:
        elapsed = f"{elapsed_s:.0f} of {settings.duration_s:g} s"
        write(f"{settings.view}  {elapsed}  {counted:,} {unit}  (Ctrl-C ends early)")

    try:
        yield show
    finally:
        write("")


# --- the file -------------------------------------------------------------------------------------------------


@contextmanager
def open_output(path: str, stdout: TextIO | None) -> Iterator[Callable[[str], None]]:
    """Yield a function that writes text to standard output (`-`), or replaces a file atomically.

    A FIFO or a device is opened immediately and written to. Raise NettopError early if the final write could not
    succeed.
    """
    what = OUTPUT if path == STDOUT else path
    with ExitStack() as ends:
        with writing(what, _REMEDY):
            put = _opened(path, stdout, ends)

        def write(text: str) -> None:
            with writing(what, _REMEDY):
                put(text.encode("utf-8", "replace"))

        yield write


def _opened(path: str, stdout: TextIO | None, ends: ExitStack) -> Callable[[bytes], None]:
    if path == STDOUT:
        assert stdout is not None
        return partial(_write_flushed, stdout.buffer)
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(os.stat(path).st_mode):
            descriptor = open_to_write(path)
            ends.callback(os.close, descriptor)
            return partial(write_all, descriptor)
    _check_directory(path)
    return partial(replace_file, path)


def _write_flushed(file: BinaryIO, content: bytes) -> None:
    file.write(content)
    file.flush()


def _check_directory(path: str) -> None:
    """Raise OSError if no file can be created in the path's directory."""
    beside = temporary_path(Path(os.path.realpath(path)))
    try:
        beside.touch(exist_ok=False)
    except PermissionError as error:
        raise PermissionError(None, f"no file can be created in {beside.parent}") from error
    finally:
        beside.unlink(missing_ok=True)
