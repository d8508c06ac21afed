# SPDX-License-Identifier: Apache-2.0
"""Destinations of log lines: each table's file, and the console, which never delays the files."""

from __future__ import annotations

import errno
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TextIO

from nettop.errors import NettopError
from nettop.output.log_files import LogFile, LossCount, LostLine
from nettop.output.log_lines import Lost, lost_line
from nettop.process.interrupts import Requests
from nettop.process.wake_event import WakeEvent
from nettop.settings import LineFormat
from nettop.settings.log import LogSettings
from nettop.writing import end_of_piece, has_room

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


# --- the console ----------------------------------------------------------------------------------------------

QUEUED_BYTES = 8 << 20
"""Bytes queued for a slow reader before lines are dropped."""
_WAIT_S = 0.1
_END_WAIT_S = 2.0
"""Seconds that closing waits for a stalled reader."""


class Console:
    """A queue of blocks of lines, and the thread that writes them in order.

    If the reader is too slow, the console drops and counts blocks; once there is room, it writes the line
    `lost_line(cause, count, total)`. `gone` is set once the reader has closed the pipe or terminal,
    `error` on any other write error. Both call `wake`.
    """

    def __init__(self, descriptor: int, wake: Callable[[], None], lost_line: LostLine) -> None:
        self.lost = LossCount()
        self.gone = False
        self.error: OSError | None = None
        self.descriptor = descriptor
        self._wake = wake
        self._lost_line = lost_line
        self._blocks: deque[bytes] = deque()
        self._rest, self._done = b"", 0
        self._waiting = 0
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="console", daemon=True)
        self._thread.start()

    def write(self, block: bytes) -> None:
        """Queue the lines, or drop them if the queue is full."""
        with self._changed:
            if self._waiting >= QUEUED_BYTES:
                self.lost.add(block)
            else:
                self._put_gap()
                self._put(block)

    def wait(self, given_up: Callable[[], bool]) -> None:
        """Sleep until there is room, the reader is gone, writing failed, or `given_up` returns true."""
        with self._changed:
            while self._waiting >= QUEUED_BYTES and not (self.gone or self.error or given_up()):
                self._changed.wait(_WAIT_S)

    def close(self) -> None:
        """Flush the queue; drop the rest if the reader has stalled."""
        with self._changed:
            self._put_gap()
            self._closing = True
            self._changed.notify_all()
        self._thread.join(_END_WAIT_S)
        with self._changed:
            for block in (self._rest if self._done < len(self._rest) else b"", *self._blocks):
                self.lost.add(block)
            self._blocks.clear()

    def _put(self, block: bytes) -> None:
        self._blocks.append(block)
        self._waiting += len(block)
        self._changed.notify_all()

    def _put_gap(self) -> None:
        if self.lost.gap:
            self._put(self._lost_line("console too slow", self.lost.gap, self.lost.total))
            self.lost.gap = 0

    # --- in the thread ------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._take():
                while self._done < len(self._rest):
                    end = end_of_piece(self._rest, self._done)
                    try:
                        self._done += os.write(self.descriptor, self._rest[self._done : end])
                    except BlockingIOError:  # another process that shares it has made it non-blocking
                        has_room(self.descriptor, None)
        except OSError as error:
            with self._changed:
                if error.errno in (errno.EPIPE, errno.EIO):  # EIO: a terminal that has hung up
                    self.gone = True
                else:
                    self.error = error
                self._changed.notify_all()
            self._wake()

    def _take(self) -> bool:
        """Sleep until there is a block to write; return False once closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._blocks or self._closing)
            if not self._blocks:
                return False
            self._rest, self._done = self._blocks.popleft(), 0
            self._waiting -= len(self._rest)
            self._changed.notify_all()
            return True
