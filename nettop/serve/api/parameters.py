# SPDX-License-Identifier: Apache-2.0
"""What the address of a table asks for: its path and query parameters as a query, columns and a format."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Literal, TypeVar
from urllib.parse import parse_qsl

from nettop.errors import UsageError, unknown_word
from nettop.query.filter import Filter, combined, parse_filter
from nettop.query.query import Query, checked_columns, parse_sort
from nettop.serve.problems import Problem, as_problem
from nettop.serve.served import Served
from nettop.snapshots import find_table, view_name
from nettop.snapshots.schema import RATE, Kind, Lens, Table

Format = Literal["json", "csv"]
FORMATS: Final[Mapping[str, Format]] = {"json": "json", "csv": "csv"}
BOOLEANS: Final = {"true": True, "false": False}

FILTER: Final = "filter"
PARAMETERS: Final = (FILTER, "sort", "limit", "columns", "all", "deltas", "format")
STREAMED: Final = PARAMETERS[:-1]
"""Those of a table in a stream, where all is JSON."""

MOST_ROWS: Final = 999_999_999
MOST_STREAMED_ROWS: Final = 1_000
STREAMED_ROWS: Final = 200
"""The limit in a stream where none is given."""
LONGEST_FILTER: Final = 1_000
"""Characters of all filters of a request: each term may look at every row."""
LONGEST_QUERY: Final = 16_384

_WHOLE_NUMBER = re.compile(r"[1-9][0-9]{0,8}")

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class Wanted:
    """What a request wants of a table. The query has no limit, so that what the limit leaves out can be counted."""

    lens: Lens
    query: Query
    columns: tuple[str, ...]
    limit: int | None
    format: Format

    @property
    def view(self) -> str:
        """The name of the table."""
        return view_name(self.lens, self.query.table)


def default_columns(table: Table) -> tuple[str, ...]:
    """The columns of a table where none are named: its key, those of plain text, their rates, and what it is sorted by.

    All columns of 50,000 connections would take twice as long.
    """
    rates = (name + RATE for name in table.text if table.by_name[name].has_rate)
    names = dict.fromkeys((table.key, *table.text, *rates, table.sort.removeprefix("-")))
    return tuple(
        name for name in names if name not in table.by_name or table.by_name[name].kind is not Kind.GROUP
    )


def parse_wanted(served: Served, view: str, raw_query: bytes) -> Wanted:
    """What `/api/v1/VIEW?QUERY` asks for. Raises Problem: 404 for the view, 400 for anything else."""
    lens, table = served_table(served, view)
    return _wanted(served, lens, table, given_parameters(decoded_pairs(raw_query), PARAMETERS, FILTER))


def parse_streamed(served: Served, text: str) -> Wanted:
    """What `VIEW?QUERY` asks for in a stream. Raises Problem."""
    view, _, raw_query = text.partition("?")
    lens, table = served_table(served, view)
    given = given_parameters(decoded_pairs(raw_query.encode()), STREAMED, FILTER)
    given.setdefault("limit", [str(STREAMED_ROWS)])
    wanted = _wanted(served, lens, table, given)
    assert wanted.limit is not None
    if wanted.limit > MOST_STREAMED_ROWS:
        remedy = f"a stream gives {MOST_STREAMED_ROWS} rows of a table at most"
        raise bad_parameter("limit", f"{wanted.limit} is too many", remedy)
    return wanted


def served_table(served: Served, view: str) -> tuple[Lens, Table]:
    """The table that is called so. Raises Problem (404) where there is none, or its lens is not served."""
    try:
        lens, table = find_table(view)
    except UsageError as error:
        raise Problem(404, error.what, error.remedy) from None
    if served.lens(lens.id) is None:
        what = f"the lens {lens.id} is not served"
        raise Problem(404, what, "add it to --lenses")
    return lens, table


def decoded_pairs(raw_query: bytes) -> list[tuple[str, str]]:
    """The names and values of a query. Raises Problem (400) where it is too long, or no UTF-8."""
    if len(raw_query) > LONGEST_QUERY:
        raise Problem(400, f"the query is longer than {LONGEST_QUERY} bytes")
    try:
        return parse_qsl(raw_query.decode(), keep_blank_values=True, errors="strict")
    except UnicodeDecodeError:
        remedy = "percent-encode text as UTF-8"
        raise Problem(400, "the query is not UTF-8", remedy) from None


def given_parameters(
    pairs: Iterable[tuple[str, str]], known: Collection[str], repeatable: str = ""
) -> dict[str, list[str]]:
    """The values of each parameter: one, but of the `repeatable` one all. Raises Problem (400) for any other name."""
    given: dict[str, list[str]] = {}
    for name, value in pairs:
        if name not in known:
            raise as_problem(unknown_word("parameter", name, known), name)
        values = given.setdefault(name, [])
        if values and name != repeatable:
            raise bad_parameter(name, "it is given more than once", "give it once")
        values.append(value)
    return given


def _wanted(served: Served, lens: Lens, table: Table, given: Mapping[str, list[str]]) -> Wanted:
    chosen = {name: values[0] for name, values in given.items()}
    with_deltas = _word("deltas", chosen.get("deltas", "false"), BOOLEANS)
    shown = _filter(served, table, given.get(FILTER, []))
    with _parameter("sort"):
        sort = parse_sort(table, chosen.get("sort", table.sort))
    with _parameter("columns"):
        columns = _columns(table, chosen.get("columns"))
    used = {*columns, sort.field, *shown.names}
    query = Query(
        table,
        sort,
        shown,
        all_rows=_word("all", chosen.get("all", "false"), BOOLEANS),
        deltas=with_deltas,
        # With differences also what has ended: they add up to all that was counted.
        closed=table.cumulative or with_deltas or not used <= table.by_name.keys(),
    )
    limit = _limit(chosen["limit"]) if "limit" in chosen else None
    return Wanted(lens, query, columns, limit, _word("format", chosen.get("format", "json"), FORMATS))


def _filter(served: Served, table: Table, of_request: list[str]) -> Filter:
    """All of the filters as one. Each is read alone: no request may change what a filter of the server's means."""
    if sum(map(len, of_request)) > LONGEST_FILTER:
        raise bad_parameter(FILTER, f"the filters have more than {LONGEST_FILTER} characters")
    filters = served.filters_of(table)
    with _parameter(FILTER):
        filters += [parse_filter(table, text) for text in of_request]
    return combined(table, filters)


def _columns(table: Table, text: str | None) -> tuple[str, ...]:
    return default_columns(table) if text is None else checked_columns(text.split(","), table.names)


def _limit(text: str) -> int:
    if not _WHOLE_NUMBER.fullmatch(text):
        raise bad_parameter(
            "limit", f"{text!r} is not a number of rows", f"give a whole number from 1 to {MOST_ROWS}"
        )
    return int(text)


def _word(name: str, text: str, words: Mapping[str, T]) -> T:
    if text not in words:
        raise bad_parameter(name, f"{text!r} is not a value of it", f"give {' or '.join(words)}")
    return words[text]


@contextmanager
def _parameter(name: str) -> Iterator[None]:
    """What is wrong within is wrong with this parameter."""
    try:
        yield
    except UsageError as error:
        raise as_problem(error, name) from None


def bad_parameter(parameter: str, what: str, remedy: str = "") -> Problem:
    """The problem (400) that the value of a parameter is."""
    return Problem(400, f"{parameter}: {what}", remedy, parameter=parameter)
