# SPDX-License-Identifier: Apache-2.0
"""`nettop record`: options, settings and startup."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from nettop.commands.invoker import file_owner, invoking_user
from nettop.commands.options import (
    SourceOf,
    checked_word,
    follow_namespaces_option,
    list_completer,
    max_overhead_option,
    mechanism_option,
    normal_priority_option,
    option,
    parse_duration,
    parse_lens_options,
    parse_mechanisms,
    parse_overhead,
    parse_seconds,
    parse_size,
    redact_key_option,
    redact_option,
    require_output,
    split_names,
    with_lens_options,
)
from nettop.commands.privilege import (
    explain_root,
    open_session,
    refuse_root_for_caller,
    why_still_root,
)
from nettop.commands.redaction import redaction_key
from nettop.errors import ExitCode, UsageError
from nettop.process.importing import importing
from nettop.process.interrupts import requested_by_signals
from nettop.settings import DAY_S, STDOUT, RecordSettings
from nettop.snapshots import all_views, lenses
from nettop.snapshots.findings import LENS as FINDINGS
from nettop.snapshots.flows import LENS as FLOWS

HELP = "Record every lens to a file, to replay it later or on another host."

EXAMPLES = """[bold]Examples[/bold]

nettop record  [dim]to nettop-HOST-TIME.nettop, until Ctrl-C[/dim]

nettop record --for 10m before-the-change.nettop

nettop record /var/lib/nettop/  [dim]for months: a file for each hour, the oldest are removed[/dim]

nettop record --lenses connections,drops --interval 5 --max-size 100M FILE

ssh web1 sudo nettop record - > web1.nettop

nettop record --redact --for 10m for-a-ticket.nettop  [dim]with addresses and names replaced[/dim]

A recording that is there already is continued. A full disk ends the recording; what was recorded until then can be
replayed. Ctrl-C and SIGTERM take a last reading, then end it."""

_LIMITS, _WHAT = "When to end, what to keep", "What to record"
_DEFAULT_LENSES = tuple(lens.id for lens in lenses() if lens.id != FLOWS.id)
_DIRECTORY_BYTES, _MIN_BYTES = 1 << 30, 1 << 20
_AS_ROOT = """\
install nettop where every user may read it (/opt/nettop), or
record to a directory that belongs to root, or to standard output (-)"""


# fmt: off
@dataclass(frozen=True, slots=True)
@with_lens_options(all_views(), unattended=True)
class RecordOptions:
    """Options and arguments as given, in the order of --help."""

    path: Annotated[str, typer.Argument(metavar="[FILE|DIR/|-]", show_default=False,
                                        help="File to record to, directory for a file per hour, or - for standard "
                                        "output (nettop-HOST-TIME.nettop in the working directory)")] = ""
    lenses: Annotated[str | None, option("--lenses", metavar="A,B,C", panel=_WHAT,
                                         autocompletion=list_completer([lens.id for lens in lenses()]),
                                         help="Lenses to record; findings are always included (all but flows). "
                                         "services and latency, with hooks in each call and packet, and cpu, with "
                                         "997 samples a second, cost most")] = None
    interval: Annotated[str, option("--interval", "-t", metavar="SECONDS", panel=_WHAT,
                                    help="Seconds between readings (1)")] = "1"
    max_overhead: Annotated[str | None, max_overhead_option(_WHAT)] = None
    normal_priority: Annotated[bool, normal_priority_option(_WHAT)] = False
    mechanism: Annotated[list[str] | None, mechanism_option(_WHAT)] = None
    follow_namespaces: Annotated[bool, follow_namespaces_option(_WHAT)] = False
    redact: Annotated[bool, redact_option(_WHAT)] = False
    redact_key: Annotated[Path | None, redact_key_option(_WHAT)] = None
    for_: Annotated[str | None, option("--for", metavar="TIME", panel=_LIMITS,
                                       help="End after this time: 30s, 10m, 6h, 2d (when interrupted)")] = None
    max_size: Annotated[str | None, option("--max-size", metavar="SIZE", panel=_LIMITS,
                                           help="End before FILE exceeds this size (no limit); in a directory, remove "
                                           "the oldest recordings while all exceed it (1G)")] = None
    max_age: Annotated[str | None, option("--max-age", metavar="TIME", panel=_LIMITS,
                                          help="In a directory, remove recordings that ended longer ago than this "
                                          "(7d)")] = None
    # fmt: on


def record_settings(options: RecordOptions) -> RecordSettings:
    """Convert the options to settings. Raise UsageError for invalid values and combinations."""
    interval_s = parse_seconds("--interval", options.interval)
    chosen = _lenses(options.lenses)
    hourly = options.path.endswith("/") or (bool(options.path) and os.path.isdir(options.path))
    if options.max_age is not None and not hourly:
        raise UsageError("--max-age is for a directory of recordings", "end a recording with --for, or name a DIR/")
    tables = [(lens, table) for lens, table in all_views() if lens.id in chosen]
    return RecordSettings(
        path=options.path,
        lenses=chosen,
        hourly=hourly,
        redaction_key=redaction_key(options.redact_key, redacts=options.redact),
        interval_s=interval_s,
        duration_s=_duration(options.for_, interval_s),
        max_bytes=_max_bytes(options.max_size, hourly=hourly),
        max_age_s=7 * DAY_S if options.max_age is None else parse_duration("--max-age", options.max_age, "12h or 7d"),
        mechanisms=parse_mechanisms(options.mechanism),
        max_overhead=parse_overhead(options.max_overhead),
        options=parse_lens_options(options, interval_s, tables, unattended=True),
    )


def _lenses(text: str | None) -> tuple[str, ...]:
    """Return the named lenses and findings, in the order of the screens."""
    known = [lens.id for lens in lenses()]
    named = _DEFAULT_LENSES if text is None else split_names(text)
    if not named:
        raise UsageError("--lenses is empty", "list lenses, separated by commas, or leave it out for all but flows")
    chosen = {checked_word("lens", name, known) for name in named} | {FINDINGS.id}
    return tuple(name for name in known if name in chosen)


def _duration(text: str | None, interval_s: float) -> float | None:
    """Parse --for, a number of seconds or a duration."""
    if text is None:
        return None
    seconds = parse_duration("--for", f"{text}s" if text[-1:].isdigit() else text, "30s, 10m, 6h or 2d")
    if seconds < interval_s:
        raise UsageError(
            f"--for {text} is shorter than an interval", f"use {interval_s:g}s or more, or a lower --interval"
        )
    return seconds


def _max_bytes(text: str | None, *, hourly: bool) -> int | None:
    if text is None:
        return _DIRECTORY_BYTES if hourly else None
    most = parse_size("--max-size", text)
    if most < _MIN_BYTES:
        raise UsageError(f"--max-size {text} is too small", "use 1M or more")
    return most


def start_record(options: RecordOptions, source_of: SourceOf) -> ExitCode:
    """Record until requested to end. Raise NettopError, and BrokenPipeError if the reader has closed the pipe."""
    settings = record_settings(options)  # report a wrong name before the heavy imports
    user = invoking_user()
    if settings.path == STDOUT:
        _check_output()
    else:
        refuse_root_for_caller()
        # nettop becomes the user who owns the files.
        user = file_owner(Path(settings.path))  # of the working directory if there is no path
    with importing():
        from nettop.output.record import run_record

    still_root = why_still_root(user) if source_of is None else None
    with ExitStack() as ends:
        requests = ends.enter_context(requested_by_signals(reopens=False))
        session = ends.enter_context(
            open_session(
                settings.interval_s,
                source_of,
                user,
                follow_namespaces=options.follow_namespaces,
                max_overhead=settings.max_overhead,
                ask_firewall=True,
                together=settings.lenses,
            )
        )
        with explain_root(still_root, _AS_ROOT):
            return run_record(settings, session, requests, sys.stdout, sys.stderr)


def _check_output() -> None:
    """Raise NettopError unless standard output can take a recording."""
    require_output("redirect it to a pipe, or name a FILE")
    if sys.stdout.isatty():
        raise UsageError("standard output is a terminal", "redirect it to a file or a pipe, or name a FILE")
