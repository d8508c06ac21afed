# SPDX-License-Identifier: Apache-2.0
"""`nettop log`: startup."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path

from nettop.commands.invoker import file_owner, invoking_user
from nettop.commands.options import SourceOf, require_output
from nettop.commands.privilege import (
    explain_root,
    open_watching,
    refuse_root_for_caller,
    why_still_root,
)
from nettop.errors import ExitCode
from nettop.process.importing import importing
from nettop.process.interrupts import requested_by_signals
from nettop.settings.log import LogSettings
from nettop.snapshots import logged_views
from nettop.snapshots.own_cost import SELF

HELP = "Log connection events as they happen, and metrics of open connections at an interval."

EXAMPLES = """[bold]Examples[/bold]

nettop log  [dim]events and metrics, to the console and to log/[/dim]

nettop log --events-only --log-dir none --filter 'event=fail'  [dim]failures, to the console only[/dim]

nettop log --format jsonl --log-dir /var/log/nettop --no-console  [dim]as a service[/dim]

nettop log --lens connections --lens drops --metrics-interval 10

nettop log --events-only --columns event,reason,remote

On SIGHUP, nettop reopens the files; on SIGTERM, it flushes what is left, then exits."""

_AS_ROOT = """\
install nettop where every user may read it (/opt/nettop), or
set --log-dir to a directory that belongs to root, or to none for the console only"""


def start_log(settings: LogSettings, source_of: SourceOf) -> ExitCode:
    """Log until requested to end. Raise NettopError, and BrokenPipeError if the reader has closed the pipe."""
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
    with ExitStack() as resources:
        requests = resources.enter_context(requested_by_signals())
        session = resources.enter_context(
            open_watching(settings, source_of, user, program_statistics=SELF.id in lenses, together=lenses)
        )
        with explain_root(still_root, _AS_ROOT):
            return run_log(settings, session, requests, sys.stdout, sys.stderr)
