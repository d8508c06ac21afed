# SPDX-License-Identifier: Apache-2.0
"""The report of one command as a door: the connections that it and its children made, and a summary at its end."""

from __future__ import annotations

import select
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Protocol, TextIO

from nettop.engine.bus import Feed
from nettop.engine.session import Session
from nettop.engine.wake_event import WakeEvent
from nettop.errors import NettopError, Unsupported
from nettop.interrupts import left_to
from nettop.output.diagnostics import Told
from nettop.output.run_report import Ended, Report
from nettop.settings import RunSettings
from nettop.snapshots.connections import EVENTS
from nettop.snapshots.snapshot import Frame

LENS = "connections"
LINGER_S = 1.0
"""How long what the command opened may take to close behind it: the peer's answer is on its way."""
REFRESH_WAIT_S = 5.0
"""How long the end waits for a last reading."""
NOT_FOUND, CANNOT_RUN, BY_SIGNAL = 127, 126, 128
"""Exit codes as shells have them."""


class Child(Protocol):
    """A process that waits to become the command."""

    pid: int
    descriptor: int
    """Readable once the process has ended."""

    def start(self) -> OSError | None:
        """Have it become the command; returns why it cannot."""

    def send(self, number: int) -> None:
        """Send it a signal, if it still is."""

    def status(self) -> int:
        """Wait for its end; the exit status, negative for death by a signal."""


def run_command(
    settings: RunSettings, session: Session, child: Child, stderr: TextIO | None, output: TextIO | None = None
) -> int:
    """Have the command run, report, and return its exit code, for a signal 128 more than its number.

    The report goes to `output`, or to `stderr` without one. Raises what the lens fails with as long as the
    command has not begun; it then never does.
    """
    with ExitStack() as ends:
        bell = ends.enter_context(WakeEvent())
        watch = ends.enter_context(_attached(settings, session, child, bell))
        watch.wait_until_attached()
        ends.enter_context(left_to(child.send))
        began = time.monotonic()
        refused = child.start()
        if refused is not None:
            Told(stderr)(f"{settings.words[0]}: {refused.strerror}")
            return NOT_FOUND if isinstance(refused, FileNotFoundError) else CANNOT_RUN
        report = Report(settings, output or stderr, is_live=settings.live or output is not None)
        watch.wait_for_end(report)
        lasted_s = time.monotonic() - began
        status = child.status()
        code = status if status >= 0 else BY_SIGNAL - status
        watch.linger(report)
        report.finish(
            watch.frame, Ended(code, lasted_s, watch.lost, watch.failure.what if watch.failure else "")
        )
        return code


@contextmanager
def _attached(settings: RunSettings, session: Session, child: Child, bell: WakeEvent) -> Iterator[_Watch]:
    """The hooks on the process, before it becomes the command."""
    with ExitStack() as ends:
        ends.callback(session.bus.subscribe(bell.ring))
        feed = session.bus.feed(LENS, EVENTS.name, bell.ring)
        ends.callback(feed.close)
        options = {
            **settings.options,
            "follow": child.pid,
            "table": EVENTS.name,
            "all_rows": False,
            "mechanisms": settings.mechanisms,
        }
        ends.callback(session.enable(LENS, **options).release)
        yield _Watch(session, feed, child, bell)


class _Watch:
    """Takes the events of the command while it runs, and a little longer."""

    def __init__(self, session: Session, feed: Feed, child: Child, bell: WakeEvent) -> None:
        self._session = session
        self._feed = feed
        self._child = child
        self._bell = bell

    @property
    def frame(self) -> Frame:
        """The newest frame. There is one from `wait_until_attached` on, and it stays when the lens fails."""
        frame = self._session.bus.frame(LENS)
        assert frame is not None
        return frame

    @property
    def failure(self) -> NettopError | None:
        """Why no more events come, if they do not."""
        return self._session.bus.failure(LENS)

    @property
    def lost(self) -> int:
        """Events that found no room, in the kernel or here."""
        return self.frame.now.lost.get("events", 0) + self._feed.lost

    def wait_until_attached(self) -> None:
        """Sleep until events come. Raises what the lens fails with, and Unsupported where there are none."""
        while self._session.bus.frame(LENS) is None:
            if self.failure is not None:
                raise self.failure
            self._bell.wait()
        why = self.frame.now.why_unavailable(EVENTS)
        if why is not None:
            raise Unsupported(
                f"this kernel does not tell what happens to connections ({why})",
                "nettop --table shows those that there are",
            )

    def wait_for_end(self, report: Report) -> None:
        """Report what happens until the command has ended."""
        self._take(report)
        while not self._bell.wait({self._child.descriptor: select.POLLIN}):
            self._take(report)

    def linger(self, report: Report) -> None:
        """Report what happens until all connections have closed, but not for long, and look at them once more."""
        self._refresh(report)
        deadline = time.monotonic() + LINGER_S
        while report.outcome.still_open and time.monotonic() < deadline:
            self._bell.wait(timeout_s=deadline - time.monotonic())
            self._take(report)
        self._refresh(report)

    def _refresh(self, report: Report) -> None:
        before = self._session.bus.frame(LENS)
        self._session.sample_now()
        deadline = time.monotonic() + REFRESH_WAIT_S
        while self.frame is before and self.failure is None and time.monotonic() < deadline:
            self._bell.wait(timeout_s=deadline - time.monotonic())
        self._take(report)

    def _take(self, report: Report) -> None:
        report.add(self.frame, self._feed.take())
