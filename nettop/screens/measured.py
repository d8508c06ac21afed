# SPDX-License-Identifier: Apache-2.0
"""A screen of which nettop tells what drawing it costs."""

from __future__ import annotations

from textual.screen import Screen, ScreenResultType

from nettop.engine.own_cost import DRAW
from nettop.screens.context import ScreenContext
from nettop.snapshots.schema import Lens


class MeasuredScreen(Screen[ScreenResultType], inherit_bindings=False):
    """Times its drawing, as a step of a lens: the one it shows, or stands over."""

    def __init__(self, context: ScreenContext, lens: Lens) -> None:
        super().__init__()
        self.context = context
        self.lens = lens

    def _compositor_refresh(self) -> None:
        """Where Textual renders what has changed, and writes it; below a dialog it only asks the dialog to."""
        if not self.is_active:
            super()._compositor_refresh()
            return
        with self.context.session.steps.time(self.lens.id, DRAW):
            super()._compositor_refresh()
