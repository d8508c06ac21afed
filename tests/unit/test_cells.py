# SPDX-License-Identifier: Apache-2.0
"""Lines made of columns of distinct values equal lines made row by row."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettop.formats.cells import join_rows, only_where, take_texts
from nettop.formats.jsonl import JsonLines
from nettop.output.log_lines import TextLines
from nettop.output.table import whole_columns, word
from nettop.query.query import text_query
from nettop.query.units import UNKNOWN, human, human_spread
from nettop.query.view import View
from nettop.snapshots.arrays import distinct_rows
from nettop.snapshots.connections import EVENT_KINDS, EVENTS, REASONS
from nettop.snapshots.hooks import NOT_AVAILABLE
from nettop.snapshots.safe_text import safe_text
from nettop.snapshots.schema import Field, Kind
from nettop.snapshots.snapshot import Frame
from tests.unit import strategies
from tests.unit.build import WALL_NS, Row, make_frame, make_rows

_NAMES = [
    safe_text(name)
    for name in ("curl", "", "a b", "x\x1b[1m\ty\n", 'q"u\\o', "ü→€", "%s%%", "\u202eabc", "\0", "y" * 300)
]
_DIGITS = [0, 7, 10, 999, 1000, 1001, 999_999, 1_000_000, 2**32 - 2]


def _choices(field: Field) -> list[Any]:
    if field.kind is Kind.TEXT:
        return [None, *_NAMES]
    if field.kind is Kind.ENUM:
        return [None, *list(field.labels.values())[:4]]
    if field.kind is Kind.ADDRESS:
        return [*strategies.V4, *strategies.V6]
    if field.kind is Kind.TIME:
        return [None, 0, WALL_NS, WALL_NS + 1_000, WALL_NS + 1_000_000_000]
    numbers = [number for number in (*_DIGITS, *strategies.BIG) if number < np.iinfo(field.dtype).max]
    return [None, *numbers]


_events = st.lists(
    st.fixed_dictionaries(
        {
            field.name: st.sampled_from(_choices(field))
            for field in EVENTS.stored
            if field.kind is not Kind.KEY
        }
        | {"time": st.sampled_from([WALL_NS, WALL_NS + 999_999_999])}
        | {"event": st.sampled_from(list(EVENT_KINDS.values()))}
        | {"reason": st.sampled_from([None, *list(REASONS.values())[:6]])}
    ),
    min_size=1,
    max_size=8,
)
_missing = st.sets(
    st.sampled_from(["pid", "process", "netns", "duration_us", "rtt_us", "local_address", "reason"]),
    max_size=2,
)


def _view(rows: list[Row], missing: set[str]) -> View:
    frame = make_frame([], missing=dict.fromkeys(missing, "not here"))
    return View(Frame(frame.now, None, {"events": (make_rows(rows, EVENTS),)}), text_query(EVENTS))


@given(_events, _missing)
def test_json_lines_have_the_values(rows: list[Row], missing: set[str]) -> None:
    """Each line is what the json module writes for the row's values."""
    view = _view(rows, missing)
    columns = ("time", *(name for name in whole_columns(EVENTS) if name != "time"))
    values = zip(*(view.values(name, view.order) for name in columns), strict=True)
    expected = [
        json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False, separators=(",", ":"))
        for row in values
    ]
    assert JsonLines(columns)(view).splitlines() == expected


@given(_events, _missing)
def test_named_columns_have_the_values(rows: list[Row], missing: set[str]) -> None:
    """With --columns, each value is one word."""
    view = _view(rows, missing)
    columns = tuple(name for name in whole_columns(EVENTS) if name != "time")
    times = view.values("time", view.order)
    values = zip(*(view.values(name, view.order) for name in columns), strict=True)

    def cell(name: str, value: Any) -> str:
        if value is None:
            return NOT_AVAILABLE if name in view.missing else UNKNOWN
        return word(value) if isinstance(value, str) else str(value)

    expected = [
        f"{time}  event  "
        + "".join(f"  {name}={cell(name, value)}" for name, value in zip(columns, row, strict=True))
        for time, row in zip(times, values, strict=True)
    ]
    assert TextLines("connections", EVENTS, "event", columns).lines(view, view.order).splitlines() == expected


def _line(view: View, at: int) -> str:
    """Return the line of one event, value by value."""
    value = {name: view.values(name, np.array([at]))[0] for name in EVENTS.names}

    def text(name: str) -> Any:
        blank = NOT_AVAILABLE if name in view.missing else UNKNOWN
        return blank if value[name] is None else value[name]

    def amount(name: str, label: str, written: str | None) -> str:
        if name in view.missing:
            return f"  {label} {NOT_AVAILABLE}"
        return "" if value[name] is None else f"  {label} {written}"

    def size(name: str) -> str:
        return f"{value[name] or 0:,} B"

    owner = f"{word(str(text('process')))}[{text('pid')}]"
    if value["pid"] is None and not {"process", "pid"} & view.missing.keys():
        owner = "(unattributed)"
    namespace = "" if value["netns"] is None else f"  netns {value['namespace'] or value['netns']}"
    if {"netns", "namespace"} & view.missing.keys():
        namespace = f"  netns {NOT_AVAILABLE}"
    ends = f"{text('local')} → {text('remote')}"
    begin = f"{text('time')}  {text('event'):7}  {text('reason'):15}  {owner:22}  {ends:45}{namespace}"
    if value["event"] in ("connect", "accept"):
        return begin + amount("handshake_us", "handshake", human(value["handshake_us"], "us"))
    return "".join([
        begin,
        amount("duration_us", "after", human(value["duration_us"], "us")),
        amount("bytes_sent", "sent", size("bytes_sent")),
        amount("bytes_received", "received", size("bytes_received")),
        amount("retransmits", "retransmits", human(value["retransmits"], "packets")),
        amount("rtt_us", "rtt", human_spread(value["rtt_us"], value["rtt_var_us"], "us")),
    ])  # fmt: skip


@given(_events, _missing)
def test_readable_lines_have_the_values(rows: list[Row], missing: set[str]) -> None:
    """A readable line has the event, owner, ends and amounts of its own row."""
    view = _view(rows, missing)
    expected = [_line(view, at) for at in view.order.tolist()]
    assert TextLines("connections", EVENTS, "event").lines(view, view.order).split("\n")[:-1] == expected


def test_joined_cells() -> None:
    """A row is its own cells and the common ones, in UTF-8."""
    cell = take_texts(["a", "→", ""], np.array([1, 0, 2]))
    assert join_rows(["ü", "<", cell, ">\n"], 3).decode() == "ü<→>\nü<a>\nü<>\n"
    spread = only_where(np.array([True, False, True]), "±")
    assert join_rows([spread, "\n"], 3).decode() == "±\n\n±\n"
    assert join_rows([take_texts(["\udc80"], np.zeros(2, np.intp))], 2) == b"??"


@pytest.mark.parametrize("most", [1, 3, 2**40, 2**64 - 1])
def test_distinct_rows(most: int) -> None:
    """Rows have the same place if and only if all their values are equal, and each place its first row."""
    chance = np.random.default_rng(most % 1000)
    columns = [chance.integers(0, most, (200, 2), np.uint64, endpoint=True) % np.uint64(5) * np.uint64(most // 5 or 1),
               chance.random(200) < 0.5]  # fmt: skip
    firsts, places = distinct_rows(columns)
    rows = [(*pair, flag) for pair, flag in zip(columns[0].tolist(), columns[1].tolist(), strict=True)]
    assert [rows[first] for first in firsts[places]] == rows
    assert len(set(rows)) == len(firsts)
    assert all(rows.index(rows[first]) == first for first in firsts.tolist())


def test_distinct_rows_of_nothing() -> None:
    """No rows have no distinct ones."""
    firsts, places = distinct_rows([np.zeros((0, 2), np.uint64)])
    assert len(firsts) == len(places) == 0
