# SPDX-License-Identifier: Apache-2.0
"""The rows of a table to which rows are only added, put together from the pieces in which they came."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from nettop.snapshots.arrays import joined
from nettop.snapshots.schema import Kind, Table
from nettop.snapshots.snapshot import Array, Rows, unknown_value

PIECE_ROWS = 1024
"""Rows that are made into lines at once: few enough for little memory, many enough to be quick."""
KEPT_ROWS = 10_000
"""The rows that a screen shows at most: the newest."""


def put_together(table: Table, batches: Sequence[Rows], newest: int | None = KEPT_ROWS) -> Rows:
    """The newest rows of all batches, or all of them, the oldest first, with one set of texts."""
    if not batches:
        return empty_rows(table)
    texts: dict[str, Sequence[str]] = dict(batches[-1].texts)
    arrays = [batch.array for batch in batches]
    for name in _text_names(table):
        if any(batch.texts[name] is not texts[name] for batch in batches):
            texts[name], arrays = _with_one_table(name, batches, arrays)
    rows = joined(*arrays)
    rows = rows if newest is None else rows[-newest:]
    return Rows(table, rows, texts, batches[-1].taken_ns)


def pieces(batches: Iterable[Rows], at_most: int) -> Iterator[Rows]:
    """The rows of all batches, in pieces of so many at most, each with its own texts."""
    for batch in batches:
        for start in range(0, len(batch), at_most):
            yield replace(batch, array=batch.array[start : start + at_most])


def empty_rows(table: Table) -> Rows:
    """No rows of a table."""
    return Rows(table, np.zeros(0, table.dtype), {name: [] for name in _text_names(table)}, 0)


def _with_one_table(name: str, batches: Sequence[Rows], arrays: list[Array]) -> tuple[list[str], list[Array]]:
    """The distinct texts of a column of all batches, and the batches' rows with codes into them."""
    codes: dict[str, int] = {}
    recoded = []
    for batch, array in zip(batches, arrays, strict=True):
        column = array[name]
        none = unknown_value(column.dtype)
        places = np.array(
            [*(codes.setdefault(text, len(codes)) for text in batch.texts[name]), none], column.dtype
        )
        own = array.copy()
        own[name] = places[np.minimum(column, len(places) - 1)]
        recoded.append(own)
    return list(codes), recoded


def _text_names(table: Table) -> list[str]:
    return [field.name for field in table.stored if field.kind is Kind.TEXT]
