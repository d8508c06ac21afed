# SPDX-License-Identifier: Apache-2.0
"""The time of a recording in one line: the moment that is shown, the whole, and when something was wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual import events
from textual.geometry import Size
from textual.strip import Strip

from nettop.recording.marks import FAILURES
from nettop.recording.moments import time_text
from nettop.snapshots.findings import SEVERITY_CODES
from nettop.snapshots.schema import Severity
from nettop.widgets.lines import Lines
from nettop.widgets.text import Line, TextSpan, width_of
from nettop.widgets.themes import Background, Role

if TYPE_CHECKING:
    from nettop.recording.player import Player

_PAST, _TO_COME, _HERE = "━", "─", "●"
_MARKS = {
    SEVERITY_CODES[Severity.PROBLEM]: ("▲", Role.BAD),
    SEVERITY_CODES[Severity.WARNING]: ("▲", Role.WARN),
    FAILURES: ("x", Role.WARN),
}
"""Marks by the severity of the worst finding; hints have none."""
_LEAST_CELLS = 10


class TimeLine(Lines):
    """`▶ ×1  14:32:05  14:00 ━━▲━●───▲── 15:00`. A click goes to its moment."""

    DEFAULT_CSS = "TimeLine { height: 1; }"

    def __init__(self, player: Player) -> None:
        super().__init__(id="time-line")
        self._player = player
        self._first, self._cells = 0, 0

    def strips(self, size: Size) -> list[Strip]:
        """Return the line."""
        return [self.strip(self._line(size.width), size.width, Background.PANEL)]

    def _line(self, width: int) -> Line:
        player, recording = self._player, self._player.recording
        state = "▶" if not (player.is_paused or player.is_at_end) else "‖" if not player.is_at_end else "■"
        before = (
            TextSpan(f" {state} ×{player.speed:g} ", Role.KEY),
            TextSpan(f" {time_text(player.wall_ns)} UTC ", Role.BOLD),
            TextSpan(f" {time_text(recording.begin_ns, with_day=False)} ", Role.DIM),
        )
        after: Line = (TextSpan(f" {time_text(recording.end_ns, with_day=False)} ", Role.DIM),)
        if recording.cut_short:
            after += (TextSpan(f"cut short: {recording.cut_short} ", Role.BAD),)
        if recording.damage:
            after += (TextSpan("damaged ", Role.BAD),)
        self._first, self._cells = width_of(before), width - width_of(before) - width_of(after)
        if self._cells < _LEAST_CELLS:
            return before[:2]
        return (*before, *self._bar(), *after)

    def _bar(self) -> Line:
        here = self._cell_of(self._player.wall_ns)
        worst: dict[int, int] = {}
        for mark in (mark for mark in self._player.recording.marks if mark.severity in _MARKS):
            for cell in range(self._cell_of(mark.begin_ns), self._cell_of(mark.end_ns) + 1):
                worst[cell] = min(mark.severity, worst.get(cell, mark.severity))
        line = []
        for cell in range(self._cells):
            plain = (_PAST if cell < here else _TO_COME), Role.DIM
            text, role = (_HERE, Role.KEY) if cell == here else _MARKS.get(worst.get(cell, 0), plain)
            line.append(TextSpan(text, role))
        return tuple(line)

    def _cell_of(self, wall_ns: int) -> int:
        recording = self._player.recording
        whole = max(1, recording.end_ns - recording.begin_ns)
        return max(0, min((wall_ns - recording.begin_ns) * (self._cells - 1) // whole, self._cells - 1))

    def on_click(self, event: events.Click) -> None:
        """Go to the moment that was clicked."""
        cell = event.x - self._first
        if 0 <= cell < self._cells:
            recording = self._player.recording
            passed_ns = (recording.end_ns - recording.begin_ns) * cell // max(1, self._cells - 1)
            self.post_message(self.Pressed(f"replay('go_to', {recording.begin_ns + passed_ns})"))
