# SPDX-License-Identifier: Apache-2.0
"""The flame graph, drawn as an icicle: the functions a frame calls are below it, as wide as their share.

Rows are laid out and drawn when they become visible.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rich.cells import cell_len
from textual import events
from textual.geometry import Size
from textual.message import Message
from textual.strip import Strip

from nettop.query.units import RATIO, human
from nettop.screens.cpu.bars import GLYPHS, ROLES
from nettop.snapshots.cpu import CATEGORIES, ENTRIES, OTHER
from nettop.stacks.counts import FlameNode
from nettop.widgets.lines import Scrollable
from nettop.widgets.table import CHOSEN
from nettop.widgets.text import TextSpan, elide_end
from nettop.widgets.themes import Background, Role, Shade

Path = tuple[str, ...]
"""The names from the root of the tree to a frame; the root's path is empty."""

EDGE, THIN = "▕", "▏"
_MARGIN = 1
_MIN_NAME = 3
_CELLS_FOR_SHARE = 10
"""Cells a frame needs besides its name to show its share."""
_RIGHT_BUTTON = 3
_ENTRY_OF = {label: entry for entry, label in ENTRIES.items()}


@dataclass(frozen=True, slots=True)
class FlameBlock:
    """A frame's cells in its row, from `start` up to `end`, with `at` samples to its left.

    If `merged` is not 0, the block stands for that many frames narrower than a cell, and `path` is their caller's.
    """

    start: int
    end: int
    path: Path
    node: FlameNode
    at: int
    merged: int = 0


class Layout:
    """The rows of a tree in `width` cells, from the node at `path` downwards.

    Edges are rounded, not widths, so that frames of a row never overlap, callees are below their caller, and widths are
    exact to a cell. Frames narrower than a cell are merged into one block after the others, at least a cell wide; if
    their caller has no cell left, `unseen` holds their number by the caller's path.
    """

    def __init__(self, root: FlameNode, path: Path, width: int) -> None:
        self.width = width
        self.unseen: dict[Path, int] = {}
        self._total = max(1, root.samples)
        self._rows: list[list[FlameBlock]] = [[FlameBlock(0, width, path, root, 0)] if width > 0 else []]

    def row(self, number: int) -> Sequence[FlameBlock]:
        """Return the blocks of a row from left to right; none below the last row."""
        while len(self._rows) <= number and self._rows[-1]:
            callers = (block for block in self._rows[-1] if not block.merged)
            self._rows.append([below for block in callers for below in self._below(block)])
        return self._rows[number] if number < len(self._rows) else ()

    @property
    def depth(self) -> int:
        """Number of rows."""
        while self._rows[-1]:
            self.row(len(self._rows))
        return len(self._rows) - 1

    def block(self, path: Path) -> FlameBlock | None:
        """Return the block of a frame, or None if it is merged or absent."""
        (root,) = self.row(0) or (None,)
        row = self.row(len(path) - len(root.path)) if root and len(path) >= len(root.path) else ()
        return next((block for block in row if block.path == path and not block.merged), None)

    def _below(self, block: FlameBlock) -> Iterator[FlameBlock]:
        at, thin = block.at, []
        for child in block.node.children:
            if child.samples * self.width < self._total:
                thin.append(child)
                continue
            after = at + child.samples
            yield FlameBlock(self._cell(at), self._cell(after), (*block.path, child.symbol), child, at)
            at = after
        samples, time_ns = sum(node.samples for node in thin), sum(node.time_ns for node in thin)
        start = self._cell(at)
        end = min(block.end, max(self._cell(at + samples), start + 1))
        if thin and start == end:
            self.unseen[block.path] = len(thin)
        elif thin:
            yield FlameBlock(start, end, block.path, FlameNode("", samples, time_ns, OTHER), at, len(thin))

    def _cell(self, samples: int) -> int:
        """Return the edge after this many samples, rounded to the nearest cell."""
        return (2 * samples * self.width + self._total) // (2 * self._total)


def node_at(root: FlameNode, path: Path) -> FlameNode | None:
    """Return the node at a path, or None if there is none."""
    node: FlameNode | None = root
    for symbol in path:
        node = next((child for child in node.children if child.symbol == symbol), None) if node else None
    return node


class Matches(NamedTuple):
    """The number of frames found by a search, and of their samples, each counted once."""

    frames: int
    samples: int


def search(root: FlameNode, matches: Callable[[str], bool]) -> Matches:
    """Search the whole tree, including frames too narrow to draw."""
    frames = samples = 0
    queue = [(child, False) for child in root.children]
    while queue:
        node, inside = queue.pop()
        if matches(node.symbol):
            frames += 1
            samples += 0 if inside else node.samples
            inside = True
        queue += ((child, inside) for child in node.children)
    return Matches(frames, samples)


def matcher(text: str) -> Callable[[str], bool]:
    """Return a case-insensitive test for names that contain any of the words; without words nothing matches."""
    words = text.casefold().split()
    return lambda symbol: any(word in symbol.casefold() for word in words)


class FlameGraph(Scrollable, can_focus=True):
    """A tree with a selected and a zoomed frame, kept as paths across refreshes. Frames that do not match are faded."""

    class Moved(Message):
        """A change of the selected or the zoomed frame."""

    def __init__(self) -> None:
        super().__init__()
        self.whole: FlameNode | None = None
        self.chosen: Path | None = None
        self.words = ""
        self.drawn = 0
        self._zooms: list[Path] = [()]
        self._laid_out: Layout | None = None
        self._strips: dict[int, Strip] = {}
        self._drawn_in = (0, "")

    # --- what is shown --------------------------------------------------------------------------------------

    def show(self, tree: FlameNode | None) -> None:
        """Replace the tree, and redraw."""
        self.whole = tree
        self._lay_out()

    def highlight(self, words: str) -> None:
        """Highlight the frames whose names contain any of these words; without words, none."""
        if words != self.words:
            self.words = words
            self._lay_out()

    @property
    def zoom(self) -> Path:
        """Path of the frame that takes the whole width."""
        return self._zooms[-1]

    @property
    def current_layout(self) -> Layout | None:
        """Layout in the current width; None if the tree lacks the zoomed frame."""
        if self._laid_out is None and self.whole is not None:
            root = node_at(self.whole, self.zoom)
            width = self.size.width - 2 * _MARGIN
            self._laid_out = None if root is None or not root.samples else Layout(root, self.zoom, width)
        return self._laid_out

    @property
    def row_count(self) -> int:
        """Number of rows, visible or not."""
        return 0 if self.current_layout is None else self.current_layout.depth - self.hidden_rows

    @property
    def hidden_rows(self) -> int:
        """Number of rows not drawn: 1 for the root, which always has the full width, or 0 if zoomed."""
        return 0 if self.zoom else 1

    def _lay_out(self) -> None:
        self._laid_out = None
        self._strips.clear()
        self._scroll_to_chosen()
        self.redraw()

    # --- zoom -----------------------------------------------------------------------------------------------

    def zoom_to(self, path: Path) -> None:
        """Zoom into a frame."""
        if path == self.zoom:
            return
        # Keep only the zooms into callers of this frame: zooming out and in again must not lengthen the history.
        self._zooms = [zoom for zoom in self._zooms if path[: len(zoom)] == zoom != path] + [path]
        self.chosen = path or None
        self._zoomed()

    def zoom_in(self) -> None:
        """Zoom into the selected frame."""
        if self.chosen is not None:
            self.zoom_to(self.chosen)

    def zoom_out(self) -> None:
        """Undo the last zoom, and select the frame that was zoomed."""
        if len(self._zooms) > 1:
            self.chosen = self._zooms.pop()
            self._zoomed()

    def zoom_to_all(self) -> None:
        """Show the whole tree."""
        self._zooms = [()]
        self._zoomed()

    def _zoomed(self) -> None:
        self.top = 0
        self._lay_out()
        self.post_message(self.Moved())

    # --- choice ---------------------------------------------------------------------------------------------

    def choose(self, path: Path | None) -> None:
        """Select a frame."""
        before, self.chosen = self.chosen, path
        for changed in (before, path):
            if changed is not None:
                self._strips.pop(self._row_of(changed), None)
        self._scroll_to_chosen()
        self.redraw()
        self.post_message(self.Moved())

    def move(self, where: str) -> None:
        """Select the caller, the widest callee, a neighbour, or one further up or down; `where` is the action's name.

        Without a selection, start at the widest frame of the first row.
        """
        chosen = self._chosen_block()
        block = None if where == "first" else chosen
        block = block or max(self._single(self.hidden_rows), key=_samples, default=None)
        if block is None:
            return
        rows = {"move": 1, "page": self.page, "last": self.row_count}.get(where.partition("_")[0], 0)
        if where in ("page_down", "last") or (where == "move_down" and chosen):
            for _ in range(rows):
                block = self._widest_below(block) or block
        if chosen and where.startswith("frame_"):
            block = self._beside(block, 1 if where == "frame_right" else -1)
        above = rows if chosen and where.endswith("_up") else 0
        self.choose(block.path[: max(len(self.zoom) + self.hidden_rows, len(block.path) - above)])

    def _beside(self, block: FlameBlock, step: int) -> FlameBlock:
        """Return the next block in the same row that can be selected, or this one at its end."""
        row = self._single(self._row_of(block.path))
        return row[min(max(row.index(block) + step, 0), len(row) - 1)]

    def _chosen_block(self) -> FlameBlock | None:
        """Return the block of the selected frame, or of the nearest caller that has one."""
        layout = self.current_layout
        if layout is None or self.chosen is None:
            return None
        shortest = len(self.zoom) + self.hidden_rows
        callers = (self.chosen[:length] for length in range(len(self.chosen), shortest - 1, -1))
        return next(filter(None, map(layout.block, callers)), None)

    def _widest_below(self, caller: FlameBlock) -> FlameBlock | None:
        row = self._single(self._row_of(caller.path) + 1)
        callees = (block for block in row if block.path[:-1] == caller.path)
        return max(callees, key=_samples, default=None)

    def _single(self, number: int) -> list[FlameBlock]:
        """Return the blocks of a row that can be selected."""
        return [block for block in self._blocks(number) if not block.merged]

    def _blocks(self, number: int) -> Sequence[FlameBlock]:
        return () if self.current_layout is None else self.current_layout.row(number)

    def _row_of(self, path: Path) -> int:
        return len(path) - len(self.zoom)

    # --- scrolling ------------------------------------------------------------------------------------------

    def _scroll_to_chosen(self) -> None:
        block = self._chosen_block()
        if block is not None:
            line = self._row_of(block.path) - self.hidden_rows
            self.top = min(max(self.top, line - self.page + 1), line)
        self.top = self.bounded(self.top)

    # --- drawing --------------------------------------------------------------------------------------------

    def strips(self, size: Size) -> list[Strip]:
        """Return the visible rows."""
        size_and_theme = (size.width, self.app.theme)
        if size_and_theme != self._drawn_in:
            self._drawn_in, self._laid_out = size_and_theme, None
            self._strips.clear()
        first = self.top + self.hidden_rows
        for number in range(first, first + size.height):
            if number not in self._strips:
                self._strips[number] = self._row(number)
                self.drawn += 1
        rows = [self._strips[number] for number in range(first, first + size.height)]
        lines = self.thumb()
        return [self.with_thumb(row) if y in lines else row for y, row in enumerate(rows)]

    def _row(self, number: int) -> Strip:
        matches = matcher(self.words) if self.words else None
        spans: list[TextSpan] = []
        at = -_MARGIN
        for block in self._blocks(number):
            spans.append(TextSpan(" " * (block.start - at)))
            spans += self._frame_of(block, None if matches is None else matches(block.node.symbol))
            at = block.end
        return self.strip((span for span in spans if span.text), self._drawn_in[0])

    def _frame_of(self, block: FlameBlock, matches: bool | None) -> list[TextSpan]:
        """Return the cells of a frame: its category's letter, name, share if there is room, and edge.

        `matches` says whether the frame matches the search; None without a search.
        """
        width, chosen = block.end - block.start, block.path == self.chosen
        if block.merged:
            return [TextSpan(THIN * width, Role.FAINT)]
        entry = _ENTRY_OF.get(block.node.symbol) if len(block.path) == 1 else None
        if entry is not None:
            return self._entry_cells(block, entry)
        letter = CATEGORIES.get(block.node.category, CATEGORIES[OTHER]).letter
        shade = Shade.CHOSEN if chosen else Shade.FADED if matches is False else Shade.PLAIN
        name, filling, share = self._texts(block, max(0, width - 3))
        cells = [
            (letter, Role.DIM),
            ((CHOSEN if chosen else " ") if width > 2 else "", Role.TEXT),
            (name, Role.BOLD if matches else Role.TEXT),
            (" " * filling, Role.TEXT),
            (share, Role.DIM),
            (EDGE if width > 1 else "", Role.FAINT),
        ]
        return [TextSpan(text, role, letter=letter, shade=shade) for text, role in cells]

    def _entry_cells(self, block: FlameBlock, entry: int) -> list[TextSpan]:
        """Return the cells of an entry point, drawn as in the bars."""
        chosen, width = block.path == self.chosen, block.end - block.start
        background = Background.BAND if chosen else Background.SCREEN
        glyph, role = GLYPHS[entry], ROLES[entry]
        name, _, share = self._texts(block, max(0, width - 5))
        label = f"{CHOSEN if chosen else ' '}{name} " if name else ""
        amount, edge = f" {share}" if share else "", EDGE if width > 1 else ""
        filling = width - sum(map(cell_len, (glyph, label, amount, edge)))
        texts = [
            TextSpan(glyph, role),
            TextSpan(label, Role.BOLD, background),
            TextSpan(glyph * filling, role),
        ]
        return [*texts, TextSpan(amount, Role.BOLD, background), TextSpan(edge, Role.FAINT)]

    def _texts(self, block: FlameBlock, space: int) -> tuple[str, int, str]:
        """Return the name, elided or left out to fit in `space` cells; the blanks after it; the share, if it fits."""
        assert self.current_layout is not None
        name = block.node.symbol
        if space < min(_MIN_NAME, len(name)):
            return "", space, ""
        if space < len(name) + _CELLS_FOR_SHARE:
            name = elide_end(name, space)
            return name, space - len(name), ""
        (root,) = self.current_layout.row(0)
        share = f"{human(block.node.samples / root.node.samples, RATIO)} "
        return name, space - len(name) - len(share), share

    # --- mouse ----------------------------------------------------------------------------------------------

    def on_click(self, event: events.Click) -> None:
        """Select a clicked frame, or zoom into it if already selected. The right button or the first line zoom out."""
        number = self.top + event.y + self.hidden_rows
        if event.button == _RIGHT_BUTTON or (number == 0 and self.zoom):
            self.zoom_out()
            return
        x = event.x - _MARGIN
        block = next(
            (candidate for candidate in self._blocks(number) if candidate.start <= x < candidate.end), None
        )
        if block is not None and block.path == self.chosen and not block.merged:
            self.zoom_in()
        elif block is not None:
            self.choose(block.path)

    def on_resize(self) -> None:
        """Lay out in the new width, and keep the selected frame visible in the new height."""
        self._lay_out()


def _samples(block: FlameBlock) -> int:
    return block.node.samples
