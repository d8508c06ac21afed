# SPDX-License-Identifier: Apache-2.0
"""Columns shown at each width."""

from __future__ import annotations

import numpy as np
import pytest

from nettop.query.query import screen_query
from nettop.query.view import View
from nettop.screens.context import TableRef
from nettop.screens.lens import screen_class
from nettop.snapshots import bandwidth, connections, findings, lenses, services
from nettop.snapshots.connections import SOCKETS
from nettop.snapshots.drops import PACKETS
from nettop.snapshots.schema import Lens, Table
from nettop.snapshots.services import SERVICES
from nettop.snapshots.snapshot import Frame, Snapshot
from nettop.widgets.columns import GAP, MARGINS, Column, plan
from nettop.widgets.table import DOWN, title_of
from tests.unit.build import TAKEN_NS, WALL_NS, Row, make_rows

SHOWN = {
    40: "PROCESS REMOTE SENT/s",
    50: "PROCESS REMOTE SENT/s RECEIVED/s",
    60: "PROCESS REMOTE SENT/s RECEIVED/s",
    70: "PROCESS REMOTE SENT/s RECEIVED/s RTT",
    80: "PROCESS LPORT REMOTE SENT/s RECEIVED/s RTT RETR",
    90: "PROCESS PROTO LPORT REMOTE SENT/s RECEIVED/s RTT RETR",
    100: "PROCESS PROTO LOCAL REMOTE SENT/s RECEIVED/s RTT RETR",
    110: "PROCESS PROTO LOCAL REMOTE SENT/s RECEIVED/s RTT ±VAR RETR",
    120: "PROCESS PROTO LOCAL REMOTE SENT/s RECEIVED/s RTT ±VAR RETR LIMITED BY",
    130: "PROCESS PROTO LOCAL REMOTE SENT/s RECEIVED/s RTT ±VAR RETR LIMITED BY STATE",
    160: "PROCESS PROTO LOCAL REMOTE SENT/s RECEIVED/s RATE RTT ±VAR RETR LIMITED BY LIMITED STATE",
}


def columns_at(width: int) -> tuple[Column, ...]:
    """Return the columns of the connections screen."""
    return plan(SOCKETS, SOCKETS.screen, width)


@pytest.mark.parametrize("width", SHOWN)
def test_columns_leave_in_order_of_importance(width: int) -> None:
    """At each width the least important columns are gone, and others come in where there is room."""
    assert " ".join(column.title for column in columns_at(width)) == SHOWN[width]


@pytest.mark.parametrize(
    ("table", "width", "titles"),
    [
        (PACKETS, 80, {"REASON", "MEANING", "PORT", "PROCESS", "DROPS/s"}),
        (PACKETS, 100, {"REASON", "MEANING", "PROTO", "PORT", "PROCESS", "DROPS/s", "DROPS"}),
        (SERVICES, 80, {"PROCESS", "SERVICE", "SIDE", "P99", "WAITING", "OLDEST"}),
        (SERVICES, 90, {"PROCESS", "SERVICE", "SIDE", "RESP/s", "P99", "WAITING", "OLDEST"}),
    ],
)
def test_what_one_came_for_stays(table: Table, width: int, titles: set[str]) -> None:
    """Columns with the reason and the owner of a row, or with its trouble, stay at 80 columns."""
    assert titles <= {column.title for column in plan(table, table.screen, width)}


def test_columns_fit() -> None:
    """Columns fit at every width, with their titles, IPv4 endpoints and meanings whole, and leave no other column for
    their bars. One column always stays; chosen ones get no company."""
    for width in range(40, 260):
        columns = columns_at(width)
        assert sum(c.width for c in columns) + GAP * (len(columns) - 1) + MARGINS <= width
        assert all(c.width >= len(c.title) for c in columns), width
        (remote,) = (column for column in columns if column.name == "remote")
        assert width < 60 or remote.width >= len("255.255.255.255:65535")
        with_bars, without = (
            plan(SOCKETS, SOCKETS.screen, width, extra=False, bars=bars) for bars in (True, False)
        )
        assert [c.name for c in with_bars if not c.bar] == [c.name for c in without], width
        meanings = [c.width for c in plan(PACKETS, PACKETS.screen, width) if c.name == "meaning"]
        assert width < 60 or min(meanings, default=24) >= 24, width
    (only,) = plan(SOCKETS, ("remote",), 8)
    assert only.width == 6
    own = plan(SOCKETS, ("process", "cwnd"), 200, extra=False, bars=False)
    assert [column.name for column in own] == ["process", "cwnd"]
    widths = {column.name: column.width for column in columns_at(100)}
    assert (widths["local"] >= len("127.0.0.1:53738"), widths["remote"]) == (True, 21)


@pytest.mark.parametrize("width", [100, 120])
def test_columns_that_the_filter_compares_are_shown(width: int) -> None:
    """Columns that a filter compares are added, in rates or totals like the others, unless an endpoint shows them."""
    filtered = ("state", "receive_queue", "bytes_acked_per_s", "local_port")
    for names, acked in ((SOCKETS.screen, "ACKED/s"), (("owner", "bytes_sent"), "ACKED")):
        titles = [column.title for column in plan(SOCKETS, names, width, needed=filtered)]
        assert {"STATE", "RECVQ", acked} <= set(titles)
        assert titles.count("STATE") == 1
        assert titles[0] == "PROCESS"
    titles = [column.title for column in plan(SOCKETS, SOCKETS.screen, width, needed=filtered[-1:])]
    assert titles == [column.title for column in columns_at(width)]


@pytest.mark.parametrize(
    ("lens", "table"),
    [
        (connections.LENS, SOCKETS),
        (connections.LENS, connections.FAILURES),
        (bandwidth.LENS, bandwidth.INTERFACES),
        (services.LENS, SERVICES),
        (services.LENS, services.CLIENTS),
        (findings.LENS, findings.LIMITS),
        (findings.LENS, findings.FIREWALL),
    ],
    ids=lambda part: part.name if isinstance(part, Table) else part.id,
)
def test_two_rows_with_one_name_have_their_namespace(lens: Lens, table: Table) -> None:
    """The namespace is needed only if two visible rows look the same."""
    places: list[Row] = [
        {"id": n, "netns": n, "namespace": name} for n, name in enumerate(("blue", "green"), 1)
    ]
    rows = make_rows(places, table)
    view = View(Frame(Snapshot(lens.id, WALL_NS, TAKEN_NS, {table.name: rows}), None), screen_query(table))
    apart = screen_class(TableRef(lens, table)).row_style.apart
    assert apart.is_needed(view, np.arange(2))
    assert not apart.is_needed(view, np.arange(1))
    columns = plan(table, table.screen, 120, needed=(apart.column,))
    assert "namespace" in {column.name for column in columns}


@pytest.mark.parametrize("table", [table for lens in lenses() for table in lens.tables], ids=lambda t: t.name)
def test_no_two_columns_have_one_title(table: Table) -> None:
    """Titles differ, even where the sort mark replaces `/s` beside a total."""
    for width in range(60, 200, 10):
        columns = plan(table, table.screen, width)
        for sorted_by in columns:
            titles = [
                title_of(column, DOWN if column is sorted_by else "") for column in columns if column.title
            ]
            words = [title.replace(DOWN, "").strip() for title in titles]
            assert len(words) == len(set(words)), words


def test_what_a_finding_compares_keeps_its_title() -> None:
    """The number of a full queue is not legible without its name; its short form only lacks decimals."""
    needed = ("pid", "local_port", "state", "accept_queue_use")
    for width in range(60, 130):
        columns = plan(SOCKETS, SOCKETS.screen, width, needed=needed)
        shown = [column for column in columns if column.name == "accept_queue_use"]
        assert [column.title for column in shown] == ["ACCQ %"] or width < 78
        assert all(column.width >= len(column.title) for column in shown)
