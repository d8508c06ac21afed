# SPDX-License-Identifier: Apache-2.0
"""The findings, in at most three lines above the rows of every lens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from textual.geometry import Size
from textual.strip import Strip

from nettop.errors import NettopError
from nettop.query.found import listed
from nettop.query.times import SECOND_NS
from nettop.screens.actions import BY_ID, key_name
from nettop.snapshots.findings import LENS as FINDINGS_LENS
from nettop.snapshots.schema import Severity
from nettop.snapshots.snapshot import Frame
from nettop.widgets.cells import WARNING
from nettop.widgets.lines import Lines
from nettop.widgets.text import Line, TextSpan, elide_end, width_of
from nettop.widgets.themes import Role

LINES_MAX = 3
_ROLES = {Severity.PROBLEM: Role.BAD, Severity.WARNING: Role.WARN, Severity.HINT: Role.TEXT}


def place_after(frame: Frame | None, view: str, filter_text: str) -> int:
    """Return the place, among the findings shown, after the one whose rows these are; 0 without.

    What a lens sees that was opened for them may explain it by now: that counts as the same one.
    """
    rows = listed(frame, explained=True)
    of_rows = (
        row["cause"] or row["id"] for row in rows if (row["view"], row["filter"]) == (view, filter_text)
    )
    first = next(of_rows, None)
    ids = [finding["id"] for finding in listed(frame)]
    return ids.index(first) + 1 if first in ids else 0


class FindingStrip(Lines):
    """The worst findings, a line each; a click opens the rows that show one. It takes no line if there is none."""

    DEFAULT_CSS = "FindingStrip { height: 0; }"

    def __init__(self, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._read_ns: int | None = None
        self._findings: list[dict[str, Any]] = []
        self._failure = ""

    def show(self, frame: Frame | None, failure: NettopError | None = None) -> None:
        """Show the findings of a reading, or why there are none: the last ones would look as if they lasted."""
        cause, frame = ("", frame) if failure is None else (failure.what, None)
        read_ns = None if frame is None else frame.now.boot_ns
        if (read_ns, cause) == (self._read_ns, self._failure):
            return
        before = self._findings, self._failure
        self._read_ns, self._failure = read_ns, cause
        self._findings = listed(frame)
        if (self._findings, cause) != before:
            self.styles.height = len(self._shown)
            self.redraw()

    @property
    def _shown(self) -> range:
        return range(1 if self._failure else min(len(self._findings), LINES_MAX))

    def strips(self, size: Size) -> list[Strip]:
        """Return the lines."""
        lines = [self.strip(self.clickable(self._line(n, size.width), n), size.width) for n in self._shown]
        return [*lines, *[self.strip((), size.width)] * (size.height - len(lines))][: size.height]

    def _line(self, number: int, width: int) -> Line:
        """Return `! ▲ sentence  for 40 s`; the last line counts the findings below it."""
        if self._failure:
            text = f"   {WARNING} nobody looks for problems: {self._failure}"
            return (TextSpan(elide_end(text, max(width - 1, 0)), Role.BAD),)
        finding = self._findings[number]
        severity = Severity(finding["severity"])
        key = key_name(BY_ID["next_finding"].keys[0]) if number == 0 else " "
        word = "" if severity is Severity.PROBLEM else f"{severity.value}: "
        more = len(self._findings) - LINES_MAX if number == LINES_MAX - 1 else 0
        after = [TextSpan(f"  {_when(finding)}", Role.DIM)]
        if more > 0:
            after += [TextSpan(f"  +{more} more ", Role.WARN), TextSpan(FINDINGS_LENS.digit, Role.KEY)]
        before = [TextSpan(f" {key} ", Role.KEY), TextSpan(f"{WARNING} {word}", _ROLES[severity])]
        room = width - width_of(before) - width_of(after) - 1
        action = f"app.finding({finding['id']})"
        sentence = TextSpan(elide_end(finding["finding"], max(room, 0)), _ROLES[severity], action=action)
        return (*before, sentence, *after)


def _when(finding: Mapping[str, Any]) -> str:
    """Return how long it has lasted, or for how long it has not been seen."""
    if finding["unseen"] >= SECOND_NS:
        return f"not for {finding['unseen'] // SECOND_NS} s"
    seconds = finding["lasted"] // SECOND_NS
    for unit, size in (("h", 3600), ("min", 60), ("s", 1)):
        if seconds >= size:
            return f"for {seconds // size} {unit}"
    return "new"
