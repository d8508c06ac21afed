# SPDX-License-Identifier: Apache-2.0
"""A table, and below it more of the chosen row."""

from __future__ import annotations

from nettop.query.view import View
from nettop.screens.lens import LensScreen
from nettop.snapshots.arrays import Index


class ChosenRow(LensScreen):
    """A screen that draws more of the chosen row, or of the table's first one, in the room that the rows leave."""

    def draw_body(self) -> None:
        """The chosen row too."""
        super().draw_body()
        self.draw_chosen()

    def redraw(self) -> None:
        """Another row may be chosen, or the details take room."""
        super().redraw()
        self.call_after_refresh(self.draw_chosen)

    @property
    def shows_choice(self) -> bool:
        """Always."""
        return True

    def draw_chosen(self) -> None:
        """Draw it, where there is room."""
        raise NotImplementedError

    def chosen(self, view: View) -> Index:
        """The position of the row, as an index; none where the table is empty."""
        at = self.rows.at or 0
        return view.order[at : at + 1]
