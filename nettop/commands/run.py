# SPDX-License-Identifier: Apache-2.0
"""`nettop run`: startup."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

from nettop.commands.invoker import become, file_owner, invoking_user, open_files_as
from nettop.commands.options import SourceOf
from nettop.commands.privilege import open_session
from nettop.diagnostics import Diagnostics
from nettop.process.importing import importing
from nettop.process.interrupts import delay_interrupts
from nettop.settings.run import INTERVAL_S, RunSettings
from nettop.writing import LineFile, open_to_write, writing

HELP = "Run a command and report the connections that it and its children open."

EXAMPLES = """\
nettop run -- curl -s https://example.com -o /dev/null
nettop run --live -- make test  # each connection as it closes
nettop run --format jsonl --output report.jsonl -- ./deploy.sh

Exit codes: that of the command; 128 + N if killed by signal N; 127 command not found, 126 command cannot run."""

CONTEXT = {"allow_interspersed_args": False}
"""Arguments after the command's name belong to that command."""


def start_run(settings: RunSettings, source_of: SourceOf) -> int:
    """Run the command, report, and return its exit code. Raise NettopError if the command was not started."""
    from nettop.process.child import Child

    user = invoking_user()
    with ExitStack() as resources:
        output = (
            None if settings.output is None else resources.enter_context(closing(_opened(settings.output)))
        )
        # Fork before dropping privileges that the command may need, and before starting a second thread.
        with delay_interrupts():  # a signal must not leak the child
            prepare: Callable[[], None] = (lambda: None) if user is None else partial(become, user)
            child = resources.enter_context(closing(Child(settings.words, prepare)))
        with importing():
            from nettop.output.run import run_command

        opened = open_session(INTERVAL_S, source_of, user, follow_namespaces=settings.follow_namespaces)
        return run_command(settings, resources.enter_context(opened), child, sys.stderr, output)


def _opened(path: str) -> LineFile:
    """Open the report's file as the user who called nettop."""
    with open_files_as(file_owner(Path(path))), writing(path, "choose another --output file"):
        return LineFile(path, open_to_write(path, os.O_CREAT | os.O_TRUNC), Diagnostics(sys.stderr))
