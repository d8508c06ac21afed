# SPDX-License-Identifier: Apache-2.0
"""Threads: one that an exception ends, ends nettop, so that nothing goes on without it unnoticed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from nettop.errors import SourceFailed


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
