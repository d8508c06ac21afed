# SPDX-License-Identifier: Apache-2.0
"""Parsing of table requests: path and query parameters become a query, columns and a format."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl

from nettop.errors import UsageError, unknown_word
from nettop.query.filter import Filter, combined, parse_filter
from nettop.query.query import Query, checked_columns, parse_sort
from nettop.serve.problems import Problem, as_problem
from nettop.serve.served import Served
from nettop.snapshots import find_table
from nettop.snapshots.schema import RATE, Kind, Lens, Table

FORMATS: Final = ("json", "csv")

FILTER: Final = "filter"
PARAMETERS: Final = (FILTER, "sort", "limit", "columns", "all", "deltas", "format")
STREAMED: Final = PARAMETERS[:-1]
"""Parameters of a table in a stream, which is always JSON."""

MAX_ROWS: Final = 999_999_999
MAX_STREAMED_ROWS: Final = 1_000
STREAMED_ROWS: Final = 200
"""Default limit in a stream."""
MAX_FILTER_CHARS: Final = 1_000
"""Maximum total characters of a request's filters, as each term may scan every row."""
MAX_QUERY_BYTES: Final = 16_384

_WHOLE_NUMBER = re.compile(r"[1-9][0-9]{0,8}")


@dataclass(frozen=True, slots=True, eq=False)
class Wanted:
    """A parsed table request. The query has no limit, so that rows beyond `limit` can be counted."""

    lens: Lens
    query: Query
    columns: tuple[str, ...]
    limit: int | None
    format: str


def default_columns(table: Table) -> tuple[str, ...]:
    """Return a table's default columns: its key, those of text output, their rates, and the sort column.

    All columns of 50,000 connections would take twice as long.
    """
    rates = (name + RATE for name in table.text if table.by_name[name].has_rate)
    names = dict.fromkeys((table.key, *table.text, *rates, table.sort.removeprefix("-")))
    return tuple(
        name for name in names if name not in table.by_name or table.by_name[name].kind is not Kind.GROUP
    )


def parse_wanted(served: Served, view: str, raw_query: bytes) -> Wanted:
    """Parse the request `/api/v1/VIEW?QUERY`. Raise Problem: 404 for the view, 400 for anything else."""
    lens, table = served_table(served, view)
    return _wanted(served, lens, table, given_parameters(raw_query, PARAMETERS, FILTER))


def parse_streamed(served: Served, text: str) -> Wanted:
    """Parse `VIEW?QUERY` of a stream. Raise Problem."""
    view, _, raw_query = text.partition("?")
    lens, table = served_table(served, view)
    given = given_parameters(raw_query.encode(), STREAMED, FILTER)
    given.setdefault("limit", [str(STREAMED_ROWS)])
    wanted = _wanted(served, lens, table, given)
    assert wanted.limit is not None
    if wanted.limit > MAX_STREAMED_ROWS:
        remedy = f"give at most {MAX_STREAMED_ROWS} rows per table in a stream"
        raise bad_parameter("limit", f"{wanted.limit} is too many", remedy)
    return wanted


def served_table(served: Served, view: str) -> tuple[Lens, Table]:
    """Return the table of this name. Raise Problem (404) if it does not exist or its lens is not served."""
    try:
        lens, table = find_table(view)
    except UsageError as error:
        raise Problem(404, error.what, error.remedy) from None
    if served.lens(lens.id) is None:
        what = f"the lens {lens.id} is not served"
        raise Problem(404, what, "it is served if --lenses names it, and if a served recording has it")
    return lens, table


def given_parameters(raw_query: bytes, known: Collection[str], repeatable: str = "") -> dict[str, list[str]]:
    """Return the values of each parameter in a query string: one, or several of the `repeatable` one.

    Raise Problem (400) for unknown or repeated names, and if the query is too long or not UTF-8.
    """
    if len(raw_query) > MAX_QUERY_BYTES:
        raise Problem(400, f"the query is longer than {MAX_QUERY_BYTES} bytes")
    try:
        pairs = parse_qsl(raw_query.decode(), keep_blank_values=True, errors="strict")
    except UnicodeDecodeError:
        raise Problem(400, "the query is not UTF-8", "percent-encode text as UTF-8") from None
    given: dict[str, list[str]] = {}
    for name, value in pairs:
        if name not in known:
            raise as_problem(unknown_word("parameter", name, known), name)
        values = given.setdefault(name, [])
        if values and name != repeatable:
            raise bad_parameter(name, "given more than once", "give it once")
        values.append(value)
    return given


def _wanted(served: Served, lens: Lens, table: Table, given: Mapping[str, list[str]]) -> Wanted:
    chosen = {name: values[0] for name, values in given.items()}
    with_deltas = _flag("deltas", chosen)
    shown = _filter(served, table, given.get(FILTER, []))
    with _parameter("sort"):
        sort = parse_sort(table, chosen.get("sort", table.sort))
    names = chosen.get("columns")
    with _parameter("columns"):
        columns = default_columns(table) if names is None else checked_columns(names.split(","), table)
    used = {*columns, sort.field, *shown.names}
    query = Query(
        table,
        sort,
        shown,
        all_rows=_flag("all", chosen),
        deltas=with_deltas,
        # With differences, include rows that ended: the differences then add up to everything counted.
        closed=table.cumulative or with_deltas or not used <= table.by_name.keys(),
    )
    limit = _limit(chosen["limit"]) if "limit" in chosen else None
    return Wanted(lens, query, columns, limit, _word("format", chosen.get("format", "json"), FORMATS))


def _filter(served: Served, table: Table, of_request: list[str]) -> Filter:
    """Combine all filters. Parse each separately, so that no request can alter a filter of the server."""
    if sum(map(len, of_request)) > MAX_FILTER_CHARS:
        raise bad_parameter(FILTER, f"the filters have more than {MAX_FILTER_CHARS} characters")
    filters = served.applicable_filters(table)
    with _parameter(FILTER):
        filters += [parse_filter(table, text) for text in of_request]
    return combined(table, filters)


def _limit(text: str) -> int:
    if not _WHOLE_NUMBER.fullmatch(text):
        raise bad_parameter(
            "limit", f"{text!r} is not a number of rows", f"give a whole number from 1 to {MAX_ROWS}"
        )
    return int(text)


def _flag(name: str, chosen: Mapping[str, str]) -> bool:
    return _word(name, chosen.get(name, "false"), ("true", "false")) == "true"


def _word(name: str, text: str, words: Collection[str]) -> str:
    if text not in words:
        raise bad_parameter(name, f"{text!r} is not a valid value", f"give {' or '.join(words)}")
    return text


@contextmanager
def _parameter(name: str) -> Iterator[None]:
    """Turn usage errors in the block into problems of this parameter."""
    try:
        yield
    except UsageError as error:
        raise as_problem(error, name) from None


def bad_parameter(parameter: str, what: str, remedy: str = "") -> Problem:
    """Return the problem (400) for an invalid parameter value."""
    return Problem(400, f"{parameter}: {what}", remedy, parameter=parameter)
