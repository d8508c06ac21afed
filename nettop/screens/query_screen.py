# SPDX-License-Identifier: Apache-2.0
"""The screen class that changes a table's columns, order and filter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from textual.message import Message

from nettop.errors import FilterError
from nettop.query.filter import Filter, parse_filter
from nettop.query.view import View
from nettop.screens import headline
from nettop.screens.table_screen import TableScreen
from nettop.screens.table_state import TableState
from nettop.snapshots.snapshot import Frame

FILTER_EXAMPLE = "words match anywhere · field=value · field > number · or not ( )"


class QueryScreen(TableScreen, inherit_bindings=False):
    """A table whose columns, order and filter the user changes.

    It shares the columns with other screens of the table, and the filter and the selected row with the lens's other
    tables.
    """

    class ColumnsChosen(Message):
        """A change of the columns."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._columns = self.context.columns.get(self.view_name)
        self._chosen_elsewhere: Mapping[str, object] = {}

    def on_screen_resume(self) -> None:
        """Take over the columns chosen on another screen of the table. Textual then calls TableScreen's handler."""
        self._take_columns()

    def make_view(self, frame: Frame) -> None:
        """Apply the query to a frame, and select the row that was selected in the previous table."""
        super().make_view(frame)
        if self.view is not None:
            self._follow_choice(self.view)

    def update_view(self) -> None:
        """Apply the query to the frame, draw the result, and update the effect shown for a filter being typed."""
        super().update_view()
        if self.has_class("-typing"):
            from nettop.screens.filter_box import FilterBox  # not needed for the first screen

            for box in self.query(FilterBox):
                box.check(box.input.value)

    def set_state(self, state: TableState) -> None:
        """Set the state of the table, and redraw."""
        self.state = state
        self.update_view()

    # --- columns and order --------------------------------------------------------------------------------

    def choose_columns(self, names: tuple[str, ...] | None) -> None:
        """Show these columns on every screen of the table; None: the table's defaults."""
        if names is None:
            self.context.columns.pop(self.view_name, None)
        else:
            self.context.columns[self.view_name] = names
        self._take_columns()
        self.post_message(self.ColumnsChosen())
        self.update_view()

    def _take_columns(self) -> None:
        chosen = self.context.columns.get(self.view_name)
        if chosen != self._columns:
            self._columns = chosen
            self.state = self.state.with_columns(
                chosen or self.table.screen, chosen_by_user=chosen is not None
            )
            self.rows.extra = chosen is None

    def action_sort_next(self) -> None:
        """Sort by the next column, wrapping around."""
        self.set_state(self.state.sorted_beside(self.rows.columns, 1, around=True))

    def action_sort_right(self, step: int = 1) -> None:
        """Sort by the column to the right, or to the left (`step` −1)."""
        self.set_state(self.state.sorted_beside(self.rows.columns, step, around=False))

    def action_sort_reverse(self) -> None:
        """Reverse the sort order."""
        self.action_sort_by(self.state.query.sort.field)

    def action_sort_by(self, name: str) -> None:
        """Sort by any column, visible or not; reverse the order if it is the current one."""
        self.set_state(self.state.sorted_by(name))

    def action_totals(self) -> None:
        """Switch between rates and totals."""
        self.set_state(self.state.with_totals(on=not self.state.totals))

    def action_all_rows(self) -> None:
        """Switch between all rows and those shown by default."""
        query = self.state.query
        self.context.session.change(self.lens.id, lambda now: replace(now, all_rows=not query.all_rows))
        self.set_state(replace(self.state, query=replace(query, all_rows=not query.all_rows)))
        self.context.session.sample_now()

    # --- filter -------------------------------------------------------------------------------------------

    def set_filter(self, text: str) -> None:
        """Set the filter, in the lens's other tables too; a table opened by → has its own."""
        self._show_filtered(parse_filter(self.table, text))
        if self.opened_from is None:
            self.lens_state.filter_text = self.state.query.filter.text

    def _show_filtered(self, wanted: Filter) -> None:
        self.set_state(replace(self.state, query=replace(self.state.query, filter=wanted)))

    async def action_filter(self) -> None:
        """Open the filter box."""
        await self.open_box(self.filter_effect, self.set_filter, self.state.query.filter.text)

    async def open_box(
        self,
        check: Callable[[str], str],
        apply: Callable[[str], None],
        text: str,
        example: str = FILTER_EXAMPLE,
        prompt: str = "/",
    ) -> None:
        """Open an input box, unless it is open. `check` returns the effect of its text, which `apply` gets."""
        from nettop.screens.filter_box import FilterBox  # not needed for the first screen

        if not self.query(FilterBox):
            self.add_class("-typing")
            box = FilterBox(check, partial(self._leave_box, apply), text, example, prompt)
            await self.mount(box, before=self.footer)
            self.set_focus(box.input)
            self.draw_lines()

    def filter_effect(self, text: str) -> str:
        """Return how many rows pass a filter. Raise UsageError if it is invalid."""
        query = replace(self.state.query, filter=parse_filter(self.table, text))
        if self.view is None:
            return "there are no rows yet"
        view = View(self.view.frame, query, self.context.names)
        rows = headline.rows_left(view)
        rows = f"{rows} rows" if text.strip() else f"all {rows.partition(' of ')[2]} rows"
        return "; ".join([rows, *view.filter_remarks])

    async def _leave_box(self, apply: Callable[[str], None], text: str | None) -> None:
        """Close the box, and apply its text unless that is None."""
        self.remove_class("-typing")
        await self.query("#filter-box").remove()
        self.query_one(self.AUTO_FOCUS).focus()
        if text is None:
            self.draw_lines()
        else:
            apply(text)

    # --- the lens's other tables --------------------------------------------------------------------------

    def share_choice(self) -> None:
        """Share the selected row's common fields with the lens's other tables; without one, keep the last ones."""
        view, at = self.view, self.rows.chosen
        if view is not None and len(at):
            names = [name for group in self.lens.common for name in group if name in self.table.by_name]
            self.lens_state.chosen = {name: view.values(name, at)[0] for name in names}

    def _follow_choice(self, view: View) -> None:
        """Select the row that matches the one selected in the previous table, if there is one."""
        chosen, self._chosen_elsewhere = self._chosen_elsewhere, {}
        for names in self.lens.common:
            wanted = tuple(chosen.get(name) for name in names)
            if None in wanted or not all(name in self.table.by_name for name in names):
                continue
            rows = list(zip(*(view.values(name, self.rows.order) for name in names), strict=True))
            if wanted in rows and (self.rows.at is None or rows[self.rows.at] != wanted):
                self.rows.choose(rows.index(wanted))
            return

    def follow_lens(self) -> None:
        """Take over filter and selection from the lens's other tables; report a filter or freeze that fails."""
        self._chosen_elsewhere = self.lens_state.chosen
        text = self.lens_state.filter_text
        if text != self.state.query.filter.text:
            try:
                self._show_filtered(parse_filter(self.table, text))
            except FilterError as error:
                self._show_filtered(parse_filter(self.table, ""))
                self.notify(f"{self.table.name} is not filtered: {error.reason}", markup=False)
        if self.lens_state.frozen is not None and self.frozen is None:
            self.notify(f"{self.table.name} is not frozen: it had not been read yet")
