# SPDX-License-Identifier: Apache-2.0
"""The CPU screen: a bar for each CPU, and below it what the network stack does there, as a flame graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import ClassVar, TypeVar

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
from nettop.query.view import View
from nettop.screens.actions import Action
from nettop.screens.context import ScreenContext
from nettop.screens.cpu.category_bars import CategoryBars, CategoryShare
from nettop.screens.cpu.entry_bars import GLYPHS, EntryBars, arrange, percent
from nettop.screens.cpu.flame_graph import Path, node_at
from nettop.screens.cpu.flame_screen import FlameScreen
from nettop.screens.cpu.headline import counted, cpus_in_words, network_share, row_looks, sampling
from nettop.screens.cpu.lines import (
    categories_not_available,
    cpu_uses,
    crumbs,
    frame_parts,
    hottest_parts,
    legend,
    other_softirqs,
    rows_of,
)
from nettop.screens.lens import LensScreen
from nettop.settings import ViewSettings
from nettop.snapshots.cpu import CATEGORIES, CPUS, ENTRIES, STACKS, TIME_OF
from nettop.snapshots.schema import Lens, Table
from nettop.snapshots.snapshot import Frame
from nettop.widgets.bar import KEPT, Bar, Part, Piece, part
from nettop.widgets.cells import Manner, elide_end
from nettop.widgets.notice import Notice
from nettop.widgets.themes import Ground, Role

Choice = TypeVar("Choice", bound=Enum)

_NARROW = 72
"""Below this width the categories stand in place of the graph, unless the graph is asked for."""
_WIDE = 132
"""From this width on they stand beside it."""
_AROUND = 7
"""Lines of the screen that neither bars nor frames have."""
_WORDS = {Window.INTERVAL: "last interval", Window.MINUTE: "last minute", Window.START: "since start"}
_ORDERS = {FlameSort.SAMPLES: "widest first", FlameSort.NAME: "by name"}


class CpuNumbers(LensScreen):
    """The CPUs as a table: all their numbers, the other softirqs' included."""

    about: ClassVar[str] = "what the network stack costs each CPU, and what other softirqs do"
    manner: ClassVar[Manner] = Manner(looks=row_looks)
    has_more: ClassVar[bool | None] = False

    def headline(self, view: View) -> list[Part]:
        """As the picture's."""
        return [*network_share(view), *sampling(view.snapshot)]

    def _conditions(self) -> dict[str, Callable[[], bool]]:
        return super()._conditions() | {"numbers": lambda: True}

    def label_of(self, action: Action) -> str:
        """The key that opened this goes back."""
        return "picture" if action.id == "numbers" else super().label_of(action)

    def action_numbers(self) -> None:
        """Back to the picture."""
        self.dismiss()


class CpuScreen(FlameScreen):
    """What the network stack costs, per CPU, and where inside it that goes.

    `window`, `cpu` and `by` say which samples the graph counts and how it is ordered.
    """

    about: ClassVar[str] = "a bar for each CPU, and what the network stack does there as a flame graph"

    def __init__(
        self,
        context: ScreenContext,
        lens: Lens,
        table: Table,
        asked: ViewSettings | None = None,
        within: Table | None = None,
    ) -> None:
        super().__init__(context, lens, table, asked, within)
        self.window = Window.MINUTE
        self.cpu: int | None = None
        self.by = FlameSort.SAMPLES
        self.busiest_first = False
        self.counts: list[StackCount] = []
        self.bars = EntryBars(id="bars")
        self.legend = Bar(gap=2, id="legend")
        self.others = Bar(gap=2, id="others")
        self.crumbs = Bar(Ground.PANEL, gap=2, id="crumbs")
        self.categories = CategoryBars(id="categories")
        self.silence = Notice(id="silence")
        self.told_of = Bar(Ground.PANEL, gap=2, id="told-of")
        self._history = StackHistory()
        self._held: StackHistory | None = None
        self._wants_categories: bool | None = None

    def body(self) -> ComposeResult:
        """Bars above, the graph and the categories below, and a line about the chosen frame."""
        with Vertical(id="picture"):
            yield self.bars
            yield self.legend
            yield self.others
            yield self.crumbs
            with Container(id="flames"):
                yield self.graph
                yield self.categories
                yield self.silence
            yield self.told_of

    # --- what arrives ---------------------------------------------------------------------------------------

    def take(self) -> None:
        """Remember every reading of the stacks, also while the picture is frozen."""
        frame = self.context.session.bus.frame(self.lens.id)
        if frame is not None and (stacks := frame.now.tables.get(STACKS.name)) is not None:
            self._history.add(stacks, frame.now.counts.get("watched_ns", 0))
        super().take()

    def put_away(self) -> None:
        """Out of sight: hold no tree either; the readings of the last minute stay."""
        super().put_away()
        if self.view is None:
            self.counts = []
            self.graph.show(None)

    def _take_frame(self, frame: Frame) -> None:
        if self.frozen_at is not None:
            self._held = self._history.copy()
        super()._take_frame(frame)

    def action_freeze(self) -> None:
        """Hold the picture still, or let it go on; while it is held, other windows are of the same moment."""
        self._held = self._history.copy() if self.frozen_at is None else None
        super().action_freeze()

    def see(self, frame: Frame) -> None:
        """See the frame, and count its stacks."""
        super().see(frame)
        self._count()

    @property
    def history(self) -> StackHistory:
        """What was met until now, or until the picture was frozen."""
        return self._held or self._history

    def _count(self) -> None:
        """Count the stacks of the window that were met on the CPU, or on those that pass the filter."""
        if self.view is None:
            return
        told = self.view.snapshot.why_unavailable(STACKS) is None
        seen = self.history.counts(self.window) if told else []
        if self._is_filtered:
            passing = set(self.view.raw("cpu")[rows_of(self.view, None)].tolist())
            seen = [one for one in seen if one.cpu in passing]
        self.counts = [one for one in seen if self.cpu in (None, one.cpu)]
        self.graph.show(flame_tree(self.counts, sort=self.by) if self.counts else None)
        self.search_again()

    def _count_again(self) -> None:
        """Count other stacks, or the same in another order, and draw them."""
        self._count()
        self.draw_body()

    # --- drawing --------------------------------------------------------------------------------------------

    def headline(self, view: View) -> list[Part]:
        """What it costs, how that is known, and how well."""
        return [*network_share(view), *sampling(view.snapshot)]

    def draw_body(self) -> None:
        """Everything, as the size allows."""
        view = self.view
        if view is None or self.has_class("-small"):
            return
        self._arrange()
        uses = cpu_uses(view)
        room = max(2, (self.size.height - _AROUND) // 3)
        arrangement = arrange(uses, self.size.width, room, self.cpu, by_use=self.busiest_first)
        self.bars.show(arrangement, self.cpu)
        at = rows_of(view, self.cpu)
        self.legend.show(legend(view, at, self.size.width, self.bars.scale))
        self.others.show(*other_softirqs(view, at))
        self.crumbs.show(self._way(), self._choices())
        self.told_of.show(self._about_frame())
        if self.has_class("-with-categories"):
            self.categories.show(self._category_shares(view), self._of)
        self.draw_frame()

    def _arrange(self) -> None:
        """Choose what stands below the bars."""
        why = self._silence()
        self.silence.show(why)
        with_categories = not why and self.shows_categories
        self.set_class(bool(why), "-silent")
        self.set_class(with_categories, "-with-categories")
        self.set_class(with_categories and self.size.width < _WIDE, "-without-graph")

    @property
    def shows_categories(self) -> bool:
        """Whether the categories are to be seen: where there is no other way, or beside the graph, or if asked."""
        if self._wants_categories is not None:
            return self._wants_categories
        return not _NARROW <= self.size.width < _WIDE

    def _silence(self) -> list[Piece]:
        """Why there is nothing to draw, in words; nothing where there is."""
        assert self.view is not None
        if self._is_filtered and not len(rows_of(self.view, self.cpu)):
            if self.cpu is None:
                return [Piece("no CPU passes the filter", Role.TEXT), Piece("Esc clears it", Role.DIM)]
            left_out = f"cpu{self.cpu} is left out by the filter or the limit"
            return [Piece(left_out, Role.TEXT), Piece("u shows another CPU", Role.DIM)]
        lacking = self.view.snapshot.why_unavailable(STACKS)
        if lacking is not None:
            live = "the bars above go on" if self.bars.arrangement.shown else ""
            return [Piece(f"where the time goes is n/a: {lacking}", Role.WARN), Piece(live, Role.DIM)]
        if self.history.span_ns(self.window) is None:
            return [Piece("waiting for the first samples …", Role.DIM)]
        where = "the network stack" if self.cpu is None else f"the network stack on cpu{self.cpu}"
        time = _when(self.window)
        if not self.counts:
            wider = "" if self.window is Window.START else "w shows a longer time"
            return [Piece(f"{where} did nothing {time}", Role.TEXT), Piece(wider, Role.DIM)]
        if self.graph.zoom and self.graph.layout_now is None:
            return [
                Piece(f"{self.graph.zoom[-1]} was not met {time}", Role.TEXT),
                Piece("← goes back, w shows another time", Role.DIM),
            ]
        return []

    # --- the lines around the graph -------------------------------------------------------------------------

    @property
    def _of(self) -> str:
        """What shares of CPU time are shares of."""
        if self.cpu is not None:
            return f"cpu{self.cpu}"
        return cpus_in_words(self._count_of_cpus)

    @property
    def _count_of_cpus(self) -> int:
        return 0 if self.view is None else len(rows_of(self.view, None))

    @property
    def _is_filtered(self) -> bool:
        """Whether the command line leaves CPUs out: then all that is drawn is of the others."""
        query = self.state.query
        return bool(query.filter.text) or query.limit is not None

    def _share_of_time(self, time_ns: int) -> float | None:
        """The share of the chosen CPU's time, or of all of them, that so many ns of the window are."""
        span_ns = self.history.span_ns(self.window)
        cpus = self._count_of_cpus if self.cpu is None else 1
        return time_ns / span_ns / cpus if span_ns and cpus else None

    def _way(self) -> list[Part]:
        """The way from the whole to what is zoomed into, and what that comes to."""
        parts, node = crumbs(self.graph.zoom), self.zoomed_node
        if node is None or self.has_class("-silent"):
            return parts
        return [*parts, self._time_part(node, Role.BOLD), counted("sample", node.samples, 700)]

    def _time_part(self, node: FlameNode, role: Role, importance: int = KEPT) -> Part:
        """`4.9 % of cpu0`"""
        share = percent(self._share_of_time(node.time_ns))
        return part((share, role), (f" of {self._of}", Role.DIM), importance=importance)

    def _choices(self) -> list[Part]:
        """Which time, which CPU and which order: a click is the key."""
        return [
            part((_WORDS[self.window], Role.TEXT), importance=960, action="window"),
            part((self._which_cpus(), Role.TEXT), importance=950, action="next_cpu"),
            part((_ORDERS[self.by], Role.DIM), importance=940, action="sort_next"),
        ]

    def _which_cpus(self) -> str:
        """`all CPUs`, `2 of 4 CPUs`, `cpu0`"""
        if self.cpu is not None:
            return f"cpu{self.cpu}"
        shown, all_rows = self._count_of_cpus, 0 if self.view is None else int((~self.view.gone).sum())
        return "all CPUs" if shown == all_rows else f"{shown} of {cpus_in_words(all_rows)}"

    def _about_frame(self) -> list[Part]:
        """What the chosen frame comes to; where none is chosen, which functions take most themselves."""
        graph, root = self.graph, self.zoomed_node
        if root is None or graph.whole is None or self.has_class("-silent"):
            return []
        if graph.chosen is None:
            return hottest_parts(self._zoomed_counts(), root.samples, self.size.width)
        name = part((f" {elide_end(graph.chosen[-1], 60)} ", Role.TAB))
        node = node_at(graph.whole, graph.chosen)
        if node is None:
            return [name, part((f"not met {_when(self.window)}", Role.DIM))]
        share = self._time_part(node, Role.TEXT, 900)
        # What takes the whole width is told of all: it is 100 % of itself.
        below = bool(graph.zoom) and graph.chosen != graph.zoom
        around, named = (root, graph.zoom[-1]) if below else (graph.whole, "all")
        return [name, *frame_parts(node, around, named, share), *self._more_about(node, graph.chosen)]

    def _more_about(self, node: FlameNode, path: Path) -> list[Part]:
        """Its category, where it is a function; how many are called by it that have no room at all."""
        category, layout = CATEGORIES[node.category], self.graph.layout_now
        parts = []
        if len(path) > 1:
            parts.append(part((f"{category.letter} ", Role.DIM), (category.label, Role.TEXT), importance=700))
        if layout is not None and path in layout.unseen:
            text = f"{layout.unseen[path]} below too narrow to draw"
            parts.append(part((text, Role.DIM), importance=500))
        return parts

    def _zoomed_counts(self) -> list[StackCount]:
        """The stacks that pass through what is zoomed into."""
        zoom = self.graph.zoom
        return [one for one in self.counts if path_of(one)[: len(zoom)] == zoom] if zoom else self.counts

    def _category_shares(self, view: View) -> list[CategoryShare]:
        """The categories of what is zoomed into, then those of which this kernel has no function."""
        totals = category_totals(self._zoomed_counts())
        found = [
            CategoryShare(one, samples, self._share_of_time(time_ns))
            for one, (samples, time_ns) in totals.items()
        ]
        if self.by is FlameSort.NAME:
            found.sort(key=lambda share: CATEGORIES[share.category].label.casefold())
        else:
            found.sort(key=lambda share: (-share.samples, share.category))
        lacking = categories_not_available(view.snapshot)
        return [
            *found,
            *(CategoryShare(one, 0, None, why) for one, why in lacking.items() if one not in totals),
        ]

    # --- keys -----------------------------------------------------------------------------------------------

    def _conditions(self) -> dict[str, Callable[[], bool]]:
        return super()._conditions() | {
            **dict.fromkeys(("numbers", "window"), self._is_shown),
            **dict.fromkeys(("next_cpu", "previous_cpu"), self._has_several_cpus),
            "categories": self._has_tree,
            "next_entry": lambda: self._is_shown() and bool(self.counts),
        }

    def _has_several_cpus(self) -> bool:
        return self._is_shown() and self._count_of_cpus > 1

    def label_of(self, action: Action) -> str:
        """What a key does now, in a word."""
        labels = {
            "categories": "graph" if self.has_class("-without-graph") else action.label,
            "sort_next": _ORDERS[_after(self.by)],
            "sort_reverse": "CPUs by number" if self.busiest_first else "busiest CPUs",
            "window": _WORDS[_after(self.window)],
        }
        return (
            super().label_of(action)
            if self.has_class("-typing") or action.id not in labels
            else labels[action.id]
        )

    def more_help(self) -> Mapping[str, Sequence[tuple[str, str]]]:
        """The entry points as bars show them, then the frames."""
        helps = {entry: CPUS.by_name[name].help for entry, name in TIME_OF.items()}
        entries = [(GLYPHS[entry], f"{ENTRIES[entry]}: {helps[entry]}") for entry in GLYPHS]
        return {"ENTRY POINTS": entries, **super().more_help()}

    def action_sort_next(self) -> None:
        """By width or by name."""
        self.by = _after(self.by)
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
        """The stacks of the next CPU, or of all again."""
        if self.view is not None:
            cpus = [None, *self.view.raw("cpu")[rows_of(self.view, None)].tolist()]
            at = cpus.index(self.cpu) if self.cpu in cpus else 0
            self._choose_cpu(cpus[(at + step) % len(cpus)])

    def action_previous_cpu(self) -> None:
        """The stacks of the CPU before, or of all again."""
        self.action_next_cpu(-1)

    def _choose_cpu(self, cpu: int | None) -> None:
        self.cpu = cpu
        self._count_again()

    def action_next_entry(self) -> None:
        """The next entry point that has samples, or all of them again."""
        met = {one.entry for one in self.counts}
        names = [ENTRIES[entry] for entry in GLYPHS if entry in met]
        at = names.index(self.graph.zoom[0]) + 1 if self.graph.zoom and self.graph.zoom[0] in names else 0
        self.graph.zoom_to((names[at],) if at < len(names) else ())

    def action_entry(self, entry: int) -> None:
        """One entry point; all of them, where it is that already."""
        path: Path = (ENTRIES[entry],)
        self.graph.zoom_to(() if self.graph.zoom[:1] == path else path)

    def action_categories(self) -> None:
        """Show the categories, or do not."""
        self._wants_categories = not self.shows_categories
        self.draw_body()

    def action_numbers(self) -> None:
        """The CPUs as a table."""
        numbers = CpuNumbers(self.context, self.lens, self.table, within=self.table)
        numbers.ask(self.state)
        numbers.rows.extra = self.rows.extra
        self.app.push_screen(numbers)

    def on_entry_bars_pressed(self, message: EntryBars.Pressed) -> None:
        """A CPU was clicked: its stacks alone, or those of all again."""
        self._choose_cpu(None if message.cpu == self.cpu else message.cpu)


def _after(one: Choice) -> Choice:
    """The next of its kind, after the last the first."""
    kinds = list(type(one))
    return kinds[(kinds.index(one) + 1) % len(kinds)]


def _when(window: Window) -> str:
    """`in the last minute`"""
    return "since the start" if window is Window.START else f"in the {_WORDS[window]}"


SCREEN = CpuScreen
