# SPDX-License-Identifier: Apache-2.0
"""Batches of append tables, concatenated or split."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from nettop.snapshots.arrays import Array, concatenate_rows
from nettop.snapshots.schema import Kind, Table
from nettop.snapshots.snapshot import Rows, unknown_value

PIECE_ROWS = 1024
"""Rows formatted at once: few enough to use little memory, many enough to be fast."""


def concatenate_batches(table: Table, batches: Sequence[Rows], newest: int | None = None) -> Rows:
    """Concatenate the newest rows of all batches (None: all rows), the oldest first, with one set of texts."""
    if not batches:
        return empty_rows(table)
    texts: dict[str, Sequence[str]] = dict(batches[-1].texts)
    arrays = [batch.array for batch in batches]
    for name in _text_names(table):
        if any(batch.texts[name] is not texts[name] for batch in batches):
            texts[name], arrays = _merge_texts(name, batches, arrays)
    rows = concatenate_rows(*arrays)
    rows = rows if newest is None else rows[-newest:]
    return Rows(table, rows, texts, batches[-1].taken_ns)


def pieces(batches: Iterable[Rows], at_most: int) -> Iterator[Rows]:
    """Yield the rows of all batches in pieces of at most `at_most`, each with its own texts."""
    for batch in batches:
        for start in range(0, len(batch), at_most):
            yield replace(batch, array=batch.array[start : start + at_most])


def empty_rows(table: Table) -> Rows:
    """Return a table without rows."""
    return Rows(table, np.zeros(0, table.dtype), {name: [] for name in _text_names(table)}, 0)


def _merge_texts(name: str, batches: Sequence[Rows], arrays: list[Array]) -> tuple[list[str], list[Array]]:
    """Return the distinct texts of a column in all batches, and the batches' rows with codes into them."""
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
