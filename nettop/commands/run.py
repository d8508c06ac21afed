# SPDX-License-Identifier: Apache-2.0
"""`nettop run`: its options, its settings, and how it starts."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nettop.commands.invoker import invoking_user, opening_as, owner_of_files
from nettop.commands.options import (
    checked_why,
    checked_word,
    completing,
    follow_namespaces_option,
    mechanism_option,
    option,
    parse_lens_options,
    parse_mechanisms,
    why_option,
    with_lens_options,
)
from nettop.commands.privilege import Rights, opened_session
from nettop.diagnostics import Diagnostics
from nettop.errors import UsageError
from nettop.interrupts import undisturbed
from nettop.settings import LineFormat, RunSettings
from nettop.snapshots.connections import EVENTS, LENS
from nettop.writing import LineFile, open_to_write, writing

if TYPE_CHECKING:
    from nettop.snapshots.source import Source

INTERVAL_S = 5.0
"""Nobody looks at the tables while the command runs."""

RUN = "run"
RUN_HELP = "Run a command and report the connections that it and its children make."

RUN_EXAMPLES = """[bold]Examples[/bold]

nettop run -- curl -s https://example.com -o /dev/null

nettop run --live -- make test  [dim]each connection as it ends[/dim]

nettop run --format jsonl --output report.jsonl -- ./deploy.sh

Exit code: the command's; 128 + N if signal N ended it; 127 command not found, 126 command cannot run."""


# fmt: off
@with_lens_options([(LENS, EVENTS)], log=True)
@dataclass(frozen=True, slots=True)
class RunOptions:
    """The options and arguments as they were given, in the order of --help."""

    command: Annotated[list[str] | None, typer.Argument(metavar="-- COMMAND [ARGUMENTS]", show_default=False,
                                                        help="Command to run")] = None
    format: Annotated[str, option("--format", metavar="text|jsonl", autocompletion=completing(LineFormat),
                                  help="A report to read (text) or for programs (jsonl)")] = "text"
    why: Annotated[bool, why_option()] = False
    live: Annotated[bool, option("--live", help="Report each connection as it ends, not all at the end")] = False
    output: Annotated[str | None, option("--output", metavar="FILE",
                                         help="Write the report to FILE, each connection as it ends")] = None
    follow_namespaces: Annotated[bool, follow_namespaces_option()] = False
    mechanism: Annotated[list[str] | None, mechanism_option()] = None
    # fmt: on


def run_settings(options: RunOptions) -> RunSettings:
    """The settings for these options. Raises UsageError for invalid values, and without a command."""
    if not options.command or not options.command[0]:
        raise UsageError("no command to run", "write it after --: nettop run -- curl https://example.com")
    return RunSettings(
        words=tuple(options.command),
        format=LineFormat(checked_word("format", options.format, list(LineFormat))),
        live=options.live,
        output=options.output,
        why=checked_why(options.why, options.format),
        mechanisms=parse_mechanisms(options.mechanism),
        options=parse_lens_options(options, INTERVAL_S, [(LENS, EVENTS)], log=True),
    )


def start_run(options: RunOptions, source_of: Callable[[str], Source] | None) -> int:
    """Run the command, report, and return its exit code. Raises NettopError where it has not begun.

    `source_of` makes the source of a lens; the probes do if it is None.
    """
    settings = run_settings(options)
    from nettop.commands.child import Child

    user = invoking_user()
    rights = Rights(user, follow_namespaces=options.follow_namespaces)
    with ExitStack() as ends:
        output = None if settings.output is None else ends.enter_context(closing(_opened(settings.output)))
        # Before anything is given up that the command may need, and before there is a second thread.
        with undisturbed():  # neither lose the child nor interrupt an import
            child = ends.enter_context(closing(Child(settings.words, user)))
            from nettop.output.run import run_command

        session = ends.enter_context(opened_session(INTERVAL_S, source_of, rights))
        return run_command(settings, session, child, sys.stderr, output)


def _opened(path: str) -> LineFile:
    """Open the report's file, which belongs to the caller of nettop."""
    with opening_as(owner_of_files(Path(path))), writing(path, "give --output another file"):
        return LineFile(path, open_to_write(path, os.O_CREAT | os.O_TRUNC), Diagnostics(sys.stderr))
