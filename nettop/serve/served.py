# SPDX-License-Identifier: Apache-2.0
"""What every answer is made of: the session, the lenses that are served, and a wake-up for whoever waits for more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from nettop.engine.session import Session
from nettop.errors import NettopError, UsageError
from nettop.query.filter import Filter, parse_filter
from nettop.snapshots.schema import Lens, Table
from nettop.snapshots.snapshot import Frame


@dataclass(eq=False)
class Served:
    """The lenses that are served, nettop's own cost among them, and the session that reads them.

    `filters` are those of --filter: they hold for each table that has their fields.
    """

    session: Session
    lenses: tuple[Lens, ...]
    filters: tuple[str, ...] = ()
    _wanted: set[tuple[str, str, bool]] = field(default_factory=set, init=False)

    @property
    def is_ready(self) -> bool:
        """Whether every lens was read, or has failed."""
        return all(
            self.frame(lens.id) is not None or self.failure(lens.id) is not None for lens in self.lenses
        )

    def lens(self, name: str) -> Lens | None:
        """The lens, if it is served."""
        return next((lens for lens in self.lenses if lens.id == name), None)

    def filters_of(self, table: Table) -> list[Filter]:
        """The filters that hold for a table: those that it has the fields of."""
        return [shown for text in self.filters if (shown := applicable_filter(table, text)) is not None]

    async def have_read(self, lens: str, table: Table, *, all_rows: bool) -> None:
        """Have a table read from now on, and wait for its first reading: some are read only once somebody wants them.

        With `all_rows` so are rows that its default filter leaves out.
        """
        frame = self.frame(lens)
        is_read = table.append or frame is None or table.name in frame.now.tables
        wanted = (lens, table.name, all_rows and bool(table.default_filter))
        if wanted in self._wanted or (is_read and not wanted[-1]):
            return
        self._wanted.add(wanted)
        self.session.enable(lens, table=table.name, **({"all_rows": True} if all_rows else {}))
        await asyncio.wrap_future(self.session.sample_now())

    def frame(self, lens: str) -> Frame | None:
        """The newest frame of a lens; None before its first reading."""
        return self.session.bus.frame(lens)

    def failure(self, lens: str) -> NettopError | None:
        """Why a lens is read no more, if it failed."""
        return self.session.bus.failure(lens)


def applicable_filter(table: Table, text: str) -> Filter | None:
    """The filter, if the table has the fields that it compares."""
    try:
        return parse_filter(table, text)
    except UsageError:
        return None


class Publications:
    """Wakes coroutines of one event loop whenever the session has published something. Open it within the loop."""

    def __init__(self, session: Session) -> None:
        self._loop = asyncio.get_running_loop()
        self._published = asyncio.Event()
        self.ending = asyncio.Event()
        """Set when the streams that have begun are to end."""
        self.close: Callable[[], None] = session.bus.subscribe(self._publish)

    async def wait(self) -> None:
        """Wait for the next publication, or the end."""
        await self._published.wait()

    def end(self) -> None:
        """Have everything end that waits, now and later."""
        self.ending.set()
        self._wake()

    def end_streams(self) -> None:
        """Have the streams end that have begun."""
        ending, self.ending = self.ending, asyncio.Event()
        ending.set()

    def _publish(self) -> None:
        with suppress(RuntimeError):  # the loop has closed, while the session was about to publish
            self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        # Whoever waits holds the old event; whoever comes later gets a new one.
        published, self._published = self._published, asyncio.Event()
        published.set()
