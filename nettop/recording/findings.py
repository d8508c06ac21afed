# SPDX-License-Identifier: Apache-2.0
"""The findings in a recording."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from nettop.errors import Unsupported, UsageError
from nettop.query.finding_tracker import KEPT_S
from nettop.query.found import listed
from nettop.query.times import rfc3339
from nettop.recording.moments import time_text
from nettop.recording.reader import GAP_INTERVALS, Readings
from nettop.recording.recording import Recording
from nettop.snapshots.findings import LENS as FINDINGS
from nettop.snapshots.snapshot import Frame

_SAID = ("finding", "since", "lasted", "view", "filter")
"""What is said of every finding. Rows that lack some of it are no findings of ours."""


def findings_between(recording: Recording, begin_ns: int, end_ns: int) -> list[dict[str, Any]]:
    """Return every finding seen between two moments, in the order of their times, as it was when it was last seen: at
    `seen`. One that comes back after it had gone is another.

    Raise Unsupported if findings were not recorded, and UsageError if nobody looked for them between these moments:
    that none were found would be no news.
    """
    if FINDINGS.id not in recording.lenses:
        raise Unsupported("the recording has no findings", "record them: nettop record always does")
    first_ns = recording.first_moment(FINDINGS, begin_ns)
    if first_ns > end_ns:
        raise UsageError(
            f"nobody looked for findings from {time_text(begin_ns)} to {time_text(end_ns)} UTC",
            f"the next reading is at {time_text(first_ns)}",
        )
    readings = Readings(recording, FINDINGS)
    found: list[dict[str, Any]] = []
    last: dict[int, tuple[int, int]] = {}
    """Where each finding is in `found`, and when it was last seen."""
    for moment, reading in readings.each(recording.moments_between(FINDINGS, begin_ns, end_ns)):
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
    moments = [begin_ns, *recording.moments_between(FINDINGS, begin_ns, end_ns), end_ns]
    return [
        f"from {time_text(last)} to {time_text(next_)} UTC"
        for last, next_ in pairwise(moments)
        if next_ - last > longest_ns
    ]
