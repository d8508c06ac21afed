# SPDX-License-Identifier: Apache-2.0
"""`nettop export`: its options, its settings, and how it starts."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nettop.commands.invoker import invoking_user, owner_of_files
from nettop.commands.options import (
    checked_word,
    completing,
    mechanism_option,
    option,
    parse_lens_options,
    parse_mechanisms,
    seconds,
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
from nettop.settings import DAY_S, STDOUT, ExportFormat, ExportSettings
from nettop.snapshots import all_views, find_table
from nettop.snapshots.schema import Lens, Table

if TYPE_CHECKING:
    from nettop.snapshots.source import Source

INTERVAL_S = 1.0
"""How often the source is read meanwhile: often enough that its bounded tables keep everything."""

EXPORT_HELP = "Sample for a while and write the stacks: as a flame graph, for speedscope, or folded."

EXPORT_EXAMPLES = """[bold]Examples[/bold]

nettop export cpu.stacks cpu.svg  [dim]ten seconds, as a flame graph for any browser[/dim]

nettop export cpu.stacks --duration 60 cpu.json  [dim]for https://www.speedscope.app[/dim]

nettop export cpu.stacks --filter 'entry="RX softirq" cpu=3' rx.svg  [dim]a part of it[/dim]

nettop export cpu.stacks --format folded - | flamegraph.pl > cpu.svg

Ctrl-C stops early and writes what has been sampled. An existing file is replaced only when the new one is complete."""

_AS_ROOT = """\
install nettop where everybody may read it (/opt/nettop), or
write to a directory of root's, or to standard output (-)"""

_FORMATS = {
    ".folded": ExportFormat.FOLDED,
    ".txt": ExportFormat.FOLDED,
    ".json": ExportFormat.SPEEDSCOPE,
    ".svg": ExportFormat.SVG,
}
"""The formats by a file's ending."""


_EXPORTABLE = [(lens, table) for lens, table in all_views() if table.exports]
_VIEWS = [f"{lens.id}.{table.name}" for lens, table in _EXPORTABLE]


# fmt: off
@with_lens_options(_EXPORTABLE)
@dataclass(frozen=True, slots=True)
class ExportOptions:
    """The options and arguments as they were given, in the order of --help."""

    view: Annotated[str, typer.Argument(metavar="LENS[.TABLE]", autocompletion=completing(_VIEWS),
                                        help=f"Table to export: {', '.join(_VIEWS)}; a lens alone means its "
                                        "first one")]
    file: Annotated[str, typer.Argument(metavar="FILE", help="Output file; - is standard output")]
    format: Annotated[str | None, option("--format", metavar="folded|speedscope|svg",
                                         autocompletion=completing(ExportFormat),
                                         help="By default the file's suffix decides: .folded .txt, .json, .svg")] = None
    duration: Annotated[str, option("--duration", metavar="SECONDS", help="How long to sample (10)")] = "10"
    filter: Annotated[list[str] | None, option("--filter", metavar="TEXT", help="Export only rows that match, as in "
                                               "nettop --filter")] = None
    mechanism: Annotated[list[str] | None, mechanism_option()] = None
    # fmt: on


def export_settings(options: ExportOptions) -> ExportSettings:
    """The settings for these options. Raises UsageError for invalid values."""
    lens, table = _exported(options.view)
    duration_s = seconds("--duration", options.duration, most=DAY_S)
    return ExportSettings(
        view=f"{lens.id}.{table.name}",
        path=options.file,
        format=_format(options, table),
        duration_s=duration_s,
        filters=tuple(options.filter or ()),
        mechanisms=parse_mechanisms(options.mechanism),
        options=parse_lens_options(options, duration_s, [(lens, table)]),
    )


def _exported(view: str) -> tuple[Lens, Table]:
    """The table to export: the one that is named, or a lens's first that has exports."""
    lens, table = find_table(view)
    named = (table,) if "." in view else lens.tables
    exported = next((candidate for candidate in named if candidate.exports), None)
    if exported is None:
        raise UsageError(
            f"{view} has no exports",
            f"{', '.join(_VIEWS)} has some; nettop --view {view} --format csv writes any table",
        )
    return lens, exported


def _format(options: ExportOptions, table: Table) -> ExportFormat:
    """The format that was chosen, or that the file's ending names."""
    if options.format is not None:
        return ExportFormat(checked_word("format", options.format, table.exports))
    form = _FORMATS.get(Path(options.file).suffix.lower())
    if form is None or form not in table.exports:
        raise UsageError(
            "standard output has no suffix that names a format"
            if options.file == STDOUT
            else f"the suffix of {options.file} names no format",
            f"give --format {', '.join(table.exports)}",
        )
    return form


def start_export(options: ExportOptions, source_of: Callable[[str], Source] | None) -> ExitCode:
    """Sample, and write the samples. Raises NettopError, and BrokenPipeError when nobody reads any more.

    `source_of` makes the source of a lens; the probes do if it is None.
    """
    settings = export_settings(options)
    if sys.stdout is None and settings.path == STDOUT:
        raise NettopError("standard output is closed", "give a FILE to write to")
    with undisturbed():
        from nettop.output.export import run_export

    user = invoking_user()
    if settings.path != STDOUT:
        refuse_root_for_caller()
        # Who owns the file writes it: nettop becomes that user. Of what is no regular file it is nobody.
        if os.path.isfile(settings.path) or not os.path.exists(settings.path):
            user = owner_of_files(Path(settings.path))
    still_root = why_still_root(user) if source_of is None else None
    with ExitStack() as ends:
        requests = ends.enter_context(requested_by_signals(reopens=False))
        interval_s = min(INTERVAL_S, settings.duration_s)
        session = ends.enter_context(opened_session(interval_s, source_of, Rights(user)))
        with explaining(still_root, _AS_ROOT):
            return run_export(settings, session, requests, sys.stdout, sys.stderr)
