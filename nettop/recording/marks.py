# SPDX-License-Identifier: Apache-2.0
"""When something was wrong, from the findings in a recording, and when connections failed."""

from __future__ import annotations

from typing import NamedTuple

from nettop.snapshots.findings import FAILED, FINDINGS, SEVERITY_CODES
from nettop.snapshots.findings import LENS as FINDINGS_LENS
from nettop.snapshots.schema import Severity
from nettop.snapshots.snapshot import Snapshot

MARKS_MAX = 64
"""Marks of a group; beyond it, the last one lasts on, as the worse of those it stands for."""


FAILURES = max(SEVERITY_CODES.values()) + 1
"""The severity of a time in which connections failed, but nothing was found except hints."""


class Mark(NamedTuple):
    """A time with findings, and the severity of the worst (a code of nettop.snapshots.findings.SEVERITIES); or
    FAILURES."""

    begin_ns: int
    end_ns: int
    severity: int


class Marks:
    """Collects marks from readings of the findings. `failed` is how many connections had failed before; None if
    unknown."""

    def __init__(self, failed: int | None = None) -> None:
        self.failed = failed
        self._marks: list[Mark] = []
        self._last_ns = 0

    def add(self, snapshot: Snapshot) -> None:
        """Add a reading; of other lenses, nothing."""
        if snapshot.lens != FINDINGS_LENS.id:
            return
        severity, last_ns = self._severity(snapshot), self._last_ns
        self._last_ns = snapshot.wall_ns
        if severity is None:
            return
        now = Mark(snapshot.wall_ns, snapshot.wall_ns, severity)
        last = self._marks[-1] if self._marks else None
        goes_on = last is not None and last.end_ns == last_ns and last.severity == now.severity
        if last is not None and (goes_on or len(self._marks) == MARKS_MAX):
            self._marks[-1] = Mark(last.begin_ns, now.end_ns, min(last.severity, now.severity))
        else:
            self._marks.append(now)

    def _severity(self, snapshot: Snapshot) -> int | None:
        """Return the severity of the worst finding, FAILURES if connections failed and it is only a hint, or None."""
        rows, failed = snapshot.tables.get(FINDINGS.name), snapshot.counts.get(FAILED)
        has_failed = None not in (failed, self.failed) and failed != self.failed
        self.failed = failed
        worst = int(rows.array["severity"].min()) if rows is not None and len(rows) else None
        return FAILURES if has_failed and worst in (None, SEVERITY_CODES[Severity.HINT]) else worst

    def so_far(self) -> list[Mark]:
        """Return the marks."""
        return list(self._marks)
