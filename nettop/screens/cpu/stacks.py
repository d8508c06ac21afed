# SPDX-License-Identifier: Apache-2.0
"""The table of stacks: each stack of functions, and how many samples it has."""

from __future__ import annotations

from nettop.screens.cpu.headline import CpuTable
from nettop.widgets.cells import RowStyle


class StacksScreen(CpuTable):
    """Stacks of functions. The function that runs is at the end, which is never elided."""

    about = "every stack of functions that was sampled"
    row_style = RowStyle(absent={"stack": "(no names)"}, keep_ends=frozenset({"stack"}))
    describable = True


SCREEN = StacksScreen
