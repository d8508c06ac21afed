# SPDX-License-Identifier: Apache-2.0
"""The screen of a table: it chooses a frame, and draws its lines, rows and details."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.containers import Container

from nettop.engine.own_cost import VIEW
from nettop.query.both_ends import OF_ENDS, both_ends
from nettop.query.columns import Columns
from nettop.query.found import causes_of
from nettop.query.units import human, unit_of
from nettop.query.view import View
from nettop.screens import headline
from nettop.screens.actions import Action, Keys
from nettop.screens.context import ScreenContext, TableRef
from nettop.screens.finding_strip import FindingStrip
from nettop.screens.history import HistogramHistory, TotalsHistory
from nettop.screens.shown_frame import ShownFrame
from nettop.screens.table_state import initial_state
from nettop.screens.textual_internals import MeasuredScreen
from nettop.screens.time_line import TimeLine
from nettop.settings import ViewSettings
from nettop.snapshots.findings import FINDINGS
from nettop.snapshots.findings import LENS as FINDINGS_LENS
from nettop.snapshots.schema import Kind, Lens, Table
from nettop.snapshots.snapshot import Frame, Rows, Snapshot, known
from nettop.widgets.bar import Bar, BarItem
from nettop.widgets.cells import RowStyle, role_of
from nettop.widgets.columns import declared
from nettop.widgets.details import RowDetails
from nettop.widgets.page import Notice
from nettop.widgets.table import LiveTable
from nettop.widgets.text import Line, TextSpan
from nettop.widgets.themes import Background, Role

LEAST_WIDTH, MIN_HEIGHT = 40, 10
WIDE = 132
"""Width from which details are beside the table instead of below."""
_TALL = 30
"""Height from which there is an empty line above the table."""
FILTER_EXAMPLE = "words match anywhere · field=value · field > number · or not ( )"


class TableScreen(MeasuredScreen[None], inherit_bindings=False):
    """A live table: it applies its query to the frame that `shown_frame` chooses, and draws the result.

    `state` are the query and the columns; LensScreen changes them. `opened_from` is the table whose row opened this
    screen. Subclasses define the headline, the style of rows, and further details.
    """

    AUTO_FOCUS = "LiveTable"
    row_style: ClassVar[RowStyle] = RowStyle()
    describable: ClassVar[bool | None] = None
    """True if the source has further details of a row; None: only for rows of the main table."""
    own_actions: ClassVar[Mapping[str, Action]] = {}
    """Actions that differ on this screen, by id."""
    closed_rows: Rows | None = None
    """Rows that have left the table and are still shown."""
    recent: Snapshot | None = None
    """An older snapshot, from which histograms count that have few counts in the interval."""

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
        self.lens_state = context.lens_state(lens)
        if settings is not None and opened_from is None:
            self.lens_state.filter_text = self.state.query.filter.text
        self.keys = Keys(self, self.own_actions)
        self.view: View | None = None
        self.totals_history = self.lens_state.totals
        self.histories: list[TotalsHistory | HistogramHistory] = [self.totals_history]
        self.shown_frame = ShownFrame(context, lens, table)
        self._last: Columns | None = None
        self._headline_drawn: tuple[View, int] | None = None
        self.first_line = Bar(Background.PANEL, gap=0, id="first-line")
        self.headline_bar = Bar(id="headline")
        self.findings = FindingStrip(id="findings")
        self.third_line = Bar(gap=0, id="third-line")
        self.rows = LiveTable(self.state.names, self.row_style)
        self.rows.extra = not self.state.chosen_by_user
        self.rows.bars = settings is None or settings.columns is None
        self.details = RowDetails(id="details")
        self.notice = Notice(id="notice")
        self.time_line = None if context.player is None else TimeLine(context.player)
        self.footer = Bar(Background.PANEL, gap=2, id="footer")

    # --- what subclasses change ---------------------------------------------------------------------------

    def compose(self) -> ComposeResult:
        """Yield the lines above and below, and the table between them."""
        yield self.first_line
        yield self.headline_bar
        yield self.findings
        yield self.third_line
        with Container(id="body"):
            yield from self.body()
        yield self.notice
        if self.time_line is not None:
            yield self.time_line
        yield self.footer

    def body(self) -> ComposeResult:
        """Yield the widgets between the lines."""
        yield self.rows
        yield self.details

    def headline(self, view: View) -> list[BarItem]:
        """Return the second line, without the last items, which all lenses share."""
        at = view.order
        items = [headline.count("rows", int((~view.gone[at]).sum()), 900)]
        for n, name in enumerate(self.state.declared_names):
            field = declared(self.table, name)
            if field.kind is Kind.COUNTER:
                label = TextSpan(f"{_label(self.table, name)} ", role_of(field))
                items.append(headline.sum_of(view, name, label, at, 800 - n))
        return items

    def cost(self) -> float | None:
        """Return the cost for the first line as a share of one CPU, or None if unknown."""
        return (self.context.cost or self.context.session.cost)()

    def third_items(self, width: int) -> list[BarItem]:
        """Return the third line."""
        return headline.third_line(self.lens, self.table, self.opened_from, self.view, width)

    def source_key(self, view: View, key: int) -> int | None:
        """Return the source's key for the row `key`, or None if the source has no details of it."""
        is_main = view.table.name == self.lens.main.name
        return key if (is_main if self.describable is None else self.describable) else None

    def more_details(self) -> list[Line]:
        """Return further lines for the end of the details."""
        return []

    @property
    def details_open(self) -> bool:
        """True if the details are visible."""
        return self.has_class("-details")

    @property
    def shows_choice(self) -> bool:
        """True if more about the selected row is shown; it is then followed when the order changes."""
        return self.details_open

    # --- which frame is shown -----------------------------------------------------------------------------

    def on_mount(self) -> None:
        """Show the newest frame, if there is one already."""
        self.set_interval(1.0, self._count_seconds)
        self.set_class(len(self.lens.tables) > 1, "-several")
        self.show_newest()

    def on_screen_resume(self) -> None:
        """Show the newest frame, as it may have changed meanwhile."""
        if self.is_mounted:
            self.show_newest()
            if self.shown_frame.frozen is not None:  # the same rows, in the unit chosen elsewhere
                self.update_view()

    def on_unmount(self) -> None:
        """Release the rows: Textual's reference cycles keep a closed screen until the garbage collector runs."""
        self.release_view()

    def release_view(self) -> None:
        """Release the rows of a hidden or closed screen."""
        self.shown_frame.frame = self.view = self._last = self._headline_drawn = None
        self.details.forget()
        self.rows.release_view()
        for history in self.histories:
            history.forget_rows()

    def show_newest(self) -> None:
        """Show the newest frame, or the frozen one, or why there is none."""
        newest = self.context.session.bus.frame(self.lens.id)
        if newest is not None:
            self.record(newest)
        frame, notice = self.shown_frame.choose()
        if frame is not None and frame is not self.shown_frame.frame:
            self._show_frame(frame)
            return
        if self.shown_frame.frame is None:
            self.view = self._headline_drawn = None
        if frame is None and not self.has_class("-small"):
            self.notice.notify_of(*notice)
        self.set_class(frame is None, "-notice")
        self.draw_lines()

    def record(self, newest: Frame) -> None:
        """Record what the screen keeps of each reading, even while it is frozen."""

    def _show_frame(self, frame: Frame) -> None:
        last, before = self.view, frame.before
        follows = last is not None and before is not None and last.snapshot.boot_ns >= before.boot_ns
        self._last = last if follows else None
        self.shown_frame.take(frame)
        self.update_view()

    @property
    def has_failed(self) -> bool:
        """True if the lens could not be read."""
        return self.context.session.bus.failure(self.lens.id) is not None

    def refresh_now(self) -> None:
        """Show the next frame, even while frozen, and read the details again."""
        self.shown_frame.refresh_once = True
        self.details.forget()

    def update_view(self) -> None:
        """Apply the query to the frame, and draw the result."""
        if self.shown_frame.frame is None:
            return
        with self.context.session.steps.time(self.lens.id, VIEW):
            self.make_view(self.shown_frame.frame)
        self.set_class(False, "-notice")
        self.draw_body()

    def make_view(self, frame: Frame) -> None:
        """Apply the query to a frame."""
        # While averaging, a row that has gone would stay for the whole averaging time, without a rate.
        query = replace(self.state.query, gone=not self.context.is_averaging)
        self.view = View(
            frame,
            query,
            self.context.names,
            self._last,
            earlier=self.closed_rows,
            recent=self.recent,
        )
        self._last = self.view.left
        for history in self.histories:
            history.add(self.view)
        self.rows.show(self.view, self.state.names)

    def is_shown(self) -> bool:
        """Return whether the table is shown, and not a notice instead."""
        return self.view is not None and not self.has_class("-notice")

    def _count_seconds(self) -> None:
        if not self.is_current:
            return
        if self.time_line is not None:
            self.time_line.redraw()
        if self.shown_frame.is_attaching:
            self.show_newest()
        elif self.shown_frame.frozen is not None or self.shown_frame.late_s is not None:
            if self.context.names is not None:  # more may have been resolved
                self.update_view()
            else:
                self.draw_lines()

    # --- drawing ------------------------------------------------------------------------------------------

    def draw_lines(self) -> None:
        """Draw the lines above and below the body."""
        if self.has_class("-small"):
            return
        width = self.size.width
        self.first_line.show(
            *headline.first_line(self.context, self.lens, width, self.shown_frame, self.cost())
        )
        if self.view is None:
            self.headline_bar.show([])
        elif (self.view, width) != self._headline_drawn:
            self._headline_drawn = (self.view, width)
            ending = headline.status_items(self.view.snapshot, self.context.session.late)
            self.headline_bar.show([*self.headline(self.view), *ending])
        if self.shown_frame.frozen is None and self.table.name != FINDINGS.name:
            bus = self.context.session.bus
            self.findings.show(bus.frame(FINDINGS_LENS.id), bus.failure(FINDINGS_LENS.id))
        items = self.third_items(width)
        room = width - sum(part.width for part in items)
        self.third_line.show(items, headline.history(self.totals_history, room))
        self.set_class(bool(self.state.query.filter.text), "-filtered")
        if self.time_line is not None:
            self.time_line.redraw()
        self.footer.show(self.keys.footer())

    def draw_body(self) -> None:
        """Draw everything that depends on the newest view or the size of the body."""
        self.draw_details()
        self.draw_lines()

    def redraw(self) -> None:
        """Draw the lines now, and the details once their width is known."""
        self.draw_lines()
        self.call_after_refresh(self.draw_details)

    def draw_details(self) -> None:
        """Draw the details of the selected row, if they are open."""
        view, key = self.view, self.rows.key
        if not self.details_open or view is None:
            return
        if key is None:
            self.details.show([(TextSpan("no row selected", Role.DIM),)])
            return

        def describe() -> Future[dict[str, str]] | None:
            source_key = self.source_key(view, key)
            return None if source_key is None else self.context.session.describe(self.lens.id, source_key)

        explains, more = self.context.explains, self.more_details()
        self.details.show_row(
            view, key, describe, explained=explains, more=more, first=self._first_facts(view, key)
        )

    def _first_facts(self, view: View, key: int) -> Mapping[str, str]:
        """Return what matters most of the selected row: which finding is about it, its age, and the other end of a
        connection."""
        bus, facts = self.context.session.bus, dict[str, str]()
        at = None if self.rows.at is None else int(self.rows.chosen[0])
        if at is not None and (causes := causes_of(view, at, bus.frame(FINDINGS_LENS.id))):
            facts["Finding"] = "; ".join(causes)
        if at is not None and (opened := view.table.by_name.get("opened_at")) is not None:
            opened_ns = view.raw(opened.name)[at]
            if known(opened_ns):
                facts["Age"] = human((view.snapshot.wall_ns - int(opened_ns)) / 1e9, "s")
        if (self.lens.id, self.table.name) in OF_ENDS:
            facts |= both_ends(bus.frame(OF_ENDS[0][0]), bus.frame(OF_ENDS[1][0]), key)
        return facts

    def on_row_details_described(self) -> None:
        """Draw the details with the source's answer."""
        self.draw_details()

    # --- the box --------------------------------------------------------------------------------------------

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

    async def _leave_box(self, apply: Callable[[str], None], text: str | None) -> None:
        """Close the box, and apply its text unless that is None."""
        self.remove_class("-typing")
        await self.query("#filter-box").remove()
        self.query_one(self.AUTO_FOCUS).focus()
        if text is None:
            self.draw_lines()
        else:
            apply(text)

    def on_resize(self, event: events.Resize) -> None:
        """Adapt the layout to the new size."""
        width, height = event.size
        small = width < LEAST_WIDTH or height < MIN_HEIGHT
        self.set_class(small, "-small")
        self.set_class(width >= WIDE, "-wide")
        self.set_class(height >= _TALL, "-tall")
        if small:
            need = f"nettop needs {LEAST_WIDTH}×{MIN_HEIGHT} cells; this terminal has {width}×{height}."
            self.notice.notify_of(TextSpan(need))
        else:
            self.show_newest()
        self.call_after_refresh(self.draw_body)


def _label(table: Table, name: str) -> str:
    """Return the title of a counter or its rate in a headline: with `/s` unless the amount after it says so."""
    title, says_so = table.title_of(name).lower(), not human(0.0, unit_of(table, name)).isdigit()
    return title.removesuffix("/s") if says_so else title
