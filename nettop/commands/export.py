# SPDX-License-Identifier: Apache-2.0
"""`nettop export`: options, settings and startup."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from nettop.commands.invoker import file_owner, invoking_user
from nettop.commands.options import (
    SourceOf,
    checked_word,
    completer,
    mechanism_option,
    option,
    parse_lens_options,
    parse_mechanisms,
    parse_seconds,
    require_output,
    with_lens_options,
)
from nettop.commands.privilege import (
    explain_root,
    open_session,
    refuse_root_for_caller,
    why_still_root,
)
from nettop.commands.recordings import (
    at_option,
    check_source,
    from_option,
    moment_of,
    opened_recording,
)
from nettop.errors import ExitCode, UsageError
from nettop.process.importing import importing
from nettop.process.interrupts import requested_by_signals
from nettop.settings import DAY_S, STDOUT, ExportFormat, ExportSettings
from nettop.snapshots import all_views, find_table
from nettop.snapshots.schema import Lens, Table

INTERVAL_S = 1.0
"""Seconds between readings: short enough that the source's bounded tables lose nothing."""

HELP = "Sample stacks for a while and write them as a flame graph, for speedscope, or folded."

EXAMPLES = """[bold]Examples[/bold]

nettop export cpu.stacks cpu.svg  [dim]10 seconds as a flame graph for any browser[/dim]

nettop export cpu.stacks --duration 60 cpu.json  [dim]for https://www.speedscope.app[/dim]

nettop export cpu.stacks --filter 'entry="RX softirq" cpu=3' rx.svg  [dim]only matching stacks[/dim]

nettop export cpu.stacks --format folded - | flamegraph.pl > cpu.svg

nettop export cpu.stacks --from incident.nettop --at 14:32 --duration 60 cpu.svg

Ctrl-C stops early and writes the samples so far. An existing file is replaced only once the new one is complete."""

_AS_ROOT = """\
install nettop where every user may read it (/opt/nettop), or
write to a directory that belongs to root, or to standard output (-)"""

_FORMATS = {
    ".folded": ExportFormat.FOLDED,
    ".txt": ExportFormat.FOLDED,
    ".json": ExportFormat.SPEEDSCOPE,
    ".svg": ExportFormat.SVG,
}
"""Format by file suffix."""


_EXPORTABLE = [(lens, table) for lens, table in all_views() if table.exports]
_VIEWS = [f"{lens.id}.{table.name}" for lens, table in _EXPORTABLE]


# fmt: off
@dataclass(frozen=True, slots=True)
@with_lens_options(_EXPORTABLE)
class ExportOptions:
    """Options and arguments as given, in the order of --help."""

    view: Annotated[str, typer.Argument(metavar="LENS[.TABLE]", autocompletion=completer(_VIEWS),
                                        help=f"Table to export: {', '.join(_VIEWS)}; a lens alone means its "
                                        "first such table")]
    file: Annotated[str, typer.Argument(metavar="FILE", help="Output file; - for standard output")]
    format: Annotated[str | None, option("--format", metavar="folded|speedscope|svg",
                                         autocompletion=completer(ExportFormat),
                                         help="Output format (by suffix of FILE: .folded or .txt, .json, .svg)")] = None
    duration: Annotated[str, option("--duration", metavar="SECONDS", help="Seconds to sample (10)")] = "10"
    filter: Annotated[list[str] | None, option("--filter", metavar="TEXT", help="Export only matching rows, as in "
                                               "nettop --filter")] = None
    recording: Annotated[Path | None, from_option("Export from")] = None
    at: Annotated[str | None, at_option()] = None
    mechanism: Annotated[list[str] | None, mechanism_option()] = None
    # fmt: on


def export_settings(options: ExportOptions) -> ExportSettings:
    """Convert the options to settings. Raise UsageError for invalid values."""
    lens, table = _exported(options.view, options.recording)
    duration_s = parse_seconds("--duration", options.duration, most=DAY_S)
    return ExportSettings(
        view=f"{lens.id}.{table.name}",
        path=options.file,
        format=_format(options, table),
        duration_s=duration_s,
        filters=tuple(options.filter or ()),
        mechanisms=parse_mechanisms(options.mechanism),
        options=parse_lens_options(options, duration_s, [(lens, table)]),
    )


def _exported(view: str, recording: Path | None) -> tuple[Lens, Table]:
    """Return the named table, or the lens's first table that can be exported. Raise UsageError if it cannot be."""
    lens, table = find_table(view)
    named = (table,) if "." in view else lens.tables
    exported = next((candidate for candidate in named if candidate.exports), None)
    if exported is None:
        writes = "nettop" if recording is None else f"nettop replay {quote(str(recording))}"
        raise UsageError(
            f"{view} cannot be exported",
            f"export {', '.join(_VIEWS)}, or write any table with {writes} --view {view} --format csv",
        )
    return lens, exported


def _format(options: ExportOptions, table: Table) -> ExportFormat:
    """Return the chosen format, or the one that the file's suffix implies."""
    if options.format is not None:
        return ExportFormat(checked_word("format", options.format, table.exports))
    form = _FORMATS.get(Path(options.file).suffix.lower())
    if form is None or form not in table.exports:
        raise UsageError(
            "standard output has no suffix to derive a format from"
            if options.file == STDOUT
            else f"no format is known for the suffix of {options.file}",
            f"add --format {' or '.join(table.exports)}",
        )
    return form


def start_export(options: ExportOptions, source_of: SourceOf) -> ExitCode:
    """Sample, and write the samples. Raise NettopError, and BrokenPipeError if the reader has closed the pipe."""
    settings = export_settings(options)
    check_source(options)
    if settings.path == STDOUT:
        require_output("name a FILE to write to")
    with importing():
        from nettop.output.export import run_export

    if options.recording is not None:
        return _export_recording(
            settings, options.recording, options.at, keeps_privileges=source_of is not None
        )
    user = invoking_user()
    if settings.path != STDOUT:
        refuse_root_for_caller()
        # nettop becomes the owner of the file; this applies to regular files only.
        if os.path.isfile(settings.path) or not os.path.exists(settings.path):
            user = file_owner(Path(settings.path))
    still_root = why_still_root(user) if source_of is None else None
    with ExitStack() as ends:
        requests = ends.enter_context(requested_by_signals(reopens=False))
        interval_s = min(INTERVAL_S, settings.duration_s)
        session = ends.enter_context(open_session(interval_s, source_of, user))
        with explain_root(still_root, _AS_ROOT):
            return run_export(settings, session, requests, sys.stdout, sys.stderr)


def _export_recording(
    settings: ExportSettings, path: Path, at: str | None, *, keeps_privileges: bool
) -> ExitCode:
    """Write what was counted from one moment of a recording to another. Raise Unsupported if it was not recorded."""
    from nettop.output.export import open_output, write_export
    from nettop.recording.moments import time_text
    from nettop.recording.reader import Readings

    with opened_recording(path, keeps_privileges=keeps_privileges) as recording:
        lens, _ = find_table(settings.view)
        begin_ns = recording.first_moment(lens, moment_of(recording, at))
        end_ns = begin_ns + round(settings.duration_s * 1e9)
        if (restarted_ns := recording.restarted_between(begin_ns, end_ns)) is not None:
            moment = time_text(restarted_ns)
            raise UsageError(
                f"nettop record was started anew at {moment}, and its counts with it",
                f"export up to then by --duration, or from then on by --at '{moment}'",
            )
        readings = Readings(recording, lens)
        began, ended = (readings.at(moment_ns) for moment_ns in (begin_ns, end_ns))
        assert began is not None
        assert ended is not None
        if ended.now.wall_ns == began.now.wall_ns:
            raise UsageError(
                f"{lens.title} was read only once from {time_text(begin_ns)} to {time_text(end_ns)}",
                "choose a longer --duration, or an earlier --at: what is counted is between two readings",
            )
        is_early = end_ns > recording.end_ns
        with open_output(settings.path, sys.stdout) as write:
            write_export(
                settings, began.now, ended.now, recording.host, write, sys.stderr, is_early=is_early
            )
    return ExitCode.DONE
