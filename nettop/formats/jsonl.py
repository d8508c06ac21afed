# SPDX-License-Identifier: Apache-2.0
"""JSON Lines, and a view as one JSON document. Each row is an object, with null for unknown and unavailable values.
Always UTF-8, as RFC 8259 requires.

A histogram is an array with [low, high, count] for each nonempty bucket; `high` is null for the last bucket.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from json.encoder import encode_basestring

from nettop.formats.cells import Cell, Spelling, column_cells, join_rows
from nettop.formats.rows import in_pieces, time_first
from nettop.query.times import rfc3339
from nettop.query.view import View
from nettop.snapshots.arrays import Index

_COMPACT = (",", ":")
_SPELLING = Spelling(encode_basestring, "null", partial(json.dumps, separators=_COMPACT), '"')


def json_rows(view: View, columns: Sequence[str], at: Index, between: Sequence[str]) -> bytes:
    """Format the rows as one text: each is the values of its columns between these texts, one more than columns."""
    cells: list[Cell] = []
    for before, name in zip(between[:-1], columns, strict=True):
        cells += [before, *column_cells(view, name, at, _SPELLING)]
    return join_rows([*cells, between[-1]], len(at))


def document(head: Mapping[str, object], view: View, columns: Sequence[str], at: Index) -> Iterator[str]:
    """Yield a one-line document in pieces: the members of `head`, at least one, then the rows at `at` as `rows`."""
    # Escape non-ASCII characters in the head: it echoes the request.
    yield json.dumps(head, separators=_COMPACT)[:-1] + ',"rows":['
    keys = [f',"{name}":' for name in columns]
    pieces = ("{" + keys[0][1:], *keys[1:], "},")
    comma = ""
    for some in in_pieces(at):
        yield comma + json_rows(view, columns, some, pieces).decode()[:-1]
        comma = ","
    yield "]}"


class JsonLines:
    """A formatter of views as JSON Lines: `time` first, then `marks`, the same in all lines, then the columns.

    The time is the row's own if it has such a column, else the snapshot's. A column that has the name of a mark becomes
    `row_NAME`. With `why`, each line ends with an object that gives the reason for each unavailable column.
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
        """Format one line for each row of the view."""
        return "".join(self.pieces(view))

    def pieces(self, view: View) -> Iterator[str]:
        """Yield these lines in pieces."""
        return (self.lines(view, at) for at in in_pieces(view.order))

    def lines(self, view: View, at: Index) -> str:
        """Format one line for each of the rows at `at`."""
        return self.encoded(view, at).decode()

    def encoded(self, view: View, at: Index) -> bytes:
        """Return `lines` in UTF-8."""
        if not len(at):
            return b""
        first, *others = self._keys
        if self._dated:
            before = ['{"time":', *(self._marks + key for key in others[:1]), *others[1:]]
        else:
            before = [f'{{"time":"{rfc3339(view.snapshot.wall_ns)}"{self._marks}{first}', *others]
        why = ""
        if self._why:
            missing = {name: view.missing[name] for name in self._columns if name in view.missing}
            why = f',"why":{json.dumps(missing, ensure_ascii=False, separators=_COMPACT)}'
        return json_rows(view, self._columns, at, (*before, f"{why}}}\n"))
