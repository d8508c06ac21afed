# SPDX-License-Identifier: Apache-2.0
"""`nettop check`: startup."""

from __future__ import annotations

import sys
from pathlib import Path
from shlex import quote

from nettop.commands.invoker import invoking_user
from nettop.commands.options import SourceOf, require_output
from nettop.commands.privilege import open_session
from nettop.commands.recordings import INPUT, moment_of, opened_recording
from nettop.errors import ExitCode
from nettop.process.importing import importing
from nettop.settings import STDOUT
from nettop.settings.check import WATCHED_S, CheckSettings

HELP = "Say what is wrong, who and since when, how sure that is, and what to try."

EXAMPLES = f"""\
nettop check  # watch for {WATCHED_S:g} seconds
nettop check --for 30s || mail -s 'network' ops < /dev/null  # in cron
nettop check --format jsonl | jq -r .finding  # only the sentences
nettop check --ignore 'connects fail' --ignore retransmitting
nettop check --from incident.nettop  # everything that was wrong in a recording

Exit code 1 if there are problems or warnings, 0 if there are none, or only hints, 128 + N if interrupted by signal N;
3, 4 or 5 if there are none, but not everything was watched: 3 this host cannot, 4 a permission is missing, 5 a lens
failed, or was not read twice. A check waits for that up to a minute longer than --for; others as for nettop."""


def start_check(settings: CheckSettings, source_of: SourceOf) -> ExitCode:
    """Watch, and print what was found. Raise NettopError, and BrokenPipeError if the reader has closed the pipe."""
    require_output()
    with importing():
        from nettop.output.check import run_check
        from nettop.output.watching import WATCHED

    if settings.recording is not None:
        return _check_recording(settings, settings.recording, keeps_privileges=source_of is not None)
    user = invoking_user() if source_of is None else None
    with open_session(
        settings.interval_s,
        source_of,
        user,
        follow_namespaces=settings.follow_namespaces,
        ask_firewall=True,
        together=WATCHED,
    ) as session:
        return run_check(settings, session, sys.stdout, sys.stderr)


def _check_recording(settings: CheckSettings, path: Path, *, keeps_privileges: bool) -> ExitCode:
    from nettop.output.check import findings_between, report_found, unwatched_in
    from nettop.recording.moments import parse_length, time_text

    length_ns = parse_length(settings.length) if settings.length else None
    with opened_recording(path, keeps_privileges=keeps_privileges) as recording:
        begin_ns = moment_of(recording, settings.at)
        end_ns = recording.end_ns if length_ns is None else min(begin_ns + length_ns, recording.end_ns)
        found = findings_between(recording, begin_ns, end_ns)
        lacking = unwatched_in(recording, begin_ns, end_ns, settings.ignored)
        command = f"nettop replay {quote(str(path))}"
        span = f" from {time_text(begin_ns)} to {time_text(end_ns)}" if settings.at or length_ns else ""
        where = f"in {INPUT if str(path) == STDOUT else path}{span}"
        return report_found(settings, found, where, sys.stdout, sys.stderr, lacking=lacking, command=command)
