# SPDX-License-Identifier: Apache-2.0
"""Of every table, the totals in its headline are those of the rows below it and of what it names beside them."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettop.query.query import screen_query
from nettop.query.units import human, unit_of
from nettop.query.view import View
from nettop.screens.bandwidth.flows import FlowsScreen
from nettop.screens.bandwidth.interfaces import InterfacesScreen
from nettop.screens.bandwidth.protocols import SplitScreen
from nettop.screens.connections.groups import GroupsScreen
from nettop.screens.connections.sockets import ConnectionsScreen
from nettop.screens.drops import DropsScreen
from nettop.screens.headline import few
from nettop.screens.lens import LensScreen
from nettop.screens.services.clients import ClientsScreen
from nettop.screens.services.services import ServicesScreen
from nettop.snapshots import bandwidth, connections, drops, services
from nettop.snapshots.bandwidth import EVICTED, INTERFACES
from nettop.snapshots.schema import Field, Kind, Table
from nettop.snapshots.snapshot import Ended, Frame, Rows, Snapshot
from tests.unit.build import TAKEN_NS, WALL_NS, Row, Tables, make_rows

_SECOND_NS = 1_000_000_000
_TEXTS = ("eth0", "docker0", "wg0", None)


def random_frame(table: Table, seed: int) -> Frame:
    """Two snapshots of a table, of which the newer one also has what ended, and what of that is not listed."""
    chance = random.Random(seed)
    before = {key: _row(table, chance) for key in range(1, chance.randrange(2, 12))}
    kept = {key: _grown(table, row, chance) for key, row in before.items() if chance.random() < 0.7}
    now = kept | {key: _row(table, chance) for key in range(100, chance.randrange(100, 105))}
    texts: Tables = {}
    frame = Frame(
        _snapshot(table, now, 1, texts, chance), _snapshot(table, before, 0, texts, random.Random(seed + 1))
    )
    if not table.cumulative and table is not connections.SOCKETS:
        return frame
    ended = {key: _grown(table, before[key], chance) for key in before.keys() - kept.keys() if key % 2}
    sums = {field.name: _sum(ended.values(), field) for field in table.fields if field.kind is Kind.COUNTER}
    unlisted = {name: chance.choice((0, 5_000_000)) for name in sums}
    old = {name: chance.randrange(10**7) for name in sums}
    totals = [old, {name: old[name] + sums[name] + unlisted[name] for name in sums}]
    with_ended = []
    for step, snapshot in enumerate((frame.before, frame.now)):
        assert snapshot is not None
        rows = (_rows(table, ended, step, texts),) if step else ()
        total = _rows(table, {0: totals[step] | _REST.get(table.name, {})}, step, texts)
        with_ended.append(replace(snapshot, ended={table.name: Ended(rows, total)}))
    return Frame(with_ended[1], with_ended[0])


_REST: Mapping[str, Row] = {"flows": {"interface": EVICTED, "process": EVICTED}}


def _sum(rows: Any, field: Field) -> int:
    return sum(row[field.name] or 0 for row in rows)


def _snapshot(
    table: Table, rows: Mapping[int, Row], step: int, texts: Tables, chance: random.Random
) -> Snapshot:
    tables = {table.name: _rows(table, rows, step, texts)}
    if table in bandwidth.LENS.tables and table is not INTERFACES:
        interfaces = {
            n: {"interface": name, "namespace": "own", "backing": backing}
            for n, (name, backing) in enumerate(
                zip(_TEXTS[:3], ("uplink", "virtual", "virtual"), strict=True)
            )
        }
        tables[INTERFACES.name] = _rows(INTERFACES, interfaces, step, {})
    return Snapshot("any", WALL_NS, TAKEN_NS + step * _SECOND_NS, tables, counts={"drops": 0})


def _rows(table: Table, rows: Mapping[int, Row], step: int, texts: Tables) -> Rows:
    each = [row | {table.key: key} for key, row in rows.items()]
    return make_rows(each, table, TAKEN_NS + step * _SECOND_NS, texts=texts)


def _row(table: Table, chance: random.Random) -> Row:
    return {field.name: _value(field, chance) for field in table.stored if field.kind is not Kind.KEY}


def _value(field: Field, chance: random.Random) -> Any:
    if field.kind is Kind.ADDRESS:
        return "192.0.2.7"
    if field.kind is Kind.HISTOGRAM:
        return [chance.randrange(4) for _ in range(np.dtype(field.dtype).shape[0])]
    if field.kind is Kind.TEXT:
        return chance.choice(_TEXTS)
    if field.kind is Kind.ENUM:
        return chance.choice(list(field.labels.values()))
    if chance.random() < 0.1:
        return None
    return chance.randrange(10**7) if field.kind is Kind.COUNTER else chance.randrange(200)


def _grown(table: Table, row: Row, chance: random.Random) -> Row:
    """The row an interval later; a counter may have stood still, or gone back."""
    grown = dict(row)
    for field in table.stored:
        value = row.get(field.name)
        if field.kind is Kind.COUNTER and value is not None:
            grown[field.name] = max(0, value + chance.choice((0, 1, 123_457, -1)) * chance.randrange(1, 9))
        elif field.kind is Kind.HISTOGRAM:
            grown[field.name] = [count + chance.randrange(3) for count in value]
    return grown


# --- totals -------------------------------------------------------------------------------------------------------


def shown_sum(
    view: View, name: str, of: Callable[[Row], bool] = lambda _: True, *columns: str
) -> float | None:
    """The sum of what the rows that are shown have in a column; None where none has anything."""
    values = view.values(name, view.order)
    rows = [
        dict(zip(columns, row, strict=True))
        for row in zip(*(view.values(c, view.order) for c in columns), strict=True)
    ]
    meant = [value for value, row in zip(values, rows or [{}] * len(values), strict=True) if of(row)]
    known = [value for value in meant if value is not None]
    return sum(known) if known else None


def text_of(screen: type[LensScreen], view: View) -> str:
    """The headline that a screen gives a view, on a wide terminal."""
    stub = SimpleNamespace(
        size=SimpleNamespace(width=500), closed=None, trouble_filters=(), state=SimpleNamespace(totals=False)
    )
    items = screen.headline(cast("Any", stub), view)
    return " ".join("".join(span.text for span in item.spans) for item in items)


def amount(view: View, name: str, number: float | None) -> str:
    """How a headline writes the total of a column."""
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
        (("answers", "answers_per_s"), ("waiting", "waiting"), ("unanswered", "unanswered_per_s")),
    ),
    (ClientsScreen, services.CLIENTS, (("answers", "answers_per_s"), ("waiting", "waiting"))),
]
seeds = st.integers(0, 1 << 32)


@pytest.mark.parametrize(("screen", "table"), MOVED)
@given(seed=seeds)
def test_what_moved(screen: type[LensScreen], table: Table, seed: int) -> None:
    """Unconnected sockets, listeners, what ended and what is not listed have the rows whose sum the headline says."""
    view = View(random_frame(table, seed), screen_query(table))
    for arrow, name in (("↑", "bytes_sent_per_s"), ("↓", "bytes_received_per_s")):
        number = shown_sum(view, name)
        if number is not None:
            assert f"{arrow} {amount(view, name, number)}" in text_of(screen, view)


@pytest.mark.parametrize(("screen", "table"), BY_BACKING)
@given(seed=seeds)
def test_what_interfaces_carry(screen: type[LensScreen], table: Table, seed: int) -> None:
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
def test_what_is_counted(
    screen: type[LensScreen], table: Table, totals: tuple[tuple[str, str], ...], seed: int
) -> None:
    """Answers and requests that wait."""
    view = View(random_frame(table, seed), screen_query(table))
    for label, name in totals:
        alive = view.order[~view.gone[view.order]]
        known = [value for value in view.values(name, alive) if value is not None]
        number = sum(known) if known else None if len(alive) else 0
        per_second = "/s" if name.endswith("_per_s") else ""
        assert f"{label} {few(number)}{per_second}" in text_of(screen, view)


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
