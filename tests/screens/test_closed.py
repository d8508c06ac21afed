# SPDX-License-Identifier: Apache-2.0
"""Connections that have closed and are kept in sight: which, with what values, how many; no sum counts them."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from nettop.query.query import parse_sort, screen_query
from nettop.query.view import View
from nettop.screens.actions import BY_ID
from nettop.screens.connections.sockets import KEPT_CLOSED, ClosedRows
from nettop.snapshots.connections import SOCKETS
from nettop.snapshots.snapshot import Frame, Snapshot
from nettop.widgets.table import CLOSED
from tests.builders.driving import Running, press, running, shown, text_of, tick
from tests.builders.harness import Step
from tests.unit.build import Row, make_frame


def connection(key: int, process: str, sent: int = 0) -> Row:
    """Return a connection that has sent so much."""
    return {"id": key, "process": process, "pid": key, "bytes_sent": sent, "bytes_received": 0}


def reading(at: int, *rows: Row) -> Snapshot:
    """Return the connections at a second, with texts of their own."""
    return make_frame(list(rows), None, at).now


WEB = connection(1, "nginx", 500)
READINGS = (
    reading(0, WEB, connection(2, "curl", 70), connection(3, "wget", 90)),
    reading(1, WEB, connection(3, "wget", 95)),
    reading(2, WEB),
    reading(3, WEB, connection(4, "ssh", 1)),
    reading(4, WEB),
    reading(5, WEB),
)


def frames(*readings: Snapshot) -> list[Frame]:
    """Return each reading and the one before."""
    return [Frame(now, before) for before, now in pairwise(readings)]


def kept(run: Running) -> list[str]:
    """Return the process of each row that is marked as closed."""
    return [line.split()[0][1:] for line in text_of(shown(run).rows) if line.startswith(CLOSED)]


async def test_closed_connections_stay_until_the_key_is_pressed_again() -> None:
    """Connections closed in the current interval are kept too; the headline counts them, and the total
    line does not.
    """
    steps: list[Step] = list(READINGS)
    async with running(steps, (160, 30), ticks=2) as run:
        await press(run, "x")
        assert kept(run) == ["curl"]
        for expected in (["wget", "curl"], ["curl", "wget"], ["ssh", "curl", "wget"]):
            await tick(run)
            assert sorted(kept(run)) == sorted(expected)
        assert "closed kept 3" in shown(run).headline_bar.text
        assert "dropped" not in shown(run).headline_bar.text
        assert "total 1 " in "\n".join(text_of(shown(run).rows))
        assert shown(run).keys.label_of(BY_ID["keep_closed"]) == "drop closed"
        await press(run, "slash", *"wget", "enter")
        assert kept(run) == ["wget"]
        await press(run, "escape", "x")
        assert len(kept(run)) == 1  # ssh, which closed in the last interval
        await tick(run)
        assert kept(run) == []


async def test_sockets_that_close_while_frozen_are_kept() -> None:
    """Connections that close during a freeze are visible after it."""
    async with running(list(READINGS), ticks=1) as run:
        await press(run, "x", "space")
        for _ in READINGS[1:]:
            await tick(run)
        assert kept(run) == []
        await press(run, "space")
        assert sorted(kept(run)) == ["curl", "ssh", "wget"]


@pytest.mark.parametrize("deltas", [True, False])
def test_kept_rows_have_their_last_totals_and_count_for_nothing(deltas: bool) -> None:
    """Their texts are whole, though the newest reading does not have them; rates are unknown, and sums do without."""
    closed = ClosedRows(SOCKETS)
    for frame in frames(*READINGS[:4]):
        closed.add(frame)
        closed.add(frame)  # as after a key that draws again
    newest = Frame(READINGS[3], READINGS[2])
    query = replace(screen_query(SOCKETS), sort=parse_sort(SOCKETS, "bytes_sent_per_s"), deltas=deltas)
    view = View(newest, query, earlier=closed.rows)
    plain = View(newest, query)
    earlier = view.order[view.gone[view.order]]
    assert view.values("process", earlier) == ["curl", "wget"]
    assert view.raw("bytes_sent")[earlier].tolist() == [70, 95]
    assert view.values("bytes_sent_per_s", earlier) == [None, None]
    assert view.order[-2:].tolist() == earlier.tolist()  # unknown rates come last
    assert not view.just_gone.any()
    for name in ("bytes_sent", "bytes_sent_per_s"):
        assert view.total(name, np.arange(view.size)) == plain.total(name, np.arange(plain.size))


def test_a_row_is_shown_once() -> None:
    """Rows that close now, or are back, are not also among those that closed before."""
    closed = ClosedRows(SOCKETS)
    first, *_ = frames(*READINGS)
    closed.add(first)
    view = View(first, screen_query(SOCKETS), earlier=closed.rows)
    assert sorted(view.raw("id").tolist()) == [1, 2, 3]
    assert view.just_gone.tolist() == [False, False, True]
    back = Frame(reading(2, WEB, connection(2, "curl", 80)), READINGS[1])
    ids = View(back, screen_query(SOCKETS), earlier=closed.rows).raw("id").tolist()
    assert sorted(ids) == [1, 2, 3]


def test_the_newest_are_kept() -> None:
    """At most the limit is kept, and the number of dropped rows is known."""
    closed = ClosedRows(SOCKETS)
    first = reading(0, *(connection(key, f"p{key}") for key in range(1, KEPT_CLOSED + 1)))
    second = reading(1, *(connection(key, f"p{key}") for key in range(KEPT_CLOSED + 1, KEPT_CLOSED + 31)))
    for frame in frames(first, second, reading(2)):
        closed.add(frame)
    assert closed.dropped == 30
    assert closed.rows.array["id"].tolist() == list(range(31, KEPT_CLOSED + 31))
    assert len(closed.rows.texts["process"]) == KEPT_CLOSED
    assert "p1" not in closed.rows.texts["process"]
