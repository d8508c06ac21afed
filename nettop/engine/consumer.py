# SPDX-License-Identifier: Apache-2.0
"""How a frontend reads a running session: tables of one lens, every row or the newest frame, without polling."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from nettop.engine.bus import Feed
from nettop.engine.session import Session
from nettop.errors import NettopError
from nettop.snapshots.schema import Table
from nettop.snapshots.snapshot import Frame, Rows, Snapshot
from nettop.wake_event import WakeEvent

LAST_READING_WAIT_S = 10.0
"""How long the end of a frontend waits for the last reading."""


class Consumer:
    """Keeps a lens attached while the context is open, and wakes whoever waits when there is something new.

    Of append tables every row is kept until it is taken, within the bound of a feed. `options` are those of the
    lens's source. Before and after the context `wake` does nothing. Consumers that are given the same `event`, which is
    then entered by whoever gives it, wait together.
    """

    def __init__(
        self,
        session: Session,
        lens: str,
        tables: Sequence[Table],
        options: Mapping[str, object] | None = None,
        event: WakeEvent | None = None,
    ) -> None:
        self._session = session
        self._lens = lens
        self._tables = tables
        self._options = options or {}
        self._is_alone = event is None
        self._event = event or WakeEvent()
        self._feeds: dict[str, Feed] = {}
        self._exits = ExitStack()
        self.wake = self._event.set
        """Ends the wait; may be called from any thread and from signal handlers."""

    def __enter__(self) -> Self:
        with ExitStack() as exits:
            if self._is_alone:
                exits.enter_context(self._event)
            exits.callback(self._session.bus.subscribe(self.wake))
            for table in self._tables:
                if table.append:
                    feed = self._feeds[table.name] = self._session.bus.feed(self._lens, table.name, self.wake)
                    exits.callback(feed.close)
            for table in self._tables:
                exits.callback(self._session.enable(self._lens, table=table.name, **self._options).release)
            self._exits = exits.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._exits.close()

    @property
    def frame(self) -> Frame | None:
        """The newest frame; None before the first reading. It stays when the lens fails."""
        return self._session.bus.frame(self._lens)

    @property
    def failure(self) -> NettopError | None:
        """Why the lens is read no more, if it failed."""
        return self._session.bus.failure(self._lens)

    def rows(self, table: Table) -> list[Rows]:
        """The rows of an append table that have come since the last call, the oldest first."""
        return self._feeds[table.name].take()

    def lost(self, table: Table) -> int:
        """Rows of an append table that were dropped because they were not taken in time."""
        return self._feeds[table.name].lost

    def wait(
        self, descriptors: Mapping[int, int] | None = None, timeout_s: float | None = None
    ) -> dict[int, int]:
        """Wait until something is published, `wake` is called, a descriptor is ready or the time is up.

        `descriptors` are given with the events of poll(2) to wait for; returns those that are ready, with theirs.
        """
        return self._event.wait(descriptors, timeout_s)

    def first_frame(self, is_ending: Callable[[], bool] = lambda: False) -> Frame | None:
        """Wait for the first reading; None where the end comes before it.

        Raises what the lens fails with, and why none of the tables is available where that is so.
        """
        while (frame := self.frame) is None:
            if self.failure is not None:
                raise self.failure
            if is_ending():
                return None
            self.wait()
        self.check_available(frame.now)
        return frame

    def check_available(self, snapshot: Snapshot) -> None:
        """Raise why, where this host gives none of the tables rows."""
        refusal = snapshot.refusal(self._tables)
        if refusal is not None:
            raise refusal

    def read_now(self) -> None:
        """Request a reading, and do not wait for it."""
        self._session.sample_now()

    def read_last(self, meanwhile: Callable[[], None] = lambda: None) -> bool:
        """Wait for a reading that begins now; False where it takes too long, or the lens has failed.

        `meanwhile` is called whenever something was published before that.
        """
        reading = self._session.sample_now()
        reading.add_done_callback(lambda _: self.wake())
        deadline = time.monotonic() + LAST_READING_WAIT_S
        while not reading.done() and (left := deadline - time.monotonic()) > 0:
            meanwhile()
            self.wait(timeout_s=left)
        return reading.done() and self.failure is None
