# SPDX-License-Identifier: Apache-2.0
"""Histograms and their quantiles, compared with numpy over the samples themselves, and shown by every frontend."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from textual.strip import Strip

from nettop.errors import UsageError
from nettop.formats.jsonl import JsonLines
from nettop.formats.separated import Separated
from nettop.output.log_lines import TextLines
from nettop.output.table import AlignedTable
from nettop.query.columns import FEW_COUNTS
from nettop.query.filter import parse_filter
from nettop.query.query import parse_sort
from nettop.query.units import unit_of
from nettop.query.view import View
from nettop.screens.table_state import initial_state
from nettop.settings.shared import complete_columns, complete_sort
from nettop.snapshots.arrays import Array
from nettop.snapshots.histograms import Buckets, histogram_text
from nettop.snapshots.schema import Field, Kind, Table
from nettop.snapshots.snapshot import Frame, Snapshot
from nettop.widgets.cells import RowFlags, RowStyle, column_cells, total_cells
from nettop.widgets.columns import plan
from nettop.widgets.details import detail_lines
from nettop.widgets.durations import rebin
from nettop.widgets.glyphs import needed_signs
from nettop.widgets.table import LiveTable
from nettop.widgets.themes import Role
from tests.unit.build import Row, histogram_of, make_frame, make_view

BUCKETS = Buckets(first_bit=6, last_bit=34, divided_by_bits=4)
WIDER = Buckets(first_bit=7, last_bit=35, divided_by_bits=4)
"""As many buckets as the others, for other numbers."""

WAITS = Table(
    name="waits",
    fields=(
        Field("id", Kind.KEY, "ID", "which queue", "u8"),
        Field("queue", Kind.TEXT, "QUEUE", "its name", "u4", width=8, importance=90),
        Field("seen", Kind.COUNTER, "SEEN", "packets that came", "u8", "packets", 9, 80),
        Field("wait", Kind.HISTOGRAM, "100 ns TO 10 s", "how long they waited", BUCKETS.dtype, "ns", 24, 95,
              buckets=BUCKETS),
        Field("p50", Kind.QUANTILE, "P50", "half waited no longer", unit="ns", parts=("wait",), quantile=0.5),
        Field("p99", Kind.QUANTILE, "P99", "99 % waited no longer", unit="ns", parts=("wait",), quantile=0.99),
        Field("max", Kind.QUANTILE, "MAX", "the longest", unit="ns", parts=("wait",), quantile=1),
    ),
    key="id",
    screen=("queue", "seen_per_s", "p50", "p99", "wait"),
    text=("queue", "seen", "p50", "p99"),
    sort="queue",
    text_sort="queue",
    begins_at_zero=True,
)  # fmt: skip
LISTED = replace(WAITS, begins_at_zero=False)
"""Rows that are new may have counted long before."""

EVERY_BUCKETS = st.integers(0, 5).flatmap(
    lambda bits: st.builds(
        lambda first, octaves: Buckets(first, first + octaves, bits),
        st.integers(bits, 12),
        st.integers(1, 28),
    )
)
SAMPLES = st.lists(st.integers(0, 1 << 40), min_size=1, max_size=60)
SHARES = st.floats(0, 1) | st.sampled_from([0.1, 0.29, 0.5, 0.7, 0.9, 0.99, 0.999])
MS = 1_000_000


def counted(samples: Sequence[int], buckets: Buckets = BUCKETS) -> Array:
    """Return the histogram of these numbers."""
    return histogram_of(samples, buckets)


def standing_for(number: float) -> float:
    """Return the number that stands for this one's bucket."""
    return float(BUCKETS.middles[BUCKETS.places(np.array([number]))][0])


def view_of(
    now: Sequence[Row], before: Sequence[Row] | None = None, table: Table = WAITS, **query: Any
) -> View:
    """Return a view of these rows."""
    return make_view(make_frame(now, before, table=table, lens="sample"), **query)


def values(view: View, name: str) -> list[Any]:
    """Return the column's values for every row."""
    return view.values(name, np.arange(view.size))


# --- buckets --------------------------------------------------------------------------------------------------


@given(EVERY_BUCKETS)
def test_edges_places_and_middles_agree(buckets: Buckets) -> None:
    """A bucket begins with its edge, the number below belongs to the one before, and its middle is in it."""
    edges, every = np.array(buckets.edges, np.float64), np.arange(buckets.count)
    assert len(edges) == len(buckets.middles) == buckets.count
    assert np.dtype(buckets.dtype).shape == (buckets.count,)
    assert (edges[0], edges[1], edges[-1]) == (0, 1 << buckets.first_bit, 1 << buckets.last_bit)
    assert buckets.places(edges).tolist() == every.tolist()
    assert buckets.places(edges[1:] - 1).tolist() == every[:-1].tolist()
    assert buckets.places(buckets.middles).tolist() == every.tolist()
    assert {1 << bit for bit in range(buckets.first_bit, buckets.last_bit + 1)} <= {*buckets.edges}
    assert all(middle == int(middle) for middle in buckets.middles)


@given(EVERY_BUCKETS, st.data())
def test_the_middle_is_near_every_number_of_its_bucket(buckets: Buckets, data: st.DataObject) -> None:
    """A bucket's middle differs from its numbers by at most half its width, a known share of them."""
    number = data.draw(st.integers(1 << buckets.first_bit, (1 << buckets.last_bit) - 1))
    (middle,) = buckets.middles[buckets.places(np.array([number]))]
    assert abs(middle - number) <= number / (2 << buckets.divided_by_bits)


@given(EVERY_BUCKETS, SAMPLES, SHARES)
def test_quantiles_are_those_of_numpy(buckets: Buckets, samples: list[int], share: float) -> None:
    """The quantile's bucket contains numpy's quantile of the samples themselves."""
    exact = np.quantile(np.array(samples, np.float64), share, method="inverted_cdf")
    (quantile,) = buckets.quantiles(counted(samples, buckets)[None], share)
    assert quantile == buckets.middles[buckets.places(exact[None])][0]
    if 1 << buckets.first_bit <= exact < 1 << buckets.last_bit:
        assert abs(quantile - exact) <= exact / (2 << buckets.divided_by_bits)


def test_a_histogram_that_counts_nothing_has_no_quantile() -> None:
    """Each row has its own; an empty one has NaN."""
    counts = np.stack([counted([]), counted([5 * MS] * 3)])
    assert BUCKETS.quantiles(counts, 0.5)[0] != BUCKETS.quantiles(counts, 0.5)[0]
    assert BUCKETS.quantiles(counts, 0.5)[1] == standing_for(5 * MS)


def test_text_of_a_histogram() -> None:
    """The text has a word for each bucket; the last one has no upper bound."""
    assert histogram_text([(4096, 4352, 12), (1 << 34, None, 1)]) == "4096-4352:12 17179869184-:1"
    assert histogram_text([]) == ""


# --- the view -------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(SAMPLES, SAMPLES), min_size=1, max_size=4))
def test_an_interval_has_what_it_added(rows: list[tuple[list[int], list[int]]]) -> None:
    """Without deltas totals are shown, with deltas the growth since the previous snapshot."""
    before: list[Row] = [{"id": at, "wait": counted(earlier)} for at, (earlier, _) in enumerate(rows)]
    now: list[Row] = [
        {"id": at, "wait": counted(earlier + later)} for at, (earlier, later) in enumerate(rows)
    ]
    totals, interval = view_of(now, before), view_of(now, before, deltas=True)
    for at, (earlier, later) in enumerate(rows):
        assert totals.histogram("wait")[at].tolist() == counted(earlier + later).tolist()
        assert interval.histogram("wait")[at].tolist() == counted(later).tolist()
        for view, samples in ((totals, earlier + later), (interval, later)):
            for name in ("p50", "p99", "max"):
                exact = np.quantile(samples, WAITS.by_name[name].quantile, method="inverted_cdf")
                assert values(view, name)[at] == standing_for(exact)


def test_differences_are_exact_in_64_bits() -> None:
    """Differences are exact even for counts that floats cannot distinguish."""
    before, now = counted([]), counted([])
    before[7], now[7] = 2**63 + 1, 2**63 + 2
    view = view_of([{"wait": now}], [{"wait": before}], deltas=True)
    assert view.histogram("wait").dtype == np.uint64
    assert values(view, "wait") == [[[BUCKETS.edges[7], BUCKETS.edges[8], 1]]]


def test_new_rows_count_from_zero_where_their_table_does() -> None:
    """A new row counts from zero if its table says so; otherwise it has no difference."""
    new: list[Row] = [{"id": 2, "wait": counted([MS])}]
    (at_zero,), (unknown,) = (
        values(view_of(new, [], table, deltas=True), "p50") for table in (WAITS, LISTED)
    )
    assert (at_zero, unknown) == (standing_for(MS), None)


def test_without_an_interval_there_is_no_difference() -> None:
    """The first snapshot has totals only."""
    rows: list[Row] = [{"wait": counted([MS])}]
    assert values(view_of(rows), "p50") == [standing_for(MS)]
    first = view_of(rows, deltas=True)
    assert (values(first, "p50"), values(first, "wait"), first.total("p50", np.arange(1))) == (
        [None],
        [None],
        None,
    )


def test_a_count_that_went_back_has_no_difference() -> None:
    """If a single bucket decreases, the row's histogram was reset."""
    view = view_of([{"wait": counted([MS, MS, MS])}], [{"wait": counted([MS, 9 * MS])}], deltas=True)
    assert not view.histogram("wait").any()
    assert (values(view, "wait"), values(view, "max")) == ([None], [None])


def test_unknown_histograms_count_nothing() -> None:
    """All bits are set: neither a histogram nor a quantile is known, and no comparison passes."""
    rows: list[Row] = [
        {"id": 1, "wait": None},
        {"id": 2, "wait": counted([])},
        {"id": 3, "wait": counted([MS])},
    ]
    for deltas in (False, True):
        view = view_of(rows, [], deltas=deltas)
        assert view.known("wait").tolist() == [False, True, True]
        assert view.column("wait").numbers.tolist() == [0, 0, 1]
        assert view.histogram("wait")[:2].sum() == 0
        assert values(view, "wait")[:2] == [None, []]
        assert values(view, "p99") == [None, None, standing_for(MS)]
        assert view.largest("p99") == standing_for(MS)
    assert view_of(rows, filter_text="p99>=0").order.tolist() == [2]


def test_rows_that_are_gone_keep_what_they_showed() -> None:
    """A row that has gone keeps its last interval's values, which do not count in the total."""
    first, second, third = ([{"id": 1, "wait": counted([MS] * at)}] for at in (0, 1, 3))
    shown = view_of(third, second, deltas=True, gone=True)
    other: list[Row] = [{"id": 2, "wait": counted([9 * MS])}]
    frame = make_frame(other, third, table=WAITS, lens="sample")
    after = View(frame, shown.query, last=shown)
    assert after.gone.tolist() == [False, True]
    assert values(after, "wait")[1] == values(shown, "wait")[0] == [[*edges_of(MS), 2]]
    assert values(after, "p50") == [standing_for(9 * MS), standing_for(MS)]
    assert after.total("p50", np.arange(2)) == standing_for(9 * MS)
    alone = View(frame, shown.query)
    assert (values(alone, "wait")[1], values(alone, "p50")[1]) == (None, None)
    assert not alone.histogram("wait")[1].any()
    assert values(view_of(second, first, deltas=True), "wait") == [[[*edges_of(MS), 1]]]


def edges_of(number: int) -> list[int]:
    """Return the least number of its bucket, and of the next one."""
    (place,) = BUCKETS.places(np.array([number]))
    return [BUCKETS.edges[place], BUCKETS.edges[place + 1]]


def test_the_last_bucket_has_no_end() -> None:
    """Numbers beyond the range are in the last bucket, and its lower bound represents them."""
    view = view_of([{"wait": counted([1 << 40, 3])}])
    assert values(view, "wait") == [[[0, 64, 1], [1 << 34, None, 1]]]
    assert values(view, "max") == [1 << 34]


@given(st.lists(SAMPLES, min_size=1, max_size=5))
def test_the_total_is_the_quantile_of_all(each: list[list[int]]) -> None:
    """The total is the quantile of the merged histograms, never of quantiles; a histogram has no total."""
    view = view_of([{"wait": counted(samples)} for samples in each])
    exact = np.quantile(np.concatenate(each), 0.99, method="inverted_cdf")
    assert view.total("p99", view.order) == standing_for(exact)
    assert view.total("wait", view.order) is None
    assert view.total("p99", view.order[:0]) is None


def waits_at(second: int, *rows: Row) -> Snapshot:
    """Return the snapshot of a second."""
    return make_frame(rows, None, second, table=WAITS, lens="sample").now


def test_few_counts_are_those_since_a_recent_snapshot() -> None:
    """A row with enough counts has those of the interval alone; a new row those since it began."""
    recent = waits_at(0, {"id": 1, "wait": counted([9 * MS])}, {"id": 2, "wait": counted([])})
    before = waits_at(9, {"id": 1, "wait": counted([9 * MS, 5 * MS])}, {"id": 2, "wait": counted([8 * MS])})
    busy, new = [2 * MS] * FEW_COUNTS, [7 * MS]
    rows: list[Row] = [
        {"id": 1, "wait": counted([9 * MS, 5 * MS, 3 * MS])},
        {"id": 2, "wait": counted([8 * MS, *busy])},
        {"id": 3, "wait": counted(new)},
    ]
    frame = Frame(waits_at(10, *rows), before)
    query = make_view(frame, deltas=True).query
    view, without = View(frame, query, recent=recent), View(frame, query)
    assert values(view, "max") == [standing_for(5 * MS), standing_for(2 * MS), standing_for(7 * MS)]
    assert values(without, "max") == [standing_for(3 * MS), standing_for(2 * MS), standing_for(7 * MS)]
    assert view.counts_recent("wait").tolist() == [True, False, True]
    assert view.histogram("wait").sum(axis=1).tolist() == [2, FEW_COUNTS, 1]


@pytest.mark.parametrize("what", ["totals", "a longer interval", "a service that began anew"])
def test_what_has_no_recent_counts(what: str) -> None:
    """Totals count from the beginning, averages over a longer time from their own."""
    earlier = waits_at(0, {"wait": counted([9 * MS] * 3 if "anew" in what else [9 * MS])})
    between = waits_at(9, {"wait": counted([9 * MS, 5 * MS])})
    before, recent = (earlier, between) if "longer" in what else (between, earlier)
    frame = Frame(waits_at(10, {"wait": counted([9 * MS, 5 * MS, 5 * MS])}), before)
    view = View(frame, make_view(frame, deltas=what != "totals").query, recent=recent)
    assert not view.counts_recent("wait").any()
    assert values(view, "max") == [standing_for(9 * MS if what == "totals" else 5 * MS)]


def test_unavailable_histograms_have_no_quantiles() -> None:
    """Without its hook a histogram is n/a, and so are its quantiles."""
    frame = make_frame([{"wait": counted([MS])}], table=WAITS, lens="sample", missing={"wait": "no hook"})
    view = make_view(frame)
    assert view.missing == dict.fromkeys(("wait", "p50", "p99", "max"), "no hook")
    assert view.histogram("wait").tolist() == [[0] * BUCKETS.count]
    assert (values(view, "wait"), values(view, "p50"), view.total("p50", view.order)) == (
        [None],
        [None],
        None,
    )


THREE: list[Row] = [
    {"id": 1, "queue": "a", "seen": 3, "wait": counted([20 * MS] * 3)},
    {"id": 2, "queue": "b", "seen": 0, "wait": counted([])},
    {"id": 3, "queue": "c", "seen": 2, "wait": counted([3_000, 5 * MS])},
]


@pytest.mark.parametrize(
    ("sort", "order"),
    [("p99", [2, 0, 1]), ("-p99", [0, 2, 1]), ("-max", [0, 2, 1]), ("p50", [2, 0, 1])],
)
def test_sorted_by_a_quantile(sort: str, order: list[int]) -> None:
    """Rows without a quantile sort last in both directions."""
    assert view_of(THREE, sort=sort).order.tolist() == order


@pytest.mark.parametrize(
    ("text", "passing"),
    [
        ("p99>10ms", [0]),
        ("p99<10 ms", [2]),
        ("p99 >= 1us", [0, 2]),
        ("p50<10us max>4ms", [2]),
        (f"max={int(standing_for(20 * MS))}", [0]),
    ],
)
def test_filtered_by_a_quantile(text: str, passing: list[int]) -> None:
    """A quantile is filtered in units of time."""
    assert unit_of(WAITS, "p99") == unit_of(WAITS, "wait") == "ns"
    assert view_of(THREE, filter_text=text).order.tolist() == passing


@pytest.mark.parametrize("op", ["=", "!~"])
def test_a_histogram_cannot_be_compared(op: str) -> None:
    """The error says what it is and names what can be compared."""
    with pytest.raises(UsageError, match="wait is a histogram") as caught:
        parse_filter(WAITS, f"queue=a wait{op}5")
    assert caught.value.remedy == "compare p50, p99, max instead"


@pytest.mark.parametrize("text", ["wait", "-wait"])
def test_a_histogram_has_no_order(text: str) -> None:
    """Rows cannot be sorted by a histogram: not with --sort, its completion, the palette, the keys or the mouse."""
    with pytest.raises(UsageError, match="wait is a histogram, which has no order") as caught:
        parse_sort(WAITS, text)
    assert caught.value.remedy == "sort by p50, p99, max instead"


def test_a_histogram_without_quantiles_is_refused_too() -> None:
    """The remedy for a histogram without quantiles is another field."""
    table = replace(WAITS, fields=WAITS.fields[:4])
    for parse in (parse_sort, lambda table, name: parse_filter(table, f"{name}>5")):
        with pytest.raises(UsageError) as caught:
            parse(table, "wait")
        assert "another field" in caught.value.remedy


def test_no_order_by_a_histogram_is_offered() -> None:
    """The keys pass it by, a click on its header does nothing, and completion and the palette leave it out."""
    assert {*WAITS.names} - {*WAITS.sortable} == {"wait"}
    columns = plan(WAITS, ("p50", "wait", "p99"), 100, extra=False)
    state = initial_state(WAITS, None).sorted_by("p50")
    assert state.sorted_beside(columns, 1, around=False).query.sort.field == "p99"
    assert state.sorted_beside(columns, 2, around=True).query.sort.field == "p50"
    table = LiveTable(("p50", "wait", "p99"))
    table.columns = columns
    view: Any = SimpleNamespace(table=WAITS, query=state.query)
    table.strip = lambda *_: Strip([])  # type: ignore[method-assign]
    table._header(view)
    assert {span.action for span in table._clickable[0]} == {"", "sort_by('p50')", "sort_by('p99')"}


def test_completion_offers_no_order_by_a_histogram() -> None:
    """As a column it is offered, as an order it is not."""
    context: Any = SimpleNamespace(params={"view": "latency"})
    assert complete_columns(context, "lat") == ["latency"]
    assert complete_sort(context, "lat") == complete_sort(context, "-lat") == []
    assert complete_sort(context, "-p9") == ["-p90", "-p99", "-p999"]


# --- text -----------------------------------------------------------------------------------------------------

LOW, HIGH = edges_of(20 * MS)


def test_json_lines() -> None:
    """JSON Lines have low, high and count of each bucket; quantiles are whole numbers; no counts are an empty array."""
    rows: list[Row] = [*THREE, {"id": 4, "wait": None}, {"id": 5, "wait": counted([1 << 40])}]
    lines = [json.loads(line) for line in JsonLines(("id", "wait", "p99"))(view_of(rows)).splitlines()]
    assert [line["wait"] for line in lines] == [
        [[LOW, HIGH, 3]],
        [],
        [[*edges_of(3_000), 1], [*edges_of(5 * MS), 1]],
        None,
        [[1 << 34, None, 1]],
    ]
    text = JsonLines(("p99",))(view_of(THREE))
    assert [line.partition('"p99":')[2] for line in text.splitlines()] == [
        f"{standing_for(20 * MS):.0f}}}",
        "null}",
        f"{standing_for(5 * MS):.0f}}}",
    ]


def test_equal_rows_are_equal_lines() -> None:
    """What is the same in all rows is written into the pattern once, arrays too."""
    twice = [THREE[0] | {"id": at} for at in (1, 2)]
    for formatter in (JsonLines(("wait",)), Separated(("wait",)), AlignedTable(WAITS, ("wait",))):
        *_, first, second = formatter(view_of(twice)).splitlines()
        assert first == second
        assert str(LOW) in first


def test_csv() -> None:
    """A CSV cell has the histogram as text; unknown and empty histograms are empty cells."""
    rows = [*THREE, {"id": 4, "wait": None}]
    text = Separated(("id", "wait", "p99"))(view_of(rows))
    cells_ = [line.split(",", 2)[2] for line in text.splitlines()]
    low = ["-".join(map(str, edges_of(number))) + ":1" for number in (3_000, 5 * MS)]
    assert cells_ == [
        "wait,p99",
        f"{LOW}-{HIGH}:3,{standing_for(20 * MS):.0f}",
        '"",',
        f"{' '.join(low)},{standing_for(5 * MS):.0f}",
        ",",
    ]
    assert [row["wait"] for row in csv.DictReader(io.StringIO(text))][2] == " ".join(low)


def test_table() -> None:
    """A table has one word per column, with `_` for spaces; quantiles are right-aligned."""
    rows = [*THREE, {"id": 4, "wait": None}]
    lines = AlignedTable(WAITS, ("p99", "wait", "id"))(view_of(rows)).splitlines()
    low = ["-".join(map(str, edges_of(number))) + ":1" for number in (3_000, 5 * MS)]
    assert [line.split() for line in lines] == [
        ["p99[ns]", "wait[ns]", "id"],
        [f"{standing_for(20 * MS):.0f}", f"{LOW}-{HIGH}:3", "1"],
        ["–", '""', "2"],
        [f"{standing_for(5 * MS):.0f}", "_".join(low), "3"],
        ["–", "–", "4"],
    ]
    assert lines[2].startswith("       –  ")


def test_logged_lines() -> None:
    """A quantile has its unit; a chosen histogram is one word."""
    view = view_of(THREE)
    first, second, _ = TextLines("sample", WAITS, "metrics").lines(view, view.order).splitlines()
    assert "  queue=a  seen 3  p50 20.4 ms  p99 20.4 ms" in first
    assert second.endswith("  queue=b  seen 0")
    lines = (
        TextLines("sample", WAITS, "metrics", ("queue", "wait", "p50")).lines(view, view.order).splitlines()
    )
    assert lines[0].endswith(f"  queue=a  wait={LOW}-{HIGH}:3  p50={standing_for(20 * MS):.0f}")
    assert lines[1].endswith('  queue=b  wait=""  p50=–')


# --- screens --------------------------------------------------------------------------------------------------


@given(EVERY_BUCKETS, SAMPLES, st.integers(1, 200))
def test_cells_lose_nothing(buckets: Buckets, samples: list[int], width: int) -> None:
    """Every bucket is in exactly one cell, and buckets stay in their order."""
    counts = counted(samples, buckets)
    sums = rebin(counts, buckets, width)
    assert sums.shape == (width,)
    assert sums.sum() == len(samples)
    places = [int(np.flatnonzero(rebin(one_hot, buckets, width))[0]) for one_hot in np.eye(buckets.count)]
    assert places == sorted(places)
    assert sums.tolist() == np.bincount(places, counts, width).tolist()
    assert rebin(np.stack([counts, counts]), buckets, width).tolist() == [sums.tolist()] * 2


@pytest.mark.parametrize(
    ("number", "cell"),
    [(0, 0), (100, 0), (990, 0), (1_100, 1), (1_030_000, 4), (9_900 * MS, 7), (10_500 * MS, 7), (1 << 40, 7)],
)
def test_the_axis_is_logarithmic(number: int, cell: int) -> None:
    """Of 100 ns to 10 s in eight cells each cell is a decade; the outermost cells have the rest."""
    assert np.flatnonzero(rebin(counted([number]), BUCKETS, 8)).tolist() == [cell]


def drawn(rows: Sequence[Row], name: str = "wait", width: int = 60, **query: Any) -> list[tuple[str, Role]]:
    """Return the cells of a column."""
    view = view_of(rows, **query)
    (column,) = plan(WAITS, (name,), width, extra=False, bars=False)
    return column_cells(view, column, np.arange(view.size), [RowFlags()] * view.size, RowStyle())


def test_a_histogram_is_a_line_of_columns() -> None:
    """The fullest cell of each row is full, the smallest amount is seen, an empty cell is blank; unknown is –."""
    rows: list[Row] = [
        {"id": 1, "wait": counted([MS] * 9_999 + [10 * MS] * 5_000 + [1_000])},
        {"id": 2, "wait": counted([100])},
        {"id": 3, "wait": counted([])},
        {"id": 4, "wait": None},
    ]
    (first, role), (second, _), (empty, _), (unknown, faint) = drawn(rows)
    assert [first.count(level) for level in "█▅▁"] == [1, 1, 1]
    assert first.index("▁") < first.index("█") < first.index("▅")
    assert second == "█".ljust(24)
    assert empty == " " * 24
    assert unknown == "–".ljust(24)
    assert (role, faint) == (Role.TEXT, Role.FAINT)


def test_a_histogram_is_read_in_ascii() -> None:
    """Without block characters, ASCII characters show the same."""
    signs = needed_signs({}, "ascii")
    assert signs is not None
    ((text, _),) = drawn([{"wait": counted([MS] * 99 + [10 * MS])}])
    plain = signs._translate(text)
    assert sorted(plain.split()[0] + plain.split()[1]) == ["#", "_"]


def test_a_histogram_shows_its_interval() -> None:
    """A histogram shows its interval, as its quantiles do."""
    before, now = counted([100] * 5), counted([100] * 5 + [9_900 * MS])
    ((text, _),) = drawn([{"wait": now}], before=[{"wait": before}], deltas=True)
    assert text == "█".rjust(24)


def test_a_histogram_gets_narrower_but_not_than_its_title() -> None:
    """A histogram shrinks to its title's width, and grows if there is room."""
    widths = [
        column.width
        for total in range(30, 200)
        for column in plan(WAITS, WAITS.screen, total)
        if column.name == "wait"
    ]
    assert (min(widths), max(widths)) == (16, 40)


def test_the_total_line() -> None:
    """The total line has quantiles of all rows together, and nothing under the histogram."""
    columns = plan(WAITS, ("queue", "p99", "wait"), 100, extra=False, bars=False)
    _, (quantile, _), (nothing, _) = total_cells(view_of(THREE), columns)
    assert (quantile.strip(), nothing.strip()) == ("20.4 ms", "")


@pytest.mark.parametrize("explained", [False, True], ids=["brief", "explained"])
@pytest.mark.parametrize("width", [60, 160])
def test_details(width: int, explained: bool) -> None:
    """Details have the total count, each bucket, and the quantiles, within the width."""
    rows: list[Row] = [{"id": 1, "wait": counted([1 << at for at in range(40)])}, {"id": 2, "wait": None}]
    view = view_of(rows)

    def text_of(key: int) -> list[str]:
        lines = detail_lines(view, key, {}, width, explained=explained)
        return ["".join(span.text for span in line) for line in lines]

    lines = text_of(1)
    assert max(map(len, lines)) <= width
    assert any("100 ns TO 10 s  40 counted" in line for line in lines)
    assert histogram_text(values(view, "wait")[0]) in " ".join(" ".join(lines).split())
    assert any(re.search(r"P50 +541 µs", line) for line in lines)
    assert any("100 ns TO 10 s  –" in line for line in text_of(2))
