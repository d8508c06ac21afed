# SPDX-License-Identifier: Apache-2.0
"""`nettop export`: its words, and what is done before its door opens."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nettop.commands.invoker import User, invoking_user, owner_of_files
from nettop.commands.options import (
    checked_word,
    mechanism_option,
    option,
    parse_lens_options,
    parse_mechanisms,
    seconds,
    starting,
    with_lens_options,
)
from nettop.commands.privilege import Rights, explaining, opened_session, why_still_root
from nettop.errors import ExitCode, NettopError, UsageError
from nettop.interrupts import requested_by_signals, undisturbed
from nettop.settings import ExportFormat, ExportSettings, checked_duration
from nettop.snapshots import all_views, find_table
from nettop.snapshots.schema import Lens, Table

if TYPE_CHECKING:
    from nettop.snapshots.source import Source

STDOUT = "-"
"""The FILE that is standard output."""
INTERVAL_S = 1.0
"""How often the source is read meanwhile: often enough that its bounded tables keep everything."""

EXPORT_HELP = "Sample for a while and write the stacks: as a flame graph, for speedscope, or folded."

EXPORT_EXAMPLES = """[bold]Examples[/bold]

nettop export cpu.stacks cpu.svg  [dim]ten seconds, as a flame graph for any browser[/dim]

nettop export cpu.stacks --duration 60 --frequency 199 cpu.json  [dim]for https://www.speedscope.app[/dim]

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


def complete_export_view(incomplete: str) -> list[str]:
    """The views that can be exported and begin like `incomplete`."""
    return starting(_exportable(), incomplete)


def complete_export_format(incomplete: str) -> list[str]:
    """The formats of exports that begin like `incomplete`."""
    return starting(ExportFormat, incomplete)


def _exportable() -> list[str]:
    """The tables that declare exports, as LENS.TABLE."""
    return [f"{lens.id}.{table.name}" for lens, table in _EXPORTABLE]


# fmt: off
@with_lens_options(_EXPORTABLE)
@dataclass(frozen=True, slots=True)
class ExportOptions:
    """The words as they were given: each field is an argument or an option, in the order of --help."""

    view: Annotated[str, typer.Argument(metavar="LENS[.TABLE]", autocompletion=complete_export_view,
                                        help=f"Table to export: {', '.join(_exportable())}; a lens alone means its "
                                        "first one")]
    file: Annotated[str, typer.Argument(metavar="FILE", help="Output file; - is standard output")]
    format: Annotated[str | None, option("--format", metavar="folded|speedscope|svg",
                                         autocompletion=complete_export_format,
                                         help="By default the file's suffix decides: .folded .txt, .json, .svg")] = None
    duration: Annotated[str, option("--duration", metavar="SECONDS", help="How long to sample (10)")] = "10"
    filter: Annotated[list[str] | None, option("--filter", metavar="TEXT", help="Export only rows that match, as in "
                                               "nettop --filter")] = None
    mechanism: Annotated[list[str] | None, mechanism_option()] = None
    # fmt: on


def export_settings(asked: ExportOptions) -> ExportSettings:
    """The settings that the words mean. Raises UsageError for values that mean nothing."""
    lens, table = _exported(asked.view)
    duration_s = checked_duration(seconds("--duration", asked.duration))
    return ExportSettings(
        view=f"{lens.id}.{table.name}",
        path=asked.file,
        format=_format(asked, table),
        duration_s=duration_s,
        filters=tuple(asked.filter or ()),
        mechanisms=parse_mechanisms(asked.mechanism),
        options=parse_lens_options(asked, duration_s, [(lens, table)]),
    )


def _exported(view: str) -> tuple[Lens, Table]:
    """The table to export: the one that is named, or a lens's first that has exports."""
    lens, table = find_table(view)
    named = (table,) if "." in view else lens.tables
    found = next((one for one in named if one.exports), None)
    if found is None:
        raise UsageError(
            f"{view} has no exports",
            f"{', '.join(_exportable())} has some; nettop --view {view} --format csv writes any table",
        )
    return lens, found


def _format(asked: ExportOptions, table: Table) -> ExportFormat:
    """The format that is asked for, or that the file's ending names."""
    if asked.format is not None:
        return ExportFormat(checked_word("format", asked.format, table.exports))
    form = _FORMATS.get(Path(asked.file).suffix.lower())
    if form is None or form not in table.exports:
        raise UsageError(
            "standard output has no suffix that names a format"
            if asked.file == STDOUT
            else f"the suffix of {asked.file} names no format",
            f"give --format {', '.join(table.exports)}",
        )
    return form


def open_export(asked: ExportOptions, source_of: Callable[[str], Source] | None) -> ExitCode:
    """Sample, and write what was met. Raises NettopError, and BrokenPipeError when nobody reads any more.

    `source_of` makes the source of a lens; the probes do if it is None.
    """
    settings = export_settings(asked)
    if sys.stdout is None and settings.path == STDOUT:
        raise NettopError("standard output is closed", "give a FILE to write to")
    with undisturbed():
        from nettop.output.export import run_export

    # Who owns the file writes it: nettop becomes that user.
    user = _owner(settings.path)
    still_root = why_still_root(user) if source_of is None else None
    with ExitStack() as ends:
        requests = ends.enter_context(requested_by_signals())
        interval_s = min(INTERVAL_S, settings.duration_s)
        session = ends.enter_context(opened_session(interval_s, source_of, Rights(user)))
        with explaining(still_root, _AS_ROOT):
            return run_export(settings, session, requests, sys.stdout, sys.stderr)


def _owner(path: str) -> User | None:
    """Who shall own the export: of what is no regular file nobody, so that who called nettop writes to it."""
    is_special = path == STDOUT or (os.path.exists(path) and not os.path.isfile(path))
    return invoking_user() if is_special else owner_of_files(Path(path))
