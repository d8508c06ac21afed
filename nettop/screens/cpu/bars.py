# SPDX-License-Identifier: Apache-2.0
"""Bars: each CPU's time in the entry points of the network stack, and the samples of each category.

A full bar of a CPU is always 100 % of its time, so that lengths can be compared across refreshes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

from textual.geometry import Size
from textual.strip import Strip

from nettop.query.units import RATIO, human
from nettop.snapshots.cpu import (
    CATEGORIES,
    IO_WORKERS,
    NAPI_THREADS,
    OTHER,
    RX_SOFTIRQ,
    RX_SYSCALLS,
    TIME_OF,
    TX_SOFTIRQ,
    TX_SYSCALLS,
)
from nettop.snapshots.hooks import NOT_AVAILABLE
from nettop.widgets.lines import Lines
from nettop.widgets.table import CHOSEN
from nettop.widgets.text import TextSpan, elide_end, fit
from nettop.widgets.themes import Background, Role

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


class CpuUse(NamedTuple):
    """The share of one CPU used by each entry point, 0 to 1; unknown ones are left out. `host` is empty if there is
    only one."""

    cpu: int
    shares: Mapping[int, float]
    host: str = ""

    @property
    def name(self) -> str:
        """The name of its bar."""
        return f"{self.host} cpu{self.cpu}" if self.host else f"cpu{self.cpu}"

    @property
    def network(self) -> float | None:
        """Sum of the shares; None if none is known."""
        return sum(self.shares.values()) if self.shares else None


class Arrangement(NamedTuple):
    """The CPUs that have a bar, in `columns` side by side, and those left out."""

    shown: tuple[CpuUse, ...]
    columns: int
    left_out: tuple[CpuUse, ...]

    @property
    def lines(self) -> int:
        """Number of lines with bars."""
        return -(-len(self.shown) // self.columns)

    @property
    def height(self) -> int:
        """Number of lines, including the one for the CPUs left out."""
        return self.lines + bool(self.left_out)


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


class EntryBars(Lines):
    """The bars of CPUs, and a line about those left out. A click on a bar runs `cpu(NUMBER)`."""

    DEFAULT_CSS = "EntryBars { height: 1; }"
    arrangement = Arrangement((), 1, ())
    chosen: int | None = None

    def show(self, arrangement: Arrangement, chosen: int | None) -> None:
        """Replace the arrangement, and redraw."""
        if (arrangement, chosen) != (self.arrangement, self.chosen):
            self.arrangement, self.chosen = arrangement, chosen
            self.styles.height = max(1, arrangement.height)
            self.redraw()

    def strips(self, size: Size) -> list[Strip]:
        """Return the bars, and the line about the rest."""
        return [
            self.strip(self.clickable(self._line(y, size.width), y), size.width) for y in range(size.height)
        ]

    def _line(self, y: int, width: int) -> Iterator[TextSpan]:
        shown, columns, left_out = self.arrangement
        lines = self.arrangement.lines
        if y >= lines:
            text = left_out_text(left_out) if y == lines and left_out else ""
            yield TextSpan(f" {text}".ljust(width), Role.DIM)
            return
        widths = [(at + 1) * width // columns - at * width // columns for at in range(columns)]
        of_line = shown[y::lines]
        for use, cells in zip(of_line, widths, strict=False):
            yield from self._bar(use, cells)
        yield TextSpan(" " * sum(widths[len(of_line) :]))

    def _bar(self, use: CpuUse, width: int) -> Iterator[TextSpan]:
        """Yield `▸cpu0 ███▓▓▒░····  27.1 % ` in `width` cells."""
        chosen, action = use.cpu == self.chosen, f"cpu({use.cpu})"
        background = Background.BAND if chosen else Background.SCREEN
        longest = max(len(shown.name) for shown in self.arrangement.shown)
        name = f"{CHOSEN if chosen else ' '}{use.name.ljust(longest)} "
        amount = percent(use.network).rjust(9)
        cells = max(0, width - len(name) - len(amount) - 1)
        filled = self.lengths(use, cells)
        yield TextSpan(name, Role.TEXT if chosen else Role.DIM, background, action)
        yield from (TextSpan(GLYPHS[entry] * n, ROLES[entry], action=action) for entry, n in filled if n)
        yield TextSpan(EMPTY * (cells - sum(count for _, count in filled)), Role.FAINT, action=action)
        yield TextSpan(f"{amount} ", Role.BOLD, background, action)

    @staticmethod
    def lengths(use: CpuUse, cells: int) -> list[tuple[int, int]]:
        """Return the cells of each entry point. Edges are rounded, not lengths, so that errors do not add up."""
        sums = accumulate(use.shares.get(entry, 0.0) for entry in GLYPHS)
        edges = [min(cells, round(share * cells)) for share in sums]
        return [(entry, edge - last) for entry, edge, last in zip(GLYPHS, edges, [0, *edges], strict=False)]


def left_out_text(uses: Sequence[CpuUse]) -> str:
    """Return `… 12 more, none above 0.30 %`."""
    highest = max((use.network for use in uses if use.network is not None), default=None)
    return f"… {len(uses)} more" if highest is None else f"… {len(uses)} more, none above {percent(highest)}"


_LABEL, _SHARE, _SAMPLES, _TIME = 20, 7, 9, 10
_MIN_BAR = 8
"""Samples are shown only if bars are at least this wide."""
_BESIDE = 2 + 2 + _LABEL + 1 + _SHARE + 1 + 1
"""Cells besides the bar and the numbers: margins, letter, label, share, and spaces between them."""


class CategoryShare(NamedTuple):
    """A category's samples and its share of CPU time, None if unknown. `why_not` says why it is not available."""

    category: int
    samples: int
    of_time: float | None
    why_not: str = ""


class CategoryBars(Lines):
    """A line for each category with a full bar for all samples, the total, and the unavailable categories."""

    shares: tuple[CategoryShare, ...] = ()
    _of = ""
    _bar = 0
    _has_time = _has_samples = False

    def show(self, shares: Sequence[CategoryShare], of: str) -> None:
        """Replace the categories, whose times are shares `of` some CPUs, and redraw."""
        if (tuple(shares), of) != (self.shares, self._of):
            self.shares, self._of = tuple(shares), of
            self.redraw()

    def strips(self, size: Size) -> list[Strip]:
        """Return the header, the categories, the total, the unavailable categories, and blank lines."""
        room = size.width - _BESIDE
        self._has_time = room >= _TIME
        self._has_samples = room - _TIME - _SAMPLES - 1 >= _MIN_BAR
        self._bar = max(0, room - self._has_time * _TIME - self._has_samples * (_SAMPLES + 1))
        known = [share for share in self.shares if not share.why_not]
        space = max(2, size.height - 2)
        # If not all categories fit, one line sums up the last ones.
        shown, rest = (known, []) if len(known) <= space else (known[: space - 1], known[space - 1 :])
        cells = [fit("CATEGORY", _LABEL + 2, left=True), fit("SHARE", _SHARE, left=False), " " * self._bar]
        header = " ".join([*cells, *self._numbers("SAMPLES", f"OF {self._of.upper()}")])
        lines: list[Iterable[TextSpan]] = [[TextSpan(f" {header} ", Role.HEAD, Background.PANEL)]]
        lines += map(self._share_line, shown)
        if rest:
            lines.append(self._line("…", f"{len(rest)} more", _sum(rest)))
        lines += [self._line("─", "total", _sum(known), Background.PANEL), []]
        lines += [_lacking_line(share, size.width) for share in self.shares if share.why_not]
        lines += [[]] * size.height
        return [self.strip(line, size.width) for line in lines[: size.height]]

    def _numbers(self, samples: str, of_time: str) -> list[str]:
        """Return the numbers after the bar that fit."""
        numbers = [fit(samples, _SAMPLES, left=False)] if self._has_samples else []
        return [*numbers, fit(of_time, _TIME, left=False)] if self._has_time else numbers

    def _share_line(self, share: CategoryShare) -> list[TextSpan]:
        """Return `T TCP   42.4% ████████   1,913   3.60 %`."""
        category = CATEGORIES.get(share.category, CATEGORIES[OTHER])
        margin, letter, label, _, numbers = self._line(category.letter, category.label, share)
        length = round(self._bar * share.samples / max(1, sum(other.samples for other in self.shares)))
        bar = TextSpan(" " * length, letter=category.letter)
        rest = TextSpan(" " * (self._bar - length))
        return [margin, letter._replace(letter=category.letter), label, bar, rest, numbers]

    def _line(
        self, mark: str, label: str, share: CategoryShare, background: Background = Background.SCREEN
    ) -> list[TextSpan]:
        """Return margin, letter, label and share, room for the bar, and the numbers."""
        samples = sum(other.samples for other in self.shares)
        part = fit(human(share.samples / samples if samples else 0.0, RATIO), _SHARE, left=False)
        numbers = " ".join(self._numbers(f"{share.samples:,}", percent(share.of_time)))
        texts = (" ", mark, f" {fit(label, _LABEL, left=True)} {part} ", " " * self._bar)
        return [
            *(TextSpan(text, Role.TEXT, background) for text in texts),
            TextSpan(f" {numbers} ", Role.DIM, background),
        ]


def _lacking_line(share: CategoryShare, width: int) -> list[TextSpan]:
    category = CATEGORIES.get(share.category, CATEGORIES[OTHER])
    label = f" {category.letter} {fit(category.label, _LABEL, left=True)} {NOT_AVAILABLE:>{_SHARE}} "
    return [TextSpan(label, Role.DIM), TextSpan(elide_end(share.why_not, width - len(label) - 1), Role.FAINT)]


def _sum(shares: Sequence[CategoryShare]) -> CategoryShare:
    times = [share.of_time for share in shares if share.of_time is not None]
    return CategoryShare(OTHER, sum(share.samples for share in shares), sum(times) if times else None)
