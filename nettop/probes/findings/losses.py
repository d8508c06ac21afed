# SPDX-License-Identifier: Apache-2.0
"""What is missing from the numbers of the attached lenses, as rows."""

from __future__ import annotations

from collections.abc import Mapping

from nettop.snapshots import lenses
from nettop.snapshots.findings import LOSSES
from nettop.snapshots.row_ids import row_id
from nettop.snapshots.snapshot import Frame, Rows, rows_from


def loss_rows(frames: Mapping[str, Frame], taken_ns: int) -> Rows:
    """Return a row for each kind of loss of each lens."""
    found = [
        {
            "id": row_id(lens.id, what),
            "lens": lens.title,
            "what": what,
            "meaning": lens.losses[what],
            "lost": lost,
        }
        for lens in lenses()
        if lens.id in frames
        for what, lost in frames[lens.id].now.notable_losses.items()
        if what in lens.losses
    ]
    return rows_from(LOSSES, found, taken_ns)
