# SPDX-License-Identifier: Apache-2.0
"""The stacks pane: each way into the network stack's functions, and how often CPUs were met there."""

from __future__ import annotations

from typing import ClassVar

from nettop.query.view import View
from nettop.screens.cpu.headline import network_share, sampling
from nettop.screens.lens import LensScreen
from nettop.widgets.bar import Part
from nettop.widgets.cells import Manner


class StacksScreen(LensScreen):
    """Stacks of functions; those that call most stand at the end of a stack, so that end stays in sight."""

    about: ClassVar[str] = "every stack of functions that CPUs were met in"
    manner: ClassVar[Manner] = Manner(absent={"stack": "(no names)"}, tails=frozenset({"stack"}))
    has_more: ClassVar[bool | None] = True

    def headline(self, view: View) -> list[Part]:
        """What the network costs, and how well that is known."""
        return [*network_share(view), *sampling(view.snapshot)]


SCREEN = StacksScreen
