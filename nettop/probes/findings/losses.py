# SPDX-License-Identifier: Apache-2.0
"""What is missing from the numbers of the attached lenses, as rows."""

from __future__ import annotations

from collections.abc import Mapping

from nettop.snapshots import lenses
from nettop.snapshots.findings import LATE, LENS, LOSSES
from nettop.snapshots.row_ids import row_id
from nettop.snapshots.snapshot import Frame, Rows, rows_from


def loss_rows(frames: Mapping[str, Frame], late: int, taken_ns: int) -> Rows:
    """Return a row for each kind of loss of each lens, and one for the readings that were skipped."""
    found = [
        (lens.title, what, lens.losses[what], lost)
        for lens in lenses()
        if lens.id in frames
        for what, lost in frames[lens.id].now.notable_losses.items()
        if what in lens.losses and what != LATE
    ]
    found.append(("all", LATE, LENS.losses[LATE], late))
    rows = [
        {"id": row_id(lens, what), "lens": lens, "what": what, "meaning": meaning, "lost": lost}
        for lens, what, meaning, lost in found
    ]
    return rows_from(LOSSES, rows, taken_ns)
