# SPDX-License-Identifier: Apache-2.0
"""What plain output sleeps for: a publication, Enter on standard input, the reader of its output going away."""

from __future__ import annotations

import os
import select
import termios
from types import TracebackType
from typing import Self

from nettop.engine.wake_event import WakeEvent


class RefreshInput:
    """Sleeps until something happens, without polling. Used as a context.

    `stdin` and `stdout` are descriptors, or None for what is closed or is no file. Standard input is left
    alone while it is not ours to read: a terminal whose foreground is another job (reading would stop us), or
    one that a pager has in raw mode (reading would take its keys).
    """

    def __init__(self, stdin: int | None, stdout: int | None) -> None:
        self._stdin = stdin
        self._stdout = stdout
        self._bell = WakeEvent()
        self.wake = self._bell.ring
        """Ends the sleep; called from any thread."""

    def __enter__(self) -> Self:
        self._bell.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._bell.__exit__(kind, error, at)

    def wait(self) -> bool:
        """Sleep until woken or until Enter; True for Enter.

        Raises BrokenPipeError as soon as nobody reads standard output any more.
        """
        poll = self._poll()
        while True:
            ready = dict(poll.poll())
            if self._stdout is not None and ready.get(self._stdout, 0) & (select.POLLERR | select.POLLHUP):
                raise BrokenPipeError
            entered = False
            if self._stdin in ready:
                # Until the next sleep: what we may not read now would only wake us again at once.
                poll.unregister(self._stdin)
                entered = self._read_enter()
            if self._bell.descriptor in ready:
                self._bell.silence()
            if entered or self._bell.descriptor in ready:
                return entered
            if self._stdin is not None and may_read(self._stdin):
                poll.register(self._stdin, select.POLLIN)

    def _poll(self) -> select.poll:
        poll = select.poll()
        poll.register(self._bell.descriptor, select.POLLIN)
        if self._stdin is not None:
            poll.register(self._stdin, select.POLLIN)
        if self._stdout is not None:
            poll.register(self._stdout, 0)
        return poll

    def _read_enter(self) -> bool:
        """Whether what can be read holds a newline. At its end standard input is given up, and nothing else ends."""
        if self._stdin is None or not may_read(self._stdin):
            return False
        try:
            read = os.read(self._stdin, 65536)
        except OSError:
            read = b""
        if not read:
            self._stdin = None
        return b"\n" in read


def may_read(descriptor: int) -> bool:
    """False for a terminal that another job or a program in raw mode is reading."""
    try:
        canonical = termios.tcgetattr(descriptor)[3] & termios.ICANON
    except termios.error:
        return True  # no terminal
    try:
        return bool(canonical) and os.tcgetpgrp(descriptor) == os.getpgrp()
    except OSError:
        return bool(canonical)  # not the terminal that stops jobs
