# SPDX-License-Identifier: Apache-2.0
"""How the program ends when somebody ends it: Ctrl-C, SIGTERM and SIGHUP are KeyboardInterrupt in the main thread."""

from __future__ import annotations

import signal
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
