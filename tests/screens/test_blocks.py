# SPDX-License-Identifier: Apache-2.0
"""Bars of rates: how long they are, what they show of both parts, and where there are none."""

from __future__ import annotations

import pytest
from rich.segment import Segment

from nettop.widgets.blocks import bar_parts, column_lines
from nettop.widgets.table import LiveTable
from tests.builders.driving import press, running, text_of
from tests.builders.harness import busy_host, steps_of
from tests.unit.build import make_frame


@pytest.mark.parametrize(
    ("first", "second", "pieces"),
    [
        (100, 0, ("████", "")),
        (0, 100, ("", "████")),
        (50, 50, ("██", "██")),
        (50, 0, ("██", "  ")),
        (30, 12.5, ("█", "▊  ")),
        (0.1, 0, ("▏", "   ")),
        (0.1, 0.2, ("", "▏   ")),
        (0, 0, ("", "    ")),
    ],
)
def test_bar_pieces(first: float, second: float, pieces: tuple[str, str]) -> None:
    """A bar has a part for each amount, in proportion; an amount above 0 takes at least an eighth of a cell."""
    assert bar_parts(first, second, 100, 4) == pieces


@pytest.mark.parametrize(
    ("amounts", "height", "lines"),
    [
        ([0, 4, 8, 12, 16], 2, ["   ▄█", " ▄███"]),
        ([16, 8], 1, ["█▄"]),
        ([0.001, 0, None, 16], 2, ["   █", "▁  █"]),
        ([0, None], 2, ["  ", "  "]),
        ([], 2, ["", ""]),
    ],
    ids=["eighths", "one line", "the smallest, zero, unknown", "nothing moved", "no amounts"],
)
def test_column_pieces(amounts: list[float | None], height: int, lines: list[str]) -> None:
    """The largest amount fills all lines; unknown amounts are blank."""
    most = max((amount for amount in amounts if amount is not None), default=0.0)
    assert column_lines(amounts, most, height) == lines


def row_segments(table: LiveTable, y: int) -> list[Segment]:
    """Return the pieces of a line that have text."""
    return [segment for segment in table.render_line(y) if segment.text.strip()]


async def test_the_largest_row_fills_its_bar() -> None:
    """The row with the highest rate has a full bar, in any order; a row without a rate has none."""
    before = [{"id": n, "bytes_sent": 0, "bytes_received": 0} for n in (1, 2)]
    now = [
        {"id": 1, "bytes_sent": 3000, "bytes_received": 3000},
        {"id": 2, "bytes_sent": 1000, "bytes_received": 500},
        {"id": 3, "bytes_sent": 9000, "bytes_received": 9000},
    ]
    async with running(steps_of(make_frame(now, before)), (170, 20)) as run:
        table = run[1].rows
        assert "RATE ▾" in text_of(table)[0]
        bars = [[s.text.strip() for s in row_segments(table, y) if s.text[0] in "█▌"] for y in (1, 2, 3)]
        assert bars == [["█████", "█████"], ["██", "▌"], []]
        await press(run, "b")
        assert not any("█" in line or "RATE" in line for line in text_of(table))


async def test_bars_are_not_available_without_their_parts() -> None:
    """Where the kernel does not count what is received, the column says so."""
    async with running(busy_host(missing={"bytes_received": "no hook"}), (150, 20)) as run:
        line = text_of(run[1].rows)[1]
        column = next(c for c in run[1].rows.columns if c.bar)
        assert line.count("n/a") == 2
        assert column.name in run[1].view.missing
