# SPDX-License-Identifier: Apache-2.0
"""What the screens and text show, of the kernel or of a recording: settings and startup."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from nettop.commands.options import require_output
from nettop.errors import ExitCode, UsageError
from nettop.process.importing import importing
from nettop.process.interrupts import requested_by_signals
from nettop.settings import EMPTY, MAX_PORT, Format, Settings, TextSettings, ViewSettings
from nettop.settings.declared import choice, setting
from nettop.settings.shared import CommandSettings, check_why, complete_columns, complete_sort, why_setting
from nettop.settings.values import parse_count, parse_names
from nettop.snapshots import find_table, views
from nettop.snapshots.bandwidth import INTERFACE
from nettop.snapshots.schema import OptionValues

if TYPE_CHECKING:
    from nettop.engine.session import Session
    from nettop.output.text import Replay
    from nettop.recording.player import Player


_SHORT, _TEXT = "Filter shortcuts", "Plain output"
_COMM_BYTES = 15
"""What the kernel keeps of a process's name (TASK_COMM_LEN in include/linux/sched.h)."""


# fmt: off
@dataclass(frozen=True, kw_only=True)
class ShownSettings(CommandSettings):
    """What the screens or text show."""

    PANEL = "What to show"

    view: str = setting("connections", "--view", metavar="LENS[.TABLE]", complete=views(),
                        help=f"Lens or table to show: {', '.join(views())}; self is nettop's own cost (connections)")
    filters: tuple[str, ...] = setting(
        (), "--filter", metavar="TEXT",
        help="Show only matching rows: a word in any column, 10.0.0.0/8, :443, pid=1812, rtt_us>10ms, combined by and, "
        "or, not and parentheses; if repeated, all filters must match")
    columns: tuple[str, ...] | None = setting(None, "--columns", metavar="A,B,C", parse=parse_names,
                                              complete=complete_columns,
                                              help="Columns to show; NAME_per_s is the rate of a counter")
    limit: int | None = setting(None, "--limit", metavar="N", parse=parse_count, help="Show at most N rows")
    sort: str | None = setting(None, "--sort", metavar="[-]COLUMN", complete=complete_sort,
                               help="Sort by this column; with -, in descending order")
    all_rows: bool = setting(False, "--all",
                             help="Also show listeners, TIME_WAIT, and UDP sockets without peer or traffic")
    resolve: bool = setting(False, "--resolve/--numeric", help="Show host names or addresses (--numeric)")
    port: int | None = setting(None, "--port", metavar="PORT", panel=_SHORT, parse=partial(parse_count, most=MAX_PORT),
                               help="Show only this local or remote port")
    pid: int | None = setting(None, "--pid", metavar="PID", panel=_SHORT, parse=parse_count,
                              help="Show only this process ID")
    process: str | None = setting(None, "--process", metavar="NAME", panel=_SHORT,
                                  help="Show only processes with exactly this name")
    container: str | None = setting(None, "--container", metavar="TEXT", panel=_SHORT,
                                    help="Show only containers and units whose name contains this")
    table: bool = setting(False, "--table", panel=_TEXT, help="Print text instead of showing the screens")
    data_only: bool = setting(False, "--data-only", "-d", panel=_TEXT,
                              help="Omit the banner on standard error; implies --table")
    format: Format | None = choice(None, "--format", Format, panel=_TEXT, help="Output format; implies --table")
    why: bool = why_setting(_TEXT)
    deltas: bool = setting(False, "--deltas", panel=_TEXT,
                           help="Show per-interval values of counters; implies --table")
    once: bool = setting(False, "--once", panel=_TEXT, help="Stop after one refresh; implies --table")
    count: int | None = setting(None, "--count", metavar="N", panel=_TEXT, parse=parse_count,
                                help="Stop after N refreshes; implies --table")
    # fmt: on

    @property
    def is_text(self) -> bool:
        """True if plain output is requested."""
        return any((self.table, self.data_only, self.format, self.deltas, self.once, self.count))

    def check(self, _given: Mapping[str, Any]) -> None:
        """Raise UsageError for a wrong view, and for settings that exclude each other."""
        if self.once and self.count not in (None, 1):
            raise UsageError(f"--once conflicts with --count {self.count}", "use only one of them")
        check_why(self.why, self.format or Format.TABLE)
        find_table(self.view)

    def shown(self) -> ViewSettings:
        """Return what of the table is shown: of a lens the table that one of its options opens, if it is given."""
        options: OptionValues = getattr(self, "options", EMPTY)
        lens, table = find_table(self.view)
        opened = next((option.opens for option in lens.options if option.opens and option in options), None)
        return ViewSettings(
            view=f"{lens.id}.{opened}" if opened and table is lens.main else self.view,
            columns=self.columns,
            sort=self.sort,
            filters=(*self.filters, *self._shortcuts()),
            limit=self.limit,
            # A user who names an interface wants to see it even while it is down.
            all_rows=self.all_rows or bool(options.get(INTERFACE)),
            deltas=self.deltas,
            resolve=self.resolve,
        )

    def text(self) -> TextSettings:
        """Return how it is printed."""
        count = 1 if self.once else self.count
        return TextSettings(self.format or Format.TABLE, count, self.data_only, self.why)

    def _shortcuts(self) -> list[str]:
        """Return the filters of the shortcuts."""
        name = os.fsencode(self.process or "")[:_COMM_BYTES].decode(errors="ignore")
        filters = {
            f":{self.port}": self.port,
            f"pid={self.pid}": self.pid,
            f"process={_quoted(name)}": self.process,
            f"container~{_quoted(self.container or '')}": self.container,
        }
        return [text for text, value in filters.items() if value is not None]


def _quoted(value: str) -> str:
    """Quote a value for the filter language. (nettop.query.filter.quote would import numpy.)"""
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def show_text(
    settings: Settings,
    opened: AbstractContextManager[Session],
    replay: Callable[[Session], Replay] | None = None,
    *,
    host: str = "",
) -> ExitCode:
    """Print text, of the running kernel, of a replay, or of another `host`."""
    with importing():
        from nettop.output.text import run_text

    require_output()
    with ExitStack() as resources:
        # Of a replay nothing is missing at the end.
        requests = resources.enter_context(requested_by_signals(reopens=False)) if replay is None else None
        session = resources.enter_context(opened)
        played = None if replay is None else replay(session)
        return run_text(
            settings, session, sys.stdout, sys.stdin, sys.stderr, replay=played, host=host, requests=requests
        )


def show_screens(
    settings: Settings,
    opened: AbstractContextManager[Session],
    writing_refused: str,
    player: Player | None = None,
    *,
    host: str = "",
    on_interrupt: Callable[[], None] = lambda: None,
) -> ExitCode:
    """Run the screens, of a replay with its `player`, or of another `host`; after Ctrl-C or a signal call
    `on_interrupt`.

    `writing_refused` says why they may not write files; empty if they may.
    """
    with importing():
        from nettop.query.query import columns_from_settings, query_from_settings, screen_query

    table = find_table(settings.view.view)[1]
    # Report wrong names before the screens take over the terminal.
    query_from_settings(screen_query(table), settings.view)
    columns_from_settings(table, settings.view)
    require_terminal("add --table")
    with importing():
        from nettop.commands.config import load_own_preferences
        from nettop.screens.app import run_app

    loaded = load_own_preferences()  # while there is only one thread
    with opened as session:
        return run_app(settings, session, loaded, writing_refused, player, host=host, on_interrupt=on_interrupt)


def require_terminal(remedy: str) -> None:
    """Raise UsageError unless the terminal can show the screens."""
    if not _is_on_terminal():
        raise UsageError("standard input or output is not a terminal", remedy)
    if not can_show_screens():
        raise UsageError("the terminal cannot show the screens (TERM=dumb)", remedy)


def can_show_screens() -> bool:
    """Return whether standard input and output are a terminal that can show the screens."""
    return _is_on_terminal() and os.environ.get("TERM") != "dumb"


def _is_on_terminal() -> bool:
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))
