# SPDX-License-Identifier: Apache-2.0
"""The table of categories: the cost of each part of the network stack, by entry point."""

from __future__ import annotations

from nettop.screens.cpu.cpu_table import CpuTable
from nettop.widgets.cells import RowStyle


class CategoriesScreen(CpuTable):
    """Categories, which do not overlap: those of an entry point add up to its samples."""

    about = "the parts of the network stack, by entry point"
    row_style = RowStyle(absent={"note": "", "entry": ""})


SCREEN = CategoriesScreen
