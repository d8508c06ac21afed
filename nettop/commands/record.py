# SPDX-License-Identifier: Apache-2.0
"""`nettop record`: startup."""

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
from nettop.commands.redaction import redaction_key
from nettop.errors import ExitCode, UsageError
from nettop.process.importing import importing
from nettop.process.interrupts import requested_by_signals
from nettop.settings import STDOUT
from nettop.settings.record import RecordSettings

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

_AS_ROOT = """\
install nettop where every user may read it (/opt/nettop), or
record to a directory that belongs to root, or to standard output (-)"""


def start_record(settings: RecordSettings, source_of: SourceOf) -> ExitCode:
    """Record until requested to end. Raise NettopError, and BrokenPipeError if the reader has closed the pipe."""
    key = redaction_key(settings)
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
    with ExitStack() as resources:
        requests = resources.enter_context(requested_by_signals(reopens=False))
        session = resources.enter_context(
            open_watching(settings, source_of, user, ask_firewall=True, together=settings.lenses)
        )
        with explain_root(still_root, _AS_ROOT):
            return run_record(settings, session, requests, sys.stdout, sys.stderr, redaction_key=key)


def _check_output() -> None:
    """Raise NettopError unless standard output can take a recording."""
    require_output("redirect it to a pipe, or name a FILE")
    if sys.stdout.isatty():
        raise UsageError("standard output is a terminal", "redirect it to a file or a pipe, or name a FILE")
