# SPDX-License-Identifier: Apache-2.0
"""`nettop record`: startup."""

from __future__ import annotations

import sys
from pathlib import Path

from nettop.commands.options import SourceOf, require_file_output
from nettop.commands.privilege import explain_root, open_watching, owner_of_output
from nettop.commands.redaction import redaction_key
from nettop.errors import ExitCode
from nettop.process.importing import importing
from nettop.process.interrupts import requested_by_signals
from nettop.settings import STDOUT
from nettop.settings.record import RecordSettings

HELP = "Record every lens to a file, to replay it later or on another host."

EXAMPLES = """\
nettop record  # to nettop-HOST-TIME.nettop, until Ctrl-C
nettop record --for 10m before-the-change.nettop
nettop record /var/lib/nettop/  # for months: a file for each hour, the oldest are removed
nettop record --lenses connections,drops --interval 5 --max-size 100M FILE
ssh web1 sudo nettop record - > web1.nettop
nettop record --redact --for 10m for-a-ticket.nettop  # with addresses and names replaced

A recording that is there already is continued. A full disk ends the recording; what was recorded until then can be
replayed. Ctrl-C and SIGTERM take a last reading, then end it."""


def start_record(settings: RecordSettings, source_of: SourceOf) -> ExitCode:
    """Record until requested to end. Raise NettopError, and BrokenPipeError if the reader has closed the pipe."""
    key = redaction_key(settings)
    if settings.path == STDOUT:
        require_file_output("name a FILE")
    # Without a path, that is the owner of the working directory.
    user = owner_of_output(None if settings.path == STDOUT else Path(settings.path))
    with importing():
        from nettop.output.record import run_record

    opened = open_watching(settings, source_of, user, ask_firewall=True, together=settings.lenses)
    otherwise = "record to a directory that belongs to root, or to standard output (-)"
    with (
        explain_root(user, source_of, otherwise),
        requested_by_signals(reopens=False) as requests,
        opened as session,
    ):
        return run_record(settings, session, requests, sys.stdout, sys.stderr, redaction_key=key)
