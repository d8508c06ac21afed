# SPDX-License-Identifier: Apache-2.0
"""`nettop export`: startup."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from nettop.commands.invoker import file_owner, invoking_user
from nettop.commands.options import SourceOf, require_output
from nettop.commands.privilege import explain_root, open_session, refuse_root_for_caller
from nettop.commands.recordings import moment_of, opened_recording
from nettop.errors import ExitCode, UsageError
from nettop.process.importing import importing
from nettop.process.interrupts import requested_by_signals
from nettop.settings import STDOUT
from nettop.settings.export import ExportSettings

INTERVAL_S = 1.0
"""Seconds between readings: short enough that the source's bounded tables lose nothing."""

HELP = "Sample stacks for a while and write them as a flame graph, for speedscope, or folded."

EXAMPLES = """\
nettop export cpu.stacks cpu.svg  # 10 seconds as a flame graph for any browser
nettop export cpu.stacks --duration 60 cpu.json  # for https://www.speedscope.app
nettop export cpu.stacks --filter 'entry="RX softirq" cpu=3' rx.svg  # only matching stacks
nettop export cpu.stacks --format folded - | flamegraph.pl > cpu.svg
nettop export cpu.stacks --from incident.nettop --at 14:32 --duration 60 cpu.svg

Ctrl-C stops early and writes the samples so far. An existing file is replaced only once the new one is complete."""


def start_export(settings: ExportSettings, source_of: SourceOf) -> ExitCode:
    """Sample, and write the samples. Raise NettopError, and BrokenPipeError if the reader has closed the pipe."""
    if settings.path == STDOUT:
        require_output("name a FILE to write to")
    with importing():
        from nettop.output.export import run_export

    if settings.recording is not None:
        return _export_recording(settings, settings.recording, keeps_privileges=source_of is not None)
    user = invoking_user()
    if settings.path != STDOUT:
        refuse_root_for_caller()
        # nettop becomes the owner of the file; this applies to regular files only.
        if os.path.isfile(settings.path) or not os.path.exists(settings.path):
            user = file_owner(Path(settings.path))
    opened = open_session(min(INTERVAL_S, settings.duration_s), source_of, user)
    otherwise = "write to a directory that belongs to root, or to standard output (-)"
    with (
        explain_root(user, source_of, otherwise),
        requested_by_signals(reopens=False) as requests,
        opened as session,
    ):
        return run_export(settings, session, requests, sys.stdout, sys.stderr)


def _export_recording(settings: ExportSettings, path: Path, *, keeps_privileges: bool) -> ExitCode:
    """Write what was counted from one moment of a recording to another. Raise Unsupported if it was not recorded."""
    from nettop.output.export import open_output, write_export
    from nettop.recording.moments import time_text
    from nettop.recording.reader import Readings

    with opened_recording(path, keeps_privileges=keeps_privileges) as recording:
        lens, _ = settings.lens_and_table
        begin_ns = recording.first_moment(lens, moment_of(recording, settings.at))
        end_ns = begin_ns + round(settings.duration_s * 1e9)
        if (restarted_ns := recording.restarted_between(begin_ns, end_ns)) is not None:
            moment = time_text(restarted_ns)
            raise UsageError(
                f"nettop record was started anew at {moment}, and its counts with it",
                f"export up to then by --duration, or from then on by --at '{moment}'",
            )
        readings = Readings(recording, lens)
        began, ended = (readings.at(moment_ns) for moment_ns in (begin_ns, end_ns))
        assert began is not None
        assert ended is not None
        if ended.now.wall_ns == began.now.wall_ns:
            raise UsageError(
                f"{lens.title} was read only once from {time_text(begin_ns)} to {time_text(end_ns)}",
                "choose a longer --duration, or an earlier --at: what is counted is between two readings",
            )
        is_early = end_ns > recording.end_ns
        with open_output(settings.path, sys.stdout) as write:
            write_export(settings, began.now, ended.now, recording.host, write, sys.stderr, is_early=is_early)
    return ExitCode.DONE
