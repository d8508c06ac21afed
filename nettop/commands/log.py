# SPDX-License-Identifier: Apache-2.0
"""`nettop log`: options, settings and startup."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from nettop.commands.invoker import file_owner, invoking_user
from nettop.commands.options import (
    SourceOf,
    checked_why,
    checked_word,
    complete_columns,
    completer,
    follow_namespaces_option,
    max_overhead_option,
    mechanism_option,
    normal_priority_option,
    option,
    parse_count,
    parse_lens_options,
    parse_mechanisms,
    parse_overhead,
    parse_seconds,
    parse_size,
    require_output,
    split_names,
    why_option,
    with_lens_options,
)
from nettop.commands.privilege import (
    explain_root,
    open_session,
    refuse_root_for_caller,
    why_still_root,
)
from nettop.errors import ExitCode, UsageError
from nettop.process.importing import importing
from nettop.process.interrupts import requested_by_signals
from nettop.settings import DAY_S, MIN_INTERVAL_S, LineFormat, LogSettings
from nettop.snapshots import all_views, logged_views, views
from nettop.snapshots.own_cost import SELF

NONE = "none"
"""The value of --log-dir for no files."""
_MIN_ROTATE_BYTES = 16 << 10

HELP = "Log connection events as they happen, and metrics of open connections at an interval."

EXAMPLES = """[bold]Examples[/bold]

nettop log  [dim]events and metrics, to the console and to log/[/dim]

nettop log --events-only --log-dir none --filter 'event=fail'  [dim]failures, to the console only[/dim]

nettop log --format jsonl --log-dir /var/log/nettop --no-console  [dim]as a service[/dim]

nettop log --lens connections --lens drops --metrics-interval 10

nettop log --events-only --columns event,reason,remote

On SIGHUP, nettop reopens the files; on SIGTERM, it flushes what is left, then exits."""

_WHAT, _WHERE = "What to log", "Output"
_AS_ROOT = """\
install nettop where every user may read it (/opt/nettop), or
set --log-dir to a directory that belongs to root, or to none for the console only"""


# fmt: off
@dataclass(frozen=True, slots=True)
@with_lens_options(all_views(), log=True)
class LogOptions:
    """Options as given, in the order of --help."""

    lens: Annotated[list[str] | None, option("--lens", metavar="LENS[.TABLE]", panel=_WHAT,
                                             autocompletion=completer(views()),
                                             help=f"Lens or table to log: {', '.join(views())}; repeatable "
                                             "(connections and connections.events)")] = None
    filter: Annotated[list[str] | None, option("--filter", metavar="TEXT", panel=_WHAT,
                                               help="Log only matching rows, as in nettop --filter; tables that lack "
                                               "a field of it are not logged")] = None
    columns: Annotated[str | None, option("--columns", metavar="A,B,C", panel=_WHAT, autocompletion=complete_columns,
                                          help="Columns to log after the time, in tables that have them")] = None
    events_only: Annotated[bool, option("--events-only", panel=_WHAT, help="Log events only")] = False
    metrics_only: Annotated[bool, option("--metrics-only", panel=_WHAT, help="Log metrics only")] = False
    metrics_interval: Annotated[str, option("--metrics-interval", metavar="SECONDS", panel=_WHAT,
                                            help="Seconds between metrics of open connections (30)")] = "30"
    interval: Annotated[str | None, option("--interval", "-t", metavar="SECONDS", panel=_WHAT,
                                           help="Seconds between readings of the tables (1)")] = None
    max_overhead: Annotated[str | None, max_overhead_option(_WHAT)] = None
    normal_priority: Annotated[bool, normal_priority_option(_WHAT)] = False
    mechanism: Annotated[list[str] | None, mechanism_option(_WHAT)] = None
    format: Annotated[str, option("--format", metavar="text|jsonl", panel=_WHERE,
                                  autocompletion=completer(LineFormat), help="Line format: text for people, jsonl for "
                                  "programs (text)")] = "text"
    why: Annotated[bool, why_option(_WHERE)] = False
    log_dir: Annotated[str, option("--log-dir", metavar="DIR|none", panel=_WHERE,
                                   help="Directory for log files; none: console only (log, in the working directory)"
                                   )] = "log"
    rotate_size: Annotated[str, option("--rotate-size", metavar="SIZE", panel=_WHERE,
                                       help="Rotate a file before it exceeds this size (64M)")] = "64M"
    keep: Annotated[str, option("--keep", metavar="N", panel=_WHERE,
                                help="Rotated files to keep for each log (8)")] = "8"
    no_console: Annotated[bool, option("--no-console", panel=_WHERE, help="Write to the files only")] = False
    follow_namespaces: Annotated[bool, follow_namespaces_option(_WHAT)] = False
    # fmt: on


def log_settings(options: LogOptions) -> LogSettings:
    """Convert the options to settings. Raise UsageError for invalid values and combinations."""
    _check_combinations(options)
    chosen_s = None if options.interval is None else parse_seconds("--interval", options.interval)
    metrics_interval_s = parse_seconds(
        "--metrics-interval", options.metrics_interval, chosen_s or MIN_INTERVAL_S, DAY_S
    )
    interval_s = chosen_s or min(1.0, metrics_interval_s)
    rotate_bytes = parse_size("--rotate-size", options.rotate_size)
    if rotate_bytes < _MIN_ROTATE_BYTES:
        raise UsageError(
            f"--rotate-size {options.rotate_size} is too small: files would be rotated constantly", "use 16K or more"
        )
    logged = tuple(options.lens or LogSettings().views)
    return LogSettings(
        views=logged,
        columns=split_names(options.columns),
        filters=tuple(options.filter or ()),
        format=LineFormat(checked_word("format", options.format, list(LineFormat))),
        interval_s=interval_s,
        metrics_interval_s=metrics_interval_s,
        events=not options.metrics_only,
        metrics=not options.events_only,
        console=not options.no_console,
        directory=None if options.log_dir == NONE else options.log_dir,
        rotate_bytes=rotate_bytes,
        keep=parse_count("--keep", options.keep),
        why=checked_why(options.why, options.format),
        mechanisms=parse_mechanisms(options.mechanism),
        max_overhead=parse_overhead(options.max_overhead),
        options=parse_lens_options(options, interval_s, logged_views(logged), log=True),
    )


def _check_combinations(options: LogOptions) -> None:
    if options.events_only and options.metrics_only:
        raise UsageError("--events-only conflicts with --metrics-only", "leave out both to log everything")
    if options.no_console and options.log_dir == NONE:
        raise UsageError(
            "--no-console with --log-dir none would write nothing", "set --log-dir, or leave out --no-console"
        )
    if not options.log_dir:
        raise UsageError("--log-dir is empty", "write it like --log-dir log, or none for the console only")


def start_log(options: LogOptions, source_of: SourceOf) -> ExitCode:
    """Log until requested to end. Raise NettopError, and BrokenPipeError if the reader has closed the pipe."""
    settings = log_settings(options)  # report a wrong name before the heavy imports
    lenses = {lens.id for lens, _ in logged_views(settings.views)}
    if settings.directory is None:
        require_output("set --log-dir to a directory")
    with importing():
        from nettop.output.log import run_log

    user = invoking_user()
    if settings.directory is not None:
        refuse_root_for_caller()
        # nettop becomes the user who owns the files.
        user = file_owner(Path(settings.directory))
    still_root = why_still_root(user) if source_of is None else None
    with ExitStack() as ends:
        requests = ends.enter_context(requested_by_signals())
        session = ends.enter_context(
            open_session(
                settings.interval_s,
                source_of,
                user,
                follow_namespaces=options.follow_namespaces,
                program_statistics=SELF.id in lenses,
                max_overhead=settings.max_overhead,
                together=lenses,
            )
        )
        with explain_root(still_root, _AS_ROOT):
            return run_log(settings, session, requests, sys.stdout, sys.stderr)
