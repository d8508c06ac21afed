# SPDX-License-Identifier: Apache-2.0
"""What a log holds, worked out once from the settings, before anything touches the kernel."""

from __future__ import annotations

from dataclasses import dataclass

from nettop.errors import UsageError
from nettop.formats.jsonl import JsonLines
from nettop.output.lens_output import output_of
from nettop.output.log_lines import TextLines
from nettop.output.plan import whole_columns
from nettop.query.query import Query, checked_columns, query_from_settings, text_query
from nettop.settings import LineFormat, LogSettings, ViewSettings
from nettop.snapshots import logged_views, view_name
from nettop.snapshots.schema import Lens, Table

LineMaker = TextLines | JsonLines
"""Makes rows into lines."""


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """One table of a lens as it is logged: the name of its file, which rows, and how they are written."""

    lens: str
    name: str
    query: Query
    maker: LineMaker

    @property
    def table(self) -> Table:
        """The table; of an append table, events are logged as they come."""
        return self.query.table


@dataclass(frozen=True, slots=True)
class LogPlan:
    """The tables to log, and what the user should know of what is not."""

    streams: tuple[Stream, ...]
    notes: tuple[str, ...]


def make_log_plan(settings: LogSettings) -> LogPlan:
    """The plan for `settings`. Raises UsageError for a word that does not exist, or when nothing is left to log.

    A table that lacks a field of the filter has no row that passes, and one without any of the columns nothing to say:
    it is not logged, and a note says so.
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
    return LogPlan(tuple(streams), tuple(notes))


def lines_of(
    form: LineFormat,
    kind: str,
    view: str,
    table: Table,
    columns: tuple[str, ...] | None = None,
    *,
    why: bool,
) -> LineMaker:
    """What writes the rows of a table as lines of this kind; `view` names the table, `columns` None its usual ones.

    With `why` JSON says why what is null is not available.
    """
    if form is LineFormat.TEXT:
        return TextLines(view.partition(".")[0], table, kind, columns)
    if columns is not None and "time" in table.by_name:
        columns = ("time", *columns)
    return JsonLines(columns or whole_columns(table), {"type": kind, "lens": view}, why=why)


def _logged_tables(settings: LogSettings) -> list[tuple[Lens, Table]]:
    views = logged_views(settings.views)
    logged = [
        (lens, table) for lens, table in views if (settings.events if table.append else settings.metrics)
    ]
    if not logged:
        option, what = "--events-only" if settings.events else "--metrics-only", ", ".join(settings.views)
        raise UsageError(f"with {option} there is nothing of {what} to log", f"leave out {option}")
    return logged


def _wanted_columns(settings: LogSettings, tables: list[Table]) -> tuple[str, ...] | None:
    """The columns that --columns names beside the time, which every line has; None without that option.

    Raises UsageError for one that none of the tables has, with the nearest names.
    """
    if settings.columns is None:
        return None
    beside_time = (name for name in settings.columns if name != "time")
    return checked_columns(beside_time, {name for table in tables for name in table.names})


def _stream(settings: LogSettings, lens: Lens, table: Table, wanted: tuple[str, ...] | None) -> Stream:
    """The table as a stream. Raises UsageError where no row of it can pass the filter, or has a column to show."""
    query = query_from_settings(text_query(table), ViewSettings(filters=settings.filters))
    columns = None if wanted is None else tuple(name for name in wanted if name in table.names)
    if columns == ():
        raise UsageError("they have none of the columns")
    view = view_name(lens, table)
    kind = "event" if table.append else "metrics"
    if settings.format is LineFormat.TEXT and view not in output_of(lens.id).log_names:
        kind = view
    # Events are named by their lens alone.
    shown = lens.id if table.append else view
    maker = lines_of(settings.format, kind, shown, table, columns, why=settings.why)
    return Stream(lens.id, _name(lens, table), query, maker)


def _name(lens: Lens, table: Table) -> str:
    """What the table's file and lines are called."""
    view = view_name(lens, table)
    return output_of(lens.id).log_names.get(view, view)
