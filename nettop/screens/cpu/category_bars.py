# SPDX-License-Identifier: Apache-2.0
"""A bar for each category of the network stack, beside a flame graph or instead of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich.segment import Segment
from rich.style import Style
from textual.geometry import Size
from textual.strip import Strip

from nettop.query.units import RATIO, human
from nettop.screens.cpu.entry_bars import percent
from nettop.snapshots.cpu import CATEGORIES, OTHER
from nettop.snapshots.hooks import NOT_AVAILABLE
from nettop.widgets.cells import elide_end, fit
from nettop.widgets.lines import Lines
from nettop.widgets.themes import Background, Role, frame_style, style

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

    def __init__(self, id: str | None = None) -> None:  # noqa: A002 - Textual's name
        super().__init__(id=id)
        self.shares: tuple[CategoryShare, ...] = ()
        self._of = ""
        self._width = self._bar = 0
        self._has_time = self._has_samples = False

    def show(self, shares: Sequence[CategoryShare], of: str) -> None:
        """Replace the categories, whose times are shares `of` some CPUs, and redraw."""
        if (tuple(shares), of) != (self.shares, self._of):
            self.shares, self._of = tuple(shares), of
            self.redraw()

    def strips(self, size: Size) -> list[Strip]:
        """Return the header, the categories, the total, the unavailable categories, and blank lines."""
        self._width = width = size.width
        self._has_time = width - _BESIDE >= _TIME
        self._has_samples = width - _BESIDE - _TIME - _SAMPLES - 1 >= _MIN_BAR
        numbers = (_TIME if self._has_time else 0) + (_SAMPLES + 1 if self._has_samples else 0)
        self._bar = max(0, width - _BESIDE - numbers)
        known = [share for share in self.shares if not share.why_not]
        lacking = [share for share in self.shares if share.why_not]
        space = max(2, size.height - 2)
        # If not all categories fit, one line sums up the last ones.
        shown, rest = (known, []) if len(known) <= space else (known[: space - 1], known[space - 1 :])
        cells = [fit("CATEGORY", _LABEL + 2, left=True), fit("SHARE", _SHARE, left=False), " " * self._bar]
        header = " ".join([*cells, *self._numbers("SAMPLES", f"OF {self._of.upper()}")])
        lines = [
            [Segment(f" {header} ", self._style(Role.HEAD, Background.PANEL))],
            *map(self._share_line, shown),
        ]
        if rest:
            lines.append(self._line("…", f"{len(rest)} more", _sum(rest)))
        lines += [
            self._line("─", "total", _sum(known), Background.PANEL),
            [],
            *map(self._lacking_line, lacking),
        ]
        lines += [[]] * (size.height - len(lines))
        blank = Segment(" " * size.width, self._style(Role.TEXT))
        return [Strip([*line, blank]).crop(0, size.width) for line in lines[: size.height]]

    def _numbers(self, samples: str, of_time: str) -> list[str]:
        """Return the numbers after the bar that fit."""
        numbers = [fit(samples, _SAMPLES, left=False)] if self._has_samples else []
        return [*numbers, fit(of_time, _TIME, left=False)] if self._has_time else numbers

    def _share_line(self, share: CategoryShare) -> list[Segment]:
        """Return `T TCP   42.4% ████████   1,913   3.60 %`."""
        category = CATEGORIES.get(share.category, CATEGORIES[OTHER])
        colour = frame_style(self.app.theme, category.letter)
        margin, _, label, space, numbers = self._line(category.letter, category.label, share)
        length = round(self._bar * share.samples / max(1, sum(other.samples for other in self.shares)))
        bar, rest = Segment(" " * length, colour), Segment(" " * (self._bar - length), space.style)
        return [margin, Segment(category.letter, colour), label, bar, rest, numbers]

    def _line(
        self, mark: str, label: str, share: CategoryShare, ground: Background = Background.SCREEN
    ) -> list[Segment]:
        """Return margin, letter, label and share, room for the bar, and the numbers."""
        text, dim = self._style(Role.TEXT, ground), self._style(Role.DIM, ground)
        samples = sum(other.samples for other in self.shares)
        part = fit(human(share.samples / samples if samples else 0.0, RATIO), _SHARE, left=False)
        numbers = self._numbers(f"{share.samples:,}", percent(share.of_time))
        return [
            Segment(" ", text),
            Segment(mark, text),
            Segment(f" {fit(label, _LABEL, left=True)} {part} ", text),
            Segment(" " * self._bar, text),
            Segment(f" {' '.join(numbers)} ", dim),
        ]

    def _lacking_line(self, share: CategoryShare) -> list[Segment]:
        category = CATEGORIES.get(share.category, CATEGORIES[OTHER])
        label = f" {category.letter} {fit(category.label, _LABEL, left=True)} {NOT_AVAILABLE:>{_SHARE}} "
        why = elide_end(share.why_not, self._width - len(label) - 1)
        return [Segment(label, self._style(Role.DIM)), Segment(why, self._style(Role.FAINT))]

    def _style(self, role: Role, ground: Background = Background.SCREEN) -> Style:
        return style(self.app.theme, role, ground)


def _sum(shares: Sequence[CategoryShare]) -> CategoryShare:
    times = [share.of_time for share in shares if share.of_time is not None]
    return CategoryShare(OTHER, sum(share.samples for share in shares), sum(times) if times else None)
