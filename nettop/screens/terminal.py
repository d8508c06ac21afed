# SPDX-License-Identifier: Apache-2.0
"""The terminal: input that may be anything, and output that may fail, stall, or lose its terminal.

Uses of Textual's private names, checked with 8.2; `textual_internals` has the others:

- `LinuxDriver.run_input_thread`, `_xterm_parser`: Textual's own exits on a byte that is not UTF-8.
- `Driver._file`, `_size`, `_app`, `App._loop`, `WriterThread`: Textual's writer thread dies on the first error, after
  which all writers wait forever, as they do for a terminal that accepts nothing. A terminal may disappear (its window
  is closed, the line drops) or stall (its connection is frozen).
- `LinuxDriver._query_in_band_window_resize`: the kernel reports resizes; a terminal's own reports could claim any size.
- `LinuxDriver._sigtstp_application`, `_sigcont_application`: a hang-up also sends SIGCONT, on which Textual would
  restart the terminal.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import threading
import time
from codecs import getincrementaldecoder
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from queue import Full
from typing import Any, cast

from textual import constants, events
from textual._xterm_parser import XTermParser
from textual.app import App
from textual.drivers.linux_driver import LinuxDriver
from textual.message import Message
from textual.messages import InBandWindowResize

# Kitty's protocol reports locks, layouts and the keypad in its own way. Without it, keys are the same everywhere.
constants.DISABLE_KITTY_KEY = True  # type: ignore[misc]

RESTORING = "\0"
"""A marker that is not written itself: the text after it restores the terminal, and is not dropped."""
_PIECE_BYTES = 4096
"""Bytes per write; an empty pseudo-terminal accepts more than that at once."""
_READ_BYTES = 4096
_POLL_MS = 50
"""Milliseconds after which a lone Escape counts as a key; also the delay in noticing the exit."""
_STALL_S = 0.1
"""Seconds after which, on exit, a terminal that accepts nothing counts as stalled."""
_RESTORE_S = 0.5
"""Seconds allowed for restoring the terminal."""
_CTRL_C = "\x03"
"""Ctrl-C is never part of a paste: terminals leave it out, because shells would end the paste there."""
_LATIN = str.maketrans(
    "йцукенгшщзхъфывапролджэячсмитьбюієїςερτυθιοπασδφγηξκλζχψωβνμ",
    "qwertyuiop[]asdfghjkl;'zxcvbnm,.s']wertyuiopasdfghjklzxcvbnm",
)
"""Cyrillic and Greek letters mapped to the same keys of a Latin keyboard."""


def latin_key(key: str) -> str:
    """Return the name of a key on a Latin keyboard: Ctrl-С and `й` on a Cyrillic one are Ctrl-C and `q`."""
    modifiers, plus, letter = key.rpartition("+")
    latin = letter.lower().translate(_LATIN)
    return modifiers + plus + (latin.upper() if letter != letter.lower() else latin)


class InputParser:
    """A parser of terminal input that drops what is not UTF-8, and the sequences that Textual fails to read.

    Ctrl-C drops an incomplete sequence: a paste whose end never arrives would swallow it like every other key.
    """

    def __init__(self) -> None:
        self._decode = getincrementaldecoder("utf-8")("ignore").decode
        self._keys = XTermParser()

    def feed(self, data: bytes) -> Iterator[Message]:
        """Yield the messages completed by these bytes."""
        for character in self._decode(data):
            if character == _CTRL_C:
                self._keys = XTermParser()
            yield from self._try(self._keys.feed(character))

    def tick(self) -> Iterator[Message]:
        """Yield the messages completed by a timeout, such as a lone Escape."""
        yield from self._try(self._keys.tick())

    def _try(self, messages: Iterable[Message]) -> Iterator[Message]:
        try:
            yield from list(messages)
        except (ValueError, ArithmeticError, IndexError, StopIteration):
            self._keys = XTermParser()


class TerminalOutput:
    """A file that writes to a terminal, for one thread. Writes block on the terminal until output is dropped.

    Writes never fail: the first error is reported, and everything after it is dropped. A blocked write holds no lock,
    so that the program can exit.
    """

    def __init__(self, descriptor: int, on_error: Callable[[], None]) -> None:
        self._descriptor = descriptor
        self._on_error = on_error
        self._has_failed = False
        self.is_dropping = False
        """True to drop all output until RESTORING. May be set in any thread and in signal handlers."""
        self.restoring = threading.Event()
        """Event that is set once RESTORING is reached."""

    def fileno(self) -> int:
        """Return the terminal's descriptor."""
        return self._descriptor

    def write(self, text: str) -> None:
        """Write the text, unless the terminal has failed or output is being dropped."""
        if text == RESTORING:
            self.is_dropping = False
            self.restoring.set()
            return
        left = text.encode("utf-8", "replace")
        while left and not (self._has_failed or self.is_dropping):
            try:
                left = left[os.write(self._descriptor, left[:_PIECE_BYTES]) :]
            except OSError:
                self._has_failed = True
                self._on_error()

    def flush(self) -> None:
        """Do nothing: writes are unbuffered."""


class TerminalDriver(LinuxDriver):
    """A driver that copes with any terminal input and with stalled output, and exits when the terminal is gone."""

    def __init__(
        self, app: App[Any], *, debug: bool = False, mouse: bool = True, size: tuple[int, int] | None = None
    ) -> None:
        self._is_suspended = False
        super().__init__(app, debug=debug, mouse=mouse, size=size)
        if size is None:
            # A serial console reports 0×0. Rich assumes 80×25 and the driver 80×24, and the two would resize each
            # other forever.
            self._size = self._get_terminal_size()
        # Of the standard streams, only this one is known to be a terminal.
        self._output = TerminalOutput(cast(Any, sys.__stdout__).fileno(), self._terminal_gone)
        self._file = cast(Any, self._output)

    def write(self, data: str | None) -> None:
        """Queue a text for the terminal, or None to end its writer, waiting for room; on exit, make room."""
        thread = self._writer_thread
        while thread is not None and thread.is_alive():
            try:
                thread._queue.put(data, timeout=_STALL_S)
            except Full:
                if self._output.is_dropping:
                    self._unblock()
            else:
                return

    def drop_output(self) -> None:
        """Drop all output until the terminal is restored. May be called from signal handlers."""
        self._output.is_dropping = True

    def stop_application_mode(self) -> None:
        """Restore the terminal, dropping queued output."""
        self._output.restoring.clear()
        self._output.is_dropping = True
        self.write(RESTORING)
        until = time.monotonic() + _RESTORE_S
        while not self._output.restoring.wait(_STALL_S) and time.monotonic() < until:
            self._unblock()
        super().stop_application_mode()

    def close(self) -> None:
        """Wait until the terminal is restored, unless it has stalled."""
        self.write(None)
        if self._writer_thread is not None:
            self._writer_thread.join(_RESTORE_S)

    def _unblock(self) -> None:
        """Unblock the thread that waits for the terminal: discard the kernel's output queue.

        A signal makes the thread check for room again; SIGCONT is handled and has no other effect.
        """
        thread = self._writer_thread
        if thread is not None and thread.is_alive() and thread.ident is not None:
            with suppress(termios.error):
                termios.tcflush(self._output.fileno(), termios.TCOFLUSH)
            with suppress(ProcessLookupError):
                signal.pthread_kill(thread.ident, signal.SIGCONT)

    def _sigtstp_application(self, *_: object) -> None:
        self._is_suspended = True
        super()._sigtstp_application()

    def _sigcont_application(self, *_: object) -> None:
        if self._is_suspended:
            self._is_suspended = False
            super()._sigcont_application()

    def run_input_thread(self) -> None:
        """Read input until exit, or until the terminal is gone."""
        parser = InputParser()
        ready = select.poll()
        ready.register(self.fileno, select.POLLIN)
        try:
            while not self.exit_event.is_set():
                if ready.poll(_POLL_MS):
                    data = os.read(self.fileno, _READ_BYTES)
                    if not data:
                        raise EOFError
                    for message in parser.feed(data):
                        self.process_message(message)
                for message in parser.tick():
                    self.process_message(message)
        except (OSError, EOFError):
            self._terminal_gone()

    def process_message(self, message: Message) -> None:
        """Forward the terminal's messages to the app, except for sizes, which the kernel reports."""
        if not isinstance(message, events.Resize | InBandWindowResize):
            super().process_message(message)

    def _query_in_band_window_resize(self) -> None:
        pass

    def _terminal_gone(self) -> None:
        loop = self._app._loop
        if loop is not None and not loop.is_closed():
            # Deferred: a screen being mounted would fail.
            loop.call_soon_threadsafe(self._app.call_later, self._app.exit)
