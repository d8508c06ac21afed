# SPDX-License-Identifier: Apache-2.0
"""Batches of append tables, concatenated or split."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain

import numpy as np

from nettop.snapshots.arrays import Array, concatenate_rows
from nettop.snapshots.schema import Kind, Table
from nettop.snapshots.snapshot import Rows, unknown_value

PIECE_ROWS = 2048
"""Rows formatted at once: few enough to use little memory, many enough to be fast."""


def concatenate_batches(table: Table, batches: Sequence[Rows], newest: int | None = None) -> Rows:
    """Concatenate the newest rows of all batches (None: all rows), the oldest first, with one set of texts."""
    if not batches:
        return empty_rows(table)
    texts: dict[str, Sequence[str]] = dict(batches[-1].texts)
    arrays = [batch.array for batch in batches]
    for name in _text_names(table):
        if all(batch.texts[name] is texts[name] for batch in batches):
            continue
        codes = codes_of(dict.fromkeys(chain.from_iterable(batch.texts[name] for batch in batches)))
        texts[name] = list(codes)
        arrays = [array.copy() for array in arrays]
        for array, batch in zip(arrays, batches, strict=True):
            array[name] = recode(array[name], batch.texts[name], codes)
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


def codes_of(texts: Iterable[str]) -> dict[str, int]:
    """Return the code of each text."""
    return {text: code for code, text in enumerate(texts)}


def recode(codes: Array, old: Sequence[str], new: Mapping[str, int]) -> Array:
    """Translate codes into `old` to the codes of the same texts in `new`; a text missing there becomes unknown."""
    none = unknown_value(codes.dtype)
    places: Array = np.array([*(new.get(text, none) for text in old), none], codes.dtype)
    recoded: Array = places[np.minimum(codes, len(old))]
    return recoded


def _text_names(table: Table) -> list[str]:
    return [field.name for field in table.stored if field.kind is Kind.TEXT]
