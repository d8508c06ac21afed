# SPDX-License-Identifier: Apache-2.0
"""The table of call stacks and their samples."""

from __future__ import annotations

from nettop.screens.cpu.cpu_table import CpuTable
from nettop.widgets.cells import RowStyle


class StacksScreen(CpuTable):
    """Call stacks. They end in the running function, so their end is never elided."""

    about = "every sampled call stack"
    row_style = RowStyle(absent={"stack": "(no names)"}, keep_ends=frozenset({"stack"}))
    describable = True


SCREEN = StacksScreen
