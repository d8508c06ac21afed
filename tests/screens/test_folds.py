# SPDX-License-Identifier: Apache-2.0
"""Folds: many closed connections of one process in one line, with the totals they have when listed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nettop.query.query import parse_sort, screen_query
from nettop.query.view import View
from nettop.screens.actions import BY_ID
from nettop.snapshots.connections import SOCKETS
from nettop.snapshots.snapshot import Ended, Frame, Snapshot
from nettop.widgets.folds import LISTED_CLOSED, fold_closed
from nettop.widgets.table import CLOSED
from tests.builders.driving import Running, press, running, shown, text_of, tick
from tests.builders.harness import Step
from tests.unit.build import TAKEN_NS, Row, Tables, make_frame, make_rows

FOLDED = LISTED_CLOSED + 1


def sockets(process: str | None, first_id: int, count: int, sent: int, **values: Any) -> list[Row]:
    """Return connections of a process that have sent so much each."""
    return [
        {"id": first_id + n, "process": process, "bytes_sent": sent, "bytes_received": 0} | values
        for n in range(count)
    ]


def reading(at: int, live: list[Row], ended: list[Row]) -> Snapshot:
    """Return a snapshot with the connections that ended before it, and their sum."""
    texts: Tables = {}
    taken_ns = TAKEN_NS + at * 10**9
    now, left = (make_rows(rows, SOCKETS, taken_ns, texts=texts) for rows in (live, ended))
    names = ("bytes_sent", "bytes_received")
    sums: Row = {name: sum(row[name] for row in ended) for name in names}
    total = make_rows([sums | {"process": "(closed, not listed)"}], SOCKETS, taken_ns, texts=texts)
    made = make_frame([], None, at).now
    return replace(made, tables={"sockets": now}, ended={"sockets": Ended((left,), total, len(ended))})


def view_of(sort: str = "-bytes_sent_per_s", *, deltas: bool = True) -> View:
    """Return a view in which many connections of two processes have closed, and some of a third."""
    live = [*sockets("nginx", 1, 1, 500), *sockets("ssh", 2, 1, 20)]
    closing = [*sockets("curl", 100, 300, 1), *sockets(None, 500, FOLDED, 1), *sockets("wget", 900, 12, 1)]
    grown = [row | {"bytes_sent": 3} for row in closing]
    sent_more = [row | {"bytes_sent": row["bytes_sent"] + 1000 // row["id"]} for row in live]
    frame = Frame(reading(1, sent_more, grown), reading(0, [*live, *closing], []))
    query = replace(screen_query(SOCKETS), sort=parse_sort(SOCKETS, sort), deltas=deltas)
    return View(frame, query)


def lines_of(view: View) -> list[tuple[str | None, int]]:
    """Return the process of each line, and how many rows it stands for."""
    order, folds = fold_closed(view, "process")
    names = view.values("process", order)
    counts = (len(folds.get(at, [at])) for at in order.tolist())
    return list(zip(names, counts, strict=True))


def test_only_many_closed_rows_of_one_process_are_folded() -> None:
    """Rows without a process are folded too; a dozen rows are listed, and so is every open connection."""
    lines = lines_of(view_of())
    assert [line for line in lines if line[1] > 1] == [("curl", 300), (None, FOLDED)]
    assert [name for name, count in lines if count == 1] == ["nginx", "ssh", *["wget"] * 12]


@pytest.mark.parametrize(
    ("sort", "first"),
    [
        ("-bytes_sent_per_s", ["nginx", "curl", "ssh", None, "wget"]),  # 1000, 600, 500, 26, 2 each
        ("bytes_sent_per_s", ["wget", None, "ssh", "curl", "nginx"]),
        ("process", ["curl", "nginx", "ssh", "wget", None]),
    ],
)
def test_a_fold_has_the_place_of_its_sum(sort: str, first: list[str | None]) -> None:
    """Sorted by a rate, many small connections stand above a single larger one; else a fold stands where its first
    row would."""
    assert list(dict.fromkeys(name for name, _ in lines_of(view_of(sort)))) == first


@pytest.mark.parametrize(("deltas", "sums"), [(True, [26, 600]), (False, [39, 900])])
def test_a_fold_has_the_sum_of_its_rows(deltas: bool, sums: list[int]) -> None:
    """A fold has the sum of its rows, in rates and in totals."""
    view = view_of(deltas=deltas)
    _, folds = fold_closed(view, "process")
    totals = (view.total("bytes_sent", rows, with_closed=True) or 0 for rows in folds.values())
    assert sorted(totals) == sums


def marked(run: Running) -> list[str]:
    """Return the lines that are marked as closed."""
    return [line for line in text_of(shown(run).rows) if line.startswith(CLOSED)]


WEB = sockets("nginx", 1, 1, 500)
CURLS = sockets("curl", 100, 340, 1000)
STEPS: list[Step] = [
    reading(0, [*WEB, *CURLS], []),
    reading(1, WEB, [row | {"bytes_sent": 2000} for row in CURLS]),
    reading(2, WEB, []),
]


@pytest.mark.parametrize("width", [60, 120])
async def test_a_fold_is_one_line(width: int) -> None:
    """A fold has the number and the sums of its rows, is not counted as a connection, and ends with them."""
    async with running(STEPS, (width, 20)) as run:
        (line,) = marked(run)
        assert line.startswith(f"{CLOSED}curl: 340 closed ")
        total = next(line for line in text_of(shown(run).rows) if "─ total 1 " in line)
        assert line.index("2.7 Mb/s") == total.index("2.7 Mb/s")
        assert shown(run).headline_bar.text.count("2.7 Mb/s") == 1
        await tick(run)
        assert marked(run) == []


async def test_opening_a_fold_lists_its_rows() -> None:
    """→ shows the sockets of the process, ← goes back; what works on one row does not work on a fold. `x` lists all."""
    async with running(STEPS) as run:
        await press(run, "down")
        assert shown(run).rows.chosen_fold is not None
        for name in ("copy", "copy_command"):
            assert not shown(run).keys.is_available(BY_ID[name])
        assert shown(run).keys.label_of(BY_ID["details"]) == "sockets"
        await press(run, "right")
        assert shown(run).state.query.filter.text == 'process="curl"'
        assert len(shown(run).rows.order) == 340
        await press(run, "left", "down", "right", "up")
        assert shown(run).details.lines[0][0].text.startswith("340 closed rows")
        await press(run, "left", "down")
        assert shown(run).rows.chosen_fold is None
        assert shown(run).keys.is_available(BY_ID["copy"])
        assert shown(run).keys.label_of(BY_ID["details"]) == "details"
        await press(run, "x")
        assert len(marked(run)) > LISTED_CLOSED
        await press(run, "x")
        assert len(marked(run)) == 1
