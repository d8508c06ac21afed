# SPDX-License-Identifier: Apache-2.0
"""The screen of a lens's table with its keys: their availability, labels and actions.

Tables without a screen of their own use this one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar

from textual.binding import BindingType
from textual.message import Message

from nettop.errors import NettopError
from nettop.preferences import UNITS
from nettop.query.units import show_rates
from nettop.query.view import View
from nettop.recording.moments import EXAMPLES, parse_moment, time_text
from nettop.screens import headline
from nettop.screens.actions import ACTIONS, BY_ID, GRAPH, OPTIONS, RECORDING, Action, bindings
from nettop.screens.context import ScreenContext, TableRef
from nettop.screens.query_screen import QueryScreen
from nettop.settings import ViewSettings
from nettop.snapshots import lens_part
from nettop.snapshots.arrays import Index
from nettop.snapshots.schema import Kind, Option, Table
from nettop.snapshots.snapshot import Frame
from nettop.snapshots.source import SourceOptions
from nettop.widgets.bar import BarItem
from nettop.widgets.cells import whole_texts
from nettop.widgets.page import Page
from nettop.widgets.table import LiveTable

if TYPE_CHECKING:
    from nettop.recording.player import Player

INTERVALS_S = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)
_WHILE_TYPING = {"refresh_now": "apply and refresh", "clear": "cancel"}
"""Labels of the keys that work while the filter box is open; all others are typed into it."""


class LensScreen(QueryScreen, inherit_bindings=False):
    """A table of a lens, with a method `action_<id>` for each action of a lens's screen."""

    BINDINGS: ClassVar[list[BindingType]] = bindings(everywhere=False)
    about: ClassVar[str] = ""
    """Description of the table for help and palette; if empty, they list its columns."""
    has_rows: ClassVar[bool] = True
    """True if rows are shown, which `/` filters and columns sort."""
    member_table: Table | None = None
    """The table whose rows each row groups, if any; → opens it instead of the details."""

    @dataclass
    class MembersOpened(Message):
        """The request to open a row's members: the rows of another table that pass a filter."""

        table: Table
        filter_text: str

    def more_help(self) -> Mapping[str, Sequence[tuple[str, str]]]:
        """Return further sections of the help by heading: terms and their meanings."""
        return {}

    def member_filter(self, view: View, at: Index) -> str | None:
        """Return the filter for the rows of `member_table` that the row at `at` groups; None if they are not listed."""
        raise NotImplementedError

    # --- which keys work ----------------------------------------------------------------------------------

    def is_available(self, action: Action) -> bool:
        """Return whether a key would do something now."""
        if self.has_class("-small"):
            return action.id in ("quit", "interrupt", "suspend")
        if self.has_class("-typing"):
            return action.id in _WHILE_TYPING or action.everywhere
        condition = self._conditions.get(action.id)
        return condition is None or condition()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Return whether a key works now; called by Textual."""
        ids = {"move": "{}", "next_option_value": "option_{}"}  # one method serves several actions
        known = BY_ID.get(ids.get(action, action).format(*parameters))
        return known is None or self.is_available(known)

    @cached_property
    def _conditions(self) -> dict[str, Callable[[], bool]]:
        return self.conditions()

    def conditions(self) -> dict[str, Callable[[], bool]]:
        """Return the conditions of actions that are not always available."""
        several = len(self.context.lenses) > 1
        tables = len(self.lens.tables) > 1
        fields = (*self.table.fields, *self.totals_history.fields)
        has_addresses = any(field.kind is Kind.ADDRESS for field in self.table.fields)
        has_byte_rates = any(f.unit == "bytes/s" or (f.unit == "bytes" and f.has_rate) for f in fields)
        options = {f"option_{o.name}" for o in self.lens.options if self._is_offered(o)}
        return {
            **dict.fromkeys(("lens", "next_lens", "previous_lens"), lambda: several),
            "next_finding": lambda: self.context.has_findings,
            **{a.id: (lambda: self.context.player is not None) for a in ACTIONS if a.group == RECORDING},
            **dict.fromkeys(("slower", "faster"), lambda: self.context.player is None),
            **dict.fromkeys(("next_table", "previous_table"), lambda: tables),
            **{a.id: self.is_shown for a in ACTIONS if a.group in ("Rows", "Move")},
            # Also while the view loads: text typed after this key must not run as commands.
            "filter": lambda: True,
            **{a.id: (lambda: False) for a in ACTIONS if a.group == GRAPH},
            **dict.fromkeys(("keep_closed", "copy_command"), lambda: False),
            "explain": lambda: self.details_open,
            "next_trouble": lambda: self.table is not self.lens.main or self.is_shown(),
            **{name: partial(options.__contains__, name) for name in OPTIONS},
            **dict.fromkeys(("details", "copy"), lambda: self.is_shown() and len(self.rows.order) > 0),
            "follow": lambda: self.is_shown() and len(self.rows.order) > 0 and not self.table.append,
            "freeze": lambda: self.context.player is not None or self.is_shown() or self.frozen is not None,
            "back": lambda: self.details_open or self.opened_from is not None,
            "clear": lambda: (
                self.details_open or bool(self.state.query.filter.text) or self.rows.key is not None
            ),
            "totals": lambda: self.is_shown() and self.state.has_forms,
            "export": self.is_shown,
            "all_rows": lambda: self.is_shown() and bool(self.table.default_filter),
            "bars": lambda: self.is_shown() and self.rows.has_room_for_bars,
            "host_names": lambda: self.is_shown() and has_addresses,
            "unit": lambda: self.is_shown() and has_byte_rates,
            "average": lambda: self.context.next_average_s != self.context.average_s,
        }

    def label_of(self, action: Action) -> str:
        """Return the current label of a key."""
        if self.has_class("-typing"):
            return _WHILE_TYPING.get(action.id, action.label)
        table = self.opened_from or self.table
        has_failed = self.context.session.bus.failure(self.lens.id) is not None
        labels = {
            "refresh_now": "try again" if has_failed else action.label,
            "freeze": self._freeze_label(action.label),
            "totals": "rates" if self.state.totals else action.label,
            "follow": "unfollow" if self.rows.follows else action.label,
            "unit": "bits" if self.context.in_bytes else action.label,
            "host_names": "addresses" if self.context.names is not None else action.label,
            "bars": "hide bars" if self.rows.bars else action.label,
            "all_rows": "fewer" if self.state.query.all_rows else action.label,
            "next_table": TableRef(self.lens, table).neighbour(1).table.name,
            "details": self.member_table.name if self.member_table else action.label,
            "back": table.name if self.opened_from and not self.details_open else action.label,
        }
        return labels.get(action.id, action.label)

    def _freeze_label(self, label: str) -> str:
        player = self.context.player
        if player is not None:
            return "play" if player.is_paused or player.is_at_end else "pause"
        return "resume" if self.frozen is not None else label

    def help_of(self, action: Action) -> str:
        """Return a line about a key on this screen; "" for the digit of a lens that does not exist."""
        if action.id == "lens":
            return next((lens.title for lens in self.context.lenses if lens.digit == action.argument), "")
        if action.id == "freeze" and self.context.player is not None:
            return "Pause the recording, or play on; at its end, from the beginning"
        return action.help

    def footer_items(self) -> list[BarItem]:
        """Return the keys that work now."""
        return headline.footer(self.is_available, self.label_of)

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
        player = self.context.player
        if player is None:
            super().action_freeze()
            return
        starts_again = player.is_at_end
        if starts_again:
            player.jump(player.recording.begin_ns)
        player.is_paused = not (player.is_paused or starts_again)
        self._show_moment()

    async def action_jump(self) -> None:
        """Open a box for the moment to go to."""
        await self.open_box(self._moment_text, self._jump, "", f"UTC: {EXAMPLES}", ":")

    def _moment_of(self, text: str) -> int:
        """Return the moment that a text names. Raise UsageError if there is none."""
        recording = self._player.recording
        return parse_moment(
            text,
            begin_ns=recording.begin_ns,
            end_ns=recording.end_ns,
            here_ns=self._player.wall_ns,
            now_ns=time.time_ns(),
        )

    def _moment_text(self, text: str) -> str:
        return f"{time_text(self._moment_of(text))} UTC" if text.strip() else "Esc leaves"

    def _jump(self, text: str) -> None:
        if text.strip():
            self.action_go_to(self._moment_of(text))

    def action_go_to(self, wall_ns: int) -> None:
        """Show a moment of the recording."""
        self._player.jump(wall_ns)
        self._show_moment()

    def action_step_forward(self, readings: int = 1) -> None:
        """Pause, and show the next or the last (−1) reading."""
        if not self._player.step(self.lens, readings):
            self.notify("this is the last reading" if readings > 0 else "this is the first reading")
        self._show_moment()

    def action_play_faster(self, step: int = 1) -> None:
        """Play at the next higher or lower (−1) speed."""
        player = self._player
        player.speed = _beside(player.speeds, player.speed, step)
        self.context.session.set_interval(player.interval_s)
        self._show_moment()

    def action_next_match(self) -> None:
        """Go to the next moment with a row that passes the filter; without a filter, at which a finding begins."""
        player, query = self._player, self.state.query
        if not query.filter.is_empty:
            self.notify(f"searching for {query.filter.text}", markup=False)

        def has_rows(frame: Frame) -> bool:
            view = View(frame, query)
            return bool((view.scope[view.order] & ~view.gone[view.order]).any())

        def search() -> None:
            is_any = query.filter.is_empty
            found = player.next_finding() if is_any else player.next_match(self.lens, has_rows)
            self.app.call_from_thread(self._found, found)

        self.run_worker(search, thread=True, exclusive=True)

    def _found(self, wall_ns: int | None) -> None:
        if wall_ns is None:
            self.notify("no such moment up to the end of the recording")
            return
        self._player.is_paused = True
        self.action_go_to(wall_ns)

    @property
    def _player(self) -> Player:
        assert self.context.player is not None
        return self.context.player

    def _show_moment(self) -> None:
        self.context.session.sample_now()
        self.draw_lines()

    # --- refresh, units, options --------------------------------------------------------------------------

    def _is_offered(self, option: Option[Any]) -> bool:
        """Return whether a key changes this option. Nothing changes how a recording was made."""
        opens_another = option.opens not in ("", self.table.name)
        return opens_another or (self.context.player is None and option.concerns(self.table))

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
        self.context.interval_s = _beside(INTERVALS_S, self.context.interval_s, step)
        self.context.session.set_interval(self.context.interval_s)
        self.draw_lines()

    def remember(self, key: str, value: str | Mapping[str, tuple[str, ...] | None]) -> None:
        """Save a choice for the next start; notify the user if that fails."""
        try:
            self.context.remember(key, value)
        except NettopError as error:
            self.notify(f"not remembered: {error.what}; {error.remedy}", severity="warning", markup=False)


def _beside(choices: Sequence[float], now: float, step: int) -> float:
    """Return the next larger (`step` 1) or smaller (−1) choice; `now` after the last one."""
    others = [each for each in choices if (each > now if step > 0 else each < now)]
    return (min if step > 0 else max)(others, default=now)


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
