# SPDX-License-Identifier: Apache-2.0
"""What an interface carries as bars: by protocol, then by service."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich.segment import Segment
from textual.geometry import Size
from textual.strip import Strip

from nettop.query.units import RATIO, human
from nettop.widgets.blocks import bar_pieces
from nettop.widgets.cells import fit
from nettop.widgets.lines import Lines
from nettop.widgets.themes import Role, style

_LABEL, _SHARE, _RATE = 9, 6, 9
_LEAST_BAR = 8
"""Where bars would be shorter, they take the place of the rates."""


class Share(NamedTuple):
    """A part of what an interface carries, in bytes/s."""

    label: str
    received: float
    sent: float

    @property
    def rate(self) -> float:
        """Both ways together."""
        return self.received + self.sent


Group = tuple[str, Sequence[Share]]
"""A title, and parts of one whole."""


class ShareBars(Lines):
    """A line for each part that is not 0, in groups."""

    def __init__(self, id: str | None = None) -> None:  # noqa: A002 - Textual's word
        super().__init__(id=id)
        self._groups: Sequence[Group] = ()

    def show(self, groups: Sequence[Group]) -> None:
        """Draw these from now on."""
        self._groups = groups
        self.redraw()

    def strips(self, size: Size) -> list[Strip]:
        """The groups, an empty line between them where there is room; what is too much is summed up."""
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
        """`TCP        97.1% ████████  1.93 Gb/s`"""
        room = width - _LABEL - _SHARE - 4
        rate = f" {fit(human(share.rate, 'bytes/s'), _RATE, left=False)}"
        if room - len(rate) < _LEAST_BAR:
            rate = ""
        received, sent = bar_pieces(share.received, share.sent, whole, max(1, room - len(rate)))
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
    """The parts, as far as there is room; the others as one."""
    if len(group) <= room:
        return group
    shown, rest = group[: max(0, room - 1)], group[max(0, room - 1) :]
    received, sent = (sum(each) for each in zip(*((s.received, s.sent) for s in rest), strict=True))
    return [*shown, Share(f"{len(rest)} more", received, sent)]
