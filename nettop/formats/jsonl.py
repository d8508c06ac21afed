# SPDX-License-Identifier: Apache-2.0
"""JSON Lines: an object a row, unknown and unavailable values as null. Always UTF-8, as RFC 8259 requires.

A histogram is an array of [low, high, count] for each bucket that has any; `high` is null for the last bucket.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import partial
from json.encoder import encode_basestring
from typing import Any

from nettop.formats.rows import filled, spelled, time_first
from nettop.query.times import rfc3339
from nettop.query.view import View
from nettop.snapshots.arrays import Index

_COMPACT = (",", ":")
_array = partial(json.dumps, separators=_COMPACT)


def json_cells(view: View, columns: Iterable[str], at: Index) -> list[list[Any]]:
    """The values of each column for the rows at `at`, as `%s` must find them to write JSON."""
    return [spelled(view.values(name, at), encode_basestring, "null", _array) for name in columns]


class JsonLines:
    """Formats views as JSON Lines: `time` first, then `marks`, which are the same in all lines, then the columns.

    The time is the row's own where it has such a column, else the snapshot's. A column named like a mark is `row_NAME`.
    With `why` each line ends in an object with the reason for each column that is not available.
    """

    def __init__(
        self, columns: tuple[str, ...], marks: Mapping[str, str] | None = None, *, why: bool = False
    ) -> None:
        self._columns, self._dated = time_first(columns)
        self._why = why
        marks = marks or {}
        self._marks = "".join(f',"{name}":{encode_basestring(text)}' for name, text in marks.items())
        self._keys = [f',"row_{name}":' if name in marks else f',"{name}":' for name in self._columns]

    def __call__(self, view: View) -> str:
        """One line for each row that the view shows."""
        return self.lines(view, view.order)

    def lines(self, view: View, at: Index) -> str:
        """One line for each of the rows at `at`."""
        if not len(at):
            return ""
        cells = json_cells(view, self._columns, at)
        first, *others = self._keys
        if self._dated:
            before = ['{"time":', *(self._marks + key for key in others[:1]), *others[1:]]
        else:
            before = [f'{{"time":"{rfc3339(view.snapshot.wall_ns)}"{self._marks}{first}', *others]
        why = ""
        if self._why:
            missing = {name: view.missing[name] for name in self._columns if name in view.missing}
            why = f',"why":{json.dumps(missing, ensure_ascii=False, separators=_COMPACT)}'
        return filled((*before, f"{why}}}\n"), cells)
