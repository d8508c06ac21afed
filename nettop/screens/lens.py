# SPDX-License-Identifier: Apache-2.0
"""The screen of a lens's table with its keys: they change columns, order, filter, selection, units and options.

Tables without a screen of their own use this one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import isawaitable
from typing import Any, ClassVar

from textual.binding import BindingType
from textual.message import Message

from nettop.errors import FilterError, NettopError
from nettop.preferences import UNITS
from nettop.query.filter import Filter, parse_filter
from nettop.query.units import show_rates
from nettop.query.view import View
from nettop.screens import headline
from nettop.screens.actions import BY_ID, bindings
from nettop.screens.context import ScreenContext, TableRef, beside
from nettop.screens.playback import Playback
from nettop.screens.table_screen import TableScreen
from nettop.screens.table_state import TableState
from nettop.settings import ViewSettings
from nettop.snapshots import lens_part
from nettop.snapshots.arrays import Index
from nettop.snapshots.schema import Table
from nettop.snapshots.snapshot import Frame
from nettop.snapshots.source import SourceOptions
from nettop.widgets.cells import whole_texts
from nettop.widgets.page import Page
from nettop.widgets.table import LiveTable

INTERVALS_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)
_SHARED_METHODS = {"move": "{}", "next_option_value": "option_{}", "replay": "{}"}
"""Methods that serve several actions, whose ids follow from the first argument."""


class LensScreen(TableScreen, inherit_bindings=False):
    """A table of a lens, with a method `action_<id>` for each action of a lens's screen.

    It shares the columns with other screens of the table, and the filter and the selected row with the lens's other
    tables.
    """

    BINDINGS: ClassVar[list[BindingType]] = bindings(everywhere=False)
    about: ClassVar[str] = ""
    """Description of the table for help and palette; if empty, they list its columns."""
    has_rows: ClassVar[bool] = True
    """True if rows are shown, which `/` filters and columns sort."""
    members: ClassVar[Table | None] = None
    """The table whose rows each row groups, if any."""

    class ColumnsChosen(Message):
        """A change of the columns."""

    @dataclass
    class MembersOpened(Message):
        """The request to open a row's members: the rows of another table that pass a filter."""

        table: Table
        filter_text: str

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        player = self.context.player
        self.playback = None if player is None else Playback(self, player)
        self._columns = self.context.columns.get(self.view_name)
        self._chosen_elsewhere: Mapping[str, object] = {}

    def more_help(self) -> Mapping[str, Sequence[tuple[str, str]]]:
        """Return further sections of the help by heading: terms and their meanings."""
        return {}

    @property
    def member_table(self) -> Table | None:
        """The table that → opens instead of the details of the selected row."""
        return self.members

    def member_filter(self, view: View, at: Index) -> str | None:
        """Return the filter for the rows of `member_table` that the row at `at` groups; None if they are not listed."""
        raise NotImplementedError

    # --- which keys work ----------------------------------------------------------------------------------

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Return whether a key works now; called by Textual."""
        known = BY_ID.get(_SHARED_METHODS.get(action, action).format(*parameters))
        return known is None or self.keys.is_available(known)

    @property
    def next_table_name(self) -> str:
        """Name of the table after this one, or after the one from which this was opened."""
        return TableRef(self.lens, self.opened_from or self.table).neighbour(1).table.name

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

    def filter_effect(self, text: str) -> str:
        """Return how many rows pass a filter. Raise UsageError if it is invalid."""
        query = replace(self.state.query, filter=parse_filter(self.table, text))
        if self.view is None:
            return "there are no rows yet"
        view = View(self.view.frame, query, self.context.names)
        rows = headline.rows_left(view)
        rows = f"{rows} rows" if text.strip() else f"all {rows.partition(' of ')[2]} rows"
        return "; ".join([rows, *view.filter_remarks])

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
        if self.lens_state.frozen is not None and self.shown_frame.frozen is None:
            self.notify(f"{self.table.name} is not frozen: it had not been read yet")

    # --- details and selection ----------------------------------------------------------------------------

    def action_details(self) -> None:
        """Open the selected row's members, or its details; if those are open, focus them for scrolling."""
        if self.details_open:
            self.details.focus()
            return
        if self.rows.key is None:
            self.rows.move(0)
        self.rows.follow(on=True)
        if self.member_table is None:
            self.add_class("-details")
            self.redraw()
        elif self.view is not None and self.rows.key is not None:
            filter_text = self.member_filter(self.view, self.rows.chosen)
            if filter_text is None:
                self.notify(f"The {self.member_table.name} of this row are not listed")
            else:
                self.post_message(self.MembersOpened(self.member_table, filter_text))

    def action_explain(self) -> None:
        """Switch between explained values and several side by side."""
        self.context.explains = not self.context.explains
        self.draw_details()

    def action_follow(self) -> None:
        """Follow the selected row, or stop following it."""
        if self.rows.key is None:
            self.rows.move(0)
        self.rows.follow(on=not self.rows.follows)

    def action_back(self) -> None:
        """Leave the details, then close them, then return to the table this one was opened from."""
        if self.focused is self.details:
            self.rows.focus()
        elif self.details_open:
            self._close_details()
        else:
            self.dismiss()

    def _close_details(self) -> None:
        self.rows.focus()
        self.remove_class("-details")
        self.rows.follow(on=self.shows_choice)
        self.details.forget()
        self.redraw()

    def action_clear(self) -> None:
        """Close the details, then clear the filter, then deselect the row."""
        if self.details_open:
            self._close_details()
        elif self.state.query.filter.text:
            self.set_filter("")
        else:
            self.rows.follow(on=False)
            self.rows.choose(None)
            self.lens_state.chosen = {}

    def action_move(self, where: str) -> None:
        """Move the selection, or scroll the details if they have the focus. `where` is the action's name."""
        scrolls = isinstance(self.focused, Page)
        page = self.details.size.height if scrolls else max(1, self.rows.page - 1)
        end = len(self.details.lines if scrolls else self.rows.order)
        distance = {"move": 1, "page": page, "first": -end, "last": end}[where.partition("_")[0]]
        step = -distance if where.endswith("_up") else distance
        if scrolls:
            self.details.scroll_by(step)
        else:
            self.rows.follow(on=self.shows_choice)
            self.rows.move(step)

    def action_copy(self) -> None:
        """Copy the selected row, or the first visible one."""
        if self.rows.key is None:
            self.rows.move(0)
        if self.view is not None and self.rows.at is not None:
            texts = whole_texts(self.view, self.rows.columns, self.rows.chosen, self.row_style)
            self.copy("\t".join(text for (text,) in texts))

    def copy(self, text: str) -> None:
        """Copy a text to the terminal's clipboard."""
        self.app.copy_to_clipboard(text)
        self.notify(f"copied, if the terminal supports OSC 52: {text.expandtabs(2)}", markup=False)

    def on_live_table_chosen(self, message: LiveTable.Chosen) -> None:
        """Redraw for the new selection, or open the details of a row clicked again."""
        if message.open and not self.details_open:
            self.action_details()
        else:
            self.redraw()

    # --- recordings ---------------------------------------------------------------------------------------

    def action_freeze(self) -> None:
        """Freeze the screen or resume; pause a recording or play it."""
        if self.playback is not None:
            self.playback.pause()
        else:
            self.shown_frame.freeze()
            self.show_newest()

    async def action_replay(self, name: str, *arguments: int) -> None:
        """Control the recording by a method of Playback."""
        done = getattr(self.playback, name)(*arguments)
        if isawaitable(done):
            await done

    # --- refresh, units, options --------------------------------------------------------------------------

    async def action_next_option_value(self, name: str) -> None:
        """Set an option of the lens to its next value, or show the table it applies to."""
        option = next(option for option in self.lens.options if option.name == name)
        if option.opens not in ("", self.table.name):
            await self.run_action(f"app.table('{option.opens}')")
            return
        context, steps = self.context, option.steps
        now = context.options.get(option, option.default)
        value = context.options[option] = steps[(steps.index(now) + 1) % len(steps) if now in steps else 0]
        context.session.change(self.lens.id, lambda options: options | SourceOptions(values={option: value}))
        context.session.sample_now()
        self.notify(f"{option.help}: {option.text(value)}")

    def action_bars(self) -> None:
        """Switch the bars on or off."""
        self.rows.bars = not self.rows.bars
        self.rows.redraw()
        self.draw_lines()

    def action_average(self) -> None:
        """Switch to the next averaging time, and take a new sample."""
        self.context.average_s = self.context.next_average_s
        self.context.session.bus.average_over(self.context.average_s)
        self.context.session.sample_now()
        self.draw_lines()

    def action_unit(self) -> None:
        """Switch between bits and bytes per second, in the source's details too."""
        self.context.in_bytes = not self.context.in_bytes
        show_rates(in_bytes=self.context.in_bytes)
        self.remember("unit", UNITS[self.context.in_bytes])
        self.details.forget()
        self.update_view()

    def action_host_names(self) -> None:
        """Switch between host names and addresses."""
        self.context.change_names()
        self.update_view()

    def action_slower(self, step: int = 1) -> None:
        """Switch to the next longer (`step` 1) or shorter (−1) interval."""
        self.context.interval_s = beside(INTERVALS_S, self.context.interval_s, step)
        self.context.session.set_interval(self.context.interval_s)
        self.draw_lines()

    def remember(self, key: str, value: str | Mapping[str, tuple[str, ...] | None]) -> None:
        """Save a choice for the next start; notify the user if that fails."""
        try:
            self.context.remember(key, value)
        except NettopError as error:
            self.notify(f"not remembered: {error.what}; {error.remedy}", severity="warning", markup=False)


def make_screen(
    context: ScreenContext,
    ref: TableRef,
    settings: ViewSettings | None = None,
    opened_from: Table | None = None,
) -> LensScreen:
    """Return a screen of a table, in the state given by the settings."""
    return screen_class(ref)(context, *ref, settings, opened_from)


def screen_class(ref: TableRef) -> type[LensScreen]:
    """Return the screen class of a table: the one in `SCREENS` of the lens's part `screen`, else LensScreen."""
    screens = getattr(lens_part(ref.lens.id, "screen"), "SCREENS", {})
    screen: type[LensScreen] = screens.get(ref.table.name, LensScreen)
    return screen
