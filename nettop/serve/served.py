# SPDX-License-Identifier: Apache-2.0
"""State shared by all handlers: the session, the served lenses, and a wake-up when new data is published.

While nobody watches, lenses are read less often, and again for each scrape: readings are most of what serving costs.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nettop.engine.consumer import LAST_READING_WAIT_S
from nettop.engine.session import Session
from nettop.errors import NettopError, SourceFailed, UsageError
from nettop.query.filter import Filter, parse_filter
from nettop.query.times import rfc3339
from nettop.settings import UNWATCHED_INTERVAL_S
from nettop.snapshots.schema import Lens, Table
from nettop.snapshots.snapshot import Frame
from nettop.snapshots.source import SourceOptions

if TYPE_CHECKING:
    from nettop.recording.player import Player

_WATCHED_FOR_S = 30.0
"""Seconds for which a request for a table counts as watching."""
_FRESH_WITHIN_S = 2.0
"""Seconds that a request waits for a reading; then it gets the last one, unless that is late."""
LATE_INTERVALS = 3
LATE_S = 10.0
"""A lens is late if its last reading is older than both limits."""


@dataclass(eq=False)
class Served:
    """The served lenses, including nettop's own cost, and the session that reads them.

    `filters` are those of --filter; each applies to the tables that have its fields. `player` plays the recording that
    is served, if one is.
    """

    session: Session
    lenses: tuple[Lens, ...]
    filters: tuple[str, ...] = ()
    player: Player | None = None
    _wanted: set[tuple[str, str, bool]] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        self._chosen_s = self.session.interval_s
        self._pace = threading.Lock()
        self._watched_s = time.monotonic()
        self._is_watched = True

    @property
    def is_ready(self) -> bool:
        """Whether every lens has been read or has failed."""
        return all(
            self.frame(lens.id) is not None or self.failure(lens.id) is not None for lens in self.lenses
        )

    @property
    def recording_of(self) -> str | None:
        """Host whose recording is served; None for the running kernel."""
        return None if self.player is None else self.player.recording.host or "an unknown host"

    def lens(self, name: str) -> Lens | None:
        """Return the lens with this id; None if it is not served."""
        return next((lens for lens in self.lenses if lens.id == name), None)

    def applicable_filters(self, table: Table) -> list[Filter]:
        """Return the filters that apply to a table: those whose fields it has."""
        return [shown for text in self.filters if (shown := applicable_filter(table, text)) is not None]

    def watch(self) -> None:
        """Note that somebody watches the tables: read at the chosen interval from now on."""
        with self._pace:
            self._watched_s = time.monotonic()
            if not self._is_watched:
                self._is_watched = True
                self.session.set_interval(self._chosen_s)

    def slow_down(self) -> None:
        """Read less often if nobody has watched for a while."""
        with self._pace:
            if self._is_watched and time.monotonic() - self._watched_s > _WATCHED_FOR_S:
                self._is_watched = False
                self.session.set_interval(max(self._chosen_s, UNWATCHED_INTERVAL_S))

    async def freshen(self, *lenses: str) -> None:
        """Read all lenses now, in place of the next reading that is due, unless the last reading of each of these is no
        older than the chosen interval. Those of a recording are as old as it is."""
        ages = [self.age_s(lens) for lens in lenses if self.session.bus.failure(lens) is None]
        if any(age_s is None or age_s > self._chosen_s for age_s in ages):
            with suppress(TimeoutError):
                async with asyncio.timeout(_FRESH_WITHIN_S):
                    await asyncio.wrap_future(self.session.sample_now(restarts=True))

    async def start_reading(self, lens: str, table: Table, *, all_rows: bool) -> None:
        """Start reading a table and wait for its first reading: some tables are read only on demand.

        With `all_rows`, also read rows that its default filter excludes.
        """
        frame = self.frame(lens)
        is_read = table.append or frame is None or table.name in frame.now.tables
        wanted = (lens, table.name, all_rows and bool(table.default_filter))
        if wanted in self._wanted or (is_read and not wanted[-1]):
            return
        self._wanted.add(wanted)
        self.session.enable(lens, SourceOptions(frozenset({table.name}), all_rows=all_rows))
        await asyncio.wrap_future(self.session.sample_now())

    def frame(self, lens: str) -> Frame | None:
        """Return the newest frame of a lens; None before its first reading."""
        return self.session.bus.frame(lens)

    def age_s(self, lens: str) -> float | None:
        """Return the age of a lens's newest reading; None before the first, and for a recording."""
        frame = self.frame(lens)
        if frame is None or self.player is not None:
            return None
        return frame.now.age_s

    def failure(self, lens: str) -> NettopError | None:
        """Return why a lens failed or is late; None if it is read on time."""
        failure, frame, age_s = self.session.bus.failure(lens), self.frame(lens), self.age_s(lens)
        if failure is not None or frame is None or age_s is None:
            return failure
        if age_s <= max(LATE_S, LATE_INTERVALS * self.session.interval_s):
            return None
        return SourceFailed(f"not read since {rfc3339(frame.now.wall_ns)[:19]}Z", "is this host overloaded?")

    @property
    def is_stuck(self) -> bool:
        """Whether no lens is read on time, not even nettop's own cost."""
        return all(self.failure(lens.id) is not None for lens in self.lenses)


def applicable_filter(table: Table, text: str) -> Filter | None:
    """Return the parsed filter; None if the table lacks a field that it compares."""
    try:
        return parse_filter(table, text)
    except UsageError:
        return None


class Publications:
    """Wake-up for coroutines of one event loop when the session publishes, created inside the loop."""

    def __init__(self, session: Session) -> None:
        self._loop = asyncio.get_running_loop()
        self._session = session
        self._published = asyncio.Event()
        self.ending = asyncio.Event()
        """Set when the open streams must end."""
        self.close: Callable[[], None] = session.bus.subscribe(lambda: self._call(self._wake))

    async def wait(self) -> None:
        """Wait for the next publication or the end."""
        await self._published.wait()

    def end(self) -> None:
        """End all current and future streams and waits."""
        self.ending.set()
        self._wake()

    def end_after_last_reading(self) -> None:
        """End all streams once they have a reading of what came since the last, or if that takes too long."""
        reading = self._session.sample_now(is_last=True)
        reading.add_done_callback(lambda _: self._call(self.end))
        self._loop.call_later(LAST_READING_WAIT_S, self.end)

    def end_streams(self) -> None:
        """End the open streams."""
        self.end()
        self.ending = asyncio.Event()

    def _call(self, function: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the loop closed while the session was publishing
            self._loop.call_soon_threadsafe(function)

    def _wake(self) -> None:
        # Current waiters hold the old event; later ones get a new one.
        published, self._published = self._published, asyncio.Event()
        published.set()
