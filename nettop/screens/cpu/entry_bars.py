# SPDX-License-Identifier: Apache-2.0
"""A bar for each CPU: the share of its time spent in each entry point of the network stack.

A full bar is always 100 % of one CPU's time, so that lengths can be compared across refreshes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

from rich.segment import Segment
from textual import events
from textual.geometry import Size
from textual.message import Message
from textual.strip import Strip

from nettop.query.units import human
from nettop.snapshots.cpu import (
    IO_WORKERS,
    NAPI_THREADS,
    RX_SOFTIRQ,
    RX_SYSCALLS,
    TIME_OF,
    TX_SOFTIRQ,
    TX_SYSCALLS,
)
from nettop.widgets.lines import Lines
from nettop.widgets.table import CHOSEN
from nettop.widgets.themes import Background, Role, style

GLYPHS = {
    TX_SYSCALLS: "█",
    TX_SOFTIRQ: "▓",
    RX_SOFTIRQ: "▒",
    RX_SYSCALLS: "░",
    NAPI_THREADS: "╲",
    IO_WORKERS: "╱",
}
"""The entry points in the order of the bars: sending, receiving, both."""

ROLES = {entry: Role(name.removesuffix("_ns")) for entry, name in TIME_OF.items()}

_MIN_WIDTH = 46
"""Minimum width of a bar with its name and number, where bars are side by side."""
EMPTY = "·"


@dataclass(frozen=True, slots=True)
class CpuUse:
    """The share of one CPU used by each entry point, 0 to 1; unknown ones are left out."""

    cpu: int
    shares: Mapping[int, float]

    @property
    def network(self) -> float | None:
        """Sum of the shares; None if none is known."""
        return sum(self.shares.values()) if self.shares else None


@dataclass(frozen=True, slots=True)
class Arrangement:
    """The CPUs that have a bar, in `columns` side by side, and those left out."""

    shown: tuple[CpuUse, ...]
    columns: int
    left_out: tuple[CpuUse, ...]

    @property
    def height(self) -> int:
        """Number of lines, including the one for the CPUs left out."""
        return -(-len(self.shown) // self.columns) + bool(self.left_out)


def percent(share: float | None) -> str:
    """Format a share of CPU time: `14.2 %`."""
    return human(None if share is None else share * 1e9, "ns/s")


def arrange(
    uses: Sequence[CpuUse], width: int, height: int, chosen: int | None, *, by_use: bool
) -> Arrangement:
    """Return the CPUs that fit in `height` lines: the selected and the busiest ones, sorted by use or by number."""
    columns = min(max(1, width // _MIN_WIDTH), max(1, -(-len(uses) // max(1, height))))
    space = columns * max(1, height)
    if len(uses) > space:
        space = columns * max(1, height - 1)
    busiest = sorted(uses, key=lambda use: (use.cpu != chosen, -(use.network or 0.0), use.cpu))
    key = (lambda use: (-(use.network or 0.0), use.cpu)) if by_use else (lambda use: (use.cpu,))
    return Arrangement(tuple(sorted(busiest[:space], key=key)), columns, tuple(busiest[space:]))


def _highest_use(uses: Sequence[CpuUse]) -> float | None:
    """Return the use of the busiest CPU, or None if none is known."""
    return max((use.network for use in uses if use.network is not None), default=None)


class EntryBars(Lines):
    """The bars of CPUs, and a line about those left out."""

    DEFAULT_CSS = "EntryBars { height: 1; }"

    @dataclass
    class Pressed(Message):
        """A click on a bar."""

        cpu: int

    def __init__(self, id: str | None = None) -> None:  # noqa: A002 - Textual's name
        super().__init__(id=id)
        self.arrangement = Arrangement((), 1, ())
        self.chosen: int | None = None

    def show(self, arrangement: Arrangement, chosen: int | None) -> None:
        """Replace the arrangement, and redraw."""
        if (arrangement, chosen) != (self.arrangement, self.chosen):
            self.arrangement, self.chosen = arrangement, chosen
            self.styles.height = max(1, arrangement.height)
            self.redraw()

    def strips(self, size: Size) -> list[Strip]:
        """Return the bars, and the line about the rest."""
        return [self._strip(y, size.width) for y in range(size.height)]

    def _strip(self, y: int, width: int) -> Strip:
        shown, columns, left_out = self.arrangement.shown, self.arrangement.columns, self.arrangement.left_out
        lines = -(-len(shown) // columns)
        if y >= lines:
            text = left_out_text(left_out) if y == lines and left_out else ""
            return Strip([Segment(f" {text}".ljust(width), style(self.app.theme, Role.DIM))], width)
        of_line = shown[y::lines]
        widths = [(at + 1) * width // columns - at * width // columns for at in range(columns)]
        bars = (self._bar(use, cells) for use, cells in zip(of_line, widths, strict=False))
        blank = Segment(" " * sum(widths[len(of_line) :]), style(self.app.theme, Role.TEXT))
        return Strip([*chain(*bars), blank], width)

    def _bar(self, use: CpuUse, width: int) -> list[Segment]:
        """Return `▸cpu0 ███▓▓▒░····  27.1 % ` in `width` cells."""
        theme, chosen = self.app.theme, use.cpu == self.chosen
        ground = Background.BAND if chosen else Background.SCREEN
        digits = max(len(str(shown.cpu)) for shown in self.arrangement.shown)
        name = f"{CHOSEN if chosen else ' '}{f'cpu{use.cpu}'.ljust(digits + 3)} "
        amount = percent(use.network).rjust(9)
        cells = max(0, width - len(name) - len(amount) - 1)
        filled = self.lengths(use, cells)
        empty = cells - sum(count for _, count in filled)
        return [
            Segment(name, style(theme, Role.TEXT if chosen else Role.DIM, ground)),
            *(Segment(GLYPHS[entry] * n, style(theme, ROLES[entry])) for entry, n in filled if n),
            Segment(EMPTY * empty, style(theme, Role.FAINT)),
            Segment(f"{amount} ", style(theme, Role.BOLD, ground)),
        ]

    @staticmethod
    def lengths(use: CpuUse, cells: int) -> list[tuple[int, int]]:
        """Return the cells of each entry point. Edges are rounded, not lengths, so that errors do not add up."""
        lengths, so_far, at = [], 0.0, 0
        for entry in GLYPHS:
            so_far += use.shares.get(entry, 0.0)
            edge = min(cells, round(so_far * cells))
            lengths.append((entry, edge - at))
            at = edge
        return lengths

    def on_click(self, event: events.Click) -> None:
        """Select the CPU whose bar was clicked."""
        shown, columns = self.arrangement.shown, self.arrangement.columns
        lines = -(-len(shown) // columns)
        at = (event.x * columns // max(1, self.size.width)) * lines + event.y
        if event.y < lines and at < len(shown):
            self.post_message(self.Pressed(shown[at].cpu))


def left_out_text(uses: Sequence[CpuUse]) -> str:
    """Return `… 12 more, none above 0.30 %`."""
    highest = _highest_use(uses)
    return f"… {len(uses)} more" if highest is None else f"… {len(uses)} more, none above {percent(highest)}"
