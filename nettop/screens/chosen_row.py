# SPDX-License-Identifier: Apache-2.0
"""A table, and below it more about the selected row."""

from __future__ import annotations

from nettop.query.view import View
from nettop.screens.lens import LensScreen
from nettop.snapshots.arrays import Index


class SelectedRowScreen(LensScreen):
    """A screen that shows more about the selected row, or the first one, in the room below the table."""

    def draw_body(self) -> None:
        """Draw the body and the selected row."""
        super().draw_body()
        self.draw_chosen()

    def redraw(self) -> None:
        """Redraw the selected row too: another one may be selected, or the details may take room."""
        super().redraw()
        self.call_after_refresh(self.draw_chosen)

    @property
    def shows_choice(self) -> bool:
        """Always True: the selected row is always shown."""
        return True

    def draw_chosen(self) -> None:
        """Draw the selected row if there is room."""
        raise NotImplementedError

    def chosen(self, view: View) -> Index:
        """Return the position of the row as an index, empty if the table is."""
        at = self.rows.at or 0
        return view.order[at : at + 1]
