# SPDX-License-Identifier: Apache-2.0
"""What the screens and text show, of the kernel or of a recording: options, settings and startup."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from nettop.commands.options import (
    checked_why,
    checked_word,
    complete_columns,
    complete_sort,
    completer,
    evaluated,
    option,
    parse_count,
    quoted,
    require_output,
    split_names,
    view_to_open,
    why_option,
)
from nettop.errors import ExitCode, UsageError
from nettop.process.importing import importing
from nettop.process.interrupts import requested_by_signals
from nettop.settings import MAX_PORT, Format, Settings, TextSettings, ViewSettings
from nettop.snapshots import find_table, views
from nettop.snapshots.bandwidth import INTERFACE

if TYPE_CHECKING:
    from nettop.engine.session import Session
    from nettop.output.text import Replay
    from nettop.recording.player import Player


SHOW, _SHORT, _TEXT = "What to show", "Filter shortcuts", "Plain output"


# fmt: off
@dataclass(frozen=True, slots=True)
@evaluated
class ShowOptions:
    """Options that say what to show, as given, in the order of --help. See `view_settings`."""

    view: Annotated[str, option("--view", metavar="LENS[.TABLE]", panel=SHOW, autocompletion=completer(views()),
                                help=f"Lens or table to show: {', '.join(views())}; self is "
                                "nettop's own cost (connections)")] = "connections"
    filter: Annotated[list[str] | None, option("--filter", metavar="TEXT", panel=SHOW,
                                               help="Show only matching rows: a word in any column, "
                                               "10.0.0.0/8, :443, pid=1812, rtt_us>10ms, combined by and, or, not and "
                                               "parentheses; if repeated, all filters must match")] = None
    columns: Annotated[str | None, option("--columns", metavar="A,B,C", panel=SHOW, autocompletion=complete_columns,
                                          help="Columns to show; NAME_per_s is the rate of a counter")] = None
    limit: Annotated[str | None, option("--limit", metavar="N", panel=SHOW, help="Show at most N rows")] = None
    sort: Annotated[str | None, option("--sort", metavar="[-]COLUMN", panel=SHOW, autocompletion=complete_sort,
                                       help="Sort by this column; with -, in descending order")] = None
    all: Annotated[bool, option("--all", panel=SHOW,
                              help="Also show listeners, TIME_WAIT, and UDP sockets without peer or traffic")] = False
    resolve: Annotated[bool, option("--resolve/--numeric", panel=SHOW,
                                    help="Show host names or addresses (--numeric)")] = False
    port: Annotated[str | None, option("--port", metavar="PORT", panel=_SHORT,
                                       help="Show only this local or remote port")] = None
    pid: Annotated[str | None, option("--pid", metavar="PID", panel=_SHORT, help="Show only this process ID")] = None
    process: Annotated[str | None, option("--process", metavar="NAME", panel=_SHORT,
                                          help="Show only processes with exactly this name")] = None
    container: Annotated[str | None, option("--container", metavar="TEXT", panel=_SHORT,
                                            help="Show only containers and units whose name contains this")] = None
    table: Annotated[bool, option("--table", panel=_TEXT, help="Print text instead of showing the screens")] = False
    data_only: Annotated[bool, option("--data-only", "-d", panel=_TEXT,
                                      help="Omit the banner on standard error; implies --table")] = False
    format: Annotated[str | None, option("--format", metavar="table|csv|jsonl", panel=_TEXT,
                                         autocompletion=completer(Format),
                                         help="Output format; implies --table")] = None
    why: Annotated[bool, why_option(_TEXT)] = False
    deltas: Annotated[bool, option("--deltas", panel=_TEXT,
                                   help="Show per-interval values of counters; implies --table")] = False
    once: Annotated[bool, option("--once", panel=_TEXT, help="Stop after one refresh; implies --table")] = False
    count: Annotated[str | None, option("--count", metavar="N", panel=_TEXT,
                                        help="Stop after N refreshes; implies --table")] = None
    # fmt: on

    @property
    def is_text(self) -> bool:
        """True if the options request plain output."""
        implying = (self.data_only, self.format, self.deltas, self.once, self.count)
        return self.table or any(value not in (None, False) for value in implying)


def shown_settings(options: ShowOptions) -> tuple[ViewSettings, TextSettings]:
    """Convert the options that say what to show. Raise UsageError for invalid values and combinations."""
    if options.once and options.count not in (None, "1"):
        raise UsageError(f"--once conflicts with --count {options.count}", "use only one of them")
    view = ViewSettings(
        view=view_to_open(options, options.view),
        columns=split_names(options.columns),
        sort=options.sort,
        filters=_filters(options),
        limit=_count("--limit", options.limit),
        # A user who names an interface wants to see it even while it is down.
        all_rows=options.all or bool(getattr(options, INTERFACE.name, None)),
        deltas=options.deltas,
        resolve=options.resolve,
    )
    form = Format(checked_word("format", options.format or Format.TABLE, list(Format)))
    count = 1 if options.once else _count("--count", options.count)
    text = TextSettings(form, count, options.data_only, checked_why(options.why, form))
    return view, text


def _count(name: str, value: str | None) -> int | None:
    return None if value is None else parse_count(name, value)


def _filters(options: ShowOptions) -> tuple[str, ...]:
    """Return the filters: those of --filter, then those of the shortcuts."""
    # The kernel keeps 15 bytes of a process's name (TASK_COMM_LEN in include/linux/sched.h).
    name = os.fsencode(options.process or "")[:15].decode(errors="ignore")
    shortcuts = (
        None if options.port is None else f":{parse_count('--port', options.port, MAX_PORT)}",
        None if options.pid is None else f"pid={parse_count('--pid', options.pid)}",
        None if options.process is None else f"process={quoted(name)}",
        None if options.container is None else f"container~{quoted(options.container)}",
    )
    return (*(options.filter or ()), *filter(None, shortcuts))


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
    with ExitStack() as ends:
        # Of a replay nothing is missing at the end.
        requests = ends.enter_context(requested_by_signals(reopens=False)) if replay is None else None
        session = ends.enter_context(opened)
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
