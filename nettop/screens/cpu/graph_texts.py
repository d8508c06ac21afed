# SPDX-License-Identifier: Apache-2.0
"""The texts around the flame graph: path, choices, selected frame, categories, search, and why there is no graph."""

from __future__ import annotations

from nettop.query.units import RATIO, human, plural
from nettop.query.view import View
from nettop.screens.cpu.category_bars import CategoryShare
from nettop.screens.cpu.counted_stacks import CountedStacks, cpus_shown, is_filtered
from nettop.screens.cpu.cpu_table import cpu_count_text, samples
from nettop.screens.cpu.entry_bars import percent
from nettop.screens.cpu.flame_graph import FlameGraph, Matches, matcher, node_at, search
from nettop.screens.cpu.lines import categories_not_available, crumbs, frame_items, hottest_items, rows_of
from nettop.snapshots.cpu import CATEGORIES, STACKS
from nettop.stacks.counts import FlameNode, FlameSort, Window, category_totals
from nettop.widgets.bar import ALWAYS_SHOWN, BarItem, Span, item
from nettop.widgets.cells import elide_end
from nettop.widgets.themes import Role

WINDOWS = {Window.INTERVAL: "last interval", Window.MINUTE: "last minute", Window.START: "since start"}
ORDERS = {FlameSort.SAMPLES: "widest first", FlameSort.NAME: "by name"}


class GraphTexts:
    """Texts about the graph's stacks and its selected frame, and the result of a search in it."""

    def __init__(self, stacks: CountedStacks, graph: FlameGraph) -> None:
        self._stacks = stacks
        self._graph = graph
        self._matches: Matches | None = None

    @property
    def zoomed_node(self) -> FlameNode | None:
        """The node that takes the whole width; None if it has no samples."""
        return None if self._graph.whole is None else node_at(self._graph.whole, self._graph.zoom)

    def notice(self, view: View, *, has_bars: bool) -> list[Span]:
        """Return why there is no graph, or nothing if there is one."""
        if is_filtered(view) and not len(rows_of(view, self._stacks.cpu)):
            if self._stacks.cpu is None:
                return [Span("no CPU passes the filter", Role.TEXT), Span("Esc clears it", Role.DIM)]
            left_out = f"cpu{self._stacks.cpu} is left out by the filter or the limit"
            return [Span(left_out, Role.TEXT), Span("u shows another CPU", Role.DIM)]
        unavailable = view.snapshot.why_unavailable(STACKS)
        if unavailable is not None:
            bars = "the bars above are still live" if has_bars else ""
            return [Span(f"flame graph n/a: {unavailable}", Role.WARN), Span(bars, Role.DIM)]
        if self._stacks.span_ns is None:
            return [Span("waiting for the first samples …", Role.DIM)]
        if not self._stacks.counts:
            where = (
                "the network stack"
                if self._stacks.cpu is None
                else f"the network stack on cpu{self._stacks.cpu}"
            )
            longer = "" if self._stacks.window is Window.START else "w selects a longer time"
            return [Span(f"{where} was idle {_when(self._stacks.window)}", Role.TEXT), Span(longer, Role.DIM)]
        if self._graph.zoom and self._graph.current_layout is None:
            return [
                Span(f"{self._graph.zoom[-1]} did not run {_when(self._stacks.window)}", Role.TEXT),
                Span("← zooms out, w selects another time", Role.DIM),
            ]
        return []

    def path(self, view: View, *, with_time: bool) -> list[BarItem]:
        """Return the path to the zoomed frame, and its samples and CPU time if the graph is shown (`with_time`)."""
        path, node = crumbs(self._graph.zoom), self.zoomed_node
        if node is not None and with_time:
            path += [self._time_item(view, node, Role.BOLD), samples(node.samples, 700)]
        return path

    def cpus(self, view: View) -> str:
        """Return the CPUs to which shares of time refer: `cpu0`, `16 CPUs`."""
        return cpu_count_text(cpus_shown(view)) if self._stacks.cpu is None else f"cpu{self._stacks.cpu}"

    def _share_of_time(self, view: View, time_ns: int) -> float | None:
        """Return a part of the window's CPU time as a share of the selected CPU, or of all CPUs."""
        span_ns = self._stacks.span_ns
        cpus = cpus_shown(view) if self._stacks.cpu is None else 1
        return time_ns / span_ns / cpus if span_ns and cpus else None

    def _time_item(self, view: View, node: FlameNode, role: Role, importance: int = ALWAYS_SHOWN) -> BarItem:
        """Return `4.9 % of cpu0`."""
        share = percent(self._share_of_time(view, node.time_ns))
        return item((share, role), (f" of {self.cpus(view)}", Role.DIM), importance=importance)

    def choices(self, view: View) -> list[BarItem]:
        """Return the window, the CPUs (`all CPUs`, `2 of 4 CPUs`, `cpu0`) and the order. A click acts like the key."""
        shown, all_rows = cpus_shown(view), int((~view.gone).sum())
        which = "all CPUs" if shown == all_rows else f"{shown} of {cpu_count_text(all_rows)}"
        which = which if self._stacks.cpu is None else f"cpu{self._stacks.cpu}"
        return [
            item((WINDOWS[self._stacks.window], Role.TEXT), importance=960, action="window"),
            item((which, Role.TEXT), importance=950, action="next_cpu"),
            item((ORDERS[self._stacks.sort], Role.DIM), importance=940, action="sort_next"),
        ]

    def about_frame(self, view: View, width: int) -> list[BarItem]:
        """Return the selected frame's numbers, or else the functions with the most time of their own."""
        graph, root = self._graph, self.zoomed_node
        if root is None or graph.whole is None:
            return []
        if graph.chosen is None:
            return hottest_items(self._stacks.below(self._graph.zoom), root.samples, width)
        name = item((f" {elide_end(graph.chosen[-1], 60)} ", Role.TAB))
        node = node_at(graph.whole, graph.chosen)
        if node is None:
            return [name, item((f"did not run {_when(self._stacks.window)}", Role.DIM))]
        share = self._time_item(view, node, Role.TEXT, 900)
        # Compare the zoomed frame with all samples: its share of itself would be 100 %.
        below = bool(graph.zoom) and graph.chosen != graph.zoom
        of, label = (root, graph.zoom[-1]) if below else (graph.whole, "all")
        items = [name, *frame_items(node, of, label, share)]
        if len(graph.chosen) > 1:
            category = CATEGORIES[node.category]
            items.append(item((f"{category.letter} ", Role.DIM), (category.label, Role.TEXT), importance=700))
        unseen = graph.current_layout.unseen if graph.current_layout is not None else {}
        if graph.chosen in unseen:
            text = f"{unseen[graph.chosen]} below too narrow to draw"
            items.append(item((text, Role.DIM), importance=500))
        return items

    def category_shares(self, view: View) -> list[CategoryShare]:
        """Return the categories of the zoomed frame, then those that this kernel does not provide."""
        totals = category_totals(self._stacks.below(self._graph.zoom))
        shares = [
            CategoryShare(category, count, self._share_of_time(view, time_ns))
            for category, (count, time_ns) in totals.items()
        ]
        if self._stacks.sort is FlameSort.NAME:
            shares.sort(key=lambda share: CATEGORIES[share.category].label.casefold())
        else:
            shares.sort(key=lambda share: (-share.samples, share.category))
        lacking = categories_not_available(view.snapshot).items()
        return [*shares, *(CategoryShare(c, 0, None, why) for c, why in lacking if c not in totals)]

    def search(self) -> None:
        """Search the graph for its words again."""
        tree, words = self._graph.whole, self._graph.words
        self._matches = search(tree, matcher(words)) if tree is not None and words else None

    def search_items(self) -> list[BarItem]:
        """Return the searched words and the result; nothing if there is no search."""
        if not self._graph.words:
            return []
        return [
            item(("   / ", Role.KEY), (elide_end(self._graph.words, 30), Role.BOLD)),
            item((f"   {_matches_text(self._matches, self._graph.whole)}", Role.TEXT)),
            item(("   Esc clears", Role.DIM), importance=1),
        ]

    def search_effect(self, words: str) -> str:
        """Return the result of a search for some words."""
        tree = self._graph.whole
        if not words.strip():
            return "all frames"
        return _matches_text(None if tree is None else search(tree, matcher(words)), tree)


def _matches_text(matches: Matches | None, tree: FlameNode | None) -> str:
    """Return `14 frames, 38.2% of all samples`."""
    if matches is None or tree is None:
        return "no samples to search"
    frames = f"{matches.frames:,} {plural('frame', matches.frames)}"
    return f"{frames}, {human(matches.samples / max(1, tree.samples), RATIO)} of all samples"


def _when(window: Window) -> str:
    """Return `in the last minute`, `since the start` …"""
    return "since the start" if window is Window.START else f"in the {WINDOWS[window]}"
