# SPDX-License-Identifier: Apache-2.0
"""Signals: Ctrl-C, SIGTERM and SIGHUP raise KeyboardInterrupt in the main thread, unless a frontend handles them."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

AGAIN_S = 1.0
"""A signal that is repeated within this time is the same request: timeout(1) sends it twice."""

_RESEND_S = 0.01
"""A signal whose exception Python has dropped is raised again after this time."""

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Requests:
    """What has been requested of a frontend that finishes its work first: to end, or to reopen its files.

    `wake` is called at each.
    """

    def __init__(self) -> None:
        self.ending = False
        self._requested_at = 0.0
        self.wake: Callable[[], None] = lambda: None
        self._reopening = False

    def end(self) -> None:
        """Request the end. May be called from any thread and from signal handlers."""
        if not self.ending:
            self.ending, self._requested_at = True, time.monotonic()
        self.wake()

    def end_by_signal(self) -> None:
        """Request the end; raise KeyboardInterrupt where it was requested some time ago."""
        if self.ending and time.monotonic() - self._requested_at >= AGAIN_S:
            raise KeyboardInterrupt
        self.end()

    def reopen(self) -> None:
        """Request that all files are reopened."""
        self._reopening = True
        self.wake()

    def take_reopening(self) -> bool:
        """Whether that was requested since the last call."""
        is_requested, self._reopening = self._reopening, False
        return is_requested


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP end the program in order; signals that are ignored (nohup) stay so."""
    before, sys.unraisablehook = sys.unraisablehook, _resend
    try:
        with _handled_by(_interrupt):
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)  # what has ended by now need not be ended again
        sys.unraisablehook = before


@contextmanager
def requested_by_signals(*, reopens: bool = True) -> Iterator[Requests]:
    """Request the end at Ctrl-C and SIGTERM, and that files are reopened at SIGHUP, even under nohup.

    SIGHUP requests the end where the terminal that nettop was started in has gone, and for what never
    `reopens` files.
    """
    requests = Requests()
    with _handled_by(lambda _number, _frame: requests.end_by_signal()):
        if not reopens:
            yield requests
            return
        before = signal.getsignal(signal.SIGHUP)
        terminal = None if before is signal.SIG_IGN else next(filter(_is_controlling, range(3)), None)

        def hang_up(_number: int, _frame: object) -> None:
            if terminal is None or _is_controlling(terminal):
                requests.reopen()
            else:
                requests.end_by_signal()

        signal.signal(signal.SIGHUP, hang_up)
        try:
            yield requests
        finally:
            signal.signal(signal.SIGHUP, before)


def _is_controlling(descriptor: int) -> bool:
    """Return whether it is our terminal: not one that has hung up, nor one whose session has ended."""
    try:
        os.tcgetpgrp(descriptor)
    except OSError:
        return False
    return True


@contextmanager
def answered_by(end: Callable[[], None]) -> Iterator[None]:
    """Call `end` at Ctrl-C, SIGTERM and SIGHUP; signals that are ignored (nohup) stay so."""
    with _handled_by(lambda _number, _frame: end()):
        yield


@contextmanager
def left_to(send: Callable[[int], None]) -> Iterator[None]:
    """Let a command decide when to end: SIGTERM and SIGHUP are passed to it; the terminal signals it itself."""
    with _handled_by(lambda number, _frame: None if number == signal.SIGINT else send(number)):
        before = signal.signal(signal.SIGQUIT, signal.SIG_IGN)
        try:
            yield
        finally:
            signal.signal(signal.SIGQUIT, before)


@contextmanager
def undisturbed() -> Iterator[list[int]]:
    """Delay interrupts until this is over: an interrupted import leaves half a module behind.

    Gives the signals that wait, of which only the main thread has any.
    """
    pending: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield pending
        return
    with _handled_by(lambda number, _frame: pending.append(number)):
        yield pending
    if pending:
        raise KeyboardInterrupt(pending[0])


def exit_code_of(ended: KeyboardInterrupt) -> int:
    """The exit code of a program that a signal ended: 128 and its number; Ctrl-C's if it is not known."""
    return 128 + _signal_of(ended)


def leave_output() -> None:
    """Flush the standard streams now. Output that nobody reads is dropped, or Python would complain when it exits."""
    for name in ("stdout", "stderr"):
        try:
            if (stream := getattr(sys, name)) is not None:
                stream.flush()
        except OSError:
            setattr(sys, name, None)  # what Python does not flush


def _signal_of(ended: KeyboardInterrupt) -> int:
    return int(next(iter(ended.args), signal.SIGINT))


def _interrupt(number: int, _: object) -> None:
    raise KeyboardInterrupt(number)


def _resend(dropped: sys.UnraisableHookArgs) -> None:
    """Raise a signal again that arrived within a destructor or a callback of the interpreter, which drop exceptions.

    Not at once: this function is called within it too.
    """
    if isinstance(dropped.exc_value, KeyboardInterrupt):
        number = _signal_of(dropped.exc_value)
        signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(number))
        signal.setitimer(signal.ITIMER_REAL, _RESEND_S)
    else:
        sys.__unraisablehook__(dropped)


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
