# SPDX-License-Identifier: Apache-2.0
"""The screen of a lens's table: headline, rows, the details of a row, and what the keys do.

A table without a screen of its own gets this one.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Container
from textual.message import Message

from nettop.engine.own_cost import VIEW
from nettop.errors import FilterError, NettopError
from nettop.preferences import UNITS
from nettop.query.filter import Filter, parse_filter
from nettop.query.trouble import present_troubles, trouble_filters
from nettop.query.view import View
from nettop.screens import headline
from nettop.screens.actions import ACTIONS, BY_ID, GRAPH, OPTIONS, Action, bindings
from nettop.screens.context import Frozen, ScreenContext, TableRef
from nettop.screens.table_state import TableState, initial_state
from nettop.screens.textual_internals import MeasuredScreen
from nettop.settings import ViewSettings
from nettop.snapshots.schema import Field, Kind, Lens, Table
from nettop.snapshots.snapshot import Frame, Rows
from nettop.widgets.bar import Bar, BarItem, Span
from nettop.widgets.cells import RowStyle, role_of, whole_texts
from nettop.widgets.columns import declared
from nettop.widgets.details import detail_lines
from nettop.widgets.notice import Notice
from nettop.widgets.page import Line, Page
from nettop.widgets.table import LiveTable
from nettop.widgets.themes import Ground, Role

LEAST_WIDTH, LEAST_HEIGHT = 40, 10
WIDE = 132
"""From this width on the details stand beside the table, not below."""
_TALL = 30
"""From this height on there is an empty line above the table."""

_WHILE_TYPING = {"refresh_now": "apply and refresh", "clear": "leave the filter as it was"}
"""What keys do while the filter box is open; all others are typed into it."""


class LensScreen(MeasuredScreen[None], inherit_bindings=False):
    """A live table of a lens, with a method `action_<id>` for each action that a lens's screen does.

    Subclasses give the headline and the style of the rows. `opened_from` is the table whose row opened this screen.
    """

    AUTO_FOCUS = "LiveTable"
    BINDINGS: ClassVar[list[BindingType]] = bindings(everywhere=False)
    about: ClassVar[str] = ""
    """What the table shows, for help and palette; without it they list its columns."""
    has_filter: ClassVar[bool] = True
    """Whether `/` filters the rows."""
    row_style: ClassVar[RowStyle] = RowStyle()
    describable: ClassVar[bool | None] = None
    """Whether the source has more details of a row; None: only of the main table's rows."""
    member_table: Table | None = None
    """Where each row stands for several rows of another table: that table, which → opens instead of details."""

    @dataclass
    class RowDescribed(Message):
        """The source's details of a row have arrived."""

        key: int
        answer: Future[dict[str, str]]

    @dataclass
    class MembersOpened(Message):
        """A row was opened that stands for those rows of another table that pass a filter."""

        table: Table
        filter_text: str

    class ColumnsChosen(Message):
        """Other columns are shown."""

    def __init__(
        self,
        context: ScreenContext,
        lens: Lens,
        table: Table,
        settings: ViewSettings | None = None,
        opened_from: Table | None = None,
    ) -> None:
        super().__init__(context, lens)
        self.table = table
        self.opened_from = opened_from
        self.view_name = TableRef(lens, table).view_name
        self.state = initial_state(table, settings, context.columns.get(self.view_name))
        if self.state.chosen_by_user:
            context.columns[self.view_name] = self.state.declared_names
        self._columns = context.columns.get(self.view_name)
        self.trouble_filters = trouble_filters(table)
        self.lens_state = context.lens_state(lens)
        if settings is not None and opened_from is None:
            self.lens_state.filter_text = self.state.query.filter.text
        self.view: View | None = None
        self.totals_history = context.history(lens)
        self.refresh_once = False
        self._frame: Frame | None = None
        self._last_view: View | None = None
        self._details: Mapping[str, str] | str = ""
        self._details_key: int | None = None
        self._headline_drawn: tuple[View, int] | None = None
        self._chosen_elsewhere: Mapping[str, object] = {}
        self.first_line = Bar(Ground.PANEL, gap=0, id="first-line")
        self.headline_bar = Bar(id="headline")
        self.third_line = Bar(gap=0, id="third-line")
        self.rows = LiveTable(self.state.names, self.row_style)
        self.rows.extra = not self.state.chosen_by_user
        self.rows.bars = settings is None or settings.columns is None
        self.details = Page(id="details")
        self.notice = Notice(id="notice")
        self.footer = Bar(Ground.PANEL, gap=2, id="footer")

    # --- what subclasses change -----------------------------------------------------------------------------

    def compose(self) -> ComposeResult:
        """Two or three lines above, one below, the table between."""
        yield self.first_line
        yield self.headline_bar
        yield self.third_line
        with Container(id="body"):
            yield from self.body()
        yield self.notice
        yield self.footer

    def body(self) -> ComposeResult:
        """What stands between the lines."""
        yield self.rows
        yield self.details

    def headline(self, view: View) -> list[BarItem]:
        """The second line, without the items that end it in every lens."""
        at = view.order
        items = [headline.count("rows", int((~view.gone[at]).sum()), 900)]
        for n, name in enumerate(self.state.declared_names):
            field = declared(self.table, name)
            if field.kind is Kind.COUNTER:
                title = field.title if name == field.name else field.rate_title or field.title
                label = Span(f"{title.lower()} ", role_of(field))
                items.append(headline.sum_of(view, name, label, at, 800 - n))
        return items

    def cost(self) -> float | None:
        """The cost in the first line, as a share of one CPU; None where it is not known."""
        return self.context.cpu_share()

    def more_help(self) -> Mapping[str, Sequence[tuple[str, str]]]:
        """Further sections of the help: terms and their meaning, by heading."""
        return {}

    @property
    def closed_rows(self) -> Rows | None:
        """Rows that have left the table and are shown still."""
        return None

    @property
    def column_names(self) -> tuple[str, ...]:
        """The columns in sight; where the table is not, those that it would have."""
        drawn = tuple(column.sort for column in self.rows.columns if not column.bar)
        return drawn or self.state.names

    @property
    def sort_columns(self) -> tuple[str, ...]:
        """The columns by which the palette offers to sort."""
        return self.table.sortable

    def source_key(self, view: View, key: int) -> int | None:
        """The key by which the source knows the row `key`; None where it has no details of it."""
        is_main = view.table.name == self.lens.main.name
        return key if (is_main if self.describable is None else self.describable) else None

    def member_filter(self, view: View, key: int) -> str | None:
        """The filter that passes the rows of `member_table` for which a row stands; None where these are not listed."""
        raise NotImplementedError

    # --- frames ---------------------------------------------------------------------------------------------

    def on_mount(self) -> None:
        """Begin with whatever is there already."""
        self.set_interval(1.0, self._count_frozen_seconds)
        self.set_class(len(self.lens.tables) > 1, "-several")
        self.show_newest()

    def on_screen_resume(self) -> None:
        """Visible again: show what is newest, with the columns that were chosen on another screen of the table."""
        if self.is_mounted:
            self._take_columns()
            self.show_newest()
            if self.frozen is not None:  # the same rows, in the unit that was chosen elsewhere
                self.update_view()

    def release_view(self) -> None:
        """Hidden: keep no rows in memory, unless they are frozen."""
        if self.frozen is None and self.is_mounted:
            self._frame = self.view = self._last_view = self._headline_drawn = self._details_key = None
            self.rows.forget()
            self.totals_history.forget_rows()

    def show_newest(self) -> None:
        """Show the newest frame, or that at which the lens is frozen."""
        bus = self.context.session.bus
        frame, failure = bus.frame(self.lens.id), bus.failure(self.lens.id)
        if self.frozen is not None and not self.refresh_once:
            frame, failure = self.frozen.frame, None
        if failure is not None:
            self._show_notice(
                Span(failure.what, Role.BAD), Span(failure.remedy), Span("Enter tries again", Role.DIM)
            )
        elif frame is None or not self.has_table(frame):
            self._show_notice(Span(f"{self.lens.title}: attaching …", Role.DIM))
        elif frame is not self._frame:
            self.show_frame(frame)
            return
        else:
            self.set_class(False, "-notice")
        self.draw_lines()

    def has_table(self, frame: Frame) -> bool:
        """False while the source has not read the table: it reads some only once they are looked at."""
        unavailable = frame.now.why_unavailable(self.table) is not None
        return self.table.append or self.table.name in frame.now.tables or unavailable

    @property
    def frozen(self) -> Frozen | None:
        """Where the lens is frozen, if its source had read this table by then; None while the newest frame is shown."""
        frozen = self.lens_state.frozen
        return frozen if frozen is not None and self.has_table(frozen.frame) else None

    def show_frame(self, frame: Frame) -> None:
        """Show a new frame."""
        self._frame = frame
        last = None if self.view is None else self.view.frame
        before = frame.before
        follows = last is not None and before is not None and last.now.boot_ns >= before.boot_ns
        self._last_view = self.view if follows else None
        if self.refresh_once and self.frozen is not None:
            self.lens_state.frozen = Frozen(frame, self.context.clock())
        self.refresh_once = False
        self.update_view()

    def update_view(self) -> None:
        """Apply the query to the frame, and draw the result."""
        if self._frame is None:
            return
        with self.context.session.steps.time(self.lens.id, VIEW):
            self.make_view(self._frame)
        self.set_class(False, "-notice")
        self.draw_body()
        self._check_box()

    def _check_box(self) -> None:
        """What a filter that is being typed would leave of the new rows."""
        if self.has_class("-typing"):
            from nettop.screens.filter_box import FilterBox  # not needed for the first screen

            for box in self.query(FilterBox):
                box.check()

    def make_view(self, frame: Frame) -> None:
        """Apply the query to a frame."""
        # A row that has gone would stay for as long as the average, without a rate.
        query = replace(self.state.query, gone=not self.context.is_averaging)
        self.view = View(frame, query, self.context.names, self._last_view, earlier=self.closed_rows)
        self.totals_history.add(self.view)
        self.rows.show(self.view, self.state.names)
        self._follow_choice(self.view)

    def _show_notice(self, *texts: Span) -> None:
        self.notice.show(texts)
        self.set_class(True, "-notice")

    def _count_frozen_seconds(self) -> None:
        if self.frozen is None or not self.is_current:
            return
        if self.context.names is not None:  # some may have been resolved meanwhile
            self.update_view()
        else:
            self.draw_lines()

    # --- drawing --------------------------------------------------------------------------------------------

    def draw_lines(self) -> None:
        """The lines above and below the body."""
        if self.has_class("-small"):
            return
        frozen_s = None if self.frozen is None else self.context.clock() - self.frozen.at
        width = self.size.width
        self.first_line.show(
            *headline.first_line(
                self.context, self.lens, width, self._frame, frozen_s=frozen_s, cost=self.cost()
            )
        )
        if self.view is None:
            self.headline_bar.show([])
        elif (self.view, width) != self._headline_drawn:
            self._headline_drawn = (self.view, width)
            snapshot = self.view.snapshot
            ending = headline.ending(snapshot, self.context.session.late)
            self.headline_bar.show([*self.headline(self.view), *ending])
        items = self.third_items(width)
        room = width - sum(part.width for part in items)
        self.third_line.show(items, headline.history(self.totals_history, room))
        self.set_class(bool(self.state.query.filter.text), "-filtered")
        self.footer.show(headline.footer(self.is_available, self.label_of))

    def third_items(self, width: int) -> list[BarItem]:
        """The third line."""
        return headline.third_line(self.lens, self.table, self.opened_from, self.view, width)

    def draw_body(self) -> None:
        """What depends on the newest view, and on the size of the body."""
        self.draw_details()
        self.draw_lines()

    def redraw(self) -> None:
        """Draw the lines now, and the details once they know their width."""
        self.draw_lines()
        self.call_after_refresh(self.draw_details)

    def draw_details(self) -> None:
        """The details of the chosen row, where they are open."""
        key = self.rows.key
        if not self.details_open or self.view is None:
            return
        if key is None:
            self.details.show([(Span("no row is chosen", Role.DIM),)])
            return
        if key != self._details_key:
            self._details_key, self._details = key, {}
            source_key = self.source_key(self.view, key)
            if source_key is not None:  # the source's answer arrives from another thread, as a message
                self._details = "reading the details of this row …"
                answer = self.context.session.describe(self.lens.id, source_key)
                answer.add_done_callback(
                    lambda done: self.post_message(self.RowDescribed(key, done)) and None
                )
        width, explains = self.details.size.width - 2, self.context.explains
        lines = detail_lines(self.view, key, self._details, width, explained=explains)
        self.details.show([*lines, *self.more_details()])

    def on_lens_screen_row_described(self, message: RowDescribed) -> None:
        """Show the source's details, if their row is still the chosen one."""
        if message.key == self._details_key:
            error = message.answer.exception()
            remedy = getattr(error, "remedy", "")
            text = f"{error}: {remedy}" if remedy else str(error)
            self._details = message.answer.result() if error is None else text
            self.draw_details()

    def more_details(self) -> list[Line]:
        """What stands below the facts of the chosen row."""
        return []

    @property
    def details_open(self) -> bool:
        """True while the details are visible."""
        return self.has_class("-details")

    @property
    def shows_choice(self) -> bool:
        """True while more of the chosen row is shown: then it is followed when the order changes."""
        return self.details_open

    def on_resize(self, event: events.Resize) -> None:
        """Choose the arrangement for this size."""
        width, height = event.size
        small = width < LEAST_WIDTH or height < LEAST_HEIGHT
        self.set_class(small, "-small")
        self.set_class(width >= WIDE, "-wide")
        self.set_class(height >= _TALL, "-tall")
        if small:
            need = f"nettop needs {LEAST_WIDTH}×{LEAST_HEIGHT} cells; this terminal has {width}×{height}."
            self.notice.show([Span(need, Role.TEXT)])
        else:
            self.show_newest()
        self.call_after_refresh(self.draw_body)

    # --- which keys work ------------------------------------------------------------------------------------

    def is_available(self, action: Action) -> bool:
        """True where a key would do something now."""
        if self.has_class("-small"):
            return action.id in ("quit", "interrupt", "suspend")
        if self.has_class("-typing"):
            return action.id in _WHILE_TYPING or action.everywhere
        condition = self._conditions.get(action.id)
        return condition is None or condition()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Textual's question whether a key works now."""
        ids = {"move": "{}", "next_option_value": "option_{}"}  # one method for several actions
        known = BY_ID.get(ids.get(action, action).format(*parameters))
        return known is None or self.is_available(known)

    @cached_property
    def _conditions(self) -> dict[str, Callable[[], bool]]:
        return self.conditions()

    def conditions(self) -> dict[str, Callable[[], bool]]:
        """The conditions of the actions that are not always available."""
        several = len(self.context.lenses) > 1
        tables = len(self.lens.tables) > 1
        fields = (*self.table.fields, *self.totals_history.fields)
        has_addresses = any(field.kind is Kind.ADDRESS for field in self.table.fields)
        options = {f"option_{o.name}" for o in self.lens.options if o.concerns(self.table) or o.opens}
        return {
            **dict.fromkeys(("lens", "next_lens", "previous_lens"), lambda: several),
            **dict.fromkeys(("next_table", "previous_table"), lambda: tables),
            **{a.id: self.is_shown for a in ACTIONS if a.group in ("Rows", "Move")},
            # Also while the view loads: what is typed after this key is no command.
            "filter": lambda: True,
            **{a.id: (lambda: False) for a in ACTIONS if a.group == GRAPH},
            "keep_closed": lambda: False,
            "explain": lambda: self.details_open,
            "copy_command": lambda: False,
            "next_trouble": lambda: (
                bool(self.lens.main.troubles) and (self.table is not self.lens.main or self.is_shown())
            ),
            **{name: partial(options.__contains__, name) for name in OPTIONS},
            "details": lambda: self.is_shown() and len(self.rows.order) > 0,
            "copy": lambda: self.is_shown() and len(self.rows.order) > 0,
            "follow": lambda: self.is_shown() and len(self.rows.order) > 0 and not self.table.append,
            "freeze": lambda: self.is_shown() or self.frozen is not None,
            "back": lambda: self.details_open or self.opened_from is not None,
            "clear": self.has_something_to_clear,
            "totals": lambda: self.is_shown() and self.state.has_forms,
            "export": self.is_shown,
            "all_rows": lambda: self.is_shown() and bool(self.table.default_filter),
            "bars": lambda: self.is_shown() and self.rows.has_room_for_bars,
            "host_names": lambda: self.is_shown() and has_addresses,
            "unit": lambda: self.is_shown() and any(map(_has_byte_rate, fields)),
            "average": lambda: self.context.next_average_s != self.context.average_s,
        }

    def is_shown(self) -> bool:
        """True while there are rows, and no notice in their place."""
        return self.view is not None and not self.has_class("-notice")

    def has_something_to_clear(self) -> bool:
        """True while Esc would do something."""
        return self.details_open or bool(self.state.query.filter.text) or self.rows.key is not None

    def label_of(self, action: Action) -> str:
        """What a key does now, in a word."""
        if self.has_class("-typing"):
            return _WHILE_TYPING.get(action.id, action.label)
        table = self.opened_from or self.table
        has_failed = self.context.session.bus.failure(self.lens.id) is not None
        labels = {
            "refresh_now": "try again" if has_failed else action.label,
            "freeze": "resume" if self.frozen is not None else action.label,
            "totals": "rates" if self.state.totals else action.label,
            "follow": "walk" if self.rows.follows else action.label,
            "unit": "bits" if self.context.in_bytes else action.label,
            "host_names": "addresses" if self.context.names is not None else action.label,
            "bars": "no bars" if self.rows.bars else action.label,
            "all_rows": "fewer" if self.state.query.all_rows else action.label,
            "next_table": TableRef(self.lens, table).neighbour(1).table.name,
            "details": self.member_table.name if self.member_table else action.label,
            "back": table.name if self.opened_from and not self.details_open else action.label,
        }
        return labels.get(action.id, action.label)

    def help_of(self, action: Action) -> str:
        """What a key does on this screen, in a line. Empty for the digit of a lens that does not exist."""
        if action.id == "lens":
            return next((lens.title for lens in self.context.lenses if lens.digit == action.argument), "")
        return action.help

    # --- rows -----------------------------------------------------------------------------------------------

    def set_state(self, state: TableState) -> None:
        """Show the table in another state."""
        self.state = state
        self.update_view()

    def choose_columns(self, names: tuple[str, ...] | None) -> None:
        """Show these columns, on every screen of the table; None: the table's own."""
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

    def remember(self, key: str, value: str | Mapping[str, tuple[str, ...] | None]) -> None:
        """Remember a choice for the next start; say so where that is not possible."""
        try:
            self.context.remember(key, value)
        except NettopError as error:
            self.notify(f"not remembered: {error.what}; {error.remedy}", severity="warning", markup=False)

    def set_filter(self, text: str) -> None:
        """Show the rows that pass a filter, in the lens's other tables too; what was opened by → has its own."""
        self._show_filtered(parse_filter(self.table, text))
        if self.opened_from is None:
            self.lens_state.filter_text = self.state.query.filter.text

    def show_next_trouble(self) -> None:
        """Show the rows of the first trouble there is; where those of one are shown, of the next; then all rows."""
        if self.view is None:
            return
        filters, now = [trouble.filter for trouble in self.table.troubles], self.state.query.filter.text
        present = {each.trouble.filter for each in present_troubles(self.view, self.trouble_filters)}
        later = filters[filters.index(now) + 1 :] if now in filters else filters
        following = next((text for text in later if text in present), "")
        if following or now in filters:
            self.set_filter(following)
        else:
            self.notify("no trouble: ? says what is one")

    def share_choice(self) -> None:
        """Note what the chosen row is about, for the lens's other tables; without one, what was noted before holds."""
        view, at = self.view, self.rows.at
        if view is not None and at is not None:
            names = [name for group in self.lens.common for name in group if name in self.table.by_name]
            self.lens_state.chosen = {name: view.values(name, view.order[at : at + 1])[0] for name in names}

    def _follow_choice(self, view: View) -> None:
        """Choose a row about the same as the one that was chosen in the table shown before, if there is one."""
        chosen, self._chosen_elsewhere = self._chosen_elsewhere, {}
        for names in self.lens.common:
            wanted = tuple(chosen.get(name) for name in names)
            if None in wanted or not all(name in self.table.by_name for name in names):
                continue
            rows = list(zip(*(view.values(name, view.order) for name in names), strict=True))
            if wanted in rows and (self.rows.at is None or rows[self.rows.at] != wanted):
                self.rows.choose(rows.index(wanted))
            return

    def follow_lens(self) -> None:
        """Filter and choose as in the lens's other tables; say what of their filter or freeze cannot be followed."""
        self._chosen_elsewhere = self.lens_state.chosen
        text = self.lens_state.filter_text
        if text != self.state.query.filter.text:
            try:
                self._show_filtered(parse_filter(self.table, text))
            except FilterError as error:
                self._show_filtered(parse_filter(self.table, ""))
                self.notify(f"{self.table.name} is not filtered: {error.reason}", markup=False)
        if self.lens_state.frozen is not None and self.frozen is None:
            self.notify(f"{self.table.name} is not frozen: it was not read then")

    def _show_filtered(self, wanted: Filter) -> None:
        self.set_state(replace(self.state, query=replace(self.state.query, filter=wanted)))

    def action_sort_next(self) -> None:
        """Sort by the next column, after the last by the first."""
        self.set_state(self.state.sorted_beside(self.rows.columns, 1, around=True))

    def action_sort_right(self, step: int = 1) -> None:
        """Sort by the column to the right, or to the left (`step` −1)."""
        self.set_state(self.state.sorted_beside(self.rows.columns, step, around=False))

    def action_sort_reverse(self) -> None:
        """Reverse the order."""
        self.action_sort_by(self.state.query.sort.field)

    def action_sort_by(self, name: str) -> None:
        """Sort by any column, shown or not; by the one that sorts already, in reverse."""
        self.set_state(self.state.sorted_by(name))

    def action_totals(self) -> None:
        """Switch between rates and totals."""
        self.set_state(self.state.with_totals(on=not self.state.totals))

    def action_all_rows(self) -> None:
        """Switch between all rows and those that the table shows by default."""
        query = self.state.query
        self.context.session.set(self.lens.id, "all_rows", not query.all_rows)
        self.set_state(replace(self.state, query=replace(query, all_rows=not query.all_rows)))
        self.context.session.sample_now()

    def action_copy(self) -> None:
        """Copy the chosen row, or the first visible one."""
        if self.rows.key is None:
            self.rows.move(0)
        if self.view is not None and self.rows.at is not None:
            at = self.view.order[self.rows.at : self.rows.at + 1]
            texts = whole_texts(self.view, self.rows.columns, at, self.row_style)
            self.copy("\t".join(text for (text,) in texts))

    def copy(self, text: str) -> None:
        """Copy a text to the terminal's clipboard."""
        self.app.copy_to_clipboard(text)
        self.notify(f"copied, if the terminal takes OSC 52: {text.expandtabs(2)}", markup=False)

    # --- the filter -----------------------------------------------------------------------------------------

    async def action_filter(self) -> None:
        """Open the filter box."""
        await self.open_box(self.filter_effect, self.state.query.filter.text)

    async def open_box(self, check: Callable[[str], str], text: str, example: str | None = None) -> None:
        """Open a box to type in, unless it is open; `check` says what its text would do."""
        from nettop.screens.filter_box import FilterBox  # not needed for the first screen

        if not self.query(FilterBox):
            self.add_class("-typing")
            box = FilterBox(check, text, example)
            await self.mount(box, before=self.footer)
            self.set_focus(box.input)
            self.draw_lines()

    def filter_effect(self, text: str) -> str:
        """How many rows a filter would leave; raises UsageError for a wrong one."""
        query = replace(self.state.query, filter=parse_filter(self.table, text))
        if self.view is None:
            return "there are no rows yet"
        view = View(self.view.frame, query, self.context.names)
        rows = headline.rows_left(view)
        rows = f"{rows} rows" if text.strip() else f"all {rows.partition(' of ')[2]} rows"
        return "; ".join([rows, *view.filter_remarks])

    async def on_filter_box_applied(self, message: object) -> None:
        """Apply what was typed, and close the box."""
        await self._close_box()
        self.apply_text(str(getattr(message, "text", "")))

    def apply_text(self, text: str) -> None:
        """Apply what was typed in the box."""
        self.set_filter(text)

    async def on_filter_box_left(self) -> None:
        """Close the box."""
        await self._close_box()
        self.draw_lines()

    async def _close_box(self) -> None:
        self.remove_class("-typing")
        await self.query("#filter-box").remove()
        self.focus_body()

    def focus_body(self) -> None:
        """Give the keys back to the body."""
        self.rows.focus()

    # --- refresh, details, interval -------------------------------------------------------------------------

    def refresh_now(self) -> None:
        """Show one new frame, even while frozen, and read the details again."""
        self.refresh_once = True
        self._details_key = None

    def action_freeze(self) -> None:
        """Freeze the screen, or resume."""
        is_frozen, frame = self.frozen is not None, self._frame
        self.lens_state.frozen = None if is_frozen or frame is None else Frozen(frame, self.context.clock())
        self.show_newest()

    def action_details(self) -> None:
        """Open the chosen row: the rows behind it, or its details; where those are open, scroll in them."""
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
            filter_text = self.member_filter(self.view, self.rows.key)
            if filter_text is None:
                self.notify(f"The {self.member_table.name} of this row are not listed")
            else:
                self.post_message(self.MembersOpened(self.member_table, filter_text))

    def action_explain(self) -> None:
        """Say what the facts mean, or show them side by side."""
        self.context.explains = not self.context.explains
        self.draw_details()

    def action_follow(self) -> None:
        """Follow the chosen row, or let the choice stay at its line again."""
        if self.rows.key is None:
            self.rows.move(0)
        self.rows.follow(on=not self.rows.follows)

    def action_back(self) -> None:
        """Leave the details, then close them, then return to the table that this one was opened from."""
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
        self._details_key = None
        self.redraw()

    def action_clear(self) -> None:
        """Close the details, then remove the filter, then the choice of a row."""
        if self.details_open:
            self._close_details()
        elif self.state.query.filter.text:
            self.set_filter("")
        else:
            self.rows.follow(on=False)
            self.rows.choose(None)
            self.lens_state.chosen = {}

    async def action_next_option_value(self, name: str) -> None:
        """Set an option of the lens to the next of its values, or show the table that it is about."""
        option = next(option for option in self.lens.options if option.name == name)
        if option.opens not in ("", self.table.name):
            await self.run_action(f"app.table('{option.opens}')")
            return
        value = self.context.next_value(self.lens, option)
        self.context.session.sample_now()
        self.notify(f"{option.help}: {option.text(value)}")

    def action_bars(self) -> None:
        """Switch the bars of the rows off, or on."""
        self.rows.bars = not self.rows.bars
        self.rows.redraw()
        self.draw_lines()

    def action_average(self) -> None:
        """Average the rates over the next of the usual times."""
        self.context.change_average()
        self.draw_lines()

    def action_unit(self) -> None:
        """Switch between bits and bytes per second, in the source's details too."""
        self.context.change_unit()
        self.remember("unit", UNITS[self.context.in_bytes])
        self._details_key = None
        self.update_view()

    def action_host_names(self) -> None:
        """Switch between the names of hosts and their addresses."""
        self.context.change_names()
        self.update_view()

    def action_slower(self, step: int = 1) -> None:
        """A longer interval, or a shorter one (`step` −1)."""
        self.context.change_interval(step)
        self.draw_lines()

    # --- moving ---------------------------------------------------------------------------------------------

    def action_move(self, where: str) -> None:
        """Choose another row; while the details have the focus, scroll in them. `where` is the action's name."""
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

    # --- mouse ----------------------------------------------------------------------------------------------

    def on_live_table_sort_by(self, message: LiveTable.SortBy) -> None:
        """A header was clicked."""
        self.action_sort_by(message.name)

    def on_live_table_chosen(self, message: LiveTable.Chosen) -> None:
        """Another row is chosen; a click on the chosen one opens its details."""
        if message.open and not self.details_open:
            self.action_details()
        else:
            self.redraw()


def _has_byte_rate(field: Field) -> bool:
    return field.unit == "bytes/s" or (field.unit == "bytes" and field.has_rate)


def make_screen(
    context: ScreenContext,
    ref: TableRef,
    settings: ViewSettings | None = None,
    opened_from: Table | None = None,
) -> LensScreen:
    """A screen of a table, in the state that the settings ask for."""
    return screen_class(ref)(context, *ref, settings, opened_from)


def screen_class(ref: TableRef) -> type[LensScreen]:
    """The screen of a table: `SCREEN` of `nettop.screens.LENS.TABLE`, else the common one.

    The main table of a lens whose screens are one plain module, `nettop.screens.LENS`, has its screen there.
    """
    package = f"nettop.screens.{ref.lens.id}"
    own = f"{package}.{ref.table.name}"
    for name in (own, package) if ref.table is ref.lens.main else (own,):
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name not in (own, package):
                raise
            continue
        screen: type[LensScreen] = getattr(module, "SCREEN", LensScreen)
        return screen
    return LensScreen
