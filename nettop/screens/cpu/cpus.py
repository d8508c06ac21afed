# SPDX-License-Identifier: Apache-2.0
"""The main screen of the lens `cpu`: a bar for each CPU, and a flame graph of the network stack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, ClassVar, TypeVar

from textual.app import ComposeResult
from textual.containers import Container, Vertical

from nettop.screens.actions import always, changed, is_shown, never
from nettop.screens.cpu.bars import EMPTY, GLYPHS, CategoryBars, EntryBars, arrange
from nettop.screens.cpu.flame_graph import THIN, FlameGraph, Path
from nettop.screens.cpu.graph_texts import ORDERS, WINDOWS, CountedStacks, GraphTexts
from nettop.screens.cpu.lines import (
    LATE,
    cpu_uses,
    legend,
    other_softirqs,
    rows_of,
)
from nettop.screens.cpu.tables import CpuTable, row_flags
from nettop.screens.table_screen import WIDE
from nettop.snapshots.cpu import CATEGORIES, CPUS, ENTRIES, TIME_OF
from nettop.snapshots.snapshot import Frame
from nettop.widgets.bar import Bar, BarItem
from nettop.widgets.cells import RowStyle
from nettop.widgets.page import Notice
from nettop.widgets.table import CHOSEN
from nettop.widgets.themes import Background

Choice = TypeVar("Choice", bound=Enum)

_NARROW = 72
"""Width below which the categories replace the graph unless the user chose it; from `WIDE` on they are beside it."""
_CATEGORIES_BELOW = 50
"""Height from which wide terminals show the categories below the graph, which then takes the whole width."""
_CATEGORY_LINES = 3
"""Lines besides the categories: header, total, an empty line."""
_OTHER_LINES = 7
"""Lines of the screen other than bars and frames."""
_SEARCH_EXAMPLE = "parts of function names: tcp_ack · nf_ nft_ · copy"


_MOVES = (
    ("move_up", "up", "Select the caller"),
    ("move_down", "down", "Select the widest function it calls"),
    ("page_up", "page up", "Move a page up, along the callers"),
    ("page_down", "page down", "Move a page down, along the widest frames"),
    ("first", "first", "Select the widest frame of the first row"),
    ("last", "last", "Move down along the widest frames to the last one"),
    ("frame_left",),
    ("frame_right",),
)
_NOT_HERE = ("sort_left", "sort_right", "columns", "copy", "totals", "all_rows", "follow")
GRAPH_ACTIONS = changed(
    ("details", lambda screen: screen.draws_graph and screen.graph.chosen not in (None, screen.graph.zoom), "zoom",
     "Zoom into the selected frame: it takes the whole width"),
    ("back", lambda screen: is_shown(screen) and bool(screen.graph.zoom), "out", "Undo the last zoom"),
    ("clear", lambda screen: screen.has_marks, "clear",
     "Clear the search, then the zoom, then the selection, then the filter"),
    ("filter", always, "search",
     "Highlight functions whose names contain any of the words, and count their samples"),
    ("sort_next", lambda screen: screen.has_graph, lambda screen: ORDERS[_next(screen.stacks.sort)],
     "Sort frames and categories by width or by name"),
    ("sort_reverse", is_shown, lambda screen: "CPUs by number" if screen.busiest_first else "busiest CPUs",
     "Sort CPUs by number, or the busiest first"),
    ("categories", lambda screen: screen.has_graph,
     lambda screen: "graph" if screen.has_class("-without-graph") else "categories"),
    ("window", is_shown, lambda screen: WINDOWS[_next(screen.stacks.window)]),
    ("numbers", is_shown),
    ("next_entry", lambda screen: is_shown(screen) and bool(screen.stacks.counts)),
    *((name, lambda screen: is_shown(screen) and len(screen.cpus()) > 2) for name in ("next_cpu", "previous_cpu")),
    *((name, lambda screen: screen.draws_graph, *texts) for name, *texts in _MOVES),
    *((name, never) for name in _NOT_HERE),
)  # fmt: skip
"""The actions of a flame graph, and those that differ on it."""


class CpuNumbers(CpuTable):
    """The CPUs as a table of numbers, including other softirqs."""

    about = "the cost of the network stack on each CPU, and of other softirqs"
    row_style = RowStyle(flags=row_flags)
    describable = False
    own_actions: ClassVar = changed(("numbers", always, "bars"))

    def action_numbers(self) -> None:
        """Return to the bars."""
        self.dismiss()


class CpuScreen(CpuTable):
    """The cost of the network stack on each CPU, and a flame graph of its functions.

    `stacks` holds the stacks in the graph, `texts` the lines around it. The class `-no-graph` is set while a notice
    replaces it, `-without-graph` while the categories do.
    """

    AUTO_FOCUS = "FlameGraph"
    about = "a bar for each CPU, and a flame graph of the network stack"
    has_rows = False
    own_actions: ClassVar = GRAPH_ACTIONS

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.stacks = CountedStacks()
        self.busiest_first = False
        self.bars = EntryBars(id="bars")
        self.legend = Bar(gap=2, id="legend")
        self.others = Bar(gap=2, id="others")
        self.crumbs = Bar(Background.PANEL, gap=2, id="crumbs")
        self.graph = FlameGraph()
        self.texts = GraphTexts(self.stacks, self.graph)
        self.categories = CategoryBars(id="categories")
        self.graph_notice = Notice(id="graph-notice")
        self.frame_bar = Bar(Background.PANEL, gap=2, id="frame-bar")
        self._chosen_categories: bool | None = None

    def body(self) -> ComposeResult:
        """Yield the bars, the graph and the categories, and the line about the selected frame."""
        with Vertical(id="bars-and-graph"):
            yield self.bars
            yield self.legend
            yield self.others
            yield self.crumbs
            with Container(id="flames"):
                yield self.graph
                yield self.categories
                yield self.graph_notice
            yield self.frame_bar

    # --- frames ---------------------------------------------------------------------------------------------

    def record(self, newest: Frame) -> None:
        """Record every reading of the stacks."""
        self._freeze()
        self.stacks.add(newest)

    def release_view(self) -> None:
        """Release the rows and the tree of a hidden screen; keep the readings of the last minute."""
        super().release_view()
        self.stacks.counts = []
        self.graph.show(None)

    def make_view(self, frame: Frame) -> None:
        """Apply the query to a frame, and count its stacks."""
        super().make_view(frame)
        self._freeze()
        self._count()

    def _freeze(self) -> None:
        self.stacks.freeze(None if self.shown_frame.frozen is None else self.shown_frame.frozen.frame)

    def _count(self) -> None:
        """Count the stacks and show them."""
        if self.view is not None:
            self.stacks.count(self.view)
            self.graph.show(self.stacks.tree())
            self.texts.search()

    def _count_again(self) -> None:
        """Count the stacks again for another selection or order, and draw them."""
        self._count()
        self.draw_body()

    # --- drawing --------------------------------------------------------------------------------------------

    def draw_body(self) -> None:
        """Draw everything that fits."""
        view = self.view
        if view is None or self.has_class("-small"):
            return
        notice = self.texts.notice(view, has_bars=bool(self.bars.arrangement.shown))
        self.graph_notice.notify_of(*notice)
        with_categories = not notice and self.shows_categories
        self.set_class(bool(notice), "-no-graph")
        self.set_class(with_categories, "-with-categories")
        self.set_class(with_categories and self.size.width < WIDE, "-without-graph")
        self.set_class(self.size.width >= WIDE and self.size.height >= _CATEGORIES_BELOW, "-categories-below")
        space = max(2, (self.size.height - _OTHER_LINES) // 3)
        arrangement = arrange(
            cpu_uses(view), self.size.width, space, self.stacks.cpu, by_use=self.busiest_first
        )
        self.bars.show(arrangement, self.stacks.cpu)
        at = rows_of(view, self.stacks.cpu)
        self.legend.show(legend(view, at, self.size.width))
        self.others.show(*other_softirqs(view, at))
        self.crumbs.show(self.texts.path(view, with_time=not notice), self.texts.choices(view))
        self.frame_bar.show([] if notice else self.texts.about_frame(view, self.size.width))
        if with_categories:
            shares = self.texts.category_shares(view)
            self.categories.show(shares, self.texts.cpus(view))
            below = self.has_class("-categories-below")
            self.categories.styles.height = len(shares) + _CATEGORY_LINES if below else "1fr"
        self.draw_lines()

    @property
    def shows_categories(self) -> bool:
        """True if the categories are shown: by choice, else if they fit beside the graph or it does not fit."""
        if self._chosen_categories is not None:
            return self._chosen_categories
        return not _NARROW <= self.size.width < WIDE

    # --- the lines around the graph -------------------------------------------------------------------------

    def third_items(self, width: int) -> list[BarItem]:
        """Return the tables, then the search and its result."""
        return [*super().third_items(width), *self.texts.search_items()]

    # --- which keys work ------------------------------------------------------------------------------------

    @property
    def has_graph(self) -> bool:
        """True if there is a graph, shown or behind the categories."""
        return self.is_shown() and not self.has_class("-no-graph")

    @property
    def draws_graph(self) -> bool:
        """True if the graph is visible."""
        return self.has_graph and not self.has_class("-without-graph")

    @property
    def has_marks(self) -> bool:
        """True if Esc clears something: a search, a zoom, a selection, or the filter."""
        graph = self.graph
        return bool(graph.words or graph.zoom or graph.chosen or self.state.query.filter.text)

    def more_help(self) -> Mapping[str, Sequence[tuple[str, str]]]:
        """Return the entry points as shown in the bars, the signs of frames, and the letters of categories."""
        helps = {entry: CPUS.by_name[name].help for entry, name in TIME_OF.items()}
        return {
            "ENTRY POINTS": [(GLYPHS[entry], f"{ENTRIES[entry]}: {helps[entry]}") for entry in GLYPHS],
            "BARS": [
                (EMPTY, "the rest of a CPU's time: a full bar is 100 % of one CPU"),
                ("CATEGORY", "a full bar is all samples in the graph"),
            ],
            "FRAMES": [
                (CHOSEN, "after a frame's letter: the selected frame"),
                (THIN, "frames too narrow to draw one by one, merged into one"),
                (LATE, "enables interrupts: sampling ticks delayed until then are counted here"),
            ],
            "CATEGORIES": [(f"{c.letter} {c.label}", c.help) for c in CATEGORIES.values()],
        }

    # --- what is counted ------------------------------------------------------------------------------------

    def action_sort_next(self) -> None:
        """Sort frames and categories by width or by name."""
        self.stacks.sort = _next(self.stacks.sort)
        self._count_again()

    def action_sort_reverse(self) -> None:
        """Sort CPUs by number, or the busiest first."""
        self.busiest_first = not self.busiest_first
        self.draw_body()

    def action_window(self) -> None:
        """Switch to the next window."""
        self.stacks.window = _next(self.stacks.window)
        self._count_again()

    def action_next_cpu(self, step: int = 1) -> None:
        """Show only the stacks of the next (`step` 1) or previous (−1) CPU, or those of all CPUs."""
        cpus = self.cpus()
        at = cpus.index(self.stacks.cpu) if self.stacks.cpu in cpus else 0
        self.stacks.cpu = cpus[(at + step) % len(cpus)]
        self._count_again()

    def cpus(self) -> list[int | None]:
        """Return None for all CPUs, then the CPUs that pass the filter."""
        return [None, *(self.view.raw("cpu")[rows_of(self.view, None)].tolist() if self.view else ())]

    def action_cpu(self, cpu: int) -> None:
        """Show only the stacks of a clicked CPU, or those of all CPUs if it is clicked again."""
        self.stacks.cpu = None if cpu == self.stacks.cpu else cpu
        self._count_again()

    def action_next_entry(self) -> None:
        """Zoom into the next entry point that has samples; after the last, show all of them."""
        entries = {count.entry for count in self.stacks.counts}
        names = [ENTRIES[entry] for entry in GLYPHS if entry in entries]
        at = names.index(self.graph.zoom[0]) + 1 if self.graph.zoom and self.graph.zoom[0] in names else 0
        self.graph.zoom_to((names[at],) if at < len(names) else ())

    def action_entry(self, entry: int) -> None:
        """Zoom into an entry point, or show all of them if it is zoomed already."""
        path: Path = (ENTRIES[entry],)
        self.graph.zoom_to(() if self.graph.zoom[:1] == path else path)

    def action_categories(self) -> None:
        """Show or hide the categories."""
        self._chosen_categories = not self.shows_categories
        self.draw_body()

    def action_numbers(self) -> None:
        """Show the CPUs as a table."""
        numbers = CpuNumbers(self.context, self.lens, self.table, opened_from=self.table)
        numbers.set_state(self.state)
        numbers.rows.extra = self.rows.extra
        self.app.push_screen(numbers)

    # --- the graph ------------------------------------------------------------------------------------------

    def on_flame_graph_moved(self) -> None:
        """Redraw for another selection or zoom."""
        self.draw_body()

    def action_details(self) -> None:
        """Zoom into the selected frame."""
        self.graph.zoom_in()

    def action_back(self) -> None:
        """Zoom out."""
        self.graph.zoom_out()

    def action_zoom(self, length: int) -> None:
        """Zoom out to a frame on the path to the zoomed one."""
        self.graph.zoom_to(self.graph.zoom[:length])

    def action_clear(self) -> None:
        """Clear the search, then the zoom, then the selection, then the filter."""
        if self.graph.words:
            self._search("")
        elif self.graph.zoom:
            self.graph.zoom_to_all()
        elif self.graph.chosen is not None:
            self.graph.choose(None)
        else:
            self.set_filter("")

    def action_move(self, where: str) -> None:
        """Select the caller, a callee or a neighbouring frame. `where` is the action's name."""
        self.graph.move(where)

    # --- the search -----------------------------------------------------------------------------------------

    async def action_filter(self) -> None:
        """Open the search box."""
        await self.open_box(self.texts.search_effect, self._search, self.graph.words, _SEARCH_EXAMPLE)

    def _search(self, text: str) -> None:
        """Search for the text of the box."""
        self.graph.highlight(text.strip())
        self.texts.search()
        self.draw_body()


def _next(choice: Choice) -> Choice:
    """Return the next choice, wrapping around."""
    choices = list(type(choice))
    return choices[(choices.index(choice) + 1) % len(choices)]
