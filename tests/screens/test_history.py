# SPDX-License-Identifier: Apache-2.0
"""Two minutes of totals: averages, gaps, and placement."""

from __future__ import annotations

import re
from collections import deque
from itertools import pairwise

import pytest

from nettop.screens.history import Fields, Interval, TotalsHistory, add_interval, averages
from nettop.snapshots.connections import SOCKETS
from nettop.snapshots.schema import RATE
from nettop.snapshots.snapshot import Frame, Snapshot
from nettop.widgets.blocks import sparkline
from tests.builders.driving import Running, press, running, shown, tick
from tests.builders.harness import busy_host
from tests.unit.build import make_frame, make_view

SECOND = 1_000_000_000


def history_of(*intervals: tuple[float, float, float | None]) -> deque[Fields]:
    """Return the history of one field from begin, end (seconds) and rate of each interval."""
    history: deque[Fields] = deque()
    for begin, end, rate in intervals:
        add_interval(history, Interval(round(begin * SECOND), round(end * SECOND), (rate,)))
    return history


@pytest.mark.parametrize(
    ("intervals", "cells"),
    [
        ([], [None] * 6),
        ([(0, 110, 5.0)], [5.0] * 6),
        ([(0, 20, 1.0), (20, 40, 3.0), (60, 61, 7.0), (61, 62, None)], [None, None, 1.0, 3.0, None, 7.0]),
        ([(100, 105, 4.0), (105, 105.5, 40.0), (105.5, 110, 8.0)], [None] * 5 + [7.6]),
        ([(0, 100, 2.0), (101, 111, 0.0)], [2.0] * 5 + [0.0]),
        ([(90, 110, 6.0), (110, 115, 0.0)], [None] * 4 + [6.0, 4.0]),
    ],
    ids=[
        "nothing",
        "one long interval",
        "gaps",
        "by their lengths",
        "zero is measured",
        "parts of intervals",
    ],
)
def test_cells_are_averages_over_twenty_seconds(
    intervals: list[tuple[float, float, float | None]], cells: list[float | None]
) -> None:
    """Each cell averages the parts of intervals in it; unseen or unknown ones are blank."""
    assert averages(history_of(*intervals), 0, 6) == cells


def test_cells_do_not_depend_on_the_time_since_boot() -> None:
    """After a year of whole spans the cells are the same, also if their number does not divide a span's nanoseconds."""
    year = 262_800 * 120 * SECOND
    intervals = [Interval(n * SECOND, (n + 1) * SECOND, (float(n * n % 17),)) for n in range(120)]
    later = [Interval(begin + year, end + year, rates) for begin, end, rates in intervals]
    assert averages(later, 0, 43) == averages(intervals, 0, 43)


def test_history_moves_unchanged() -> None:
    """With each new interval the older cells stay the same or move by one."""
    intervals = [(float(n), n + 1.0, float(n * n % 17)) for n in range(240)]
    before = averages(history_of(*intervals[:120]), 0, 12)
    for end in range(121, 240):
        now = averages(history_of(*intervals[max(0, end - 120) : end]), 0, 12)
        moved = (end - 1) % 10 == 0
        assert now[1:-1] == before[1 + moved : len(now) - 1 + moved]
        before = now


@pytest.mark.parametrize(
    ("amounts", "line"),
    [([0, 1, 50, 99, 100], "▁▁▅██"), ([None, 0, None, 100], " ▁ █"), ([0, 0], "▁▁"), ([], "")],
)
def test_sparkline(amounts: list[float | None], line: str) -> None:
    """The largest fills its cell, zero is the lowest, unknown a blank."""
    known = [amount for amount in amounts if amount is not None]
    assert sparkline(amounts, max(known, default=0)) == line


def test_totals_are_of_the_rows_that_are_still_there() -> None:
    """Values equal the headline's; a second look at the same reading adds nothing."""
    before = [{"id": n, "bytes_sent": 0, "bytes_received": 0} for n in (1, 2, 3)]
    now = [{"id": n, "bytes_sent": n * 100, "bytes_received": n * 10} for n in (1, 2)]
    view = make_view(make_frame(now, before, 2.0), sort="-bytes" + RATE, closed=True)
    history = TotalsHistory(SOCKETS)
    for _ in range(2):
        history.add(view)
    assert [interval.rates for interval in history.intervals] == [(150.0, 15.0)]


def traffic(*sent: int) -> list[Snapshot]:
    """Return a connection that has sent this much at each second."""
    return [
        make_frame([{"id": 1, "bytes_sent": n, "bytes_received": 0}], None, at).now
        for at, n in enumerate(sent)
    ]


def rates(run: Running) -> list[float | None]:
    """Return the history of the sent bytes."""
    return [interval.rates[0] for interval in shown(run).totals_history.intervals]


async def test_an_average_does_not_blur_it() -> None:
    """The history has each interval, however many the rates average, whichever table is shown; a filter may hide it."""
    async with running([*traffic(0, 100, 300, 700, 1500)], (160, 20)) as run:
        await press(run, "A", "A")
        for _ in range(3):
            await tick(run)
        assert rates(run) == [100.0, 200.0, 400.0, 800.0]
        await press(run, "slash", *"process!=surely-there-is-no-such-program", "enter")
        assert "peak" not in run[1].third_line.text
        assert "Esc clears" in run[1].third_line.text
        await press(run, "escape")
        assert "peak" in run[1].third_line.text
    async with running([*traffic(0, 100, 300, 700)], (160, 20)) as run:
        await press(run, "p")
        for _ in range(2):
            await tick(run)
        assert (shown(run).table.name, rates(run)) == ("events", [100.0, 200.0, 400.0])


async def test_a_frozen_screen_leaves_a_gap() -> None:
    """Time out of sight is blank, neither zero nor an average."""
    async with running([*traffic(0, 100, 300, 700)], (160, 20)) as run:
        await press(run, "space")
        drawn = run[1].third_line.text
        await tick(run)
        assert run[1].third_line.text == drawn
        await tick(run)
        await press(run, "space")
        assert rates(run) == [100.0, 400.0]
        first, second = run[1].totals_history.intervals
        assert second.begin_ns - first.end_ns == SECOND


def test_it_is_no_longer_than_two_minutes() -> None:
    """Intervals from before the range are dropped."""
    history = TotalsHistory(SOCKETS)
    readings = traffic(*range(200))
    for before, now in pairwise(readings):
        history.add(make_view(Frame(now, before)))
    assert len(history.intervals) == 121


@pytest.mark.parametrize(
    ("width", "line"),
    [
        (92, r"  p next *"),
        (100, r"  p next +peak  ↑ [▁ ]{7}█ 800 b/s    ↓ [▁ ]{8} 0 b/s +"),
        (120, r"  p next +2 min peak  ↑ [▁ ]{14}█ 800 b/s    ↓ [▁ ]{15} 0 b/s +"),
        (160, r"  p next +2 min peak  ↑ [▁ ]{29}█ 800 b/s    ↓ [▁ ]{30} 0 b/s +"),
    ],
)
async def test_where_it_stands(width: int, line: str) -> None:
    """The history is right-aligned on the third line, in the available cells, with both peaks."""
    async with running([*traffic(0, 100)], (width, 20)) as run:
        text = run[1].third_line.text
        assert len(text) == width
        assert re.search(line + "$", text)


async def test_a_frozen_screen_has_the_unit_that_was_chosen_elsewhere() -> None:
    """A hidden screen shows the same rows when visible again, in bytes."""
    async with running(busy_host(), (160, 40)) as run:
        first = shown(run)
        await press(run, "space", "p", "B", "P")
        assert shown(run) is first
        assert "B/s" in first.rows.render_line(1).text
        assert "B/s" in first.headline_bar.text
        assert "B/s" in first.third_line.text
