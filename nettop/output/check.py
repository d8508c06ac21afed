# SPDX-License-Identifier: Apache-2.0
"""The check frontend: watch every lens that has rules for a while, then print the findings."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from itertools import islice, pairwise
from typing import Any, TextIO

from nettop.diagnostics import Diagnostics, StatusLine
from nettop.engine.bus import Bus
from nettop.engine.consumer import Consumer
from nettop.engine.session import Session
from nettop.errors import ExitCode, SourceFailed, Unsupported, UsageError
from nettop.output.watching import Unwatched, needed_lenses, not_watched, unread, watched
from nettop.query.finding_tracker import KEPT_S
from nettop.query.findings import INTERVAL_TOLERANCE
from nettop.query.found import listed
from nettop.query.times import rfc3339
from nettop.query.units import plural
from nettop.recording.moments import exact_text, time_text
from nettop.recording.reader import GAP_INTERVALS, Readings
from nettop.recording.recording import Recording
from nettop.settings import LineFormat
from nettop.settings.check import CheckSettings
from nettop.snapshots import all_rules
from nettop.snapshots.findings import FINDINGS, LENS
from nettop.snapshots.schema import Severity
from nettop.snapshots.snapshot import Frame, Snapshot
from nettop.snapshots.source import SourceOptions
from nettop.writing import write_output

_SEVERITIES = [severity.value for severity in Severity]
_TOO_FEW = "too few readings"
LONGEST_WAIT_S = 60.0
"""Maximum seconds longer than asked for that a check waits for two readings of each lens."""
_RULES_WAIT_S = max(rule.after_s for _, _, rule in all_rules().values())
"""Maximum seconds for which rows match before they are a finding."""


def run_check(settings: CheckSettings, session: Session, stdout: TextIO, stderr: TextIO | None) -> ExitCode:
    """Watch for `settings.duration_s`, or until each lens was read twice, print the findings, and return the exit code
    of `report_found`.

    Raise BrokenPipeError if the reader of `stdout` is gone, and the error of the findings lens.
    """
    options = SourceOptions(mechanisms=settings.mechanisms, whole=True)
    with watched(session, options), Consumer(session, LENS.id, (FINDINGS,), options) as consumer:
        consumer.first_frame()
        began = time.monotonic()
        found, late = _watch(settings, session, consumer, stderr)
        lasted_s = time.monotonic() - began
        missed = f"; {session.late} {plural('reading', session.late)} missed" if session.late else ""
        lacking = not_watched(session.bus, settings.ignored)
        why = f"{_TOO_FEW} in {lasted_s:.0f} s{missed}"
        lacking += [Unwatched(what, why, ExitCode.SOURCE) for what in late]
    by_rank = sorted(found.values(), key=lambda row: (row["rank"], row["since"]))
    # cron mails every word, and asks for a mail only when something is wrong.
    where = f"in {round(lasted_s, 1):g} s{missed}" if stderr is not None and stderr.isatty() else ""
    return report_found(settings, by_rank, where, stdout, stderr, lacking=lacking)


def report_found(
    settings: CheckSettings,
    found: Iterable[Mapping[str, Any]],
    where: str,
    stdout: TextIO,
    stderr: TextIO | None,
    *,
    lacking: Sequence[Unwatched],
    command: str = "nettop",
) -> ExitCode:
    """Print findings, the worst first, and return 1 if there are problems or warnings, else the exit code of what was
    not watched, if there is any. `command` shows the rows of findings.

    Say what was `lacking`; without that and without findings, `where` nothing was found, unless that is empty.
    """
    chosen = [row for row in found if row["cause"] is None and row["kind"] not in settings.ignored]
    chosen.sort(key=lambda row: _SEVERITIES.index(row["severity"]))
    write_output(stdout, "".join(_FORMATS[settings.format](row, command) for row in chosen), "utf-8")
    code = max((reason.code for reason in lacking), default=ExitCode.DONE)
    Diagnostics(stderr).report_new(map(str, lacking))
    if where and not chosen and code is ExitCode.DONE:
        Diagnostics(stderr)(f"nothing found {where}")
    is_wrong = any(row["severity"] != Severity.HINT.value for row in chosen)
    return ExitCode.FAILURE if is_wrong else code


def unwatched_in(
    recording: Recording, begin_ns: int, end_ns: int, ignored: Collection[str] = ()
) -> list[Unwatched]:
    """Return what nobody watched between two moments of a recording: when, and which lenses."""
    bus = Bus()
    for lens in needed_lenses(ignored):
        moments = islice(recording.moments_between(lens, begin_ns, end_ns), 2)
        snapshots = [reading.now for _, reading in Readings(recording, lens).each(moments)]
        if snapshots[1:]:
            bus.publish(snapshots[1])
        else:
            is_recorded = lens.id in recording.lenses
            bus.fail(lens.id, SourceFailed(_TOO_FEW) if is_recorded else recording.refusal(lens))
    spans = unwatched(recording, begin_ns, end_ns)
    lacking = [Unwatched(LENS.title, f"no readings {span}", ExitCode.SOURCE) for span in spans]
    return [reason for reason in (*lacking, *not_watched(bus, ignored)) if reason.code is not ExitCode.DONE]


def _watch(
    settings: CheckSettings, session: Session, consumer: Consumer, stderr: TextIO | None
) -> tuple[dict[int, dict[str, Any]], list[str]]:
    """Return every finding seen, by ID, as it was when last seen, and the lenses that were not judged in time."""
    status, frame = StatusLine(stderr), None
    found: dict[int, dict[str, Any]] = {}
    first: dict[str, Snapshot] = {}
    late, judged_ns = [LENS.title], None
    waits_ns = INTERVAL_TOLERANCE * 1e9 * min(settings.duration_s - 2 * settings.interval_s, _RULES_WAIT_S)
    end = time.monotonic() + settings.duration_s
    try:
        while True:
            consumer.raise_failure()
            if consumer.frame is not None and consumer.frame is not frame:
                frame = consumer.frame
                found |= {row["id"]: row for row in listed(frame, explained=True)}
                if judged_ns is None and not (
                    late := unread(session.bus, first, frame.now, settings.ignored)
                ):
                    judged_ns = frame.now.boot_ns
            is_judged = frame and judged_ns is not None and frame.now.boot_ns - judged_ns >= waits_ns
            left, more = end - time.monotonic(), "more"
            if left <= 0 and is_judged:
                return found, []
            if left <= 0:
                left, more = left + LONGEST_WAIT_S, "longer, until each lens was read often enough"
            if left <= 0:
                return found, late or [LENS.title]
            status.show(f"watching for {left:.0f} s {more}  (Ctrl-C ends)")
            consumer.wait(timeout_s=min(left, 1.0))
    finally:
        status.show("")


def _text(row: Mapping[str, Any], command: str) -> str:
    seconds = row["lasted"] / 1e9
    moment = ""
    if command != "nettop":  # when a replay shows what was read then
        seen_ns = round(datetime.fromisoformat(row["seen"]).timestamp() * 1e6) * 1000
        moment = f" --at '{exact_text(seen_ns)}'"
    evidence = f"{command}{moment} --view {row['view']} --filter {shlex.quote(row['filter'])}"
    lines = [
        f"{row['severity']}: {row['finding']}",
        f"  since {row['since'][:19]}Z ({seconds:.0f} s), {row['certainty']}",
        *([f"  explains: {row['explains']}"] if row["explains"] else []),
        f"  try: {row['advice']}",
        f"  see: {evidence}",
    ]
    return "\n".join(lines) + "\n"


def _jsonl(row: Mapping[str, Any], _command: str) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


_FORMATS = {LineFormat.TEXT: _text, LineFormat.JSONL: _jsonl}


# --- findings of a recording ----------------------------------------------------------------------------------

_SAID = ("finding", "since", "lasted", "view", "filter")
"""What is said of every finding. Rows that lack some of it are no findings of ours."""


def findings_between(recording: Recording, begin_ns: int, end_ns: int) -> list[dict[str, Any]]:
    """Return every finding seen between two moments, in the order of their times, as it was when it was last seen: at
    `seen`. One that comes back after it had gone is another.

    Raise Unsupported if findings were not recorded, and UsageError if nobody looked for them between these moments:
    that none were found would be no news.
    """
    if LENS.id not in recording.lenses:
        raise Unsupported("the recording has no findings", "record them: nettop record always does")
    first_ns = recording.first_moment(LENS, begin_ns)
    if first_ns > end_ns:
        raise UsageError(
            f"nobody looked for findings from {time_text(begin_ns)} to {time_text(end_ns)} UTC",
            f"the next reading is at {time_text(first_ns)}",
        )
    readings = Readings(recording, LENS)
    found: list[dict[str, Any]] = []
    last: dict[int, tuple[int, int]] = {}
    """Where each finding is in `found`, and when it was last seen."""
    for moment, reading in readings.each(recording.moments_between(LENS, begin_ns, end_ns)):
        for row in listed(Frame(reading.now), explained=True):
            if row["unseen"] or None in map(row.get, _SAID):
                continue
            at, seen_ns = last.get(row["id"], (-1, 0))
            row["seen"] = rfc3339(moment)
            if at >= 0 and moment - seen_ns <= KEPT_S * 1e9:
                found[at] = row
            else:
                at = len(found)
                found.append(row)
            last[row["id"]] = at, moment
    return found


def unwatched(recording: Recording, begin_ns: int, end_ns: int) -> list[str]:
    """Return the spans between two moments in which nobody looked for findings, as text. In a shorter span than
    findings are kept, none would be missed."""
    interval_s = max(placed.group.interval_s for placed in recording.groups)
    longest_ns = max(KEPT_S, GAP_INTERVALS * interval_s) * 1e9
    moments = [begin_ns, *recording.moments_between(LENS, begin_ns, end_ns), end_ns]
    return [
        f"from {time_text(last)} to {time_text(next_)} UTC"
        for last, next_ in pairwise(moments)
        if next_ - last > longest_ns
    ]
