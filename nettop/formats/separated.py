# SPDX-License-Identifier: Apache-2.0
"""CSV as in RFC 4180, but with LF line endings: one header; unknown and unavailable values are empty.

A histogram is a list of LOW-HIGH:COUNT, separated by spaces, for each nonempty bucket; the last bucket has no HIGH.
Text that a spreadsheet would evaluate as a formula begins with an apostrophe (CWE-1236): names of processes and hosts
are untrusted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from nettop.formats.rows import format_rows, format_values, in_pieces, time_first
from nettop.query.times import rfc3339
from nettop.query.view import View
from nettop.snapshots.arrays import Index

_SPECIAL = re.compile('[",\r\n]|^[=+@\t-]')
_FORMULA = tuple("=+@\t\r-")


class Separated:
    """A formatter of views as CSV: `time` first, then the columns in their order.

    The time is the row's own if it has such a column, else the snapshot's.
    """

    def __init__(self, columns: tuple[str, ...]) -> None:
        self._columns, self._dated = time_first(columns)
        names = self._columns if self._dated else ("time", *self._columns)
        self.header = ",".join(names) + "\n"
        self._is_first = True

    def __call__(self, view: View) -> str:
        """Format one line for each row of the view, with the header before the first view."""
        return "".join(self.pieces(view))

    def pieces(self, view: View) -> Iterator[str]:
        """Yield these lines in pieces."""
        if self._is_first:
            yield self.header
        self._is_first = False
        for at in in_pieces(view.order):
            yield self.lines(view, at)

    def lines(self, view: View, at: Index) -> str:
        """Format one line for each of the rows at `at`."""
        if not len(at):
            return ""
        begin = "" if self._dated else rfc3339(view.snapshot.wall_ns) + ","
        commas = [","] * (len(self._columns) - 1)
        cells = [format_values(view.values(name, at), quoted, "") for name in self._columns]
        return format_rows((begin, *commas, "\n"), cells)


def quoted(text: str) -> str:
    """Quote the text if it is empty or contains a comma, quote or line break, and defuse formulas."""
    if text and _SPECIAL.search(text) is None:
        return text
    apostrophe = "'" if text.startswith(_FORMULA) else ""
    escaped = text.replace('"', '""')
    return f'"{apostrophe}{escaped}"'
