# SPDX-License-Identifier: Apache-2.0
"""How the program ends when somebody ends it: Ctrl-C, SIGTERM and SIGHUP are KeyboardInterrupt in the main thread."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP end the program, and all is closed; where ignored (nohup) they stay so."""
    with _handled_by(signal.default_int_handler):
        yield


@contextmanager
def undisturbed() -> Iterator[None]:
    """Put off being ended until this is over: an import that is interrupted leaves half a module behind."""
    pending: list[int] = []
    with _handled_by(lambda number, _frame: pending.append(number)):
        yield
    if pending:
        raise KeyboardInterrupt


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
