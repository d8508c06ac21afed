# SPDX-License-Identifier: Apache-2.0
"""A view as one JSON document: members that describe it, then one object per row.

Values have the same format as in JSON Lines.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

from nettop.formats.jsonl import json_cells
from nettop.formats.rows import format_rows
from nettop.query.batches import PIECE_ROWS
from nettop.query.view import View
from nettop.snapshots.arrays import Index


def document(head: Mapping[str, object], view: View, columns: Sequence[str], at: Index) -> Iterator[str]:
    """Yield a one-line document in pieces: the members of `head`, at least one, then the rows at `at` as `rows`."""
    # Escape non-ASCII characters in the head: it echoes the request.
    yield json.dumps(head, separators=(",", ":"))[:-1] + ',"rows":['
    keys = [f',"{name}":' for name in columns]
    pieces = ("{" + keys[0][1:], *keys[1:], "},")
    for start in range(0, len(at), PIECE_ROWS):
        some = at[start : start + PIECE_ROWS]
        rows = format_rows(pieces, json_cells(view, columns, some))
        yield rows if start + PIECE_ROWS < len(at) else rows[:-1]
    yield "]}"
