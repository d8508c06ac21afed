# SPDX-License-Identifier: Apache-2.0
"""Rows of an append table assembled from pieces, compared with lists of plain values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nettop.query.batches import concatenate_batches, empty_rows, pieces
from nettop.query.query import text_query
from nettop.query.view import View
from nettop.snapshots.connections import EVENTS, SOCKETS
from nettop.snapshots.schema import Kind, Table
from nettop.snapshots.snapshot import Frame, Rows, Snapshot, TextTable, unknown_value
from tests.builders.arrays import unknown_rows
from tests.unit.build import make_rows

TEXTS = [field.name for field in EVENTS.stored if field.kind is Kind.TEXT]
Texts = tuple[str | None, ...]


class Piece(NamedTuple):
    """A batch: the texts of each row, and whether it begins its own tables of texts."""

    renews: bool
    rows: list[Texts]


PIECES = st.lists(
    st.builds(
        Piece,
        st.booleans(),
        st.lists(st.tuples(*(st.sampled_from([None, "a", "b", "c", ""]) for _ in TEXTS)), max_size=6),
    ),
    max_size=8,
)


def batches_of(pieces_: Sequence[Piece]) -> list[Rows]:
    """Return the pieces as a probe gives them: keys from 1, tables of texts shared until one renews them."""
    made, key = [], 0
    tables = {name: TextTable() for name in TEXTS}
    for number, piece in enumerate(pieces_):
        if piece.renews:
            tables = {name: TextTable() for name in TEXTS}
        rows = []
        for row in piece.rows:
            key += 1
            rows.append({"event_id": key, "time": 1000 + key, **dict(zip(TEXTS, row, strict=True))})
        made.append(make_rows(rows, EVENTS, number, texts=tables))
    return made


KEPT_ROWS = EVENTS.kept_rows


def values(rows: Rows) -> list[tuple[int, Texts]]:
    """Return each row's key and texts."""
    columns = []
    for name in TEXTS:
        texts, none = rows.texts[name], unknown_value(rows.array[name].dtype)
        columns.append([None if code == none else texts[code] for code in rows.array[name].tolist()])
    return list(zip(rows.array["event_id"].tolist(), zip(*columns, strict=True), strict=True))


@given(PIECES, st.none() | st.sampled_from([1, 3, 7, KEPT_ROWS]))
def test_the_newest_rows_of_all_batches(pieces_: list[Piece], newest: int | None) -> None:
    """Every row comes once, with its own texts and in order: the newest, or all of them."""
    all_rows = list(enumerate((row for piece in pieces_ for row in piece.rows), 1))
    together = concatenate_batches(EVENTS, batches_of(pieces_), newest)
    assert values(together) == (all_rows if newest is None else all_rows[-newest:])


@given(PIECES, st.integers(1, 4))
def test_batches_in_pieces(pieces_: list[Piece], at_most: int) -> None:
    """Splitting into pieces loses or changes no row, and no piece exceeds the limit."""
    cut = list(pieces(batches_of(pieces_), at_most))
    all_rows = list(enumerate((row for piece in pieces_ for row in piece.rows), 1))
    assert [row for piece in cut for row in values(piece)] == all_rows
    assert all(1 <= len(piece) <= at_most for piece in cut)


@given(PIECES)
def test_one_set_of_texts(pieces_: list[Piece]) -> None:
    """The rows have one table per column, with a text for every known code; the newest time is theirs. The batches,
    which many frontends read, do not change."""
    made = batches_of(pieces_)
    before = [
        (batch.array.tobytes(), {name: [*texts] for name, texts in batch.texts.items()}) for batch in made
    ]
    together = concatenate_batches(EVENTS, made)
    after = [
        (batch.array.tobytes(), {name: [*texts] for name, texts in batch.texts.items()}) for batch in made
    ]
    assert after == before
    for name in TEXTS:
        codes = together.array[name]
        known_codes = codes[codes != unknown_value(codes.dtype)]
        assert (known_codes < len(together.texts[name])).all()
        if all(batch.texts[name] is made[-1].texts[name] for batch in made) and made:
            assert together.texts[name] is made[-1].texts[name]
    assert together.taken_ns == (made[-1].taken_ns if made else 0)


def test_a_row_is_whole() -> None:
    """Rows of batches with different tables keep all non-text values, byte by byte."""
    made = batches_of([Piece(True, [("a",) * len(TEXTS)] * 3), Piece(True, [("b",) * len(TEXTS)] * 2)])
    for name in (field.name for field in EVENTS.stored if field.kind is not Kind.TEXT):
        together = concatenate_batches(EVENTS, made)
        parts = [np.ascontiguousarray(batch.array[name]).tobytes() for batch in made]
        assert np.ascontiguousarray(together.array[name]).tobytes() == b"".join(parts), name


def test_no_more_rows_than_a_view_keeps() -> None:
    """A view has the newest rows, as many as the table keeps, or all on request."""
    rows = unknown_rows(EVENTS.dtype, *({"event_id": key} for key in range(1, KEPT_ROWS + 18)))
    half = len(rows) // 2
    halves = [Rows(EVENTS, part, {name: [] for name in TEXTS}, 1) for part in (rows[:half], rows[half:])]
    frame = Frame(Snapshot("connections", 0, 0, {}), batches={EVENTS.name: tuple(halves)})
    query = text_query(EVENTS)
    assert View(frame, query).raw("event_id").tolist() == list(range(18, KEPT_ROWS + 18))
    every = View(frame, query, all_batches=True)
    assert every.raw("event_id").tolist() == list(range(1, KEPT_ROWS + 18))


@pytest.mark.parametrize("table", [EVENTS, SOCKETS], ids=lambda table: table.name)
@pytest.mark.parametrize("newest", [None, 1, 9])
def test_no_batches(table: Table, newest: int | None) -> None:
    """Before any batch there are no rows of the requested table, but every text column."""
    for rows in (concatenate_batches(table, [], newest), empty_rows(table)):
        assert (len(rows), rows.table, rows.array.dtype) == (0, table, table.dtype)
        assert set(rows.texts) == set(TEXTS)
