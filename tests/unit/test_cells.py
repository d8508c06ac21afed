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
from nettop.output.table import whole_columns
from nettop.query.query import text_query
from nettop.query.view import View
from nettop.snapshots.arrays import distinct_rows
from nettop.snapshots.connections import EVENT_KINDS, EVENTS, REASONS
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
