# SPDX-License-Identifier: Apache-2.0
"""What changed between two spans of recordings, in sentences or as JSON Lines."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from typing import Any, TextIO

from nettop.diagnostics import Diagnostics
from nettop.errors import ExitCode, Unsupported
from nettop.query.times import rfc3339
from nettop.recording.diff import TOO_FEW, Change, Difference
from nettop.recording.moments import exact_text
from nettop.settings import LineFormat
from nettop.writing import write_output


def report_changes(  # noqa: PLR0917 - a report, and where it goes
    difference: Difference,
    form: LineFormat,
    limit: int,
    files: tuple[str, str],
    stdout: TextIO,
    stderr: TextIO | None,
) -> ExitCode:
    """Print the most important changes between the spans of two files, and return 1 if one of them is certain.

    Raise Unsupported if no lens could be compared, BrokenPipeError if the reader of `stdout` is gone.
    """
    if not difference.compared:
        are_few = TOO_FEW in difference.not_compared.values()
        remedy = (
            "compare longer spans (--span)" if are_few else "compare recordings that have the same lenses"
        )
        whys = "; ".join(f"{title}: {why}" for title, why in difference.not_compared.items())
        raise Unsupported(f"nothing can be compared: {whys}", remedy)
    report = Diagnostics(stderr)
    shown = enumerate(difference.changes[:limit], 1)
    lines = [_FORMATS[form](number, change, files[0 if change.is_gone else 1]) for number, change in shown]
    write_output(stdout, "".join(lines), "utf-8")
    for note in difference.notes(limit):
        report(note)
    return ExitCode.FAILURE if difference.is_certain else ExitCode.DONE


def _text(number: int, change: Change, file: str) -> str:
    said = f"{number}. {change.certainty.value}: {change.sentence}\n"
    return f"{said}   see: {shlex.join(_evidence(change, file))}\n"


def _evidence(change: Change, file: str) -> Sequence[str]:
    """Return the command that shows a change's rows when it shows most."""
    more = ("--all",) if change.needs_all_rows else ()
    at = exact_text(change.at_ns)
    return ("nettop", "replay", file, "--at", at, "--view", change.view, "--filter", change.filter, *more)


def _jsonl(number: int, change: Change, file: str) -> str:
    row: dict[str, Any] = {
        "rank": number,
        "certainty": change.certainty.value,
        "topic": change.measure.topic,
        "sentence": change.sentence,
        **dict(zip(change.measure.by, change.key, strict=True)),
        "number": change.measure.column,
        "before": change.before,
        "now": change.now,
        "unit": change.unit,
        "file": file,
        "at": rfc3339(change.at_ns),
        "view": change.view,
        "filter": change.filter,
    }
    return json.dumps(row, ensure_ascii=False) + "\n"


_FORMATS = {LineFormat.TEXT: _text, LineFormat.JSONL: _jsonl}
