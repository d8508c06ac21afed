# SPDX-License-Identifier: Apache-2.0
"""The table of stacks: each stack of functions, and how many samples it has."""

from __future__ import annotations

from typing import ClassVar

from nettop.query.view import View
from nettop.screens.cpu.headline import network_share, sampling
from nettop.screens.lens import LensScreen
from nettop.widgets.bar import BarItem
from nettop.widgets.cells import RowStyle


class StacksScreen(LensScreen):
    """Stacks of functions. The function that runs is at the end, which is never elided."""

    about: ClassVar[str] = "every stack of functions that was sampled"
    row_style: ClassVar[RowStyle] = RowStyle(absent={"stack": "(no names)"}, keep_ends=frozenset({"stack"}))
    describable: ClassVar[bool | None] = True

    def headline(self, view: View) -> list[BarItem]:
        """What the network costs, and how that is measured."""
        return [*network_share(view), *sampling(view.snapshot)]


SCREEN = StacksScreen
