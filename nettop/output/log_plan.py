# SPDX-License-Identifier: Apache-2.0
"""What a log holds, worked out once from the settings, before anything touches the kernel."""

from __future__ import annotations

from dataclasses import dataclass

from nettop.errors import UsageError
from nettop.output.jsonl import JsonLines
from nettop.output.lens_output import output_of
from nettop.output.log_lines import TextLines
from nettop.output.plan import whole_columns
from nettop.query.query import Query, query_from_settings, text_query
from nettop.settings import LineFormat, LogSettings, ViewSettings
from nettop.snapshots import logged_views
from nettop.snapshots.schema import Table

LineMaker = TextLines | JsonLines
"""Makes rows into lines."""


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """One table as it is logged: the name of its file, which rows, and how they are written."""

    name: str
    query: Query
    maker: LineMaker

    @property
    def table(self) -> Table:
        """The table; of an append table, events are logged as they come."""
        return self.query.table


@dataclass(frozen=True, slots=True)
class LogPlan:
    """The tables of a lens to log, and what the user should know of those that are not."""

    lens: str
    streams: tuple[Stream, ...]
    notes: tuple[str, ...]


def make_log_plan(settings: LogSettings) -> LogPlan:
    """The plan for `settings`. Raises UsageError for a word that does not exist, or when nothing is left to log.

    A table that lacks a field of the filter has no row that passes: it is not logged, and a note says so.
    """
    views = logged_views(settings.view)
    tables = [table for _, table in views if (settings.events if table.append else settings.metrics)]
    if not tables:
        option = "--events-only" if settings.events else "--metrics-only"
        raise UsageError(f"with {option} there is nothing of {settings.view} to log", f"leave out {option}")
    lens = views[0][0]
    names = output_of(lens.id).log_names
    streams, notes, refused = [], [], []
    for table in tables:
        view = lens.id if table is lens.main else f"{lens.id}.{table.name}"
        name = names.get(view, view)
        try:
            query = query_from_settings(text_query(table), ViewSettings(filters=settings.filters))
        except UsageError as error:
            refused.append(error)
            notes.append(f"no {name} are logged, none can pass: {error.what}")
            continue
        kind = "event" if table.append else "metrics"
        if settings.format is LineFormat.TEXT and view not in names:
            kind = view
        # Events are named by their lens alone.
        maker = lines_of(settings.format, kind, lens.id if table.append else view, table, why=settings.why)
        streams.append(Stream(name, query, maker))
    if not streams:
        raise refused[0]
    return LogPlan(lens.id, tuple(streams), tuple(notes))


def lines_of(form: LineFormat, kind: str, view: str, table: Table, *, why: bool) -> LineMaker:
    """What writes the rows of a table as lines of this kind; `view` names the table.

    With `why` JSON says why what is null is not available.
    """
    if form is LineFormat.TEXT:
        return TextLines(view.partition(".")[0], table, kind)
    return JsonLines(whole_columns(table), {"type": kind, "lens": view}, why=why)
