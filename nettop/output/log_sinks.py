# SPDX-License-Identifier: Apache-2.0
"""Destinations of log lines: each table's file, and the console, which never delays the files."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TextIO

from nettop.errors import NettopError
from nettop.output.console import Console
from nettop.output.log_files import LogFile
from nettop.output.log_lines import Lost, lost_line
from nettop.process.interrupts import Requests
from nettop.process.wake_event import WakeEvent
from nettop.settings import LineFormat
from nettop.settings.log import LogSettings

_ENDINGS = {LineFormat.TEXT: "log", LineFormat.JSONL: "jsonl"}
_GONE = select.POLLERR | select.POLLHUP


class Sinks:
    """The console and the files `names` of a log, in its directory. Raises NettopError if one cannot be opened.

    Without files, writers wait for the console, as dropped lines would be lost. With files, the log continues after the
    console's reader is gone, unless it was a terminal: closing a terminal ends the programs in it.
    """

    def __init__(
        self,
        settings: LogSettings,
        names: Sequence[str],
        requests: Requests,
        event: WakeEvent,
        *,
        stdout: TextIO | None,
        report: Callable[[str], None],
    ) -> None:
        self._requests = requests
        self._report = report
        self._event = event
        self._lost_by_console = 0
        # Text for people uses the encoding of the locale; programs always expect UTF-8.
        self._encoding = stdout.encoding.lower() if stdout and settings.format is LineFormat.TEXT else "utf-8"

        def line_of_loss(encoding: str, cause: str, count: int, total: int) -> bytes:
            line = lost_line(settings.format, time.time_ns(), Lost("lines", cause, count, total))
            return line.encode(encoding, "replace")

        directory = settings.directory
        self._files = {
            name: LogFile(
                Path(directory, f"{name}.{_ENDINGS[settings.format]}"),
                settings.rotate_bytes,
                settings.keep,
                report,
                partial(line_of_loss, "utf-8"),
            )
            for name in names
            if directory is not None
        }
        self._ends_with_console = not self._files or (stdout is not None and stdout.isatty())
        self._console: Console | None = None
        if stdout is not None and settings.console:
            self._console = Console(stdout.fileno(), event.set, partial(line_of_loss, self._encoding))

    def write(self, name: str, text: str) -> None:
        """Write complete lines to the file of that name, then to the console."""
        self.write_block(name, text.encode("utf-8", "replace"))

    def write_block(self, name: str, block: bytes) -> None:
        """Write complete lines in UTF-8 to the file of that name, then to the console."""
        if self._files:
            self._files[name].write(block)
        if self._console is not None:
            is_utf_8 = self._encoding == "utf-8"
            self._console.write(block if is_utf_8 else block.decode().encode(self._encoding, "replace"))
            if not self._files:
                self._console.wait(lambda: self._requests.ending)

    def wait(self) -> None:
        """Wait for the event. Raise BrokenPipeError if the console is gone and the log ends with it, and NettopError
        if the console cannot be written and there are no files.
        """
        console = self._console
        ready = self._event.wait({} if console is None else {console.descriptor: 0})
        if console is None:
            return
        if console.gone or ready.get(console.descriptor, 0) & _GONE:
            if self._ends_with_console:
                raise BrokenPipeError
            self._go_on_without_console("its reader has gone")
        elif console.error is not None:
            if not self._files:
                raise NettopError(f"the output cannot be written: {console.error.strerror}")
            self._go_on_without_console(console.error.strerror)

    def reopen(self) -> None:
        """Reopen the files."""
        for file in self._files.values():
            file.reopen()

    def close(self) -> None:
        """Flush the console and close the files; a second call is a no-op."""
        self._close_console()
        for file in self._files.values():
            file.close()

    def lost(self) -> list[str]:
        """Return how many lines were lost, for each destination that lost any."""
        lost = {str(file.path): file.lost.total for file in self._files.values()}
        lost["console"] = self._lost_by_console
        return [f"{count} lines of {name}" for name, count in lost.items() if count]

    def places(self) -> list[str]:
        """Return where the files are, if there are any."""
        paths = ", ".join(str(file.path) for file in self._files.values())
        return [f"written to {paths}"] if paths else []

    def _go_on_without_console(self, why: str | None) -> None:
        self._report(f"the console cannot be written ({why}); logging continues in the files")
        self._close_console()

    def _close_console(self) -> None:
        if self._console is not None:
            self._console.close()
            self._lost_by_console = self._console.lost.total
            self._console = None
