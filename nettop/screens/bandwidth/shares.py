# SPDX-License-Identifier: Apache-2.0
"""An interface's traffic as bars, by protocol, then by service."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich.segment import Segment
from textual.geometry import Size
from textual.strip import Strip

from nettop.query.units import RATIO, human
from nettop.widgets.blocks import bar_parts
from nettop.widgets.cells import fit
from nettop.widgets.lines import Lines
from nettop.widgets.themes import Role, style

_LABEL, _SHARE, _RATE = 9, 6, 9
_MIN_BAR = 8
"""Minimum width of bars; where they would be shorter, rates are left out."""


class Share(NamedTuple):
    """A part of an interface's traffic, in bytes/s."""

    label: str
    received: float
    sent: float

    @property
    def rate(self) -> float:
        """Sum of both directions."""
        return self.received + self.sent


Group = tuple[str, Sequence[Share]]
"""A title, and the parts of a whole."""


class ShareBars(Lines):
    """A line for each part that is not 0, in groups."""

    def __init__(self, id: str | None = None) -> None:  # noqa: A002 - Textual's name
        super().__init__(id=id)
        self._groups: Sequence[Group] = ()

    def show(self, groups: Sequence[Group]) -> None:
        """Replace the groups, and redraw."""
        self._groups = groups
        self.redraw()

    def strips(self, size: Size) -> list[Strip]:
        """Return the groups, separated by an empty line if there is room; parts that do not fit are summed up."""
        room = size.height // max(1, len(self._groups))
        lines: list[list[Segment]] = []
        for title, shares in self._groups:
            group = [share for share in shares if share.rate]
            whole = sum(share.rate for share in group)
            lines.append([self._segment(f" {fit(title, size.width - 1, left=True)}", Role.DIM)])
            lines += [self._line(share, whole, size.width) for share in fitting(group, room - 1)]
            lines += [[]] * (room > len(group) + 1)
        lines += [[]] * (size.height - len(lines))
        blank = self._segment(" " * size.width, Role.TEXT)
        return [Strip([*line, blank]).crop(0, size.width) for line in lines[: size.height]]

    def _line(self, share: Share, whole: float, width: int) -> list[Segment]:
        """Return `TCP        97.1% ████████  1.93 Gb/s`."""
        room = width - _LABEL - _SHARE - 4
        rate = f" {fit(human(share.rate, 'bytes/s'), _RATE, left=False)}"
        if room - len(rate) < _MIN_BAR:
            rate = ""
        received, sent = bar_parts(share.received, share.sent, whole, max(1, room - len(rate)))
        return [
            self._segment(f" {fit(share.label, _LABEL, left=True)} ", Role.TEXT),
            self._segment(f"{fit(human(share.rate / whole, RATIO), _SHARE, left=False)} ", Role.TEXT),
            self._segment(received, Role.RECEIVED),
            self._segment(sent, Role.SENT),
            self._segment(rate, Role.DIM),
        ]

    def _segment(self, text: str, role: Role) -> Segment:
        return Segment(text, style(self.app.theme, role))


def fitting(group: Sequence[Share], room: int) -> Sequence[Share]:
    """Return the parts that fit, with the others summed up as one."""
    if len(group) <= room:
        return group
    shown, rest = group[: max(0, room - 1)], group[max(0, room - 1) :]
    received, sent = (sum(each) for each in zip(*((s.received, s.sent) for s in rest), strict=True))
    return [*shown, Share(f"{len(rest)} more", received, sent)]
