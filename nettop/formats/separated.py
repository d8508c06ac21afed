# SPDX-License-Identifier: Apache-2.0
"""CSV as in RFC 4180, but lines end in a line feed: one header; unknown and unavailable values are empty.

A histogram is words, LOW-HIGH:COUNT for each bucket that has any; the last bucket has no HIGH. An apostrophe precedes a
text that a spreadsheet would run as a formula (CWE-1236): others choose the names of processes and hosts.
"""

from __future__ import annotations

import re

from nettop.formats.rows import filled, spelled, time_first
from nettop.query.times import rfc3339
from nettop.query.view import View
from nettop.snapshots.arrays import Index

_SPECIAL = re.compile('[",\r\n]|^[=+@\t-]')
_FORMULA = tuple("=+@\t\r-")


class Separated:
    """Formats views as CSV: `time` first, then the columns in their order.

    The time is the row's own where it has such a column, else the snapshot's.
    """

    def __init__(self, columns: tuple[str, ...]) -> None:
        self._columns, self._dated = time_first(columns)
        names = self._columns if self._dated else ("time", *self._columns)
        self.header = ",".join(names) + "\n"
        self._is_first = True

    def __call__(self, view: View) -> str:
        """One line for each row that the view shows; the header before the first view's."""
        header = self.header if self._is_first else ""
        self._is_first = False
        return header + self.lines(view, view.order)

    def lines(self, view: View, at: Index) -> str:
        """One line for each of the rows at `at`."""
        if not len(at):
            return ""
        begin = "" if self._dated else rfc3339(view.snapshot.wall_ns) + ","
        commas = [","] * (len(self._columns) - 1)
        cells = [spelled(view.values(name, at), quoted, "") for name in self._columns]
        return filled((begin, *commas, "\n"), cells)


def quoted(text: str) -> str:
    """Return the text as a cell: in quotes if it is empty or has a comma, a quote or a line's end, and no formula."""
    if text and _SPECIAL.search(text) is None:
        return text
    apostrophe = "'" if text.startswith(_FORMULA) else ""
    escaped = text.replace('"', '""')
    return f'"{apostrophe}{escaped}"'
