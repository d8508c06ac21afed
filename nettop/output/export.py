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

from nettop.diagnostics import Diagnostics, StatusLine
from nettop.engine.consumer import READING_WAIT_S, Consumer
from nettop.engine.session import Session
from nettop.errors import ExitCode, SourceFailed
from nettop.output.lens_output import Exporter, lens_output
from nettop.process.interrupts import Requests
from nettop.query.filter import Filter, combined, parse_filter
from nettop.query.query import text_query
from nettop.query.view import View
from nettop.settings import STDOUT
from nettop.settings.export import ExportSettings
from nettop.snapshots import find_table
from nettop.snapshots.schema import Table
from nettop.snapshots.snapshot import Frame, Snapshot
from nettop.snapshots.source import SourceOptions
from nettop.writing import OUTPUT, open_to_write, replace_file, temporary_path, write_all, writing

_STEP_S = 0.2
"""Seconds between updates of the status line."""
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
    _filter_of(settings, table)
    exporter = lens_output(lens.id).exporters[table.name]
    options = SourceOptions(mechanisms=settings.mechanisms, all_rows=True, values=settings.options)
    consumer = Consumer(session, lens.id, (table,), options)
    requests.wake = consumer.wake
    with open_output(settings.path, stdout) as write:
        with consumer:
            sampled = _sample(settings, table, exporter, consumer, requests=requests, stderr=stderr)
        if sampled is None:
            Diagnostics(stderr)("interrupted before the first sample: nothing was written")
            return ExitCode.DONE
        write_export(settings, *sampled, os.uname().nodename, write, stderr, is_early=requests.ending)
    return ExitCode.DONE


def write_export(  # noqa: PLR0917 - an export, and where it goes
    settings: ExportSettings,
    began: Snapshot,
    ended: Snapshot,
    host: str,
    write: Callable[[str], None],
    stderr: TextIO | None,
    *,
    is_early: bool,
) -> None:
    """Write the counts between two snapshots of a host, the last of which `is_early`. Raise UsageError, and NettopError
    if the file cannot be written."""
    lens, table = find_table(settings.view)
    exporter, report = lens_output(lens.id).exporters[table.name], Diagnostics(stderr)
    counted = exporter.difference(ended.tables[table.name], began.tables[table.name])
    frame = Frame(replace(ended, tables={table.name: counted}))
    view = View(frame, replace(text_query(table), filter=_filter_of(settings, table)))
    text, amount = exporter.write(settings.format, view, began, host)
    for remark in view.filter_remarks:
        report(remark)
    write(text)
    report(_summary(amount, settings, began, ended, is_early=is_early))


def _filter_of(settings: ExportSettings, table: Table) -> Filter:
    return combined(table, [parse_filter(table, text) for text in settings.filters])


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
    status = StatusLine(stderr)
    start, before = time.monotonic(), exporter.count(first.now.tables[table.name])
    while not requests.ending and (elapsed_s := time.monotonic() - start) < settings.duration_s:
        consumer.raise_failure()
        left_s = settings.duration_s - elapsed_s
        if status.is_shown:
            frame, left_s = consumer.frame or first, min(left_s, _STEP_S)
            counted = exporter.count(frame.now.tables[table.name]) - before
            amount = f"{elapsed_s:.0f} of {settings.duration_s:g} s, {counted:,} {exporter.unit}"
            status.show(f"{settings.view}: {amount} (Ctrl-C ends early)", elapsed_s / settings.duration_s)
        consumer.wait(timeout_s=left_s)
    status.show("")
    missing, last = consumer.read_last(wait_s=READING_WAIT_S), consumer.frame
    consumer.raise_failure()
    if missing or last is None:
        raise SourceFailed(missing, "try again")
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


# --- the file -------------------------------------------------------------------------------------------------


@contextmanager
def open_output(path: str, stdout: TextIO | None) -> Iterator[Callable[[str], None]]:
    """Yield a function that writes text to standard output (`-`), or replaces a file atomically.

    A FIFO or a device is opened immediately and written to. Raise NettopError early if the final write could not
    succeed.
    """
    what = OUTPUT if path == STDOUT else path
    with ExitStack() as resources:
        with writing(what, _REMEDY):
            put = _opened(path, stdout, resources)

        def write(text: str) -> None:
            with writing(what, _REMEDY):
                put(text.encode("utf-8", "replace"))

        yield write


def _opened(path: str, stdout: TextIO | None, resources: ExitStack) -> Callable[[bytes], None]:
    if path == STDOUT:
        assert stdout is not None
        return partial(_write_flushed, stdout.buffer)
    with suppress(FileNotFoundError):
        if not stat.S_ISREG(os.stat(path).st_mode):
            descriptor = open_to_write(path)
            resources.callback(os.close, descriptor)
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
