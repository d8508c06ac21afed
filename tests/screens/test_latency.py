# SPDX-License-Identifier: Apache-2.0
"""The latency screens by pilot: histograms, heat maps, their keys, and small terminals."""

from __future__ import annotations

import itertools
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import numpy as np
import pytest

from nettop.query.query import screen_query
from nettop.query.view import View
from nettop.screens.history import HistogramHistory
from nettop.screens.selected_row import HistogramScreen, Quantile, SelectedRow, body, title
from nettop.settings import Settings, ViewSettings
from nettop.snapshots.arrays import Array
from nettop.snapshots.latency import (
    BUCKETS,
    LENS,
    PAIRS_EVICTED,
    PROTOCOL_TABLE,
    STAGE_TABLE,
    WIRE_APP,
    WIRE_IP,
)
from nettop.snapshots.snapshot import Frame, Snapshot
from nettop.widgets.durations import (
    BEYOND,
    MAP_COLUMNS,
    PARTS,
    axis_line,
    cell_of,
    heat_map,
    mark_line,
    rebin,
    shades,
)
from nettop.widgets.lines import Lines
from tests.builders.driving import Running, lines, press, running, shown, text_of, tick, values_of
from tests.builders.example_latency import NO_BTF, SECOND_NS, example_steps

SOCKET_WAIT_CHOSEN = ["down"] * 6


# --- the chosen row ---------------------------------------------------------------------------------------------


@asynccontextmanager
async def on_latency(
    size: tuple[int, int] = (120, 40), steps: Sequence[Snapshot] = example_steps(), view: str = "latency"
) -> AsyncIterator[tuple[Running, HistogramScreen]]:
    """Yield a table with a pane, over all steps of the example."""
    settings = Settings(view=ViewSettings(view=view))
    async with running(
        [*steps], size, settings=settings, ticks=len(steps), silent=STAGE_TABLE.uses, lens_set=(LENS,)
    ) as run:
        screen = run[1]
        yield run, screen


async def test_the_histogram_and_its_marks() -> None:
    """The columns are above the axis at their durations, with the marks below."""
    async with on_latency() as (run, screen):
        await press(run, *["down"] * 8)
        meaning, *_, last, marks, axis = lines(screen.pane)[1:8]
        assert meaning == " from the SYN to the established connection, on both sides"
        first, end = len(last) - len(last.lstrip()), len(last)
        assert axis.index("▏1 ms") < first < marks.index("p50↑") + 3 < marks.index("p90↑") + 3 < end
        assert axis.index("▏10 ms") < marks.index("↑") < axis.index("▏100 ms")


async def test_nothing_in_the_interval() -> None:
    """Without packets there are no quantiles, and the axis stays."""
    step = example_steps()[-1]
    later = replace(
        step,
        boot_ns=step.boot_ns + SECOND_NS,
        tables={
            name: replace(rows, taken_ns=rows.taken_ns + SECOND_NS) for name, rows in step.tables.items()
        },
    )
    async with on_latency(steps=[*example_steps(), later]) as (_, screen):
        assert lines(screen.pane)[0] == " wire-ip  no packets"
        assert not "".join(lines(screen.pane)[2:7]).strip()
        assert lines(screen.pane)[7].startswith(" ▏100 ns")


async def test_unavailable_stages_say_why() -> None:
    """The pane gives the reason; the row has n/a, and the headline counts such rows."""
    async with on_latency((80, 24), example_steps(missing=(WIRE_IP, WIRE_APP))) as (run, screen):
        assert text_of(screen.rows)[1].split()[:4] == ["wire-ip", "n/a", "n/a", "n/a"]
        assert lines(screen.pane)[:3] == [
            " wire-ip  n/a",
            " from the receive timestamp to the IP layer",
            f" n/a here: {NO_BTF}",
        ]
        assert screen.headline_bar.text.startswith(" wire-app n/a   socket-wait p99 672 µs ")
        assert screen.headline_bar.text.rstrip().endswith("2 n/a   0 missed")
        await press(run, "right")
        assert f"n/a here: {NO_BTF}" in "".join(lines(pane_of(run)))


def pane_of(run: Running) -> Lines:
    """Return the pane in sight now."""
    screen = shown(run)
    return screen.pane


# --- over time --------------------------------------------------------------------------------------------------


def remembered(screen: HistogramScreen) -> list[float]:
    """Return the first row's counts per second at each refresh."""
    return screen.history.columns(0).sum(axis=1).tolist()


async def test_a_column_for_each_refresh() -> None:
    """Each refresh is remembered, even while rates average several intervals; other tables leave a gap."""
    steps = example_steps(9)
    matched = [int(step.tables["stages"].array["matched"][0]) for step in steps]
    added = [now - before for before, now in itertools.pairwise(matched)]
    async with on_latency(steps=steps[:3]) as (run, screen):
        run[2].script.steps += steps[3:]
        assert remembered(screen) == added[:2]
        await press(run, "A")
        for _ in range(2):
            await tick(run)
        assert remembered(screen) == added[:4]
        await press(run, "A", "A", "A", "p", "p")
        for _ in range(2):
            await tick(run)
        await press(run, "p", "p")
        await tick(run)
        assert remembered(screen) == [*added[:4], 0, *added[5:7]]


async def test_the_history_does_not_grow() -> None:
    """The history has as many refreshes as the heat map's columns, and their duration."""
    history = HistogramHistory(STAGE_TABLE)
    steps = example_steps(3)
    for n in range(2 * MAP_COLUMNS):
        at = n * SECOND_NS
        frame = Frame(*(replace(step, boot_ns=step.boot_ns + at) for step in (steps[1], steps[0])))
        history.add(View(frame, screen_query(STAGE_TABLE)))
    assert history.columns(0).shape == (MAP_COLUMNS, PARTS)
    assert history.span_s(MAP_COLUMNS) == MAP_COLUMNS
    assert history.span_s(7) == 7
    assert HistogramHistory(STAGE_TABLE).span_s(7) == 0


# --- keys -------------------------------------------------------------------------------------------------------


async def test_arrows_open_and_close_the_protocols() -> None:
    """→ opens the selected row's protocols, which have a history already, ← returns; → there opens details. Without a
    selection the pane shows the first row."""
    async with on_latency() as (run, screen):
        assert lines(screen.pane)[0].startswith(" wire-ip  p50 4.2 µs ")
        await press(run, "down", "down", "down", "right")
        opened = shown(run)
        assert opened.table is PROTOCOL_TABLE
        assert len(remembered(opened)) == 2
        assert set(values_of(opened, "stage")) == {"wire-app"}
        assert len(values_of(opened, "stage")) == 8
        assert lines(pane_of(run))[0].startswith(" wire-app tcp IPv4  p50 ")
        await press(run, "down", "right")
        assert opened.details_open
        await press(run, "left", "left")
        assert shown(run) is screen
        before = lines(screen.pane)[0]
        assert before.startswith(" wire-app  p50 ")
        assert len(remembered(screen)) == 2
        await press(run, "t")
        assert lines(screen.pane)[0] != before
        assert "SEEN " in text_of(screen.rows)[0]


# --- other hosts, other terminals -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "one_in", "counts", "items"),
    [
        (96, 64, {}, ["socket-wait p99 672 µs", "followed 1 in 64", "0 missed"]),
        (60, 64, {}, ["followed 1 in 64"]),
        (120, 1, {}, ["socket-wait p99 672 µs", "qdisc p99 20.0 µs", "followed every packet", "0 missed"]),
        (96, 64, {PAIRS_EVICTED: 1_234}, ["followed 1 in 64", "evicted 1,234", "0 missed"]),
    ],
)
async def test_the_headline_sheds_delays(
    width: int, one_in: int, counts: dict[str, int], items: list[str]
) -> None:
    """The headline keeps the most important delay, that counts are estimates, and losses; of pairs also evictions."""
    steps = [replace(step, counts={**step.counts, **counts}) for step in example_steps(one_in=one_in)]
    async with on_latency((width, 24), steps) as (run, _):
        if counts:
            await press(run, "p", "p")
        text = shown(run).headline_bar.text
        assert text.strip().split("   ") == ["wire-app p50 50.2 µs p99 639 µs", *items]


# --- arrangements -----------------------------------------------------------------------------------------------


def chosen(columns: Array | None = None) -> SelectedRow:
    """Return a row with a packet of 5 µs."""
    counts = np.zeros(BUCKETS.count, np.uint64)
    counts[BUCKETS.places(np.array([5_000]))] = 1
    columns = np.zeros((0, PARTS)) if columns is None else columns
    return SelectedRow(
        "name", "meaning", [Quantile("p50", 5_000, 98)], counts, BUCKETS, columns, str, "no packets"
    )


@pytest.mark.parametrize(
    ("width", "height", "axes", "decades"),
    [(80, 4, [3], 0), (80, 7, [6], 0), (80, 8, [7], 8), (75, 8, [7], 0), (75, 15, [6], 8), (120, 23, [6], 8)],
)
def test_arrangement(width: int, height: int, axes: list[int], decades: int) -> None:
    """The heat map is below the histogram, else beside it, else hidden; nothing is wider than the pane."""
    drawn = ["".join(span.text for span in line) for line in body(chosen(), width, height)]
    assert len(drawn) == height
    assert max(map(len, drawn)) <= width
    assert [n for n, text in enumerate(drawn) if text.lstrip().startswith("▏100 ns")] == axes
    labels = [text for text in drawn if re.search(r"s {1,2}▏(?!1)", text)]
    assert len(labels) == decades


def test_a_title_sheds_quantiles() -> None:
    """The least important columns are dropped, whatever their order."""
    many = [Quantile("p50", 5_000, 3), Quantile("p90", 6_000, 1), Quantile("max", 7_000, 2)]
    texts = [
        "".join(span.text for span in title(chosen()._replace(quantiles=many), width)).strip()
        for width in (60, 30, 20)
    ]
    assert texts == [
        "name  p50 5.0 µs  p90 6.0 µs  max 7.0 µs",
        "name  p50 5.0 µs  max 7.0 µs",
        "name  p50 5.0 µs",
    ]


# --- the axis and the map ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (64, "▏100 ns ▏1 µs   ▏10 µs  ▏100 µs ▏1 ms   ▏10 ms  ▏100 ms ▏1 s    ▏10 s"),
        (32, "▏100 ns ▏10 µs  ▏1 ms   ▏100 ms ▏10 s"),
        (16, "▏100 ns ▏1 ms   ▏10 s"),
        (8, "▏100 ns ▏10 s"),
    ],
)
def test_labels_of_an_axis(width: int, expected: str) -> None:
    """Every decade is labelled if there is room, else every second or fourth, or the ends."""
    assert axis_line(width) == expected
    assert len(expected) == width + BEYOND


@pytest.mark.parametrize("width", [16, 30, 54, 73, 128])
def test_labels_stand_where_their_cells_are(width: int) -> None:
    """A duration's mark is in the cell that `rebin` counts it in."""
    for number in (1, 150, 999, 1_100, 42_000, 184e6, 3e9, 17e9):
        counts = np.zeros(BUCKETS.count)
        place = int(BUCKETS.places(np.array([number]))[0])
        counts[place] = 1
        assert rebin(counts, BUCKETS, width)[cell_of(float(BUCKETS.middles[place]), width)] == 1


@pytest.mark.parametrize(
    ("marks", "expected"),
    [
        ([("p50", 42e3), ("p99", 184e6)], "       p50↑           p99↑           "),
        ([("p50", 42e3), ("p99", 44e3)], "       p50↑                          "),
        ([("p50", 42e3), ("max", 160e3)], "       p50↑ ↑max                     "),
        ([("p50", 1), ("max", 20e9)], "↑p50                        max↑     "),
        ([], " " * 37),
    ],
)
def test_marks(marks: list[tuple[str, float]], expected: str) -> None:
    """Names are left or right of their arrows; those without room are dropped."""
    assert mark_line(marks, 32) == expected


def test_shades() -> None:
    """A quarter less is a shade lighter; the smallest amount is visible, and none is blank."""
    columns = np.zeros((6, PARTS))
    columns[:, 0] = [100, 26, 25, 6, 1, 0]
    columns[0, -1] = 0.001
    assert shades(columns, 8) == ["░     ", *[" " * 6] * 6, "██▓▒░ "]
    assert shades(np.zeros((2, PARTS)), 8) == ["  "] * 8
    assert shades(columns[:0], 8) == [""] * 8


@pytest.mark.parametrize(
    ("width", "height", "lines_drawn"),
    [(23, 20, 0), (40, 7, 0), (40, 8, 8), (40, 9, 9), (40, 18, 17), (40, 64, 64)],
)
def test_lines_of_a_heat_map(width: int, height: int, lines_drawn: int) -> None:
    """Each decade has a number of lines that divides it; a caption uses a spare line."""
    drawn = heat_map(np.ones((200, PARTS)), str, width, height)
    texts = ["".join(span.text for span in line) for line in drawn]
    assert len(texts) == lines_drawn
    if texts:
        assert texts[-1] == " 100 ns ▏" + "█" * (width - 9)
        assert not lines_drawn % 2 or texts[0] == f" {width - 9}"
