# SPDX-License-Identifier: Apache-2.0
"""`nettop log`: its options, its settings, and how it starts."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from nettop.commands.invoker import invoking_user, owner_of_files
from nettop.commands.options import (
    checked_why,
    checked_word,
    complete_columns,
    completing,
    follow_namespaces_option,
    listed_names,
    max_overhead_option,
    mechanism_option,
    option,
    parse_lens_options,
    parse_mechanisms,
    parse_overhead,
    seconds,
    size_bytes,
    whole,
    why_option,
    with_lens_options,
)
from nettop.commands.privilege import (
    Rights,
    explaining,
    opened_session,
    refuse_root_for_caller,
    why_still_root,
)
from nettop.errors import ExitCode, NettopError, UsageError
from nettop.interrupts import requested_by_signals, undisturbed
from nettop.settings import DAY_S, MIN_INTERVAL_S, LineFormat, LogSettings
from nettop.snapshots import all_views, logged_views, views
from nettop.snapshots.own_cost import SELF

if TYPE_CHECKING:
    from nettop.snapshots.source import Source

NONE = "none"
"""The --log-dir that is none."""
_MIN_ROTATE_BYTES = 16 << 10

LOG_HELP = "Log events of connections as they happen, and the numbers of each connection at an interval."

LOG_EXAMPLES = """[bold]Examples[/bold]

nettop log  [dim]events and metrics, on the console and in log/[/dim]

nettop log --events-only --log-dir none --filter 'event=fail'  [dim]failures, on the console only[/dim]

nettop log --format jsonl --log-dir /var/log/nettop --no-console  [dim]as a service[/dim]

nettop log --lens connections --lens drops --metrics-interval 10

nettop log --events-only --columns event,reason,remote

SIGHUP reopens the files; SIGTERM writes what is left and ends."""

_WHAT, _WHERE = "What to log", "Output"
_AS_ROOT = """\
install nettop where everybody may read it (/opt/nettop), or
give --log-dir a directory of root's, or none for the console only"""


# fmt: off
@with_lens_options(all_views(), log=True)
@dataclass(frozen=True, slots=True)
class LogOptions:
    """The options and arguments as they were given, in the order of --help."""

    lens: Annotated[list[str] | None, option("--lens", metavar="LENS[.TABLE]", panel=_WHAT,
                                             autocompletion=completing(views()),
                                             help=f"Table to log: {', '.join(views())} (default: the first, with its "
                                             "events); may be given several times")] = None
    filter: Annotated[list[str] | None, option("--filter", metavar="TEXT", panel=_WHAT,
                                               help="Log only rows that match, as in nettop --filter; tables without "
                                               "such a field are not logged")] = None
    columns: Annotated[str | None, option("--columns", metavar="A,B,C", panel=_WHAT, autocompletion=complete_columns,
                                          help="Columns to log behind the time, of the tables that have them")] = None
    events_only: Annotated[bool, option("--events-only", panel=_WHAT, help="Log events only")] = False
    metrics_only: Annotated[bool, option("--metrics-only", panel=_WHAT, help="Log metrics only")] = False
    metrics_interval: Annotated[str, option("--metrics-interval", metavar="SECONDS", panel=_WHAT,
                                            help="Log the numbers of open connections this often (30)")] = "30"
    interval: Annotated[str | None, option("--interval", "-t", metavar="SECONDS", panel=_WHAT,
                                           help="Read the tables this often (1)")] = None
    max_overhead: Annotated[str | None, max_overhead_option(_WHAT)] = None
    mechanism: Annotated[list[str] | None, mechanism_option(_WHAT)] = None
    format: Annotated[str, option("--format", metavar="text|jsonl", panel=_WHERE,
                                  autocompletion=completing(LineFormat), help="Lines to read (text) or for "
                                  "programs (jsonl)")] = "text"
    why: Annotated[bool, why_option(_WHERE)] = False
    log_dir: Annotated[str, option("--log-dir", metavar="DIR|none", panel=_WHERE,
                                   help="Directory of the log files (log, in the working directory); none: console "
                                   "only")] = "log"
    rotate_size: Annotated[str, option("--rotate-size", metavar="SIZE", panel=_WHERE,
                                       help="Rotate a file before it grows beyond this (64M)")] = "64M"
    keep: Annotated[str, option("--keep", metavar="N", panel=_WHERE,
                                help="Rotated files to keep, of each kind (8)")] = "8"
    no_console: Annotated[bool, option("--no-console", panel=_WHERE, help="Write only to the files")] = False
    follow_namespaces: Annotated[bool, follow_namespaces_option(_WHAT)] = False
    # fmt: on


def log_settings(options: LogOptions) -> LogSettings:
    """The settings for these options. Raises UsageError for invalid values and combinations."""
    _check_together(options)
    chosen_s = None if options.interval is None else seconds("--interval", options.interval)
    metrics_interval_s = seconds(
        "--metrics-interval", options.metrics_interval, chosen_s or MIN_INTERVAL_S, DAY_S
    )
    interval_s = chosen_s or min(1.0, metrics_interval_s)
    rotate_bytes = size_bytes("--rotate-size", options.rotate_size)
    if rotate_bytes < _MIN_ROTATE_BYTES:
        raise UsageError(
            f"files of {rotate_bytes} bytes would be rotated all the time", "give --rotate-size 16K or more"
        )
    logged = tuple(options.lens or LogSettings().views)
    return LogSettings(
        views=logged,
        columns=listed_names(options.columns),
        filters=tuple(options.filter or ()),
        format=LineFormat(checked_word("format", options.format, list(LineFormat))),
        interval_s=interval_s,
        metrics_interval_s=metrics_interval_s,
        events=not options.metrics_only,
        metrics=not options.events_only,
        console=not options.no_console,
        directory=None if options.log_dir == NONE else options.log_dir,
        rotate_bytes=rotate_bytes,
        keep=whole("--keep", options.keep),
        why=checked_why(options.why, options.format),
        mechanisms=parse_mechanisms(options.mechanism),
        max_overhead=parse_overhead(options.max_overhead),
        options=parse_lens_options(options, interval_s, logged_views(logged), log=True),
    )


def _check_together(options: LogOptions) -> None:
    if options.events_only and options.metrics_only:
        raise UsageError("--events-only and --metrics-only exclude each other", "leave out both for everything")
    if options.no_console and options.log_dir == NONE:
        raise UsageError("nothing would be written", "give --log-dir a directory, or leave out --no-console")
    if not options.log_dir:
        raise UsageError("--log-dir '' is not a directory", "write it like --log-dir log, or none for the console only")


def start_log(options: LogOptions, source_of: Callable[[str], Source] | None) -> ExitCode:
    """Log what the options say. Raises NettopError, and BrokenPipeError when nobody reads any more.

    `source_of` makes the source of a lens; the probes do if it is None.
    """
    settings = log_settings(options)  # a wrong name is reported before anything heavy is imported
    lenses = {lens.id for lens, _ in logged_views(settings.views)}
    if sys.stdout is None and settings.directory is None:
        raise NettopError("standard output is closed", "give --log-dir a directory")
    with undisturbed():
        from nettop.output.log import run_log

    user = invoking_user()
    if settings.directory is not None:
        refuse_root_for_caller()
        # Who owns the files writes them: nettop becomes that user.
        user = owner_of_files(Path(settings.directory))
    still_root = why_still_root(user) if source_of is None else None
    rights = Rights(
        user,
        follow_namespaces=options.follow_namespaces,
        program_statistics=SELF.id in lenses or settings.max_overhead is not None,
    )
    with ExitStack() as ends:
        requests = ends.enter_context(requested_by_signals())
        session = ends.enter_context(
            opened_session(
                settings.interval_s,
                source_of,
                rights,
                max_overhead=settings.max_overhead,
                together=lenses,
            )
        )
        with explaining(still_root, _AS_ROOT):
            return run_log(settings, session, requests, sys.stdout, sys.stderr)
