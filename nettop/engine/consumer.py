# SPDX-License-Identifier: Apache-2.0
"""A frontend's access to a running session: tables of one lens, every row or the newest frame, without polling."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from typing import Self

from nettop.engine.bus import Feed
from nettop.engine.session import NO_OPTIONS, Session
from nettop.errors import NettopError
from nettop.process.wake_event import WakeEvent
from nettop.snapshots.schema import Table
from nettop.snapshots.snapshot import Frame, Rows, Snapshot
from nettop.snapshots.source import SourceOptions

LAST_READING_WAIT_S = 5.0
"""Maximum seconds that a frontend waits for the last reading before it exits."""
READING_WAIT_S = 30.0
"""Maximum seconds for a reading without which there is no result."""


class Outages:
    """The failures of lenses that worked before, each reported when it begins and when it is over."""

    def __init__(self, session: Session, lenses: Collection[str], report: Callable[[str], None]) -> None:
        self._bus = session.bus
        self._lenses = lenses
        self._report = report
        self._missing: set[str] = set()

    def report_new(self) -> None:
        """Report what has changed since the last call."""
        for lens in self._lenses:
            failure = self._bus.failure(lens) if self._bus.frame(lens) is not None else None
            if (failure is not None) != (lens in self._missing):
                self._missing ^= {lens}
                self._report(f"{lens} is read again" if failure is None else f"{lens}: {failure.what}")


class Consumer:
    """A context that keeps a lens attached and wakes the waiting frontend when there is something new.

    Rows of append tables are kept until taken, up to the bound of a feed. `options` are those of the lens's source;
    `columns` are the columns to show.
    Outside the context `wake` is a no-op. Consumers that share an `event` wait together; its owner enters it.
    """

    def __init__(
        self,
        session: Session,
        lens: str,
        tables: Sequence[Table],
        options: SourceOptions = NO_OPTIONS,
        event: WakeEvent | None = None,
        *,
        columns: Collection[str] = (),
    ) -> None:
        self._session = session
        self._lens = lens
        self._tables = tables
        self._options = options
        self._columns = columns
        self._is_alone = event is None
        self._event = event or WakeEvent()
        self._feeds: dict[str, Feed] = {}
        self._exits = ExitStack()
        self.wake = self._event.set
        """Function that ends the wait; safe in any thread and in signal handlers."""

    def __enter__(self) -> Self:
        with ExitStack() as resources:
            if self._is_alone:
                resources.enter_context(self._event)
            resources.callback(self._session.bus.subscribe(self.wake))
            for table in self._tables:
                if table.append:
                    feed = self._feeds[table.name] = self._session.bus.feed(self._lens, table.name, self.wake)
                    resources.callback(feed.close)
            for table in self._tables:
                options = self._options | SourceOptions(frozenset({table.name}))
                resources.callback(self._session.enable(self._lens, options, self._columns).release)
            self._exits = resources.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()

    @property
    def frame(self) -> Frame | None:
        """The newest frame; None before the first reading. It remains if the lens fails."""
        return self._session.bus.frame(self._lens)

    @property
    def failure(self) -> NettopError | None:
        """The error of the lens; None if it works."""
        return self._session.bus.failure(self._lens)

    def raise_failure(self, *, has_begun: bool = False) -> None:
        """Raise the error of the lens if it failed; if output `has_begun`, only if it is not tried again."""
        failure = self.failure
        if failure is not None and not (has_begun and failure.is_retried):
            raise failure

    def rows(self, table: Table) -> list[Rows]:
        """Return the rows of an append table that arrived since the last call, the oldest first."""
        return self._feeds[table.name].take()

    def lost(self, table: Table) -> int:
        """Return how many rows of an append table were dropped because they were not taken in time."""
        return self._feeds[table.name].lost

    def wait(
        self, descriptors: Mapping[int, int] | None = None, timeout_s: float | None = None
    ) -> dict[int, int]:
        """Wait for a publication, a call of `wake`, a ready descriptor or the timeout.

        `descriptors` maps descriptors to poll(2) events. Return the ready ones with their events.
        """
        return self._event.wait(descriptors, timeout_s)

    def first_frame(self, is_ending: Callable[[], bool] = lambda: False) -> Frame | None:
        """Wait for the first reading; None if the end comes first.

        Raise the error if the lens fails, or if none of the tables is available.
        """
        while (frame := self.frame) is None:
            self.raise_failure()
            if is_ending():
                return None
            self.wait()
        self.check_available(frame.now)
        return frame

    def check_available(self, snapshot: Snapshot) -> None:
        """Raise the reason if none of the tables has rows on this host."""
        refusal = snapshot.refusal(self._tables)
        if refusal is not None:
            raise refusal

    def read_now(self) -> None:
        """Request a reading without waiting for it."""
        self._session.sample_now()

    def read_last(self, meanwhile: Callable[[], None] = lambda: None, wait_s: float | None = None) -> str:
        """Wait for a reading that begins now, which has what happened since the one before; return why it is missing,
        or an empty text. Every frontend that writes ends with one.

        Call `meanwhile` at each publication before that.
        """
        reading = self._session.sample_now(is_last=True)
        reading.add_done_callback(lambda _: self.wake())
        wait_s = LAST_READING_WAIT_S if wait_s is None else wait_s
        deadline = time.monotonic() + wait_s
        while not reading.done() and (left := deadline - time.monotonic()) > 0:
            meanwhile()
            self.wait(timeout_s=left)
        if (failure := self.failure) is not None:
            return failure.what
        if reading.done() or (frame := self.frame) is None:
            return ""
        return f"the last {frame.now.age_s:.1f} s are missing: no reading within {wait_s:g} s"
