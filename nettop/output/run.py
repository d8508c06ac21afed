# SPDX-License-Identifier: Apache-2.0
"""The frontend of `nettop run`: report the connections of a command and its children, and a summary at the end."""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from typing import TextIO

from nettop.diagnostics import Diagnostics
from nettop.engine.consumer import Consumer
from nettop.engine.session import Session
from nettop.output.run_report import CommandEnd, RunReport
from nettop.process.child import Child
from nettop.process.interrupts import forward_signals
from nettop.settings.run import RunSettings
from nettop.snapshots.connections import EVENTS, LENS
from nettop.snapshots.source import SourceOptions
from nettop.writing import LineFile

LINGER_S = 1.0
"""Seconds to wait after the command's end for its connections to close: the peer still has to answer."""
NO_SUCH_COMMAND, CANNOT_RUN, BY_SIGNAL = 127, 126, 128
"""Exit codes as in shells."""


def run_command(
    settings: RunSettings,
    session: Session,
    child: Child,
    stderr: TextIO | None,
    output: LineFile | None = None,
) -> int:
    """Run the command, report, and return its exit code: 128 + N if killed by signal N.

    The report goes to `output`, or without it to `stderr`. Before the command starts, raise the lens's errors, and
    Unsupported if there are no events; the command is then not run.
    """
    options = SourceOptions(mechanisms=settings.mechanisms, follow=child.pid, values=settings.options)
    with Consumer(session, LENS.id, (EVENTS,), options) as consumer:
        first = consumer.first_frame()
        assert first is not None  # nothing requests the end here
        with forward_signals(child.send):
            began = time.monotonic()
            error = child.start()
            if error is not None:
                Diagnostics(stderr)(f"{settings.words[0]}: {error.strerror}")
                return NO_SUCH_COMMAND if isinstance(error, FileNotFoundError) else CANNOT_RUN
            report = RunReport(settings, output or stderr, is_live=settings.live or output is not None)

            def take() -> None:
                frame = consumer.frame
                assert frame is not None  # the first frame arrived before the command started
                report.add(frame, consumer.rows(EVENTS))

            while not consumer.wait({child.descriptor: select.POLLIN}):
                take()
            lasted_s = time.monotonic() - began
            status = child.status()
            code = status if status >= 0 else BY_SIGNAL - status
            missing = _linger(consumer, report, take)
            assert consumer.frame is not None
            frame = consumer.frame
            lost = {name: count - first.now.lost.get(name, 0) for name, count in frame.now.lost.items()}
            lost["events"] = frame.now.lost.get("events", 0) + consumer.lost(EVENTS)
            report.finish(frame, CommandEnd(code, lasted_s, lost, missing))
            return code


def _linger(consumer: Consumer, report: RunReport, take: Callable[[], None]) -> str:
    """Report until all connections have closed, or LINGER_S is over; take a reading before and after. Return why the
    last one is missing, or an empty text."""
    consumer.read_last(take)
    take()
    deadline = time.monotonic() + LINGER_S
    while report.summary.still_open and (left := deadline - time.monotonic()) > 0:
        consumer.wait(timeout_s=left)
        take()
    missing = consumer.read_last(take)
    take()
    return missing
