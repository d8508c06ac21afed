# SPDX-License-Identifier: Apache-2.0
"""A bar for each CPU: the share of its time that each entry point of the network stack took.

A full bar is always all of one CPU's time, so that lengths can be compared with those a moment ago.
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
from nettop.widgets.themes import Ground, Role, style

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

_LEAST_WIDTH = 46
"""Cells of a bar with its name and number, where they stand side by side."""
EMPTY = "·"


@dataclass(frozen=True, slots=True)
class CpuUse:
    """The share of one CPU that each entry point took, 0 to 1; unknown ones are left out."""

    cpu: int
    shares: Mapping[int, float]

    @property
    def network(self) -> float | None:
        """Their sum; None where none is known."""
        return sum(self.shares.values()) if self.shares else None


@dataclass(frozen=True, slots=True)
class Arrangement:
    """Which CPUs have a bar, in `columns` side by side, and how many are left out."""

    shown: tuple[CpuUse, ...]
    columns: int
    left_out: tuple[CpuUse, ...]

    @property
    def height(self) -> int:
        """Lines, with the one for the CPUs left out."""
        return -(-len(self.shown) // self.columns) + bool(self.left_out)


def percent(share: float | None) -> str:
    """A share of CPU time: `14.2 %`."""
    return human(None if share is None else share * 1e9, "ns/s")


def arrange(
    uses: Sequence[CpuUse], width: int, height: int, chosen: int | None, *, by_use: bool
) -> Arrangement:
    """The CPUs that fit in `height` lines: the chosen and the busiest ones, sorted by use or by number."""
    columns = min(max(1, width // _LEAST_WIDTH), max(1, -(-len(uses) // max(1, height))))
    space = columns * max(1, height)
    if len(uses) > space:
        space = columns * max(1, height - 1)
    busiest = sorted(uses, key=lambda use: (use.cpu != chosen, -(use.network or 0.0), use.cpu))
    key = (lambda use: (-(use.network or 0.0), use.cpu)) if by_use else (lambda use: (use.cpu,))
    return Arrangement(tuple(sorted(busiest[:space], key=key)), columns, tuple(busiest[space:]))


def _most(uses: Sequence[CpuUse]) -> float | None:
    """The use of the busiest CPU; None where none is known."""
    return max((use.network for use in uses if use.network is not None), default=None)


class EntryBars(Lines):
    """The bars, and a line about the CPUs left out."""

    DEFAULT_CSS = "EntryBars { height: 1; }"

    @dataclass
    class Pressed(Message):
        """A bar was clicked."""

        cpu: int

    def __init__(self, id: str | None = None) -> None:  # noqa: A002 - Textual's word
        super().__init__(id=id)
        self.arrangement = Arrangement((), 1, ())
        self.chosen: int | None = None

    def show(self, arrangement: Arrangement, chosen: int | None) -> None:
        """Draw these from now on."""
        if (arrangement, chosen) != (self.arrangement, self.chosen):
            self.arrangement, self.chosen = arrangement, chosen
            self.styles.height = max(1, arrangement.height)
            self.redraw()

    def strips(self, size: Size) -> list[Strip]:
        """The bars, and the line about the rest."""
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
        """`▸cpu0 ███▓▓▒░····  27.1 % ` in `width` cells."""
        theme, chosen = self.app.theme, use.cpu == self.chosen
        ground = Ground.BAND if chosen else Ground.SCREEN
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
        """The cells of each entry point: edges are rounded, not lengths, so that errors do not add up."""
        lengths, so_far, at = [], 0.0, 0
        for entry in GLYPHS:
            so_far += use.shares.get(entry, 0.0)
            edge = min(cells, round(so_far * cells))
            lengths.append((entry, edge - at))
            at = edge
        return lengths

    def on_click(self, event: events.Click) -> None:
        """Choose the CPU whose bar is under the pointer."""
        shown, columns = self.arrangement.shown, self.arrangement.columns
        lines = -(-len(shown) // columns)
        at = (event.x * columns // max(1, self.size.width)) * lines + event.y
        if event.y < lines and at < len(shown):
            self.post_message(self.Pressed(shown[at].cpu))


def left_out_text(uses: Sequence[CpuUse]) -> str:
    """`… 12 more, none above 0.30 %`."""
    most = _most(uses)
    return f"… {len(uses)} more" if most is None else f"… {len(uses)} more, none above {percent(most)}"
