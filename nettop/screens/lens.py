# SPDX-License-Identifier: Apache-2.0
"""The screen of a lens and what its keys do. A lens without a screen of its own gets this one."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import ClassVar

from textual.binding import BindingType
from textual.message import Message

from nettop.query.filter import parse_filter
from nettop.query.view import View
from nettop.screens.actions import ACTIONS, BY_ID, GRAPH, OPTIONS, Action, of_lens
from nettop.screens.context import Place, ScreenContext
from nettop.screens.picture import Picture
from nettop.screens.table_state import TableState
from nettop.settings import ViewSettings
from nettop.snapshots.schema import Table
from nettop.widgets.page import Page
from nettop.widgets.table import LiveTable

_WHILE_TYPING = {"refresh_now": "apply and refresh", "clear": "leave the filter as it was"}
"""What keys do while the filter box is open; all others are typed into it."""


class LensScreen(Picture):
    """A lens with its keys: one method `action_<id>` for each row of the table of keys that is not everywhere."""

    BINDINGS: ClassVar[list[BindingType]] = of_lens()
    about: ClassVar[str] = ""
    """What the table shows, for help and palette; where it says nothing, they name its columns."""
    stands_for: ClassVar[Table | None] = None
    """The table of which each row here stands for some rows, which → shows; None where → opens details."""

    @dataclass
    class Opened(Message):
        """A row was opened that stands for some rows of another table: those that pass the filter."""

        table: Table
        filter_text: str

    # --- what works now -------------------------------------------------------------------------------------

    def works(self, action: Action) -> bool:
        """True where a key would do something now."""
        test = self._tests.get(action.id)
        if self.has_class("-small"):
            return action.id in ("quit", "interrupt", "suspend")
        if self.has_class("-typing"):
            return action.id in _WHILE_TYPING or action.everywhere
        return test is None or test()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:  # noqa: ARG002
        """No key does anything that makes no sense now."""
        known = BY_ID.get(action)
        return known is None or self.works(known)

    @cached_property
    def _tests(self) -> dict[str, Callable[[], bool]]:
        return self._conditions()

    def _conditions(self) -> dict[str, Callable[[], bool]]:
        """When the keys work that do not always: what is asked of each again and again."""
        several = len(self.context.lenses) > 1
        tables = len(self.lens.tables) > 1
        shown = self._is_shown
        return {
            "lens": lambda: several,
            "next_lens": lambda: several,
            "previous_lens": lambda: several,
            "next_table": lambda: tables,
            "previous_table": lambda: tables,
            **{a.id: shown for a in ACTIONS if a.group in ("Rows", "Move")},
            **{a.id: (lambda: False) for a in ACTIONS if a.group == GRAPH},
            **{name: partial(self._has_option, name) for name in OPTIONS},
            "details": lambda: shown() and len(self.rows.order) > 0,
            "freeze": lambda: shown() or self.frozen_at is not None,
            "back": lambda: self.details_open or self.within is not None,
            "clear": self._has_something_to_clear,
            "totals": lambda: shown() and self.state.has_forms,
            "all_rows": lambda: shown() and bool(self.table.default_filter),
        }

    def _is_shown(self) -> bool:
        return self.view is not None and not self.has_class("-notice")

    def _has_something_to_clear(self) -> bool:
        return self.details_open or bool(self.state.query.filter.text) or self.rows.key is not None

    def _has_failed(self) -> bool:
        return self.context.session.bus.failure(self.lens.id) is not None

    def label_of(self, action: Action) -> str:
        """What a key does now, in a word."""
        if self.has_class("-typing"):
            return _WHILE_TYPING.get(action.id, action.label)
        tab = self.within or self.table
        labels = {
            "refresh_now": "try again" if self._has_failed() else action.label,
            "freeze": "go on" if self.frozen_at is not None else action.label,
            "totals": "rates" if self.state.totals else action.label,
            "all_rows": "fewer" if self.state.query.all_rows else action.label,
            "next_table": Place(self.lens, tab).beside(1).table.name,
            "details": self.stands_for.name if self.stands_for else action.label,
            "back": tab.name if self.within and not self.details_open else action.label,
        }
        return labels.get(action.id, action.label)

    # --- rows -----------------------------------------------------------------------------------------------

    def ask(self, state: TableState) -> None:
        """Show what is asked for from now on."""
        self.state = state
        self.look_again()

    def _ask_filter(self, text: str) -> None:
        query = replace(self.state.query, filter=parse_filter(self.table, text))
        self.ask(replace(self.state, query=query))

    def action_sort_next(self) -> None:
        """Sort by the next column, after the last by the first."""
        self.ask(self.state.sorted_beside(self.rows.columns, 1, around=True))

    def action_sort_right(self) -> None:
        """Sort by the column to the right."""
        self.ask(self.state.sorted_beside(self.rows.columns, 1, around=False))

    def action_sort_left(self) -> None:
        """Sort by the column to the left."""
        self.ask(self.state.sorted_beside(self.rows.columns, -1, around=False))

    def action_sort_reverse(self) -> None:
        """Turn the order round."""
        self.ask(self.state.reversed())

    def sort_by(self, name: str) -> None:
        """Sort by any column, shown or not."""
        self.ask(self.state.sorted_by(name))

    def action_totals(self) -> None:
        """Rates become totals, totals rates."""
        self.ask(self.state.with_totals(on=not self.state.totals))

    def action_all_rows(self) -> None:
        """All rows, or those that the table shows unasked."""
        query = self.state.query
        self.context.session.set(self.lens.id, "all_rows", not query.all_rows)
        self.ask(replace(self.state, query=replace(query, all_rows=not query.all_rows)))
        self.context.session.sample_now()

    # --- the filter -----------------------------------------------------------------------------------------

    async def action_filter(self) -> None:
        """Open the box."""
        from nettop.screens.filter_box import FilterBox  # not needed for the first picture

        if not self.query(FilterBox):
            self.add_class("-typing")
            await self.mount(FilterBox(self._would_leave, self.state.query.filter.text), before=self.footer)
            self.draw_frame()

    def _would_leave(self, text: str) -> str:
        """What a filter would leave of the rows; raises UsageError in words for one that is wrong."""
        assert self.view is not None
        query = replace(self.state.query, filter=parse_filter(self.table, text))
        view = View(self.view.frame, query, self.context.names)
        here = ~view.gone
        left, among = int(here[view.order].sum()), int((view.scope & here).sum())
        rows = f"{left:,} of {among:,} rows" if text.strip() else f"all {among:,} rows"
        return "; ".join([rows, *view.filter_remarks])

    async def on_filter_box_applied(self, message: object) -> None:
        """Filter, and close the box."""
        await self._close_filter_box()
        self.typed(str(getattr(message, "text", "")))

    def typed(self, text: str) -> None:
        """Do what was typed in the box."""
        self._ask_filter(text)

    async def on_filter_box_left(self) -> None:
        """Close the box."""
        await self._close_filter_box()
        self.draw_frame()

    async def _close_filter_box(self) -> None:
        self.remove_class("-typing")
        await self.query("#filter-box").remove()
        self.focus_body()

    def focus_body(self) -> None:
        """Let keys go to what stands between the lines."""
        self.rows.focus()

    # --- looking --------------------------------------------------------------------------------------------

    def refresh_now(self) -> None:
        """One new picture, even while frozen; details are asked for again."""
        self.take_one = True
        self.told = None

    def action_freeze(self) -> None:
        """Hold the picture still, or let it go on."""
        self.frozen_at = self.context.clock() if self.frozen_at is None else None
        self.take()

    def filter_behind(self, view: View, key: int) -> str:
        """The filter that the rows pass for which a row stands, of the table `stands_for`."""
        raise NotImplementedError

    def action_details(self) -> None:
        """Open the chosen row: the rows behind it, or the pane; when that is open, let the arrows scroll in it."""
        if self.details_open:
            self.details.focus()
            return
        if self.rows.key is None:
            self.rows.move(0)
        if self.stands_for is None:
            self.add_class("-details")
            self.redraw()
        elif self.view is not None and self.rows.key is not None:
            self.post_message(self.Opened(self.stands_for, self.filter_behind(self.view, self.rows.key)))

    def action_back(self) -> None:
        """Out of the pane, then close it, then back to where this screen was opened from."""
        if self.focused is self.details:
            self.rows.focus()
        elif self.details_open:
            self._close_details()
        else:
            self.dismiss()

    def _close_details(self) -> None:
        self.rows.focus()
        self.remove_class("-details")
        self.told = None
        self.redraw()

    def action_clear(self) -> None:
        """Close the details, then drop the filter, then the choice of a row."""
        if self.details_open:
            self._close_details()
        elif self.state.query.filter.text:
            self._ask_filter("")
        else:
            self.rows.choose(None)

    def redraw(self) -> None:
        """Draw the frame now, and the details once they know their width."""
        self.draw_frame()
        self.call_after_refresh(self.draw_details)

    def _has_option(self, action: str) -> bool:
        return any(f"option_{option.name}" == action for option in self.lens.options)

    def action_next_option_value(self, name: str) -> None:
        """Set an option of the lens to the next of its values."""
        for option in self.lens.options:
            if option.name == name:
                value = self.context.next_value(self.lens, option)
                self.notify(f"{option.help}: {option.text(value)}")

    def action_slower(self) -> None:
        """A longer interval."""
        self.context.change_interval(1)
        self.draw_frame()

    def action_faster(self) -> None:
        """A shorter interval."""
        self.context.change_interval(-1)
        self.draw_frame()

    # --- moving ---------------------------------------------------------------------------------------------

    def _move(self, rows: int, lines: int) -> None:
        if isinstance(self.focused, Page):
            self.details.scroll_by(lines)
        else:
            self.rows.move(rows)

    def action_move_up(self) -> None:
        """The row above."""
        self._move(-1, -1)

    def action_move_down(self) -> None:
        """The row below; the first one when none was chosen."""
        self._move(1, 1)

    def action_page_up(self) -> None:
        """A page up."""
        self._move(-max(1, self.rows.page - 1), -self.details.size.height)

    def action_page_down(self) -> None:
        """A page down."""
        self._move(max(1, self.rows.page - 1), self.details.size.height)

    def action_first(self) -> None:
        """The first row."""
        self._move(-len(self.rows.order), -len(self.details.lines))

    def action_last(self) -> None:
        """The last row."""
        self._move(len(self.rows.order), len(self.details.lines))

    # --- mouse ----------------------------------------------------------------------------------------------

    def on_live_table_sort_by(self, message: LiveTable.SortBy) -> None:
        """A header was clicked."""
        self.sort_by(message.name)

    def on_live_table_chosen(self, message: LiveTable.Chosen) -> None:
        """Another row is chosen; a click on the chosen one opens its details."""
        if message.open and not self.details_open:
            self.action_details()
        else:
            self.redraw()


def screen_of(
    context: ScreenContext, place: Place, asked: ViewSettings | None = None, within: Table | None = None
) -> LensScreen:
    """A screen of a table, opened as the command line asks, or by → in the table `within`."""
    return screen_class(place)(context, *place, asked, within)


def screen_class(place: Place) -> type[LensScreen]:
    """What shows a table: `SCREEN` of `nettop.screens.LENS.TABLE`.

    A lens whose screens are one plain module, `nettop.screens.LENS`, has one for its main table there. A table without
    a screen of its own gets the common one.
    """
    names = [f"nettop.screens.{place.lens.id}.{place.table.name}"]
    names += [f"nettop.screens.{place.lens.id}"] if place.table is place.lens.main else []
    for name in names:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name not in (name, names[-1]):
                raise
            continue
        made: type[LensScreen] = getattr(module, "SCREEN", LensScreen)
        return made
    return LensScreen
