# SPDX-License-Identifier: Apache-2.0
"""What a lens's screen shows: headline, table, the details of a row. What its keys do is in lens.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.containers import Container
from textual.message import Message

from nettop.engine.own_cost import VIEW
from nettop.query.view import View
from nettop.screens import headline
from nettop.screens.actions import Action
from nettop.screens.context import ScreenContext
from nettop.screens.measured import MeasuredScreen
from nettop.screens.table_state import initial_state
from nettop.settings import ViewSettings
from nettop.snapshots.schema import Kind, Lens, Table
from nettop.snapshots.snapshot import Frame
from nettop.widgets.bar import Bar, Part, Piece
from nettop.widgets.cells import Manner, role_of
from nettop.widgets.columns import declared
from nettop.widgets.details import detail_lines
from nettop.widgets.notice import Notice
from nettop.widgets.page import Page
from nettop.widgets.table import LiveTable
from nettop.widgets.themes import Ground, Role

LEAST_WIDTH, LEAST_HEIGHT = 40, 10
_WIDE = 132
"""From this width on the details stand beside the table, not below."""
_TALL = 30
"""From this height on there is an empty line above the table."""

_LOOKING = "asking for more about this row …"


class Picture(MeasuredScreen[None], inherit_bindings=False):
    """A table of a lens, live. Subclasses say what their headline tells and how their rows are drawn.

    `within` is the table from whose row the screen was opened, where it was.
    """

    AUTO_FOCUS = "LiveTable"
    manner: ClassVar[Manner] = Manner()
    has_more: ClassVar[bool | None] = None
    """Whether the source can tell more about a row than it shows; None: about those of the lens's main table."""

    @dataclass
    class Described(Message):
        """The source told more about a row."""

        key: int
        answer: Future[dict[str, str]]

    def __init__(
        self,
        context: ScreenContext,
        lens: Lens,
        table: Table,
        asked: ViewSettings | None = None,
        within: Table | None = None,
    ) -> None:
        super().__init__(context, lens)
        self.table = table
        self.within = within
        self.state = initial_state(table, asked)
        self.view: View | None = None
        self._last_view: View | None = None
        self.frozen_at: float | None = None
        self._frame: Frame | None = None
        self.take_one = False
        self._described: Mapping[str, str] | str = ""
        self.told: int | None = None
        self._headline_of: tuple[View, int] | None = None
        self.first_line = Bar(Ground.PANEL, gap=0, id="first-line")
        self.headline_bar = Bar(id="headline")
        self.third_line = Bar(gap=0, id="third-line")
        self.rows = LiveTable(self.state.names, self.manner)
        self.rows.extra = not self.state.is_own_choice
        self.details = Page(id="details")
        self.notice = Notice(id="notice")
        self.footer = Bar(Ground.PANEL, gap=2, id="footer")

    # --- parts ----------------------------------------------------------------------------------------------

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

    def headline(self, view: View) -> list[Part]:
        """The parts of the second line before the ones that every lens ends in."""
        at = view.order[~view.gone[view.order]]
        parts = [headline.count("rows", len(at), 900)]
        for n, name in enumerate(self.state.declared_names):
            field = declared(self.table, name)
            if field.kind is Kind.COUNTER:
                sign = Piece(f"{field.title.lower()} ", role_of(field))
                parts.append(headline.sum_of(view, name, sign, at, 800 - n))
        return parts

    def cost(self) -> float | None:
        """The share of one CPU that the first line tells; None where it is not known."""
        return self.context.share()

    def more_help(self) -> Mapping[str, Sequence[tuple[str, str]]]:
        """What the help has further on this screen: below each heading words and what they mean."""
        return {}

    @property
    def sorts_by(self) -> tuple[str, ...]:
        """The columns that somebody may sort by, whom the palette offers them."""
        return self.table.names

    def describes(self, view: View, key: int) -> int | None:
        """The key by which the source can tell more about a row; None where it cannot, or tells of another's."""
        has_more = view.table.name == self.lens.main.name if self.has_more is None else self.has_more
        return key if has_more else None

    # --- what arrives ---------------------------------------------------------------------------------------

    def on_mount(self) -> None:
        """Begin with whatever is there already."""
        self.set_interval(1.0, self._tick_frozen)
        self.set_class(len(self.lens.tables) > 1, "-several")
        self.take()

    def on_screen_resume(self) -> None:
        """Back in sight: show what is newest."""
        if self.is_mounted:
            self.take()

    def put_away(self) -> None:
        """Out of sight: hold no rows that nobody looks at, unless they are frozen."""
        if self.frozen_at is None and self.is_mounted:
            self._frame = self.view = self._last_view = self._headline_of = self.told = None
            self.rows.forget()

    def take(self) -> None:
        """Show the newest frame, unless the picture is frozen."""
        bus = self.context.session.bus
        frame, failure = bus.frame(self.lens.id), bus.failure(self.lens.id)
        held = self.frozen_at is not None and not self.take_one
        if held and self._frame is not None:
            self.set_class(False, "-notice")
        elif failure is not None:
            self._say(
                Piece(failure.what, Role.BAD), Piece(failure.remedy), Piece("Enter tries again", Role.DIM)
            )
        elif frame is None or not self.is_in(frame):
            self._say(Piece(f"{self.lens.title}: attaching …", Role.DIM))
        elif frame is not self._frame:
            self._take_frame(frame)
            return
        else:
            self.set_class(False, "-notice")
        self.draw_frame()

    def is_in(self, frame: Frame) -> bool:
        """True where the frame has the table: a source gives some tables only once they are looked at, or never."""
        never = frame.now.why_unavailable(self.table) is not None
        return self.table.append or self.table.name in frame.now.tables or never

    def _take_frame(self, frame: Frame) -> None:
        self._frame = frame
        last = None if self.view is None else self.view.frame
        follows = last is not None and frame.before is not None and frame.before in (last.now, last.before)
        self._last_view = self.view if follows else None
        if self.take_one and self.frozen_at is not None:
            self.frozen_at = self.context.clock()
        self.take_one = False
        self.look_again()

    def _say(self, *texts: Piece) -> None:
        self.notice.show(texts)
        self.set_class(True, "-notice")

    def _tick_frozen(self) -> None:
        if self.frozen_at is not None and self.is_current:
            self.draw_frame()

    # --- drawing --------------------------------------------------------------------------------------------

    def look_again(self) -> None:
        """See the frame through the query as it is now."""
        if self._frame is None:
            return
        with self.context.session.steps.time(self.lens.id, VIEW):
            self.see(self._frame)
        self.set_class(False, "-notice")
        self.draw_body()

    def see(self, frame: Frame) -> None:
        """Make the view of a frame."""
        self.view = View(frame, self.state.query, self.context.names, self._last_view)
        self.rows.show(self.view, self.state.names)

    def draw_frame(self) -> None:
        """The lines around the table."""
        if self.has_class("-small"):
            return
        frozen = None if self.frozen_at is None else self.context.clock() - self.frozen_at
        width = self.size.width
        self.first_line.show(*headline.first_line(self.context, self.lens, width, frozen, self.cost()))
        if self.view is not None:
            self._draw_headline(self.view)
        else:
            self.headline_bar.show([])
        self.third_line.show(self.third_parts(width))
        self.set_class(bool(self.state.query.filter.text), "-filtered")
        self.footer.show(headline.footer(self.works, self.label_of))

    def third_parts(self, width: int) -> list[Part]:
        """The parts of the third line."""
        return headline.third_line(self.lens, self.table, self.within, self.view, width)

    def _draw_headline(self, view: View) -> None:
        seen = (view, self.size.width)
        if seen != self._headline_of:
            self._headline_of = seen
            middle = [*self.headline(view), *headline.via(self.lens, view.snapshot)]
            self.headline_bar.show([*middle, *headline.ending(view.snapshot, self.context.session.late)])

    def draw_body(self) -> None:
        """What depends on the newest view, and on the size of the body."""
        self.draw_details()
        self.draw_frame()

    def draw_details(self) -> None:
        key = self.rows.key
        if not self.details_open or self.view is None:
            return
        if key is None:
            self.details.show([(Piece("no row to show", Role.DIM),)])
            return
        if key != self.told:
            self._ask_more(self.view, key)
        self.details.show(detail_lines(self.view, key, self._described, self.details.size.width - 2))

    def _ask_more(self, view: View, key: int) -> None:
        """Ask the source about a row; its answer comes from another thread, as a message."""
        about = self.describes(view, key)
        self.told, self._described = key, {} if about is None else _LOOKING
        if about is None:
            return
        answer = self.context.session.describe(self.lens.id, about)
        answer.add_done_callback(lambda done: self.post_message(self.Described(key, done)) and None)

    def on_picture_described(self, message: Described) -> None:
        """Show what the source told, if the row is still the one that is looked at."""
        if message.key == self.told:
            error = message.answer.exception()
            self._described = _why(error) if error is not None else message.answer.result()
            self.draw_details()

    def works(self, action: Action) -> bool:
        """True where a key would do something now."""
        raise NotImplementedError

    def label_of(self, action: Action) -> str:
        """What a key does now, in a word."""
        return action.label

    def help_of(self, action: Action) -> str:
        """What a key does here, in a line."""
        return action.help

    @property
    def details_open(self) -> bool:
        """True while the pane of details is to be seen."""
        return self.has_class("-details")

    def on_resize(self, event: events.Resize) -> None:
        """Choose the arrangement for this size."""
        width, height = event.size
        small = width < LEAST_WIDTH or height < LEAST_HEIGHT
        self.set_class(small, "-small")
        self.set_class(width >= _WIDE, "-wide")
        self.set_class(height >= _TALL, "-tall")
        if small:
            need = f"nettop needs {LEAST_WIDTH}×{LEAST_HEIGHT} cells; here are {width}×{height}."
            self.notice.show([Piece(need, Role.TEXT)])
        else:
            self.take()
        self.call_after_refresh(self.draw_body)


def _why(error: BaseException) -> str:
    remedy = getattr(error, "remedy", "")
    return f"{error}: {remedy}" if remedy else str(error)
