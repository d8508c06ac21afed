# SPDX-License-Identifier: Apache-2.0
"""The frontend of `nettop run`: the connections of a command and its children, and a summary at the end."""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from typing import Protocol, TextIO

from nettop.diagnostics import Diagnostics
from nettop.engine.consumer import Consumer
from nettop.engine.session import Session
from nettop.interrupts import left_to
from nettop.output.run_report import Ended, RunReport
from nettop.settings import RunSettings
from nettop.snapshots.connections import EVENTS, LENS
from nettop.writing import LineFile

LINGER_S = 1.0
"""How long what the command opened may take to close behind it: the peer's answer is on its way."""
NO_SUCH_COMMAND, CANNOT_RUN, BY_SIGNAL = 127, 126, 128
"""Exit codes as shells have them."""


class Child(Protocol):
    """A process that waits to become the command."""

    pid: int
    descriptor: int
    """Readable once the process has ended."""

    def start(self) -> OSError | None:
        """Replace it with the command; returns why that is not possible."""

    def send(self, number: int) -> None:
        """Send it a signal, if it has not ended."""

    def status(self) -> int:
        """Wait for its end; the exit status, negative for death by a signal."""


def run_command(
    settings: RunSettings,
    session: Session,
    child: Child,
    stderr: TextIO | None,
    output: LineFile | None = None,
) -> int:
    """Run the command, report, and return its exit code: 128 and the number of the signal that ended it.

    The report goes to `output`, or to `stderr` without one. Raises what the lens fails with as long as the
    command has not begun, and Unsupported where there are no events; the command then never begins.
    """
    options = {**settings.options, "follow": child.pid, "mechanisms": settings.mechanisms}
    with Consumer(session, LENS.id, (EVENTS,), options) as consumer:
        first = consumer.first_frame()
        assert first is not None  # nobody requests the end
        with left_to(child.send):
            began = time.monotonic()
            error = child.start()
            if error is not None:
                Diagnostics(stderr)(f"{settings.words[0]}: {error.strerror}")
                return NO_SUCH_COMMAND if isinstance(error, FileNotFoundError) else CANNOT_RUN
            report = RunReport(settings, output or stderr, is_live=settings.live or output is not None)

            def take() -> None:
                frame = consumer.frame
                assert frame is not None  # since the command began
                report.add(frame, consumer.rows(EVENTS))

            while not consumer.wait({child.descriptor: select.POLLIN}):
                take()
            lasted_s = time.monotonic() - began
            status = child.status()
            code = status if status >= 0 else BY_SIGNAL - status
            _linger(consumer, report, take)
            failure = "" if consumer.failure is None else consumer.failure.what
            assert consumer.frame is not None
            frame = consumer.frame
            lost = {name: count - first.now.lost.get(name, 0) for name, count in frame.now.lost.items()}
            lost["events"] = frame.now.lost.get("events", 0) + consumer.lost(EVENTS)
            report.finish(frame, Ended(code, lasted_s, lost, failure))
            return code


def _linger(consumer: Consumer, report: RunReport, take: Callable[[], None]) -> None:
    """RunReport what happens until all connections have closed, but not for long; read once before and once after."""
    consumer.read_last(take)
    take()
    deadline = time.monotonic() + LINGER_S
    while report.summary.still_open and (left := deadline - time.monotonic()) > 0:
        consumer.wait(timeout_s=left)
        take()
    consumer.read_last(take)
    take()
