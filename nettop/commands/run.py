# SPDX-License-Identifier: Apache-2.0
"""`nettop run`: options, settings and startup."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from nettop.commands.invoker import become, file_owner, invoking_user, open_files_as
from nettop.commands.options import (
    SourceOf,
    checked_why,
    checked_word,
    completer,
    follow_namespaces_option,
    mechanism_option,
    option,
    parse_lens_options,
    parse_mechanisms,
    why_option,
    with_lens_options,
)
from nettop.commands.privilege import open_session
from nettop.diagnostics import Diagnostics
from nettop.errors import UsageError
from nettop.process.importing import importing
from nettop.process.interrupts import delay_interrupts
from nettop.settings import LineFormat, RunSettings
from nettop.snapshots.connections import EVENTS, LENS
from nettop.writing import LineFile, open_to_write, writing

INTERVAL_S = 5.0
"""Seconds between readings: long, as nobody looks at the tables while the command runs."""

HELP = "Run a command and report the connections that it and its children open."

EXAMPLES = """[bold]Examples[/bold]

nettop run -- curl -s https://example.com -o /dev/null

nettop run --live -- make test  [dim]each connection as it closes[/dim]

nettop run --format jsonl --output report.jsonl -- ./deploy.sh

Exit codes: that of the command; 128 + N if killed by signal N; 127 command not found, 126 command cannot run."""

CONTEXT = {"allow_interspersed_args": False}
"""Arguments after the command's name belong to that command."""


# fmt: off
@dataclass(frozen=True, slots=True)
@with_lens_options([(LENS, EVENTS)], log=True)
class RunOptions:
    """Options and arguments as given, in the order of --help."""

    command: Annotated[list[str] | None, typer.Argument(metavar="-- COMMAND [ARGUMENTS]", show_default=False,
                                                        help="Command to run")] = None
    format: Annotated[str, option("--format", metavar="text|jsonl", autocompletion=completer(LineFormat),
                                  help="Report format: text for people, jsonl for programs (text)")] = "text"
    why: Annotated[bool, why_option()] = False
    live: Annotated[bool, option("--live", help="Report each connection as it closes, not all at the end")] = False
    output: Annotated[str | None, option("--output", metavar="FILE",
                                         help="Write the report to FILE, each connection as it closes")] = None
    follow_namespaces: Annotated[bool, follow_namespaces_option()] = False
    mechanism: Annotated[list[str] | None, mechanism_option()] = None
    # fmt: on


def run_settings(options: RunOptions) -> RunSettings:
    """Convert the options to settings. Raise UsageError for invalid values and a missing command."""
    if not options.command or not options.command[0]:
        raise UsageError("no command to run", "write it after --, like nettop run -- curl https://example.com")
    return RunSettings(
        words=tuple(options.command),
        format=LineFormat(checked_word("format", options.format, list(LineFormat))),
        live=options.live,
        output=options.output,
        why=checked_why(options.why, options.format),
        mechanisms=parse_mechanisms(options.mechanism),
        options=parse_lens_options(options, INTERVAL_S, [(LENS, EVENTS)], log=True),
    )


def start_run(options: RunOptions, source_of: SourceOf) -> int:
    """Run the command, report, and return its exit code. Raise NettopError if the command was not started."""
    settings = run_settings(options)
    from nettop.process.child import Child

    user = invoking_user()
    with ExitStack() as ends:
        output = None if settings.output is None else ends.enter_context(closing(_opened(settings.output)))
        # Fork before dropping privileges that the command may need, and before starting a second thread.
        with delay_interrupts():  # a signal must not leak the child
            prepare: Callable[[], None] = (lambda: None) if user is None else partial(become, user)
            child = ends.enter_context(closing(Child(settings.words, prepare)))
        with importing():
            from nettop.output.run import run_command

        opened = open_session(INTERVAL_S, source_of, user, follow_namespaces=options.follow_namespaces)
        return run_command(settings, ends.enter_context(opened), child, sys.stderr, output)


def _opened(path: str) -> LineFile:
    """Open the report's file as the user who called nettop."""
    with open_files_as(file_owner(Path(path))), writing(path, "choose another --output file"):
        return LineFile(path, open_to_write(path, os.O_CREAT | os.O_TRUNC), Diagnostics(sys.stderr))
