# SPDX-License-Identifier: Apache-2.0
"""Of every table, the totals in its headline are those of the rows below it and of what it names beside them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettop.query.query import screen_query
from nettop.query.units import human, unit_of
from nettop.query.view import View
from nettop.screens.bandwidth import FlowsScreen, InterfacesScreen, SplitScreen
from nettop.screens.connections.sockets import ConnectionsScreen
from nettop.screens.connections.tables import FailuresScreen, GroupsScreen
from nettop.screens.drops import DropsScreen
from nettop.screens.headline import alive, format_rate
from nettop.screens.lens import LensScreen
from nettop.screens.services import ClientsScreen, ServicesScreen
from nettop.snapshots import bandwidth, connections, drops, findings, services
from nettop.snapshots.bandwidth import EVICTED, INTERFACES
from nettop.snapshots.schema import Table
from nettop.snapshots.snapshot import Ended, Frame, Snapshot
from tests.unit.build import TAKEN_NS, WALL_NS, Row, make_rows
from tests.unit.random_frames import random_frame

_SECOND_NS = 1_000_000_000
_TEXTS = ("eth0", "docker0", "wg0", None)


# --- totals -------------------------------------------------------------------------------------------------------


def shown_sum(
    view: View, name: str, of: Callable[[Row], bool] = lambda _: True, *columns: str
) -> float | None:
    """Return the sum of what the rows that are shown have in a column; None where none has anything."""
    values = view.values(name, view.order)
    rows = [
        dict(zip(columns, row, strict=True))
        for row in zip(*(view.values(c, view.order) for c in columns), strict=True)
    ]
    meant = [value for value, row in zip(values, rows or [{}] * len(values), strict=True) if of(row)]
    known = [value for value in meant if value is not None]
    return sum(known) if known else None


def text_of(screen: type[LensScreen], view: View) -> str:
    """Return the headline that a screen gives a view, on a wide terminal."""
    stub = SimpleNamespace(
        size=SimpleNamespace(width=500),
        closed=None,
        table=view.table,
        state=SimpleNamespace(totals=False, declared_names=view.table.screen),
    )
    items = screen.headline(cast("Any", stub), view)
    return " ".join("".join(span.text for span in item.spans) for item in items)


def amount(view: View, name: str, number: float | None) -> str:
    """Return a column's total as a headline shows it."""
    return human(number, unit_of(view.table, name))


Case = tuple[type[LensScreen], Table]
MOVED: list[Case] = [(ConnectionsScreen, connections.SOCKETS), (GroupsScreen, connections.GROUPS)]
BY_BACKING: list[Case] = [
    (InterfacesScreen, bandwidth.INTERFACES),
    (SplitScreen, bandwidth.PROTOCOL_TABLE),
    (SplitScreen, bandwidth.SERVICE_TABLE),
    (FlowsScreen, bandwidth.FLOWS),
]
COUNTED: list[tuple[type[LensScreen], Table, tuple[tuple[str, str], ...]]] = [
    (
        ServicesScreen,
        services.SERVICES,
        (("responses", "responses_per_s"), ("waiting", "waiting"), ("unanswered", "unanswered_per_s")),
    ),
    (ClientsScreen, services.CLIENTS, (("responses", "responses_per_s"), ("waiting", "waiting"))),
]
seeds = st.integers(0, 1 << 32)


@pytest.mark.parametrize(("screen", "table"), MOVED)
@given(seed=seeds)
def test_headline_of_traffic(screen: type[LensScreen], table: Table, seed: int) -> None:
    """Unconnected sockets, listeners, what ended and what is not listed have the rows whose sum the headline says."""
    view = View(random_frame(table, seed), screen_query(table))
    for arrow, name in (("↑", "bytes_sent_per_s"), ("↓", "bytes_received_per_s")):
        number = shown_sum(view, name)
        if number is not None:
            assert f"{arrow} {amount(view, name, number)}" in text_of(screen, view)


@pytest.mark.parametrize(("screen", "table"), BY_BACKING)
@given(seed=seeds)
def test_headline_of_bandwidth(screen: type[LensScreen], table: Table, seed: int) -> None:
    """Uplinks and the other interfaces have a sum each, and what flows made room for: no row is in none of them."""
    view = View(random_frame(table, seed), screen_query(table))
    text = text_of(screen, view)
    column = "backing" if table is INTERFACES else "interface"
    for label, meant in (("uplinks", {"uplink", "eth0"}), ("virtual", {"virtual", "docker0", "wg0"})):
        received, sent = (
            shown_sum(view, f"bytes_{way}_per_s", lambda row, meant=meant: row[column] in meant, column)
            for way in ("received", "sent")
        )
        if received is not None and sent is not None:
            expected = (amount(view, "bytes_sent_per_s", number) for number in (received, sent))
            assert "{} ↓ {} ↑ {}".format(label, *expected) in text
    if table is bandwidth.FLOWS and view.has_rest:
        rest = shown_sum(view, "bytes_per_s", lambda row: row["interface"] == EVICTED, "interface")
        if rest is not None:
            assert f"evicted {amount(view, 'bytes_per_s', rest)}" in text


@pytest.mark.parametrize(("screen", "table", "totals"), COUNTED)
@given(seed=seeds)
def test_headline_of_services(
    screen: type[LensScreen], table: Table, totals: tuple[tuple[str, str], ...], seed: int
) -> None:
    """Answers and requests that wait."""
    view = View(random_frame(table, seed), screen_query(table))
    for label, name in totals:
        alive = view.order[~view.gone[view.order]]
        known = [value for value in view.values(name, alive) if value is not None]
        number = sum(known) if known else None if len(alive) else 0
        per_second = "/s" if name.endswith("_per_s") else ""
        assert f"{label} {format_rate(number)}{per_second}" in text_of(screen, view)


@pytest.mark.parametrize(
    ("deltas", "text"), [(False, "4 failed 0 reset groups 1 refused 4"), (True, "0 failed 0 reset groups 1")]
)
def test_failures_have_as_many_groups_as_rows(deltas: bool, text: str) -> None:
    """The rest, which sums up groups that are not listed, is no group; unless it grows, it has no reason either."""
    table = connections.FAILURES
    counts: Row = {"failed": 2, "reset": 0, "failures": 2}
    rows, rest = (make_rows([counts | {"id": id_, "reason": "refused"}], table) for id_ in (1, 0))
    now = Snapshot("connections", WALL_NS, TAKEN_NS, {table.name: rows}, ended={table.name: Ended((), rest)})
    view = View(Frame(now, now), replace(screen_query(table), deltas=deltas))
    assert len(alive(view)) == 1
    assert text_of(FailuresScreen, view) == text


@given(seed=seeds)
def test_drops(seed: int) -> None:
    """Ordinary drops have a sum of their own."""
    view = View(random_frame(drops.PACKETS, seed), screen_query(drops.PACKETS))
    text = text_of(DropsScreen, view)
    for label, is_ordinary in (("drops", False), ("ordinary", True)):
        number = shown_sum(
            view,
            "packets_per_s",
            lambda row, is_ordinary=is_ordinary: (row["severity"] == "ordinary") is is_ordinary,
            "severity",
        )
        if number is not None:
            assert f"{label} {human(number, 'packets/s')}" in text


@pytest.mark.parametrize(
    ("table", "rates"),
    [
        (findings.LOSSES, "lost/s 0 lost 3"),
        (findings.CPUS, "packets 0 p/s squeezed/s 0 dropped 0 p/s"),
        (findings.FIREWALL, "pkts 0 p/s packets 3"),
    ],
)
def test_a_rate_does_not_look_like_its_total(table: Table, rates: str) -> None:
    """Counts have no unit: the title says what is a rate."""
    counts: Row = {
        "id": 1,
        "lost": 3,
        "packets": 3,
        "processed": 3,
        "squeezed": 3,
        "dropped": 3,
        "softirq_ns": 0,
    }
    row: Row = {name: value for name, value in counts.items() if name in table.by_name}
    before, now = (
        Snapshot("findings", at, at, {table.name: make_rows([row], table, at)})
        for at in (TAKEN_NS, TAKEN_NS + _SECOND_NS)
    )
    query = replace(screen_query(table), deltas=False)
    assert rates in text_of(LensScreen, View(Frame(now, before), query))
