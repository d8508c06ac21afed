# SPDX-License-Identifier: Apache-2.0
"""The main table of the lens `cpu`: a bar for each CPU, and a flame graph of what the network stack does there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from functools import partial
from typing import Any, TypeVar

from textual.app import ComposeResult
from textual.containers import Container, Vertical

from nettop.query.cpu import (
    FlameNode,
    FlameSort,
    StackCount,
    StackHistory,
    Window,
    category_totals,
    flame_tree,
    path_of,
)
from nettop.query.units import RATIO, human, plural
from nettop.query.view import View
from nettop.screens.actions import ON_A_GRAPH, Action
from nettop.screens.cpu.category_bars import CategoryBars, CategoryShare
from nettop.screens.cpu.entry_bars import EMPTY, GLYPHS, EntryBars, arrange, percent
from nettop.screens.cpu.flame_graph import THIN, FlameGraph, Matches, Path, matcher, node_at, search
from nettop.screens.cpu.headline import CpuTable, cpus_in_words, row_flags, samples
from nettop.screens.cpu.lines import (
    LATE,
    categories_not_available,
    cpu_uses,
    crumbs,
    frame_items,
    hottest_items,
    legend,
    other_softirqs,
    rows_of,
)
from nettop.screens.lens import WIDE
from nettop.snapshots.cpu import CATEGORIES, CPUS, ENTRIES, STACKS, TIME_OF
from nettop.snapshots.snapshot import Frame
from nettop.widgets.bar import KEPT, Bar, BarItem, Span, item
from nettop.widgets.cells import RowStyle, elide_end
from nettop.widgets.notice import Notice
from nettop.widgets.table import CHOSEN
from nettop.widgets.themes import Ground, Role

Choice = TypeVar("Choice", bound=Enum)

_NARROW = 72
"""Below this width the categories take the place of the graph, unless the graph is chosen; from `WIDE` on they stand
beside it."""
_CATEGORIES_BELOW = 50
"""From this height on wide terminals have the categories below the graph, which takes the whole width."""
_CATEGORY_LINES = 3
"""Lines beside those of categories: header, total, an empty one."""
_OTHER_LINES = 7
"""Lines of the screen besides bars and frames."""
_WINDOWS = {Window.INTERVAL: "last interval", Window.MINUTE: "last minute", Window.START: "since start"}
_ORDERS = {FlameSort.SAMPLES: "widest first", FlameSort.NAME: "by name"}
_SEARCH_EXAMPLE = "words of a function's name: tcp_ack · nf_ nft_ · copy"
_MOVES = ("move_up", "move_down", "page_up", "page_down", "first", "last", "frame_left", "frame_right")


class CpuNumbers(CpuTable):
    """The CPUs as a table: all their numbers, the other softirqs included."""

    about = "what the network stack costs each CPU, and what other softirqs do"
    row_style = RowStyle(flags=row_flags)
    describable = False

    def conditions(self) -> dict[str, Callable[[], bool]]:
        """The key that opened this screen closes it."""
        return super().conditions() | {"numbers": lambda: True}

    def label_of(self, action: Action) -> str:
        """What a key does now, in a word."""
        return "bars" if action.id == "numbers" else super().label_of(action)

    def action_numbers(self) -> None:
        """Back to the bars."""
        self.dismiss()


class CpuScreen(CpuTable):
    """What the network stack costs each CPU, and where inside it the time goes.

    `window`, `cpu` and `sort` are what the graph shows. The class `-no-graph` is set while a notice takes its place,
    `-without-graph` while the categories do.
    """

    AUTO_FOCUS = "FlameGraph"
    about = "a bar for each CPU, and what the network stack does there as a flame graph"
    has_filter = False

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.window = Window.MINUTE
        self.cpu: int | None = None
        self.sort = FlameSort.SAMPLES
        self.busiest_first = False
        self.counts: list[StackCount] = []
        self.matches: Matches | None = None
        self.bars = EntryBars(id="bars")
        self.legend = Bar(gap=2, id="legend")
        self.others = Bar(gap=2, id="others")
        self.crumbs = Bar(Ground.PANEL, gap=2, id="crumbs")
        self.graph = FlameGraph()
        self.categories = CategoryBars(id="categories")
        self.graph_notice = Notice(id="graph-notice")
        self.frame_bar = Bar(Ground.PANEL, gap=2, id="frame-bar")
        self._history = StackHistory()
        self._frozen_history: StackHistory | None = None
        self._frozen_frame: Frame | None = None
        self._chosen_categories: bool | None = None

    def body(self) -> ComposeResult:
        """Bars above, the graph and the categories below, and a line about the chosen frame."""
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

    def show_newest(self) -> None:
        """Keep every reading of the stacks, also while the screen is frozen."""
        self._freeze_history()
        frame = self.context.session.bus.frame(self.lens.id)
        if frame is not None:
            self._add(frame)
        super().show_newest()

    def _add(self, frame: Frame) -> None:
        stacks = frame.now.tables.get(STACKS.name)
        if stacks is not None:
            self._history.add(stacks, frame.now.counts.get("watched_ns", 0))

    def _freeze_history(self) -> None:
        """Keep the samples until the frame at which the lens is frozen, every window of them."""
        frame = None if self.frozen is None else self.frozen.frame
        if frame is not self._frozen_frame:
            if frame is not None:
                self._add(frame)
            self._frozen_history = None if frame is None else self._history.copy()
            self._frozen_frame = frame

    def release_view(self) -> None:
        """Hidden: keep no tree either, but the readings of the last minute."""
        super().release_view()
        if self.view is None:
            self.counts = []
            self.graph.show(None)

    def make_view(self, frame: Frame) -> None:
        """Apply the query to a frame, and count its stacks."""
        super().make_view(frame)
        self._freeze_history()
        self._count()

    @property
    def history(self) -> StackHistory:
        """The samples until now, or until the screen was frozen."""
        return self._frozen_history or self._history

    def _count(self) -> None:
        """Count the stacks of the window on the chosen CPU, or on those that pass the filter."""
        if self.view is None:
            return
        available = self.view.snapshot.why_unavailable(STACKS) is None
        counts = self.history.counts(self.window) if available else []
        if self._is_filtered:
            passing = set(self.view.raw("cpu")[rows_of(self.view, None)].tolist())
            counts = [count for count in counts if count.cpu in passing]
        self.counts = [count for count in counts if self.cpu in (None, count.cpu)]
        self.graph.show(flame_tree(self.counts, sort=self.sort) if self.counts else None)
        self._search()

    def _count_again(self) -> None:
        """Count other stacks, or sort them in another order, and draw them."""
        self._count()
        self.draw_body()

    # --- drawing --------------------------------------------------------------------------------------------

    def draw_body(self) -> None:
        """Everything, as the size allows."""
        view = self.view
        if view is None or self.has_class("-small"):
            return
        notice = self._graph_notice(view)
        self.graph_notice.show(notice)
        with_categories = not notice and self.shows_categories
        self.set_class(bool(notice), "-no-graph")
        self.set_class(with_categories, "-with-categories")
        self.set_class(with_categories and self.size.width < WIDE, "-without-graph")
        self.set_class(self.size.width >= WIDE and self.size.height >= _CATEGORIES_BELOW, "-categories-below")
        space = max(2, (self.size.height - _OTHER_LINES) // 3)
        arrangement = arrange(cpu_uses(view), self.size.width, space, self.cpu, by_use=self.busiest_first)
        self.bars.show(arrangement, self.cpu)
        at = rows_of(view, self.cpu)
        self.legend.show(legend(view, at, self.size.width))
        self.others.show(*other_softirqs(view, at))
        path, node = crumbs(self.graph.zoom), self.zoomed_node
        if node is not None and not notice:
            path += [self._time_item(node, Role.BOLD), samples(node.samples, 700)]
        self.crumbs.show(path, self._choices())
        self.frame_bar.show(self._about_frame())
        if with_categories:
            shares = self._category_shares(view)
            self.categories.show(shares, self._cpus)
            below = self.has_class("-categories-below")
            self.categories.styles.height = len(shares) + _CATEGORY_LINES if below else "1fr"
        self.draw_lines()

    @property
    def shows_categories(self) -> bool:
        """Whether the categories are shown: as chosen, else where they fit beside the graph or it does not fit."""
        if self._chosen_categories is not None:
            return self._chosen_categories
        return not _NARROW <= self.size.width < WIDE

    def _graph_notice(self, view: View) -> list[Span]:
        """Why there is no graph; empty where there is one."""
        if self._is_filtered and not len(rows_of(view, self.cpu)):
            if self.cpu is None:
                return [Span("no CPU passes the filter", Role.TEXT), Span("Esc clears it", Role.DIM)]
            left_out = f"cpu{self.cpu} is left out by the filter or the limit"
            return [Span(left_out, Role.TEXT), Span("u shows another CPU", Role.DIM)]
        unavailable = view.snapshot.why_unavailable(STACKS)
        if unavailable is not None:
            bars = "the bars above are still live" if self.bars.arrangement.shown else ""
            return [Span(f"where the time goes is n/a: {unavailable}", Role.WARN), Span(bars, Role.DIM)]
        if self.history.span_ns(self.window) is None:
            return [Span("waiting for the first samples …", Role.DIM)]
        if not self.counts:
            where = "the network stack" if self.cpu is None else f"the network stack on cpu{self.cpu}"
            longer = "" if self.window is Window.START else "w chooses a longer time"
            return [Span(f"{where} was idle {_when(self.window)}", Role.TEXT), Span(longer, Role.DIM)]
        if self.graph.zoom and self.graph.layout_now is None:
            return [
                Span(f"{self.graph.zoom[-1]} did not run {_when(self.window)}", Role.TEXT),
                Span("← zooms out, w chooses another time", Role.DIM),
            ]
        return []

    # --- the lines around the graph -------------------------------------------------------------------------

    def third_items(self, width: int) -> list[BarItem]:
        """The tables, then the search and its result."""
        items = super().third_items(width)
        if not self.graph.words:
            return items
        return [
            *items,
            item(("   / ", Role.KEY), (elide_end(self.graph.words, 30), Role.BOLD)),
            item((f"   {_matches_text(self.matches, self.graph.whole)}", Role.TEXT)),
            item(("   Esc clears", Role.DIM), importance=1),
        ]

    @property
    def zoomed_node(self) -> FlameNode | None:
        """The node that takes the whole width; None where it has no samples."""
        return None if self.graph.whole is None else node_at(self.graph.whole, self.graph.zoom)

    @property
    def _cpus(self) -> str:
        """The CPUs that shares of time refer to: `cpu0`, `16 CPUs`."""
        return cpus_in_words(self._count_of_cpus) if self.cpu is None else f"cpu{self.cpu}"

    @property
    def _count_of_cpus(self) -> int:
        return 0 if self.view is None else len(rows_of(self.view, None))

    @property
    def _is_filtered(self) -> bool:
        """Whether a filter or a limit leaves out CPUs; then everything refers to the others."""
        query = self.state.query
        return bool(query.filter.text) or query.limit is not None

    def _share_of_time(self, time_ns: int) -> float | None:
        """A part of the window's CPU time, as a share of the chosen CPU or of all of them."""
        span_ns = self.history.span_ns(self.window)
        cpus = self._count_of_cpus if self.cpu is None else 1
        return time_ns / span_ns / cpus if span_ns and cpus else None

    def _time_item(self, node: FlameNode, role: Role, importance: int = KEPT) -> BarItem:
        """`4.9 % of cpu0`"""
        share = percent(self._share_of_time(node.time_ns))
        return item((share, role), (f" of {self._cpus}", Role.DIM), importance=importance)

    def _choices(self) -> list[BarItem]:
        """The window, the CPUs (`all CPUs`, `2 of 4 CPUs`, `cpu0`) and the order. A click does what the key does."""
        shown, all_rows = self._count_of_cpus, 0 if self.view is None else int((~self.view.gone).sum())
        which = "all CPUs" if shown == all_rows else f"{shown} of {cpus_in_words(all_rows)}"
        which = which if self.cpu is None else f"cpu{self.cpu}"
        return [
            item((_WINDOWS[self.window], Role.TEXT), importance=960, action="window"),
            item((which, Role.TEXT), importance=950, action="next_cpu"),
            item((_ORDERS[self.sort], Role.DIM), importance=940, action="sort_next"),
        ]

    def _about_frame(self) -> list[BarItem]:
        """The chosen frame's numbers; where none is chosen, the functions that take most time themselves."""
        graph, root = self.graph, self.zoomed_node
        if root is None or graph.whole is None or self.has_class("-no-graph"):
            return []
        if graph.chosen is None:
            return hottest_items(self._zoomed_counts(), root.samples, self.size.width)
        name = item((f" {elide_end(graph.chosen[-1], 60)} ", Role.TAB))
        node = node_at(graph.whole, graph.chosen)
        if node is None:
            return [name, item((f"did not run {_when(self.window)}", Role.DIM))]
        share = self._time_item(node, Role.TEXT, 900)
        # The zoomed frame is compared with all samples: of itself it is 100 %.
        below = bool(graph.zoom) and graph.chosen != graph.zoom
        of, label = (root, graph.zoom[-1]) if below else (graph.whole, "all")
        items = [name, *frame_items(node, of, label, share)]
        if len(graph.chosen) > 1:
            category = CATEGORIES[node.category]
            items.append(item((f"{category.letter} ", Role.DIM), (category.label, Role.TEXT), importance=700))
        unseen = graph.layout_now.unseen if graph.layout_now is not None else {}
        if graph.chosen in unseen:
            text = f"{unseen[graph.chosen]} below too narrow to draw"
            items.append(item((text, Role.DIM), importance=500))
        return items

    def _zoomed_counts(self) -> list[StackCount]:
        """The stacks that pass through the zoomed frame."""
        zoom = self.graph.zoom
        return [count for count in self.counts if not zoom or path_of(count)[: len(zoom)] == zoom]

    def _category_shares(self, view: View) -> list[CategoryShare]:
        """The categories of the zoomed frame, then those that this kernel cannot show."""
        totals = category_totals(self._zoomed_counts())
        shares = [
            CategoryShare(category, count, self._share_of_time(time_ns))
            for category, (count, time_ns) in totals.items()
        ]
        if self.sort is FlameSort.NAME:
            shares.sort(key=lambda share: CATEGORIES[share.category].label.casefold())
        else:
            shares.sort(key=lambda share: (-share.samples, share.category))
        lacking = categories_not_available(view.snapshot).items()
        return [*shares, *(CategoryShare(c, 0, None, why) for c, why in lacking if c not in totals)]

    # --- which keys work ------------------------------------------------------------------------------------

    def conditions(self) -> dict[str, Callable[[], bool]]:
        """The conditions of the actions that are not always available."""
        return super().conditions() | {
            **dict.fromkeys(_MOVES, self._is_drawn),
            **dict.fromkeys(
                ("sort_left", "sort_right", "columns", "copy", "totals", "all_rows", "follow"), lambda: False
            ),
            **dict.fromkeys(("sort_next", "categories"), self._has_graph),
            **dict.fromkeys(("sort_reverse", "numbers", "window"), self.is_shown),
            **dict.fromkeys(
                ("next_cpu", "previous_cpu"), lambda: self.is_shown() and self._count_of_cpus > 1
            ),
            "next_entry": lambda: self.is_shown() and bool(self.counts),
            "details": lambda: self._is_drawn() and self.graph.chosen not in (None, self.graph.zoom),
            "back": lambda: self.is_shown() and bool(self.graph.zoom),
        }

    def _has_graph(self) -> bool:
        return self.is_shown() and not self.has_class("-no-graph")

    def _is_drawn(self) -> bool:
        return self._has_graph() and not self.has_class("-without-graph")

    def has_something_to_clear(self) -> bool:
        """True while Esc would do something."""
        graph = self.graph
        return bool(graph.words or graph.zoom or graph.chosen is not None or self.state.query.filter.text)

    @property
    def sort_columns(self) -> tuple[str, ...]:
        """None: there are no columns."""
        return ()

    def label_of(self, action: Action) -> str:
        """What a key does now, in a word."""
        if self.has_class("-typing"):
            return super().label_of(action)
        labels = {name: label for name, (label, _) in ON_A_GRAPH.items()} | {
            "categories": "graph" if self.has_class("-without-graph") else action.label,
            "sort_next": _ORDERS[_after(self.sort)],
            "sort_reverse": "CPUs by number" if self.busiest_first else "busiest CPUs",
            "window": _WINDOWS[_after(self.window)],
        }
        return labels.get(action.id) or super().label_of(action)

    def help_of(self, action: Action) -> str:
        """What a key does on this screen, in a line."""
        return ON_A_GRAPH[action.id][1] if action.id in ON_A_GRAPH else super().help_of(action)

    def more_help(self) -> Mapping[str, Sequence[tuple[str, str]]]:
        """The entry points as the bars show them, the signs of frames, and the letters of the categories."""
        helps = {entry: CPUS.by_name[name].help for entry, name in TIME_OF.items()}
        return {
            "ENTRY POINTS": [(GLYPHS[entry], f"{ENTRIES[entry]}: {helps[entry]}") for entry in GLYPHS],
            "BARS": [
                (EMPTY, "the rest of a CPU's time: a full bar is 100 % of one CPU"),
                ("CATEGORY", "a full bar is all samples that the graph shows"),
            ],
            "FRAMES": [
                (CHOSEN, "after a frame's letter: the chosen frame"),
                (THIN, "frames too narrow to be drawn one by one, as wide as they are together"),
                (
                    LATE,
                    "enables interrupts: ticks of the sampling clock that were due before are counted here",
                ),
            ],
            "CATEGORIES": [(f"{c.letter} {c.label}", c.help) for c in CATEGORIES.values()],
        }

    # --- what is counted ------------------------------------------------------------------------------------

    def action_sort_next(self) -> None:
        """By width or by name."""
        self.sort = _after(self.sort)
        self._count_again()

    def action_sort_reverse(self) -> None:
        """CPUs by number, or the busiest first."""
        self.busiest_first = not self.busiest_first
        self.draw_body()

    def action_window(self) -> None:
        """Count the samples of another time."""
        self.window = _after(self.window)
        self._count_again()

    def action_next_cpu(self, step: int = 1) -> None:
        """The stacks of the next (`step` 1) or the previous (−1) CPU, or of all again."""
        if self.view is not None:
            cpus = [None, *self.view.raw("cpu")[rows_of(self.view, None)].tolist()]
            at = cpus.index(self.cpu) if self.cpu in cpus else 0
            self._choose_cpu(cpus[(at + step) % len(cpus)])

    def _choose_cpu(self, cpu: int | None) -> None:
        self.cpu = cpu
        self._count_again()

    def on_entry_bars_pressed(self, message: EntryBars.Pressed) -> None:
        """A CPU was clicked: show only its stacks, or those of all again."""
        self._choose_cpu(None if message.cpu == self.cpu else message.cpu)

    def action_next_entry(self) -> None:
        """Zoom into the next entry point that has samples, or show all of them again."""
        entries = {count.entry for count in self.counts}
        names = [ENTRIES[entry] for entry in GLYPHS if entry in entries]
        at = names.index(self.graph.zoom[0]) + 1 if self.graph.zoom and self.graph.zoom[0] in names else 0
        self.graph.zoom_to((names[at],) if at < len(names) else ())

    def action_entry(self, entry: int) -> None:
        """Zoom into an entry point, or show all where it is zoomed into."""
        path: Path = (ENTRIES[entry],)
        self.graph.zoom_to(() if self.graph.zoom[:1] == path else path)

    def action_categories(self) -> None:
        """Show or hide the categories."""
        self._chosen_categories = not self.shows_categories
        self.draw_body()

    def action_numbers(self) -> None:
        """The CPUs as a table."""
        numbers = CpuNumbers(self.context, self.lens, self.table, opened_from=self.table)
        numbers.set_state(self.state)
        numbers.rows.extra = self.rows.extra
        self.app.push_screen(numbers)

    # --- the graph ------------------------------------------------------------------------------------------

    def on_flame_graph_moved(self) -> None:
        """Another frame is chosen or zoomed into."""
        self.draw_body()

    def focus_body(self) -> None:
        """Give the keys back to the graph."""
        self.graph.focus()

    def action_details(self) -> None:
        """Zoom into the chosen frame."""
        self.graph.zoom_in()

    def action_back(self) -> None:
        """Zoom out."""
        self.graph.zoom_out()

    def action_zoom(self, length: int) -> None:
        """Zoom out to a frame on the path to the zoomed one."""
        self.graph.zoom_to(self.graph.zoom[:length])

    def action_clear(self) -> None:
        """Clear the search, then the zoom, then the chosen frame, then the filter."""
        if self.graph.words:
            self.apply_text("")
        elif self.graph.zoom:
            self.graph.zoom_to_all()
        elif self.graph.chosen is not None:
            self.graph.choose(None)
        else:
            self.set_filter("")

    def action_move(self, where: str) -> None:
        """Choose the caller, a callee or a frame beside the chosen one. `where` is the action's name."""
        graph = self.graph
        moves: dict[str, Callable[[], None]] = {
            "move_up": graph.move_up,
            "move_down": graph.move_down,
            "frame_left": partial(graph.move_aside, -1),
            "frame_right": partial(graph.move_aside, 1),
            "page_up": partial(graph.move_page, -1),
            "page_down": partial(graph.move_page, 1),
            "first": graph.first,
            "last": graph.last,
        }
        moves[where]()

    # --- the search -----------------------------------------------------------------------------------------

    async def action_filter(self) -> None:
        """Open the search box."""

        def effect(words: str) -> str:
            tree = self.graph.whole
            if not words.strip():
                return "all frames"
            return _matches_text(None if tree is None else search(tree, matcher(words)), tree)

        await self.open_box(effect, self.graph.words, _SEARCH_EXAMPLE)

    def apply_text(self, text: str) -> None:
        """Search for what was typed in the box."""
        self.graph.highlight(text.strip())
        self._search()
        self.draw_body()

    def _search(self) -> None:
        tree, words = self.graph.whole, self.graph.words
        self.matches = search(tree, matcher(words)) if tree is not None and words else None


def _matches_text(matches: Matches | None, tree: FlameNode | None) -> str:
    """`14 frames, 38.2% of all samples`"""
    if matches is None or tree is None:
        return "no samples to search"
    frames = f"{matches.frames:,} {plural('frame', matches.frames)}"
    return f"{frames}, {human(matches.samples / max(1, tree.samples), RATIO)} of all samples"


def _after(choice: Choice) -> Choice:
    """The next choice; after the last, the first."""
    choices = list(type(choice))
    return choices[(choices.index(choice) + 1) % len(choices)]


def _when(window: Window) -> str:
    """`in the last minute`"""
    return "since the start" if window is Window.START else f"in the {_WINDOWS[window]}"


SCREEN = CpuScreen
