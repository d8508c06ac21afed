# SPDX-License-Identifier: Apache-2.0
"""Conversion of columns of values to lines of text: values by column, then one `%` per row."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from nettop.query.batches import PIECE_ROWS
from nettop.snapshots.arrays import Index
from nettop.snapshots.histograms import histogram_text
from nettop.snapshots.schema import Table


def with_own_time(table: Table, columns: tuple[str, ...]) -> tuple[str, ...]:
    """Prepend the row's own `time` if the table has one, so that it is not confused with the snapshot's."""
    return columns if "time" in columns or "time" not in table.by_name else ("time", *columns)


def time_first(columns: tuple[str, ...]) -> tuple[tuple[str, ...], bool]:
    """Move the row's own time, if among the columns, to the front; return the columns and whether there is one."""
    if "time" not in columns:
        return columns, False
    return ("time", *(name for name in columns if name != "time")), True


def in_pieces(at: Index) -> Iterator[Index]:
    """Yield the positions of the rows that are formatted at once."""
    for start in range(0, len(at), PIECE_ROWS):
        yield at[start : start + PIECE_ROWS]


def format_values(
    values: list[Any],
    format_text: Callable[[str], str],
    unknown: str,
    format_list: Callable[[list[Any]], str] | None = None,
) -> list[Any]:
    """Prepare values for `%s`: format text with `format_text`, replace None by `unknown`, leave numbers unchanged.

    Where texts repeat, `format_text` is called once per distinct text. `format_list` formats histograms; without it
    they are formatted like text.
    """
    first = next((value for value in values if value is not None), None)
    if isinstance(first, list):
        write = format_list or (lambda value: format_text(histogram_text(value)))
        return [unknown if value is None else write(value) for value in values]
    if not isinstance(first, str):
        return values if None not in values else [unknown if value is None else value for value in values]
    distinct = set(values)
    if len(distinct) * 2 > len(values):
        return [unknown if value is None else format_text(value) for value in values]
    table = {value: unknown if value is None else format_text(value) for value in distinct}
    return list(map(table.__getitem__, values))


def format_rows(pieces: Sequence[str], columns: Sequence[list[Any]]) -> str:
    """Format the rows as one text: each row is its values between `pieces`, one more than there are columns."""
    pattern = "%s".join(piece.replace("%", "%%") for piece in pieces)
    return "".join(map(pattern.__mod__, zip(*columns, strict=True)))
