# SPDX-License-Identifier: Apache-2.0
"""A view as one JSON document: what is known of the whole, then its rows, an object each.

Values are written as in JSON Lines.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

from nettop.formats.jsonl import json_cells
from nettop.formats.rows import filled
from nettop.query.batches import PIECE_ROWS
from nettop.query.view import View
from nettop.snapshots.arrays import Index


def document(head: Mapping[str, object], view: View, columns: Sequence[str], at: Index) -> Iterator[str]:
    """The document in pieces, on one line: the members of `head`, at least one, then the rows at `at` as `rows`."""
    # In the head all but ASCII is escaped: it repeats what somebody asked for.
    yield json.dumps(head, separators=(",", ":"))[:-1] + ',"rows":['
    keys = [f',"{name}":' for name in columns]
    pieces = ("{" + keys[0][1:], *keys[1:], "},")
    for start in range(0, len(at), PIECE_ROWS):
        some = at[start : start + PIECE_ROWS]
        rows = filled(pieces, json_cells(view, columns, some))
        yield rows if start + PIECE_ROWS < len(at) else rows[:-1]
    yield "]}"
