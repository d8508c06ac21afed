# SPDX-License-Identifier: Apache-2.0
"""The keys that only replays have: pause, step, speed, jump, and search in the recording."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from nettop.query.view import View
from nettop.recording.moments import EXAMPLES, parse_moment, time_text
from nettop.screens.context import beside
from nettop.screens.table_screen import TableScreen
from nettop.snapshots.snapshot import Frame

if TYPE_CHECKING:  # it loads the reader of recordings, which the running kernel does not need
    from nettop.recording.player import Player


class Playback:
    """The player of a recording, controlled by the keys of a screen."""

    def __init__(self, screen: TableScreen, player: Player) -> None:
        self._screen = screen
        self._player = player

    def pause(self) -> None:
        """Pause, or play on; at the end, play from the beginning."""
        player = self._player
        starts_again = player.is_at_end
        if starts_again:
            player.jump(player.recording.begin_ns)
        player.is_paused = not (player.is_paused or starts_again)
        self._show()

    async def jump(self) -> None:
        """Open a box for the moment to go to."""
        await self._screen.open_box(self._moment_text, self._jump, "", f"UTC: {EXAMPLES}", ":")

    def go_to(self, wall_ns: int) -> None:
        """Show a moment of the recording."""
        self._player.jump(wall_ns)
        self._show()

    def step_forward(self, readings: int) -> None:
        """Pause, and show the next or the last (−1) reading."""
        if not self._player.step(self._screen.lens, readings):
            self._screen.notify("this is the last reading" if readings > 0 else "this is the first reading")
        self._show()

    def play_faster(self, step: int) -> None:
        """Play at the next higher or lower (−1) speed."""
        player = self._player
        player.speed = beside(player.speeds, player.speed, step)
        self._screen.context.session.set_interval(player.interval_s)
        self._show()

    def next_match(self) -> None:
        """Go to the next moment with a row that passes the filter; without a filter, at which a finding begins."""
        player, screen, query = self._player, self._screen, self._screen.state.query
        if not query.filter.is_empty:
            screen.notify(f"searching for {query.filter.text}", markup=False)

        def has_rows(frame: Frame) -> bool:
            view = View(frame, query)
            return bool((view.scope[view.order] & ~view.gone[view.order]).any())

        def search() -> None:
            is_any = query.filter.is_empty
            found = player.next_finding() if is_any else player.next_match(screen.lens, has_rows)
            screen.app.call_from_thread(self._found, found)

        screen.run_worker(search, thread=True, exclusive=True)

    def _found(self, wall_ns: int | None) -> None:
        if wall_ns is None:
            self._screen.notify("no such moment up to the end of the recording")
            return
        self._player.is_paused = True
        self.go_to(wall_ns)

    def _moment_of(self, text: str) -> int:
        """Return the moment that a text names. Raise UsageError if there is none."""
        recording = self._player.recording
        return parse_moment(
            text,
            begin_ns=recording.begin_ns,
            end_ns=recording.end_ns,
            here_ns=self._player.wall_ns,
            now_ns=time.time_ns(),
        )

    def _moment_text(self, text: str) -> str:
        return f"{time_text(self._moment_of(text))} UTC" if text.strip() else "Esc leaves"

    def _jump(self, text: str) -> None:
        if text.strip():
            self.go_to(self._moment_of(text))

    def _show(self) -> None:
        self._screen.context.session.sample_now()
        self._screen.draw_lines()
