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

from nettop.errors import SourceFailed

AGAIN_S = 1.0
"""A signal repeated within this time counts as the same request: timeout(1) sends it twice."""

_RESEND_S = 0.01
"""Delay before raising a signal again after Python dropped its exception."""

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Requests:
    """Requests to a frontend that finishes its work first: to end, or to reopen its files.

    Each calls `wake`.
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
        """Request the end; raise KeyboardInterrupt if it was requested some time ago."""
        if self.ending and time.monotonic() - self._requested_at >= AGAIN_S:
            raise KeyboardInterrupt
        self.end()

    def reopen(self) -> None:
        """Request that all files be reopened."""
        self._reopening = True
        self.wake()

    def take_reopening(self) -> bool:
        """Return whether reopening was requested since the last call."""
        is_requested, self._reopening = self._reopening, False
        return is_requested


@contextmanager
def exit_on_signals() -> Iterator[None]:
    """Exit in an orderly way on Ctrl-C, SIGTERM and SIGHUP; ignored signals (nohup) stay ignored."""
    before, sys.unraisablehook = sys.unraisablehook, _resend
    try:
        with _handle_with(_interrupt):
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)  # it has ended, so cancel a pending resend
        sys.unraisablehook = before


@contextmanager
def requested_by_signals(*, reopens: bool = True) -> Iterator[Requests]:
    """Turn Ctrl-C and SIGTERM into requests to end, and SIGHUP into requests to reopen files, even under nohup.

    SIGHUP requests the end if the terminal in which nettop was started is gone, or if the frontend never `reopens`
    files.
    """
    requests = Requests()
    with _handle_with(lambda _number, _frame: requests.end_by_signal()):
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
    """Return whether this is nettop's terminal, has not hung up, and its session has not ended."""
    try:
        os.tcgetpgrp(descriptor)
    except OSError:
        return False
    return True


@contextmanager
def handle_signals(end: Callable[[], None]) -> Iterator[None]:
    """Call `end` on Ctrl-C, SIGTERM and SIGHUP; ignored signals (nohup) stay ignored."""
    with _handle_with(lambda _number, _frame: end()):
        yield


@contextmanager
def forward_signals(send: Callable[[int], None]) -> Iterator[None]:
    """Leave signals to a child command: pass SIGTERM and SIGHUP on by `send`; the terminal signals it directly."""
    with _handle_with(lambda number, _frame: None if number == signal.SIGINT else send(number)):
        before = signal.signal(signal.SIGQUIT, signal.SIG_IGN)
        try:
            yield
        finally:
            signal.signal(signal.SIGQUIT, before)


@contextmanager
def delay_interrupts() -> Iterator[list[int]]:
    """Delay interrupts to the end of the body: an interrupted import leaves half a module behind.

    Yield the pending signals; only the main thread receives any.
    """
    pending: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield pending
        return
    with _handle_with(lambda number, _frame: pending.append(number)):
        yield pending
    if pending:
        raise KeyboardInterrupt(pending[0])


def exit_code_of(ended: KeyboardInterrupt) -> int:
    """Return the exit code of a program ended by a signal: 128 plus its number, SIGINT's if unknown."""
    return 128 + _signal_of(ended)


def leave_output() -> None:
    """Flush the standard streams. Drop output that nobody reads, or Python would complain on exit."""
    for name in ("stdout", "stderr"):
        try:
            if (stream := getattr(sys, name)) is not None:
                stream.flush()
        except OSError:
            setattr(sys, name, None)  # so that Python does not flush it


def _signal_of(ended: KeyboardInterrupt) -> int:
    return int(next(iter(ended.args), signal.SIGINT))


def _interrupt(number: int, _: object) -> None:
    raise KeyboardInterrupt(number)


def _resend(dropped: sys.UnraisableHookArgs) -> None:
    """Raise a signal again if it arrived in a destructor or an interpreter callback, where exceptions are dropped.

    The signal is delayed, because this function is called within that callback too.
    """
    if isinstance(dropped.exc_value, KeyboardInterrupt):
        number = _signal_of(dropped.exc_value)
        signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(number))
        signal.setitimer(signal.ITIMER_REAL, _RESEND_S)
    else:
        sys.__unraisablehook__(dropped)


@contextmanager
def _handle_with(handler: signal._HANDLER) -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in _ENDING}
    for number, old in before.items():
        if old is not signal.SIG_IGN:
            signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


# --- threads --------------------------------------------------------------------------------------------------


@contextmanager
def ending_with_threads(number: int = signal.SIGTERM) -> Iterator[None]:
    """Once an exception ends a thread, send this signal to the main thread, so that the body ends as at any other time;
    then raise SourceFailed with the cause."""
    causes: list[SourceFailed] = []

    def note(ended: threading.ExceptHookArgs) -> None:
        name = "?" if ended.thread is None else ended.thread.name
        causes.append(
            SourceFailed(f"the thread {name} ended: {ended.exc_value!r}", "please report this as a bug")
        )
        if len(causes) == 1:
            signal.pthread_kill(threading.main_thread().ident or 0, number)

    before, threading.excepthook = threading.excepthook, note
    try:
        yield
    finally:
        threading.excepthook = before
        if causes:
            raise causes[0]
