# SPDX-License-Identifier: Apache-2.0
"""The categories pane: what each part of the network stack takes, by the way in."""

from __future__ import annotations

from typing import ClassVar

from nettop.query.view import View
from nettop.screens.cpu.headline import network_share, sampling
from nettop.screens.lens import LensScreen
from nettop.widgets.bar import Part
from nettop.widgets.cells import Manner


class CategoriesScreen(LensScreen):
    """Categories exclude each other, so those of an entry point add up to all of its samples."""

    about: ClassVar[str] = "the parts of the network stack, by entry point"
    manner: ClassVar[Manner] = Manner(absent={"note": "", "entry": ""})

    def headline(self, view: View) -> list[Part]:
        """What the network costs, and how well that is known."""
        return [*network_share(view), *sampling(view.snapshot)]


SCREEN = CategoriesScreen
