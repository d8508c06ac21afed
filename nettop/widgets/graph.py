# SPDX-License-Identifier: Apache-2.0
"""A graph of rates over time, several lines high: one part per direction, each with its own scale."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.segment import Segment
from textual.geometry import Size
from textual.strip import Strip

from nettop.query.units import human
from nettop.widgets.blocks import column_lines
from nettop.widgets.cells import fit
from nettop.widgets.lines import Lines
from nettop.widgets.themes import Role, style

_AXIS = 11
"""Cells for the label at the upper end of a scale: ` 1.93 Gb/s `."""


@dataclass(frozen=True, slots=True)
class Curve:
    """A part of the graph. `amounts` returns the newest amounts for a number of cells."""

    title: str
    role: Role
    unit: str
    amounts: Callable[[int], Sequence[float | None]]


class Graph(Lines):
    """Stacked curves, the newest amounts at the right."""

    def __init__(self, id: str | None = None) -> None:  # noqa: A002 - Textual's name
        super().__init__(id=id)
        self._title = ""
        self._curves: tuple[Curve, ...] = ()

    def show(self, title: str, curves: Sequence[Curve]) -> None:
        """Replace the title and the curves, and redraw."""
        self._title, self._curves = title, tuple(curves)
        self.redraw()

    def strips(self, size: Size) -> list[Strip]:
        """Return a line for the title, then the curves in equal parts."""
        lines = [[self._segment(f" {fit(self._title, size.width - 1, left=True)}", Role.DIM)]]
        each = (size.height - 1) // max(1, len(self._curves))
        cells = size.width - _AXIS - 1
        for curve in self._curves if each and cells > 0 else ():
            lines += self._curve(curve, cells, each)
        lines += [[]] * (size.height - len(lines))
        blank = self._segment(" " * size.width, Role.TEXT)
        return [Strip([*line, blank]).crop(0, size.width) for line in lines[: size.height]]

    def _curve(self, curve: Curve, cells: int, height: int) -> list[list[Segment]]:
        amounts = curve.amounts(cells)
        largest = max((amount for amount in amounts if amount is not None), default=0.0)
        labels = [human(largest, curve.unit) if largest else "", *[""] * (height - 1)]
        labels[-1 if height > 1 else 0] = curve.title if height > 1 else f"{curve.title} {labels[0]}"
        return [
            [
                self._segment(
                    f"{fit(label, _AXIS - 1, left=False)} ", curve.role if label == curve.title else Role.DIM
                ),
                self._segment("▏", Role.FAINT),
                self._segment(row, curve.role),
            ]
            for label, row in zip(labels, column_lines(amounts, largest, height), strict=True)
        ]

    def _segment(self, text: str, role: Role) -> Segment:
        return Segment(text, style(self.app.theme, role))
