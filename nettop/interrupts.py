# SPDX-License-Identifier: Apache-2.0
"""How the program ends when somebody ends it: Ctrl-C, SIGTERM and SIGHUP are KeyboardInterrupt in the main thread."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

AGAIN_S = 1.0
"""What comes again within this time is the same request: timeout(1) sends its signal twice."""

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Requests:
    """What signals have asked so far of a door that works on: to end, or to open its files again.

    `wake` is called with each. Who asks again to end, a little later, is not asked to wait: KeyboardInterrupt.
    """

    def __init__(self) -> None:
        self.ending = False
        self._asked_at = 0.0
        self.wake: Callable[[], None] = lambda: None
        self._reopening = False

    def end(self) -> None:
        """Ask to end."""
        now = time.monotonic()
        if self.ending and now - self._asked_at >= AGAIN_S:
            raise KeyboardInterrupt
        if not self.ending:
            self.ending, self._asked_at = True, now
        self.wake()

    def reopen(self) -> None:
        """Ask to open all files again."""
        self._reopening = True
        self.wake()

    def take_reopening(self) -> bool:
        """Whether that was asked since the last call."""
        asked, self._reopening = self._reopening, False
        return asked


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP end the program, and all is closed; where ignored (nohup) they stay so."""
    with _handled_by(_interrupt):
        yield


@contextmanager
def requested_by_signals() -> Iterator[Requests]:
    """Ctrl-C and SIGTERM ask to end, SIGHUP to open files again, even under nohup."""
    requests = Requests()
    with _handled_by(lambda _number, _frame: requests.end()):
        before = signal.signal(signal.SIGHUP, lambda _number, _frame: requests.reopen())
        try:
            yield requests
        finally:
            signal.signal(signal.SIGHUP, before)


@contextmanager
def left_to(send: Callable[[int], None]) -> Iterator[None]:
    """Leave it to a command to end: SIGTERM and SIGHUP are sent on to it, and a terminal tells it of its keys."""
    with _handled_by(lambda number, _frame: None if number == signal.SIGINT else send(number)):
        before = signal.signal(signal.SIGQUIT, signal.SIG_IGN)
        try:
            yield
        finally:
            signal.signal(signal.SIGQUIT, before)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Put off being ended until this is over: an import that is interrupted leaves half a module behind."""
    pending: list[int] = []
    with _handled_by(lambda number, _frame: pending.append(number)):
        yield
    if pending:
        raise KeyboardInterrupt(pending[0])


def exit_code_of(ended: KeyboardInterrupt) -> int:
    """What a shell says of a program that a signal ended: 128 and its number, Ctrl-C's where none is known."""
    return 128 + int(next(iter(ended.args), signal.SIGINT))


def leave_output() -> None:
    """Flush the standard streams now. What nobody reads any more is dropped, or Python would complain at its end."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def _interrupt(number: int, _: object) -> None:
    raise KeyboardInterrupt(number)


@contextmanager
def _handled_by(handler: signal._HANDLER) -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in _ENDING}
    for number, old in before.items():
        if old is not signal.SIG_IGN:
            signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
