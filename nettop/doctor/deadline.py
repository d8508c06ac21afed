# SPDX-License-Identifier: Apache-2.0
"""A deadline for each step of doctor: on a host that lacks something, anything may wait for ever."""

from __future__ import annotations

import faulthandler
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from nettop.errors import SourceFailed
from nettop.limits import of_memory, of_processes
from nettop.selftest.result import REPORT_IT

STEP_S = 90.0
"""Many times what a step takes on a busy host."""
_CLOSING_S = 5.0
"""For what a step has opened to be closed, before it is given up too."""
_STUCK_S = 30.0
"""After which the process ends where no exception can be raised, as in a deadlock of the C library."""
_STDERR = 2


class Overdue(BaseException):
    """A step takes too long. No handler of other errors takes it for one of those."""


@contextmanager
def within(step: str, seconds: float = STEP_S) -> Iterator[None]:
    """Raise SourceFailed where the context takes longer than this. Call it in the main thread."""

    def give_up(_number: int, _frame: object) -> None:
        raise Overdue

    handler = signal.signal(signal.SIGALRM, give_up)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds, _CLOSING_S)
    with suppress(OSError, RuntimeError):  # no descriptor, or no thread
        faulthandler.dump_traceback_later(seconds + _STUCK_S, exit=True, file=_STDERR)
    try:
        yield
    except Overdue as error:
        limits = "; ".join(limit.what for limit in (*of_memory(), *of_processes()))
        raise SourceFailed(
            f"{step} was given up after {seconds:g} s{f', where limits are: {limits}' if limits else ''}",
            f"raise the limits; or else {REPORT_IT}" if limits else REPORT_IT,
        ) from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler)
        faulthandler.cancel_dump_traceback_later()
