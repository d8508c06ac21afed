# SPDX-License-Identifier: Apache-2.0
"""A screen with a flame graph: keys that walk in it, zoom and search do what like keys do in tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from nettop.query.cpu import FlameNode
from nettop.query.units import RATIO, human, plural
from nettop.screens.actions import ON_A_GRAPH, Action
from nettop.screens.context import ScreenContext
from nettop.screens.cpu.flame_graph import THIN, FlameGraph, Found, matcher, node_at, search
from nettop.screens.lens import LensScreen
from nettop.settings import ViewSettings
from nettop.snapshots.cpu import CATEGORIES
from nettop.snapshots.schema import Lens, Table
from nettop.widgets.bar import Part, part
from nettop.widgets.cells import elide_end
from nettop.widgets.table import CHOSEN
from nettop.widgets.themes import Role

_EXAMPLE = "words of a function's name: tcp_ack · nf_ nft_ · copy"
_MOVES = ("move_up", "move_down", "page_up", "page_down", "first", "last", "frame_left", "frame_right")


class FlameScreen(LensScreen):
    """A graph in place of rows. `-silent` is set while there is none to draw, `-without-graph` while it is hidden.

    Subclasses give the graph its tree, then call `search_again`, and draw what stands around it in `draw_body`.
    """

    AUTO_FOCUS = "FlameGraph"

    def __init__(
        self,
        context: ScreenContext,
        lens: Lens,
        table: Table,
        asked: ViewSettings | None = None,
        within: Table | None = None,
    ) -> None:
        super().__init__(context, lens, table, asked, within)
        self.graph = FlameGraph()
        self.found: Found | None = None

    @property
    def zoomed_node(self) -> FlameNode | None:
        """What takes the whole width; None where it was not met."""
        return None if self.graph.whole is None else node_at(self.graph.whole, self.graph.zoom)

    def third_parts(self, width: int) -> list[Part]:
        """The tables, then what is searched for and what that comes to."""
        return [*super().third_parts(width), *self._search_parts()]

    def _search_parts(self) -> list[Part]:
        words, tree = self.graph.words, self.graph.whole
        if not words:
            return []
        return [
            part(("   / ", Role.KEY), (elide_end(words, 30), Role.BOLD)),
            part((f"   {found_words(self.found, tree)}", Role.TEXT)),
            part(("   Esc clears", Role.DIM), importance=1),
        ]

    # --- keys -----------------------------------------------------------------------------------------------

    def _conditions(self) -> dict[str, Callable[[], bool]]:
        return super()._conditions() | {
            **dict.fromkeys(_MOVES, self._is_drawn),
            **dict.fromkeys(("sort_left", "sort_right", "totals", "all_rows"), lambda: False),
            **dict.fromkeys(("filter", "sort_next"), self._has_tree),
            "sort_reverse": self._is_shown,
            "details": lambda: self._is_drawn() and self.graph.chosen not in (None, self.graph.zoom),
            "back": lambda: self._is_shown() and bool(self.graph.zoom),
        }

    def _has_tree(self) -> bool:
        return self._is_shown() and not self.has_class("-silent")

    def _is_drawn(self) -> bool:
        return self._has_tree() and not self.has_class("-without-graph")

    def _has_something_to_clear(self) -> bool:
        graph = self.graph
        filtered = bool(self.state.query.filter.text)
        return bool(graph.words or graph.zoom) or graph.chosen is not None or filtered

    @property
    def sorts_by(self) -> tuple[str, ...]:
        """None: the picture has no columns."""
        return ()

    def label_of(self, action: Action) -> str:
        """What a key does now, in a word."""
        if self.has_class("-typing") or action.id not in ON_A_GRAPH:
            return super().label_of(action)
        return ON_A_GRAPH[action.id][0]

    def help_of(self, action: Action) -> str:
        """What a key does here, in a line."""
        return ON_A_GRAPH[action.id][1] if action.id in ON_A_GRAPH else super().help_of(action)

    def more_help(self) -> Mapping[str, Sequence[tuple[str, str]]]:
        """The signs of frames, and what their letters mean."""
        frames = [
            (CHOSEN, "behind the letter of a frame: the chosen one"),
            (THIN, "frames each narrower than a cell, as wide as they are together"),
        ]
        categories = [(f"{one.letter} {one.label}", one.help) for one in CATEGORIES.values()]
        return {"FRAMES": frames, "CATEGORIES": categories}

    def focus_body(self) -> None:
        """Let keys go to the graph."""
        self.graph.focus()

    def action_details(self) -> None:
        """Zoom into the chosen frame."""
        self.graph.zoom_in()

    def action_back(self) -> None:
        """Back to what was zoomed into before."""
        self.graph.zoom_out()

    def action_clear(self) -> None:
        """Drop the search, then the zoom, then the choice, then the filter."""
        if self.graph.words:
            self._search_for("")
        elif self.graph.zoom:
            self.graph.zoom_to_all()
        elif self.graph.chosen is not None:
            self.graph.choose(None)
        else:
            self._ask_filter("")

    def action_move_up(self) -> None:
        """To the caller."""
        self.graph.move_up()

    def action_move_down(self) -> None:
        """To the widest of the functions that are called."""
        self.graph.move_down()

    def action_frame_left(self) -> None:
        """To the frame to the left."""
        self.graph.move_left()

    def action_frame_right(self) -> None:
        """To the frame to the right."""
        self.graph.move_right()

    def action_page_up(self) -> None:
        """Some rows up."""
        self.graph.move_page(-1)

    def action_page_down(self) -> None:
        """Some rows down, the widest way."""
        self.graph.move_page(1)

    def action_first(self) -> None:
        """The widest frame of the first row."""
        self.graph.first()

    def action_last(self) -> None:
        """Down to where the widest way ends."""
        self.graph.last()

    def action_zoom(self, length: int) -> None:
        """Back to a function on the way to what is zoomed into."""
        self.graph.zoom_to(self.graph.zoom[:length])

    # --- searching ------------------------------------------------------------------------------------------

    async def action_filter(self) -> None:
        """Open the box."""
        from nettop.screens.filter_box import FilterBox  # not needed for the first picture

        if not self.query(FilterBox):
            self.add_class("-typing")
            box = FilterBox(self._would_find, self.graph.words, _EXAMPLE)
            await self.mount(box, before=self.footer)
            self.draw_frame()

    def _would_find(self, words: str) -> str:
        """What some words find."""
        tree = self.graph.whole
        if tree is None or not words.strip():
            return "all frames"
        return found_words(search(tree, matcher(words)), tree)

    def typed(self, text: str) -> None:
        """Search for what was typed in the box."""
        self._search_for(text.strip())

    def _search_for(self, words: str) -> None:
        self.graph.highlight(words)
        self.search_again()
        self.draw_body()

    def search_again(self) -> None:
        """Look through the tree for what is searched for."""
        tree, words = self.graph.whole, self.graph.words
        self.found = search(tree, matcher(words)) if tree is not None and words else None

    # --- mouse ----------------------------------------------------------------------------------------------

    def on_flame_graph_moved(self) -> None:
        """Another frame is chosen, or zoomed into."""
        self.draw_body()


def found_words(found: Found | None, tree: FlameNode | None) -> str:
    """`14 frames, 38.2% of all samples`"""
    if found is None or tree is None:
        return "no samples to search"
    frames = f"{found.frames:,} {plural('frame', found.frames)}"
    return f"{frames}, {human(found.samples / max(1, tree.samples), RATIO)} of all samples"
