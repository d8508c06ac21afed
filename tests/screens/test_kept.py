# SPDX-License-Identifier: Apache-2.0
"""No reading is kept: what a screen no longer shows is freed by counting references alone."""

from __future__ import annotations

import pytest

from nettop.snapshots import view_name
from nettop.snapshots.schema import Lens
from tests.builders.demo import RECORDED, playing
from tests.unit.kept import uncollected

REFRESHES = 3
"""Refreshes with the details of a row open, with its members shown, and with all rows."""


@pytest.mark.parametrize("lens", RECORDED, ids=lambda lens: lens.id)
async def test_screens(lens: Lens) -> None:
    """Each table of a lens, its details, and the tables that its rows open."""
    with uncollected() as kept:
        async with playing((100, 30), view_name(lens, lens.main)) as demo:
            second = 0
            for table in lens.tables:
                await demo.app.action_view(view_name(lens, table))
                await demo.pilot.pause()
                for keys in (("down", "enter"), ("escape", "right"), ("left", "a")):
                    await demo.pilot.press(*keys)
                    second += REFRESHES
                    await demo.play_until(second)
            assert not kept.in_cycles()
            counts = kept.counts()
            assert counts["View"] <= 2 * len(lens.tables), counts
            assert counts["Snapshot"] <= 16, counts
