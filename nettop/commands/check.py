# SPDX-License-Identifier: Apache-2.0
"""`nettop check`: options and startup."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Annotated

from nettop.commands.invoker import invoking_user
from nettop.commands.options import (
    SourceOf,
    checked_word,
    completer,
    follow_namespaces_option,
    mechanism_option,
    normal_priority_option,
    option,
    parse_mechanisms,
    parse_seconds,
    require_output,
)
from nettop.commands.privilege import open_session
from nettop.commands.recordings import (
    INPUT,
    at_option,
    check_source,
    from_option,
    moment_of,
    opened_recording,
)
from nettop.errors import ExitCode
from nettop.process.importing import importing
from nettop.settings import DAY_S, STDOUT, CheckSettings, LineFormat
from nettop.snapshots import all_rules

HELP = "Say what is wrong, who and since when, how sure that is, and what to try."

KINDS = tuple(all_rules())
WATCHED_S = 2 + max(rule.after_s for _, _, rule in all_rules().values())
"""Seconds to watch, unless --for says otherwise: a rate needs two readings, and then rules wait. A longer interval is
watched once."""

EXAMPLES = f"""[bold]Examples[/bold]

nettop check  [dim]watch for {WATCHED_S:g} seconds[/dim]

nettop check --for 30s || mail -s 'network' ops < /dev/null  [dim]in cron[/dim]

nettop check --format jsonl | jq -r .finding  [dim]only the sentences[/dim]

nettop check --ignore 'connects fail' --ignore retransmitting

nettop check --from incident.nettop  [dim]everything that was wrong in a recording[/dim]

Exit code 1 if there are problems or warnings, 0 if there are none, or only hints, 128 + N if interrupted by signal N;
3, 4 or 5 if there are none, but not everything was watched: 3 this host cannot, 4 a permission is missing, 5 a lens
failed, or was not read twice. A check waits for that up to a minute longer than --for; others as for nettop."""


# fmt: off
@dataclass(frozen=True, slots=True)
class CheckOptions:
    """Options as given, in the order of --help."""

    for_: Annotated[str, option("--for", metavar="SECONDS", help=f"Seconds to watch ({WATCHED_S:g}), or of the "
                                "recording to look at (all of it)")] = ""
    interval: Annotated[str, option("--interval", "-t", metavar="SECONDS", help="Seconds between readings (1)")] = ""
    ignore: Annotated[list[str] | None, option("--ignore", metavar="KIND", autocompletion=completer(KINDS),
                                               help="Leave out findings of this kind; repeatable")] = None
    format: Annotated[str, option("--format", metavar="text|jsonl", autocompletion=completer(LineFormat),
                                  help="Output format (text)")] = "text"
    recording: Annotated[Path | None, from_option("Check")] = None
    at: Annotated[str | None, at_option()] = None
    mechanism: Annotated[list[str] | None, mechanism_option()] = None
    normal_priority: Annotated[bool, normal_priority_option()] = False
    follow_namespaces: Annotated[bool, follow_namespaces_option()] = False
    # fmt: on


def check_settings(options: CheckOptions) -> CheckSettings:
    """Convert the options to settings. Raise UsageError for invalid values."""
    interval_s = parse_seconds("--interval", options.interval or "1")
    for_ = options.for_.removesuffix("s") if options.recording is None else ""
    return CheckSettings(
        duration_s=parse_seconds("--for", for_ or str(max(interval_s, WATCHED_S)), interval_s, DAY_S),
        interval_s=interval_s,
        format=LineFormat(checked_word("format", options.format, list(LineFormat))),
        ignored=frozenset(checked_word("kind of finding", kind, list(KINDS)) for kind in options.ignore or ()),
        mechanisms=parse_mechanisms(options.mechanism),
    )


def start_check(options: CheckOptions, source_of: SourceOf) -> ExitCode:
    """Watch, and print what was found. Raise NettopError, and BrokenPipeError if the reader has closed the pipe."""
    settings = check_settings(options)
    check_source(options)
    require_output()
    with importing():
        from nettop.output.check import run_check
        from nettop.output.watching import WATCHED

    if options.recording is not None:
        return _check_recording(options, settings, options.recording, keeps_privileges=source_of is not None)
    user = invoking_user() if source_of is None else None
    with open_session(
        settings.interval_s,
        source_of,
        user,
        follow_namespaces=options.follow_namespaces,
        ask_firewall=True,
        together=WATCHED,
    ) as session:
        return run_check(settings, session, sys.stdout, sys.stderr)


def _check_recording(
    options: CheckOptions, settings: CheckSettings, path: Path, *, keeps_privileges: bool
) -> ExitCode:
    from nettop.output.check import report_found, unwatched_in
    from nettop.recording.findings import findings_between
    from nettop.recording.moments import parse_length, time_text

    length_ns = parse_length(options.for_) if options.for_ else None
    with opened_recording(path, keeps_privileges=keeps_privileges) as recording:
        begin_ns = moment_of(recording, options.at)
        end_ns = recording.end_ns if length_ns is None else min(begin_ns + length_ns, recording.end_ns)
        found = findings_between(recording, begin_ns, end_ns)
        lacking = unwatched_in(recording, begin_ns, end_ns, settings.ignored)
        command = f"nettop replay {quote(str(path))}"
        span = f" from {time_text(begin_ns)} to {time_text(end_ns)}" if options.at or length_ns else ""
        where = f"in {INPUT if str(path) == STDOUT else path}{span}"
        return report_found(settings, found, where, sys.stdout, sys.stderr, lacking=lacking, command=command)
