# SPDX-License-Identifier: Apache-2.0
"""Deadlines for doctor's steps: on a host that lacks something, any step may hang."""

from __future__ import annotations

import faulthandler
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from nettop.errors import SourceFailed
from nettop.process.limits import memory_limits, process_limits
from nettop.selftest.result import REPORT_IT
from nettop.settings.doctor import STEP_S

_CLOSING_S = 5.0
"""Seconds for the step's cleanup, before that is interrupted too."""
_STUCK_S = 30.0
"""Further seconds until the process exits if no exception can be raised, as in a deadlock of the C library."""
_FEW_BYTES, _FEW_PROCESSES = 1 << 30, 1_000
"""Only a limit below these may have stopped a step: every user has some limit, and most never meet it."""
_STDERR = 2


class Overdue(BaseException):
    """The interrupt of a step that takes too long, a BaseException so that handlers of other errors do not catch it."""


@contextmanager
def within(step: str, seconds: float = STEP_S) -> Iterator[None]:
    """Raise SourceFailed if the body takes longer than this. Call it in the main thread."""

    def give_up(_number: int, _frame: object) -> None:
        raise Overdue

    handler = signal.signal(signal.SIGALRM, give_up)
    timer = signal.setitimer(signal.ITIMER_REAL, seconds, _CLOSING_S)
    with suppress(OSError, RuntimeError):  # no descriptor, or no thread
        faulthandler.dump_traceback_later(seconds + _STUCK_S, exit=True, file=_STDERR)
    try:
        yield
    except Overdue as error:
        tight = (*memory_limits(_FEW_BYTES), *process_limits(_FEW_PROCESSES))
        limits = "; ".join(limit.what for limit in tight)
        raise SourceFailed(
            f"{step} timed out after {seconds:g} s{f', with limits: {limits}' if limits else ''}",
            f"{'raise the limits' if limits else 'on a slow host, allow more with --timeout'}, or {REPORT_IT}",
        ) from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler)
        faulthandler.cancel_dump_traceback_later()
