# SPDX-License-Identifier: Apache-2.0
"""The sampled stacks that the flame graph shows, and the texts around it: path, choices, selected frame, categories."""

from __future__ import annotations

from nettop.query.units import RATIO, human, plural
from nettop.query.view import View
from nettop.screens.cpu.bars import CategoryShare, percent
from nettop.screens.cpu.flame_graph import FlameGraph, Path, matcher, node_at, search
from nettop.screens.cpu.lines import categories_not_available, crumbs, frame_items, hottest_items, rows_of
from nettop.screens.cpu.tables import cpu_count_text, samples
from nettop.snapshots.cpu import CATEGORIES, STACKS
from nettop.snapshots.snapshot import Frame, Snapshot
from nettop.stacks.counts import (
    FlameNode,
    FlameSort,
    StackCount,
    StackHistory,
    StackReading,
    Window,
    category_totals,
    flame_tree,
    path_of,
)
from nettop.widgets.bar import ALWAYS_SHOWN, BarItem, item
from nettop.widgets.text import TextSpan, elide_end
from nettop.widgets.themes import Role

WINDOWS = {Window.INTERVAL: "last interval", Window.MINUTE: "last minute", Window.START: "since start"}
ORDERS = {FlameSort.SAMPLES: "widest first", FlameSort.NAME: "by name"}


class CountedStacks:
    """The stacks of a `window` on one `cpu` (None: on all), and the readings they are counted from.

    While the screen is frozen, later readings are kept, and not counted.
    """

    def __init__(self) -> None:
        self.window = Window.MINUTE
        self.cpu: int | None = None
        self.sort = FlameSort.SAMPLES
        self.counts: list[StackCount] = []
        self._history = StackHistory()
        self._frozen_history: StackHistory | None = None
        self._frozen_frame: Frame | None = None

    def add(self, frame: Frame) -> None:
        """Add a reading."""
        now, before = (_reading_in(snapshot) for snapshot in (frame.now, frame.before))
        if now is not None:
            self._history.add(now, before)

    def freeze(self, frame: Frame | None) -> None:
        """Count only the samples up to a frozen frame, in every window; None: count all of them again."""
        if frame is not self._frozen_frame:
            if frame is not None:
                self.add(frame)
            self._frozen_history = None if frame is None else self._history.copy()
            self._frozen_frame = frame

    @property
    def _counted(self) -> StackHistory:
        return self._frozen_history or self._history

    @property
    def span_ns(self) -> int | None:
        """Time for which the source sampled within the window; None if the window has not begun yet."""
        return self._counted.span_ns(self.window)

    def count(self, view: View) -> None:
        """Count the stacks of the window on the selected CPU, or on those that pass the view's filter."""
        available = view.snapshot.why_unavailable(STACKS) is None
        counts = self._counted.counts(self.window) if available else []
        if is_filtered(view):
            passing = set(view.raw("cpu")[rows_of(view, None)].tolist())
            counts = [count for count in counts if count.cpu in passing]
        self.counts = [count for count in counts if self.cpu in (None, count.cpu)]

    def tree(self) -> FlameNode | None:
        """Return the counted stacks as a tree; None if there are none."""
        return flame_tree(self.counts, self.sort) if self.counts else None

    def below(self, path: Path) -> list[StackCount]:
        """Return the counted stacks that pass through a frame."""
        return [count for count in self.counts if not path or path_of(count)[: len(path)] == path]


def _reading_in(snapshot: Snapshot | None) -> StackReading | None:
    if snapshot is None or STACKS.name not in snapshot.tables:
        return None
    return StackReading(snapshot.tables[STACKS.name], snapshot.counts.get("watched_ns", 0))


def is_filtered(view: View) -> bool:
    """Return whether a filter or a limit leaves out CPUs; everything then refers to the remaining ones."""
    return bool(view.query.filter.text) or view.query.limit is not None


class GraphTexts:
    """Texts about the graph's stacks and its selected frame, and the result of a search in it."""

    def __init__(self, stacks: CountedStacks, graph: FlameGraph) -> None:
        self._stacks = stacks
        self._graph = graph
        self._found = ""

    @property
    def zoomed_node(self) -> FlameNode | None:
        """The node that takes the whole width; None if it has no samples."""
        return None if self._graph.whole is None else node_at(self._graph.whole, self._graph.zoom)

    def notice(self, view: View, *, has_bars: bool) -> list[TextSpan]:
        """Return why there is no graph, or nothing if there is one."""
        stacks, graph = self._stacks, self._graph
        on_cpu, when = "" if stacks.cpu is None else f" on cpu{stacks.cpu}", _when(stacks.window)
        if is_filtered(view) and not len(rows_of(view, stacks.cpu)):
            if stacks.cpu is None:
                return [TextSpan("no CPU passes the filter"), TextSpan("Esc clears it", Role.DIM)]
            left_out = f"cpu{stacks.cpu} is left out by the filter or the limit"
            return [TextSpan(left_out), TextSpan("u shows another CPU", Role.DIM)]
        unavailable = view.snapshot.why_unavailable(STACKS)
        if unavailable is not None:
            bars = "the bars above are still live" if has_bars else ""
            return [TextSpan(f"flame graph n/a: {unavailable}", Role.WARN), TextSpan(bars, Role.DIM)]
        if stacks.span_ns is None:
            return [TextSpan("waiting for the first samples …", Role.DIM)]
        if not stacks.counts:
            longer = "" if stacks.window is Window.START else "w selects a longer time"
            return [TextSpan(f"the network stack{on_cpu} was idle {when}"), TextSpan(longer, Role.DIM)]
        if graph.zoom and graph.current_layout is None:
            zooms_out = TextSpan("← zooms out, w selects another time", Role.DIM)
            return [TextSpan(f"{graph.zoom[-1]} did not run {when}"), zooms_out]
        return []

    def path(self, view: View, *, with_time: bool) -> list[BarItem]:
        """Return the path to the zoomed frame, and its samples and CPU time if the graph is shown (`with_time`)."""
        path, node = crumbs(self._graph.zoom), self.zoomed_node
        if node is not None and with_time:
            path += [self._time_item(view, node, Role.BOLD), samples(node.samples, 700)]
        return path

    def cpus(self, view: View) -> str:
        """Return the CPUs to which shares of time refer: `cpu0`, `16 CPUs`."""
        return (
            cpu_count_text(len(rows_of(view, None))) if self._stacks.cpu is None else f"cpu{self._stacks.cpu}"
        )

    def _share_of_time(self, view: View, time_ns: int) -> float | None:
        """Return a part of the window's CPU time as a share of the selected CPU, or of all CPUs."""
        span_ns = self._stacks.span_ns
        cpus = len(rows_of(view, None)) if self._stacks.cpu is None else 1
        return time_ns / span_ns / cpus if span_ns and cpus else None

    def _time_item(self, view: View, node: FlameNode, role: Role, importance: int = ALWAYS_SHOWN) -> BarItem:
        """Return `4.9 % of cpu0`."""
        share = percent(self._share_of_time(view, node.time_ns))
        return item((share, role), (f" of {self.cpus(view)}", Role.DIM), importance=importance)

    def choices(self, view: View) -> list[BarItem]:
        """Return the window, the CPUs (`all CPUs`, `2 of 4 CPUs`, `cpu0`) and the order. A click acts like the key."""
        shown, all_rows = len(rows_of(view, None)), int((~view.gone).sum())
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
        self._found = self.search_effect(self._graph.words)

    def search_items(self) -> list[BarItem]:
        """Return the searched words and the result; nothing if there is no search."""
        if not self._graph.words:
            return []
        return [
            item(("   / ", Role.KEY), (elide_end(self._graph.words, 30), Role.BOLD)),
            item((f"   {self._found}", Role.TEXT)),
            item(("   Esc clears", Role.DIM), importance=1),
        ]

    def search_effect(self, words: str) -> str:
        """Return the result of a search for some words: `14 frames, 38.2% of all samples`."""
        tree = self._graph.whole
        if not words.strip():
            return "all frames"
        if tree is None:
            return "no samples to search"
        found = search(tree, matcher(words))
        share = human(found.samples / max(1, tree.samples), RATIO)
        return f"{found.frames:,} {plural('frame', found.frames)}, {share} of all samples"


def _when(window: Window) -> str:
    """Return `in the last minute`, `since the start` …"""
    return "since the start" if window is Window.START else f"in the {WINDOWS[window]}"
