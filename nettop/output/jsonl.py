# SPDX-License-Identifier: Apache-2.0
"""JSON Lines: an object a row, unknown values as null. Always UTF-8, as RFC 8259 asks."""

from __future__ import annotations

from json.encoder import encode_basestring

from nettop.output.rows import filled, spelled
from nettop.query.times import rfc3339
from nettop.query.view import View


class JsonLines:
    """Formats views as JSON Lines: `time` first, then the columns in their order."""

    def __init__(self, columns: tuple[str, ...]) -> None:
        self._columns = columns
        self._keys = [f',"{name}":' for name in columns]

    def __call__(self, view: View) -> str:
        """One line for each row that the view shows."""
        at = view.order
        if not len(at):
            return ""
        first, *others = self._keys
        begin = f'{{"time":"{rfc3339(view.snapshot.wall_ns)}"{first}'
        cells = [spelled(view.values(name, at), encode_basestring, "null") for name in self._columns]
        return filled((begin, *others, "}\n"), cells)
