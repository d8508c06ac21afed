# SPDX-License-Identifier: Apache-2.0
"""The check frontend: watch every lens that has rules for a while, then print the findings."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, TextIO

from nettop.diagnostics import Diagnostics
from nettop.engine.consumer import Consumer
from nettop.engine.session import Session
from nettop.errors import ExitCode
from nettop.output.status_line import StatusLine
from nettop.output.watching import not_watched, watched
from nettop.query.found import listed
from nettop.recording.moments import exact_text
from nettop.settings import CheckSettings, LineFormat
from nettop.snapshots.findings import FINDINGS, LENS
from nettop.snapshots.schema import Severity
from nettop.snapshots.source import SourceOptions
from nettop.writing import write_output

_SEVERITIES = [severity.value for severity in Severity]


def run_check(settings: CheckSettings, session: Session, stdout: TextIO, stderr: TextIO | None) -> ExitCode:
    """Watch for `settings.duration_s`, print the findings, and return 1 if there are problems or warnings.

    Raise BrokenPipeError if the reader of `stdout` is gone, and the error of the findings lens.
    """
    options = SourceOptions(mechanisms=settings.mechanisms, whole=True)
    with watched(session, options), Consumer(session, LENS.id, (FINDINGS,), options) as consumer:
        found = _watch(settings, consumer, stderr)
        Diagnostics(stderr).report_new(not_watched(session))
    by_rank = sorted(found.values(), key=lambda row: (row["rank"], row["since"]))
    # cron mails every word, and asks for a mail only when something is wrong.
    where = f"in {settings.duration_s:g} s" if stderr is not None and stderr.isatty() else ""
    return report_found(settings, by_rank, where, stdout, stderr)


def report_found(
    settings: CheckSettings,
    found: Iterable[Mapping[str, Any]],
    where: str,
    stdout: TextIO,
    stderr: TextIO | None,
    *,
    command: str = "nettop",
) -> ExitCode:
    """Print findings, the worst first, and return 1 if there are problems or warnings. `command` shows their rows.

    Without any, say `where` nothing was found, unless that is empty.
    """
    chosen = [row for row in found if row["cause"] is None and row["kind"] not in settings.ignored]
    chosen.sort(key=lambda row: _SEVERITIES.index(row["severity"]))
    write_output(stdout, _FORMATS[settings.format](chosen, command), "utf-8")
    if where and not chosen:
        Diagnostics(stderr)(f"nothing found {where}")
    is_wrong = any(row["severity"] != Severity.HINT.value for row in chosen)
    return ExitCode.FAILURE if is_wrong else ExitCode.DONE


def _watch(settings: CheckSettings, consumer: Consumer, stderr: TextIO | None) -> dict[int, dict[str, Any]]:
    """Return every finding seen, by ID, as it was when it was last seen."""
    status, frame = StatusLine(stderr), consumer.first_frame()
    found: dict[int, dict[str, Any]] = {}
    end = time.monotonic() + settings.duration_s
    try:
        while True:
            consumer.raise_failure()
            if consumer.frame is not None and (consumer.frame is not frame or not found):
                frame = consumer.frame
                found |= {row["id"]: row for row in listed(frame, explained=True)}
            left = end - time.monotonic()
            if left <= 0:
                return found
            status.show(f"watching for {left:.0f} s more  (Ctrl-C ends)")
            consumer.wait(timeout_s=min(left, 1.0))
    finally:
        status.show("")


def _text(rows: Sequence[Mapping[str, Any]], command: str) -> str:
    return "".join(_paragraph(row, command) for row in rows)


def _paragraph(row: Mapping[str, Any], command: str) -> str:
    seconds = row["lasted"] / 1e9
    moment = "" if command == "nettop" else f" --at '{_shown_at(row['seen'])}'"
    evidence = f"{command}{moment} --view {row['view']} --filter {shlex.quote(row['filter'])}"
    lines = [
        f"{row['severity']}: {row['finding']}",
        f"  since {row['since'][:19]}Z ({seconds:.0f} s), {row['certainty']}",
        *([f"  explains: {row['explains']}"] if row["explains"] else []),
        f"  try: {row['advice']}",
        f"  see: {evidence}",
    ]
    return "\n".join(lines) + "\n"


def _shown_at(seen: str) -> str:
    """Return the moment at which a replay shows what was read at a time."""
    return exact_text(round(datetime.fromisoformat(seen).timestamp() * 1e6) * 1000)


def _jsonl(rows: Sequence[Mapping[str, Any]], _command: str) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


_FORMATS = {LineFormat.TEXT: _text, LineFormat.JSONL: _jsonl}
