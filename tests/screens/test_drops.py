# SPDX-License-Identifier: Apache-2.0
"""The drops lens's headline."""

from __future__ import annotations

import re

import pytest

from nettop.snapshots.drops import LENS as DROPS
from tests.builders.driving import running
from tests.builders.example_drops import example_steps


@pytest.mark.parametrize("width", [*range(80, 124, 4), 160])
async def test_counters_since_boot_stand_behind_their_label(width: int) -> None:
    """Where there is no room for the first counter, its label is left out too."""
    async with running(example_steps(), (width, 24), view="drops", lens_set=(DROPS,)) as (_, screen, _):
        labels = re.findall(r"since boot:.{5}", screen.headline_bar.text)
        assert set(labels) <= {"since boot: list"}
        assert labels or width < 160
