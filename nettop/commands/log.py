# SPDX-License-Identifier: Apache-2.0
"""`nettop log`: startup."""

from __future__ import annotations

import sys
from pathlib import Path

from nettop.commands.options import SourceOf, require_output
from nettop.commands.privilege import explain_root, open_watching, owner_of_output
from nettop.errors import ExitCode
from nettop.process.importing import importing
from nettop.process.interrupts import requested_by_signals
from nettop.settings.log import LogSettings
from nettop.snapshots import logged_views
from nettop.snapshots.own_cost import SELF

HELP = "Log connection events as they happen, and metrics of open connections at an interval."

EXAMPLES = """\
nettop log  # events and metrics, to the console and to log/
nettop log --events-only --log-dir none --filter 'event=fail'  # failures, to the console only
nettop log --format jsonl --log-dir /var/log/nettop --no-console  # as a service
nettop log --lens connections --lens drops --metrics-interval 10
nettop log --events-only --columns event,reason,remote

On SIGHUP, nettop reopens the files; on SIGTERM, it flushes what is left, then exits."""


def start_log(settings: LogSettings, source_of: SourceOf) -> ExitCode:
    """Log until requested to end. Raise NettopError, and BrokenPipeError if the reader has closed the pipe."""
    lenses = {lens.id for lens, _ in logged_views(settings.views)}
    if settings.directory is None:
        require_output("set --log-dir to a directory")
    with importing():
        from nettop.output.log import run_log

    user = owner_of_output(None if settings.directory is None else Path(settings.directory))
    opened = open_watching(settings, source_of, user, program_statistics=SELF.id in lenses, together=lenses)
    otherwise = "set --log-dir to a directory that belongs to root, or to none for the console only"
    with explain_root(user, source_of, otherwise), requested_by_signals() as requests, opened as session:
        return run_log(settings, session, requests, sys.stdout, sys.stderr)
