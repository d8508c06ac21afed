# SPDX-License-Identifier: Apache-2.0
"""The plan of a log: the tables to write, derived from the settings before touching the kernel."""

from __future__ import annotations

from dataclasses import dataclass

from nettop.errors import UsageError
from nettop.formats.jsonl import JsonLines
from nettop.formats.rows import with_own_time
from nettop.output.lens_output import lens_output
from nettop.output.log_lines import TextLines
from nettop.output.plan import whole_columns
from nettop.query.query import Query, checked_columns, query_from_settings, text_query
from nettop.settings import LineFormat, ViewSettings
from nettop.settings.log import LogSettings
from nettop.snapshots import logged_views, view_name
from nettop.snapshots.schema import Lens, Table

LineMaker = TextLines | JsonLines
"""Formatter of rows as lines."""


@dataclass(frozen=True, slots=True, eq=False)
class LogStream:
    """One logged table of a lens: the name of its file, which rows to log, and their format."""

    lens: str
    name: str
    query: Query
    maker: LineMaker

    @property
    def table(self) -> Table:
        """The table. Rows of an append table are logged as they occur."""
        return self.query.table


def make_log_plan(settings: LogSettings) -> tuple[list[LogStream], list[str]]:
    """Return the tables to log, and notes for the user on those that lack a field of the filter, or all of the columns.

    Raise UsageError for an unknown name, or if there is nothing to log.
    """
    logged = _logged_tables(settings)
    wanted = _wanted_columns(settings, [table for _, table in logged])
    streams, notes, refused = [], [], []
    for lens, table in logged:
        name = _name(lens, table)
        try:
            streams.append(_stream(settings, lens, table, wanted))
        except UsageError as error:
            refused.append(error)
            notes.append(f"no {name} are logged: {error.what}")
        else:
            lacking = [column for column in wanted or () if column not in table.names]
            notes += [f"{name}: no column {', '.join(lacking)}"] if lacking else []
    if not streams:
        raise refused[0]
    return streams, notes


def lines_of(
    form: LineFormat,
    kind: str,
    view: str,
    table: Table,
    columns: tuple[str, ...] | None = None,
    *,
    why: bool,
) -> LineMaker:
    """Return a formatter of the table `view` as lines of this kind; `columns` None means its default columns.

    With `why`, JSON lines give the reason why null values are not available.
    """
    if form is LineFormat.TEXT:
        return TextLines(view.partition(".")[0], table, kind, columns)
    return JsonLines(
        with_own_time(table, columns or whole_columns(table)), {"type": kind, "lens": view}, why=why
    )


def _logged_tables(settings: LogSettings) -> list[tuple[Lens, Table]]:
    views = logged_views(settings.views)
    logged = [
        (lens, table) for lens, table in views if (settings.events if table.append else settings.metrics)
    ]
    if not logged:
        option, what = "--events-only" if settings.events else "--metrics-only", ", ".join(settings.views)
        raise UsageError(f"{option} leaves nothing of {what} to log", f"leave out {option}")
    return logged


def _wanted_columns(settings: LogSettings, tables: list[Table]) -> tuple[str, ...] | None:
    """Return the columns named by --columns except the time, which every line has; None without the option.

    Raise UsageError for a column that no table has, with the nearest names.
    """
    if settings.columns is None:
        return None
    beside_time = (name for name in settings.columns if name != "time")
    return checked_columns(beside_time, {name for table in tables for name in table.names})


def _stream(settings: LogSettings, lens: Lens, table: Table, wanted: tuple[str, ...] | None) -> LogStream:
    """Return the stream of a table. Raise UsageError if the table lacks a field of the filter, or all columns."""
    query = query_from_settings(text_query(table), ViewSettings(filters=settings.filters))
    columns = None if wanted is None else tuple(name for name in wanted if name in table.names)
    if columns == ():
        raise UsageError("the table has none of the columns")
    view = view_name(lens, table)
    kind = "event" if table.append else "metrics"
    if settings.format is LineFormat.TEXT and view not in lens_output(lens.id).log_names:
        kind = view
    # Events are identified by their lens alone.
    shown = lens.id if table.append else view
    maker = lines_of(settings.format, kind, shown, table, columns, why=settings.why)
    return LogStream(lens.id, _name(lens, table), query, maker)


def _name(lens: Lens, table: Table) -> str:
    """Return the name of the table's file and lines."""
    view = view_name(lens, table)
    return lens_output(lens.id).log_names.get(view, view)
