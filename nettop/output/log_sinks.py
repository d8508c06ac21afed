# SPDX-License-Identifier: Apache-2.0
"""Where lines go: each table's file, and the console, which never keeps the files waiting."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from nettop.engine.consumer import Consumer
from nettop.errors import NettopError
from nettop.interrupts import Requests
from nettop.output.console import Console
from nettop.output.log_files import LogFile, Place
from nettop.output.log_lines import lost_line
from nettop.settings import LineFormat, LogSettings

_ENDINGS = {LineFormat.TEXT: "log", LineFormat.JSONL: "jsonl"}
_GONE = select.POLLERR | select.POLLHUP


class Sinks:
    """The console and the files of a log, by the name of what they hold.

    Without files the console is waited for: nothing else would have its lines.
    """

    def __init__(
        self,
        files: Mapping[str, LogFile],
        console: Console | None,
        requests: Requests,
        consumer: Consumer,
        *,
        encoding: str,
        report: Callable[[str], None],
    ) -> None:
        self._files = files
        self._console = console
        self._encoding = encoding
        self._requests = requests
        self._report = report
        self._consumer = consumer
        self._lost_by_console = 0

    def write(self, name: str, text: str) -> None:
        """Write whole lines to the file of that name, then to the console."""
        block = text.encode("utf-8", "replace")
        if self._files:
            self._files[name].write(block)
        if self._console is not None:
            self._console.write(
                block if self._encoding == "utf-8" else text.encode(self._encoding, "replace")
            )
            if not self._files:
                self._console.wait(lambda: self._requests.ending)

    def wait(self) -> None:
        """Wait for the consumer. Raises BrokenPipeError once nobody reads the console any more, and NettopError when
        the console cannot be written and is all there is.
        """
        console = self._console
        ready = self._consumer.wait({} if console is None else {console.descriptor: 0})
        if console is None:
            return
        if console.gone or ready.get(console.descriptor, 0) & _GONE:
            raise BrokenPipeError
        if console.error is not None:
            self._do_without(console, console.error)

    def reopen_if_requested(self) -> None:
        """Open the files again, if a signal has requested it since the last call."""
        if self._requests.take_reopening():
            for file in self._files.values():
                file.reopen()

    def close(self) -> None:
        """Write what waits, and close the files; a second call does nothing."""
        if self._console is not None:
            self._console.close()
            self._lost_by_console += self._console.lost
            self._console = None
        for file in self._files.values():
            file.close()

    def lost(self) -> list[str]:
        """How many lines each of them lacks, of those that lack some."""
        lost = {str(file.place.path): file.lost for file in self._files.values()} | {
            "console": self._lost_by_console
        }
        return [f"{count} lines of {name}" for name, count in lost.items() if count]

    def places(self) -> list[str]:
        """Which files there are."""
        paths = [str(file.place.path) for file in self._files.values()]
        return [f"written to {', '.join(paths)}"] if paths else []

    def _do_without(self, console: Console, error: OSError) -> None:
        if not self._files:
            raise NettopError(f"the output cannot be written: {error.strerror}")
        self._report(f"the console cannot be written ({error.strerror}): lines go to the files only")
        console.close()
        self._lost_by_console += console.lost
        self._console = None


@contextmanager
def opened_sinks(
    settings: LogSettings,
    names: Sequence[str],
    requests: Requests,
    consumer: Consumer,
    *,
    stdout: TextIO | None,
    report: Callable[[str], None],
) -> Iterator[Sinks]:
    """The files `names` in the log's directory, and the console. Raises NettopError when a file cannot be opened."""

    def line_of_loss(cause: str, count: int, total: int) -> str:
        return lost_line(settings.format, time.time_ns(), "lines", cause, count=count, total=total)

    files: dict[str, LogFile] = {}
    ending = _ENDINGS[settings.format]
    for name in names if settings.directory is not None else ():
        place = Place(Path(str(settings.directory)), name, ending, settings.rotate_bytes, settings.keep)
        files[name] = LogFile(place, report, lambda *gap: line_of_loss(*gap).encode())
    for file in files.values():
        file.open()
    encoding, console = "utf-8", None
    if stdout is not None and settings.console:
        # Text goes to people, as their locale has it; programs expect UTF-8 everywhere.
        if settings.format is LineFormat.TEXT:
            encoding = stdout.encoding.lower()
        console = Console(
            stdout.fileno(), consumer.wake, lambda *gap: line_of_loss(*gap).encode(encoding, "replace")
        )
    sinks = Sinks(files, console, requests, consumer, encoding=encoding, report=report)
    try:
        yield sinks
    finally:
        sinks.close()
