# SPDX-License-Identifier: Apache-2.0
"""The table of categories: what each part of the network stack costs, by entry point."""

from __future__ import annotations

from typing import ClassVar

from nettop.query.view import View
from nettop.screens.cpu.headline import network_share, sampling
from nettop.screens.lens import LensScreen
from nettop.widgets.bar import BarItem
from nettop.widgets.cells import RowStyle


class CategoriesScreen(LensScreen):
    """Categories do not overlap: those of an entry point add up to its samples."""

    about: ClassVar[str] = "the parts of the network stack, by entry point"
    row_style: ClassVar[RowStyle] = RowStyle(absent={"note": "", "entry": ""})

    def headline(self, view: View) -> list[BarItem]:
        """What the network costs, and how that is measured."""
        return [*network_share(view), *sampling(view.snapshot)]


SCREEN = CategoriesScreen
