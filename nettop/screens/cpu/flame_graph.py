# SPDX-License-Identifier: Apache-2.0
"""The flame graph, hanging (an icicle): below each frame the functions that it calls, as wide as their share.

A row is worked out, and its line made, when it is to be seen and not before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.geometry import Size
from textual.message import Message
from textual.strip import Strip

from nettop.query.cpu import FlameNode
from nettop.query.units import RATIO, human
from nettop.screens.cpu.entry_bars import GLYPHS, ROLES
from nettop.snapshots.cpu import CATEGORIES, ENTRIES, OTHER
from nettop.widgets.cells import elide_end
from nettop.widgets.page import PLACE
from nettop.widgets.table import CHOSEN
from nettop.widgets.themes import Ground, Role, Shade, frame_style, style
from nettop.widgets.wheel import Wheeled

Path = tuple[str, ...]
"""The names on the way from the tree's root, which itself has the empty one, to a frame."""

EDGE, THIN = "▕", "▏"
_MARGIN = 1
_LEAST_NAME = 3
_ROOM_FOR_SHARE = 10
"""Cells beside the name from which on a frame tells its share."""
_LEFT, _RIGHT = -1, 1
_RIGHT_BUTTON = 3
_UNDERLINED = Style(underline=True)
_ENTRY_OF = {label: entry for entry, label in ENTRIES.items()}


@dataclass(frozen=True, slots=True)
class Block:
    """A frame where it is drawn: the cells from `start` up to `end` of its row.

    `at` are the samples to the left of it. Where `merged` is not 0, it stands for so many frames, each narrower than
    a cell, with `path` that of their caller.
    """

    start: int
    end: int
    path: Path
    node: FlameNode
    at: int
    merged: int = 0


class Layout:
    """The rows of a tree over `width` cells, from the node at `path` downwards.

    Edges are the exact ones, rounded: so frames of a row never overlap, callees lie below their caller, and a width
    is within a cell of the share. Frames that come to less than a cell are drawn as one behind the others, which has
    a cell at least where their caller has one left; else they are in `unseen`, of their caller.
    """

    def __init__(self, root: FlameNode, path: Path, width: int) -> None:
        self.width = width
        self.unseen: dict[Path, int] = {}
        self._total = max(1, root.samples)
        self._rows: list[list[Block]] = [[Block(0, width, path, root, 0)] if width > 0 else []]

    def row(self, number: int) -> Sequence[Block]:
        """The blocks of a row, from left to right; none below the deepest."""
        while len(self._rows) <= number and self._rows[-1]:
            self._rows.append([below for block in self._rows[-1] for below in self._below(block)])
        return self._rows[number] if number < len(self._rows) else ()

    @property
    def depth(self) -> int:
        """How many rows there are."""
        while self._rows[-1]:
            self.row(len(self._rows))
        return len(self._rows) - 1

    def block(self, path: Path) -> Block | None:
        """The block of a frame, if it has one of its own."""
        (root,) = self.row(0) or (None,)
        row = self.row(len(path) - len(root.path)) if root and len(path) >= len(root.path) else ()
        return next((block for block in row if block.path == path and not block.merged), None)

    def _below(self, block: Block) -> Iterator[Block]:
        if block.merged:
            return
        at, thin = block.at, []
        for child in block.node.children:
            if child.samples * self.width < self._total:
                thin.append(child)
                continue
            after = at + child.samples
            yield Block(self._cell(at), self._cell(after), (*block.path, child.symbol), child, at)
            at = after
        if thin:
            yield from self._merged(block, at, thin)

    def _merged(self, caller: Block, at: int, thin: Sequence[FlameNode]) -> Iterator[Block]:
        samples, time_ns = sum(node.samples for node in thin), sum(node.time_ns for node in thin)
        start = self._cell(at)
        end = min(caller.end, max(self._cell(at + samples), start + 1))
        if start == end:
            self.unseen[caller.path] = len(thin)
        else:
            yield Block(start, end, caller.path, FlameNode("", samples, time_ns, OTHER), at, len(thin))

    def _cell(self, samples: int) -> int:
        """Where so many samples end, to the nearest cell."""
        return (2 * samples * self.width + self._total) // (2 * self._total)


def node_at(root: FlameNode, path: Path) -> FlameNode | None:
    """The node that a path leads to."""
    node: FlameNode | None = root
    for symbol in path:
        node = next((child for child in node.children if child.symbol == symbol), None) if node else None
    return node


@dataclass(frozen=True, slots=True)
class Found:
    """What a search found: how many frames, and the samples of those that stand in no other that was found."""

    frames: int
    samples: int


def search(root: FlameNode, matches: Callable[[str], bool]) -> Found:
    """Look through the whole tree, what is too narrow to be drawn included."""
    frames = samples = 0
    waiting = [(child, False) for child in root.children]
    while waiting:
        node, inside = waiting.pop()
        if matches(node.symbol):
            frames += 1
            samples += 0 if inside else node.samples
            inside = True
        waiting += ((child, inside) for child in node.children)
    return Found(frames, samples)


def matcher(text: str) -> Callable[[str], bool]:
    """Whether a function's name holds one of the words, in whatever case; without words none does."""
    words = text.casefold().split()
    return lambda symbol: any(word in symbol.casefold() for word in words)


class FlameGraph(Wheeled, can_focus=True):
    """A tree of which a frame may be chosen, and may be zoomed into: both by their paths, so they outlast refreshes.

    What is searched for stays bright, all else fades.
    """

    class Moved(Message):
        """Another frame is chosen, or zoomed into."""

    def __init__(self) -> None:
        super().__init__()
        self.whole: FlameNode | None = None
        self.chosen: Path | None = None
        self.words = ""
        self.top = 0
        self.drawn = 0
        self._zooms: list[Path] = [()]
        self._laid_out: Layout | None = None
        self._strips: dict[int, Strip] = {}
        self._look = (0, "")

    # --- what is shown --------------------------------------------------------------------------------------

    def show(self, tree: FlameNode | None) -> None:
        """Draw `tree` from now on."""
        self.whole = tree
        self._draw_anew()

    def highlight(self, words: str) -> None:
        """Let the frames stand out whose names hold one of these words; all of them where there are none."""
        if words != self.words:
            self.words = words
            self._draw_anew()

    @property
    def zoom(self) -> Path:
        """The path of the frame that takes the whole width."""
        return self._zooms[-1]

    @property
    def layout_now(self) -> Layout | None:
        """How the tree lies in this width; None where what is zoomed into is not in it."""
        if self._laid_out is None and self.whole is not None:
            root = node_at(self.whole, self.zoom)
            width = self.size.width - 2 * _MARGIN
            self._laid_out = None if root is None or not root.samples else Layout(root, self.zoom, width)
        return self._laid_out

    @property
    def page(self) -> int:
        """How many rows are to be seen at once."""
        return max(1, self.size.height)

    @property
    def unzoomed(self) -> int:
        """The rows that are not drawn: that of the tree's root, which would be one frame over the whole width."""
        return 0 if self.zoom else 1

    def _draw_anew(self) -> None:
        self._laid_out = None
        self._strips.clear()
        self._keep_in_sight()
        self.redraw()

    # --- zoom -----------------------------------------------------------------------------------------------

    def zoom_to(self, path: Path) -> None:
        """Give a frame the whole width."""
        if path == self.zoom:
            return
        # Who goes to where they came from has no further way back than before.
        self._zooms = [one for one in self._zooms if path[: len(one)] == one and one != path] + [path]
        self.chosen = path or None
        self._zoomed()

    def zoom_in(self) -> None:
        """Give the chosen frame the whole width."""
        if self.chosen is not None:
            self.zoom_to(self.chosen)

    def zoom_out(self) -> None:
        """Back to what was zoomed into before; what took the whole width is the chosen frame."""
        if len(self._zooms) > 1:
            self.chosen = self._zooms.pop()
            self._zoomed()

    def zoom_to_all(self) -> None:
        """The whole tree."""
        self._zooms = [()]
        self._zoomed()

    def _zoomed(self) -> None:
        self.top = 0
        self._draw_anew()
        self.post_message(self.Moved())

    # --- choice ---------------------------------------------------------------------------------------------

    def choose(self, path: Path | None) -> None:
        """Make a frame the chosen one."""
        before, self.chosen = self.chosen, path
        for one in (before, path):
            if one is not None:
                self._strips.pop(self._row_of(one), None)
        self._keep_in_sight()
        self.redraw()
        self.post_message(self.Moved())

    def move_up(self) -> None:
        """To the caller."""
        block = self._chosen_block()
        if block is None:
            self.first()
        elif len(block.path) > len(self.zoom) + self.unzoomed:
            self.choose(block.path[:-1])

    def move_down(self) -> None:
        """To the widest of the functions that the chosen one calls; where none is chosen, the widest of all."""
        block = self._chosen_block()
        if block is None:
            self.first()
        elif (below := self._widest_below(block)) is not None:
            self.choose(below.path)

    def move_left(self) -> None:
        """To the frame to the left in the same row."""
        self._move_aside(_LEFT)

    def move_right(self) -> None:
        """To the frame to the right in the same row."""
        self._move_aside(_RIGHT)

    def first(self) -> None:
        """To the widest frame of the first row."""
        row = self._single(self.unzoomed)
        if row:
            self.choose(max(row, key=_samples).path)

    def last(self) -> None:
        """Down to where the widest way from the chosen frame ends."""
        self._descend(self._depth())

    def move_page(self, step: int) -> None:
        """Up or down by as many rows as are to be seen at once."""
        if step > 0:
            self._descend(self.page)
        elif self.chosen is not None:
            least = len(self.zoom) + self.unzoomed
            self.choose(self.chosen[: max(least, len(self.chosen) - self.page)])

    def _descend(self, rows: int) -> None:
        block = self._chosen_block()
        if block is None:
            self.first()
            block = self._chosen_block()
        for _ in range(rows):
            below = None if block is None else self._widest_below(block)
            if below is None:
                break
            block = below
        if block is not None:
            self.choose(block.path)

    def _move_aside(self, step: int) -> None:
        block = self._chosen_block()
        if block is None:
            self.first()
            return
        row = self._single(self._row_of(block.path))
        at = row.index(block) + step
        if 0 <= at < len(row):
            self.choose(row[at].path)

    def _chosen_block(self) -> Block | None:
        """Where the chosen frame is drawn, or the nearest of its callers that is."""
        layout = self.layout_now
        if layout is None or self.chosen is None:
            return None
        mechanisms = (
            self.chosen[:length] for length in range(len(self.chosen), len(self.zoom) + self.unzoomed - 1, -1)
        )
        return next(filter(None, map(layout.block, mechanisms)), None)

    def _widest_below(self, caller: Block) -> Block | None:
        row = self._single(self._row_of(caller.path) + 1)
        return max((one for one in row if one.path[:-1] == caller.path), key=_samples, default=None)

    def _single(self, number: int) -> list[Block]:
        """The blocks of a row that may be chosen."""
        row = () if self.layout_now is None else self.layout_now.row(number)
        return [block for block in row if not block.merged]

    def _row_of(self, path: Path) -> int:
        return len(path) - len(self.zoom)

    # --- scrolling ------------------------------------------------------------------------------------------

    def scroll_by(self, step: int) -> None:
        """Move the rows, and leave the choice as it is, even out of sight."""
        self.top = self._bounded(self.top + step)
        self.redraw()

    def _keep_in_sight(self) -> None:
        block = self._chosen_block()
        if block is not None:
            line = self._row_of(block.path) - self.unzoomed
            self.top = min(max(self.top, line - self.page + 1), line)
        self.top = self._bounded(self.top)

    def _bounded(self, top: int) -> int:
        return max(0, min(top, self._depth() - self.page))

    def _depth(self) -> int:
        """How many rows there are to be drawn."""
        return 0 if self.layout_now is None else self.layout_now.depth - self.unzoomed

    # --- drawing --------------------------------------------------------------------------------------------

    def strips(self, size: Size) -> list[Strip]:
        """The rows in sight."""
        look = (size.width, self.app.theme)
        if look != self._look:
            self._look, self._laid_out = look, None
            self._strips.clear()
        first = self.top + self.unzoomed
        rows = [self._row(number) for number in range(first, first + size.height)]
        return self._with_place_mark(rows, size.width)

    def _row(self, number: int) -> Strip:
        strip = self._strips.get(number)
        if strip is None:
            strip = self._strips[number] = self._drawn_row(number)
            self.drawn += 1
        return strip

    def _drawn_row(self, number: int) -> Strip:
        blank = style(self.app.theme, Role.TEXT)
        matches = matcher(self.words) if self.words else None
        segments: list[Segment] = []
        at = -_MARGIN
        for block in () if self.layout_now is None else self.layout_now.row(number):
            segments.append(Segment(" " * (block.start - at), blank))
            segments += self._frame_of(block, None if matches is None else matches(block.node.symbol))
            at = block.end
        width, _ = self._look
        segments.append(Segment(" " * max(0, width - _MARGIN - at), blank))
        return Strip([segment for segment in segments if segment.text], width)

    def _frame_of(self, block: Block, found: bool | None) -> list[Segment]:
        """The cells of a frame: what marks its category, its name, its share where there is room, and its edge.

        `found` says whether it is searched for; None where nothing is.
        """
        theme, width = self.app.theme, block.end - block.start
        if block.merged:
            return [Segment(THIN * width, style(theme, Role.FAINT))]
        entry = _ENTRY_OF.get(block.node.symbol) if len(block.path) == 1 else None
        if entry is not None:
            return self._entry_cells(block, entry, width)
        letter = CATEGORIES.get(block.node.category, CATEGORIES[OTHER]).letter
        chosen = block.path == self.chosen
        shade = Shade.CHOSEN if chosen else Shade.FADED if found is False else Shade.PLAIN

        def look(role: Role) -> Style:
            return frame_style(theme, letter, shade, role)

        name, filling, share = self._texts(block, max(0, width - 3))
        cells = [
            (letter, look(Role.DIM)),
            ((CHOSEN if chosen else " ") if width > 2 else "", look(Role.TEXT)),
            (name, look(Role.BOLD) + _UNDERLINED if found else look(Role.TEXT)),
            (" " * filling, look(Role.TEXT)),
            (share, look(Role.DIM)),
            (EDGE if width > 1 else "", look(Role.FAINT)),
        ]
        return [Segment(text, one) for text, one in cells if text]

    def _entry_cells(self, block: Block, entry: int, width: int) -> list[Segment]:
        """An entry point, drawn as it is in the bars of the CPUs."""
        chosen = block.path == self.chosen
        ground = Ground.BAND if chosen else Ground.SCREEN
        glyph, colour = GLYPHS[entry], style(self.app.theme, ROLES[entry])
        text = style(self.app.theme, Role.BOLD, ground)
        name, _, share = self._texts(block, max(0, width - 5))
        label = f"{CHOSEN if chosen else ' '}{name} " if name else ""
        amount, edge = f" {share}" if share else "", EDGE if width > 1 else ""
        filling = width - sum(map(cell_len, (glyph, label, amount, edge)))
        cells = [
            (glyph, colour),
            (label, text),
            (glyph * filling, colour),
            (amount, text),
            (edge, style(self.app.theme, Role.FAINT)),
        ]
        return [Segment(one, look) for one, look in cells if one]

    def _texts(self, block: Block, room: int) -> tuple[str, int, str]:
        """The name as far as it fits in `room` cells, how many are left behind it, and the share in some of those.

        Of a name nothing is told where less than a few letters of it fit.
        """
        assert self.layout_now is not None
        name = block.node.symbol
        if room < min(_LEAST_NAME, len(name)):
            return "", room, ""
        if room < len(name) + _ROOM_FOR_SHARE:
            name = elide_end(name, room)
            return name, room - len(name), ""
        (root,) = self.layout_now.row(0)
        share = f"{human(block.node.samples / root.node.samples, RATIO)} "
        return name, room - len(name) - len(share), share

    def _with_place_mark(self, strips: list[Strip], width: int) -> list[Strip]:
        """The strips, with a mark at their right edge where these rows lie among all of them."""
        rows, page = self._depth(), len(strips)
        if rows <= page:
            return strips
        length = max(1, page * page // rows)
        first = (page - length) * self.top // (rows - page)
        mark = Strip([Segment(PLACE, style(self.app.theme, Role.FAINT))], 1)
        marked = (Strip.join([strip.crop(0, width - 1), mark]) for strip in strips[first : first + length])
        return [*strips[:first], *marked, *strips[first + length :]]

    # --- mouse ----------------------------------------------------------------------------------------------

    def on_click(self, event: events.Click) -> None:
        """A frame is chosen, the chosen one is zoomed into; the right button and the first line zoom out."""
        number = self.top + event.y + self.unzoomed
        if event.button == _RIGHT_BUTTON or (number == 0 and self.zoom):
            self.zoom_out()
            return
        block = self.block_at(event.x, number)
        if block is None:
            return
        if block.path == self.chosen and not block.merged:
            self.zoom_in()
        else:
            self.choose(block.path)

    def block_at(self, x: int, number: int) -> Block | None:
        """The block of a row that cell `x` of the widget is in."""
        row = () if self.layout_now is None else self.layout_now.row(number)
        return next((block for block in row if block.start <= x - _MARGIN < block.end), None)

    def on_resize(self) -> None:
        """Another width lays out anew; another height may have moved the chosen frame out of sight."""
        self._draw_anew()


def _samples(block: Block) -> int:
    return block.node.samples
