# SPDX-License-Identifier: Apache-2.0
"""The table of a lens. It draws only the visible rows, directly from a view.

One widget draws header, rows and total, so that a refresh repaints once and never changes the layout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from textual import events
from textual.geometry import Size
from textual.message import Message
from textual.strip import Strip

from nettop.query.units import UNKNOWN
from nettop.query.view import View
from nettop.snapshots.arrays import Index, as_list
from nettop.snapshots.schema import Kind, Table
from nettop.widgets.cells import (
    Cell,
    RowFlags,
    RowStyle,
    bar_cells,
    column_cells,
    fold_cells,
    noted_cells,
    total_cells,
)
from nettop.widgets.columns import Column, declared, plan
from nettop.widgets.folds import fold_closed
from nettop.widgets.lines import Scrollable
from nettop.widgets.text import TextSpan, fit, wrapped
from nettop.widgets.themes import Background, Role

UP, DOWN = "▴", "▾"
CHOSEN, FOLLOWED, CLOSED = "▸", "◆", "×"
_PLAIN = RowFlags()


class LiveTable(Scrollable, can_focus=True):
    """The rows of a view. When the order changes, the selection keeps its position; a followed row stays selected.

    In an append table the selected row is always followed and keeps its line on the screen. If no row is selected, the
    first visible row keeps its line, unless it is the table's first.
    """

    @dataclass
    class Chosen(Message):
        """A newly selected row, or none (`key` None); `open` requests its details."""

        key: int | None
        open: bool = False

    def __init__(self, names: Sequence[str], row_style: RowStyle | None = None) -> None:
        super().__init__()
        self.names = tuple(names)
        self.row_style = row_style or RowStyle()
        self.filtered_empty_text: Callable[[View], str] = lambda _: "no row passes the filter"
        self.extra = True
        self.bars = True
        self.view: View | None = None
        self.order: Index = np.empty(0, np.intp)
        self.folded_by = ""
        """The column by whose texts closed rows are folded; "" lists them all."""
        self.folds: Mapping[int, Index] = {}
        self.columns: tuple[Column, ...] = ()
        self.key: int | None = None
        self.at: int | None = None
        self.follows = False
        self.drawn = 0
        self._strips: dict[tuple[int, bool], Strip] = {}
        self._drawn_for: tuple[object, ...] = ()
        self._scrolls_to_choice = True
        self._told_apart: tuple[str, ...] = ()

    # --- what is shown --------------------------------------------------------------------------------------

    def show(self, view: View, names: Sequence[str] | None = None) -> None:
        """Replace the view and redraw; keep the selection, and keep it visible."""
        line = -1 if self.at is None else self.at - self.top
        pinned: tuple[int, int] | None = None  # key and line of the row that must not move
        if view.table.append and self.key is not None and 0 <= line < self.page:
            pinned = self.key, line
        elif view.table.append and self.view is not None and self.top:
            pinned = self._key_at(self.view, self.top), 0
        self.view = view
        self.names = self.names if names is None else tuple(names)
        self.order, self.folds = fold_closed(view, self.folded_by) if self.folded_by else (view.order, {})
        self._strips.clear()
        self._find_chosen()
        if pinned is not None and (at := self._place_of(pinned[0])) is not None:
            self.top = self.bounded(at - pinned[1])
        self.redraw()

    def release_view(self) -> None:
        """Release the view and draw nothing until the next one; keep the selection."""
        self.view = None
        self.order, self.folds = np.empty(0, np.intp), {}
        self._strips.clear()
        self.redraw()

    @property
    def page(self) -> int:
        """Number of rows that fit between the header and the total."""
        return max(0, self.size.height - 2)

    @property
    def row_count(self) -> int:
        """Number of rows, visible or not."""
        return len(self.order)

    @property
    def chosen(self) -> Index:
        """Position of the selected row in the view as an index; empty without a selection."""
        return self.order[:0] if self.at is None else self.order[self.at : self.at + 1]

    @property
    def chosen_fold(self) -> Index | None:
        """Positions of the rows of the selected fold; None if a row is selected, or nothing."""
        return self.folds.get(int(self.chosen[0])) if len(self.chosen) else None

    def choose(self, at: int | None) -> None:
        """Select the row at position `at` of the order, or the nearest one."""
        self._set_choice(at)
        self._scrolls_to_choice = True
        self._scroll_to_chosen()
        self.redraw()
        self.post_message(self.Chosen(self.key))

    def _set_choice(self, at: int | None) -> None:
        if at is None or not len(self.order) or self.view is None:
            self.at = self.key = None
        else:
            self.at = min(max(at, 0), len(self.order) - 1)
            self.key = self._key_at(self.view, self.at)

    def follow(self, *, on: bool) -> None:
        """Follow the selected row when the order changes, or let the selection keep its position."""
        if on != self.follows:
            self.follows = on
            self._strips.clear()
            self.redraw()

    def move(self, step: int) -> None:
        """Move the selection by `step` rows; without one, start just before the first visible row."""
        self.choose(self.top + max(0, step - 1) if self.at is None else self.at + step)

    def scroll_by(self, step: int) -> None:
        """Scroll by `step` rows; keep the selection, visible or not."""
        self._scrolls_to_choice = False
        super().scroll_by(step)

    def _key_at(self, view: View, at: int) -> int:
        return int(view.raw(view.table.key)[self.order[at]])

    def _place_of(self, key: int) -> int | None:
        """Return the position of the row with this key in the order, or None if it is not shown."""
        assert self.view is not None
        places = np.flatnonzero(self.view.raw(self.view.table.key)[self.order] == key)
        return int(places[0]) if len(places) else None

    @property
    def _is_followed(self) -> bool:
        return self.follows or (self.view is not None and self.view.table.append)

    def _find_chosen(self) -> None:
        if self.key is not None and self.view is not None:
            if not self._is_followed:
                self._set_choice(self.at)
            elif (at := self._place_of(self.key)) is not None:
                self.at = at
            else:
                # The row is gone: select the one at its position. An append table evicts old rows at the far end,
                # where no other takes their position.
                is_kept = bool((self.view.raw(self.view.table.key) == self.key).any())
                self.choose(None if self.view.table.append and not is_kept else self.at)
        if self._scrolls_to_choice:
            self._scroll_to_chosen()
        self.top = self.bounded(self.top)

    def _scroll_to_chosen(self) -> None:
        top = 0 if self.at is None else min(max(self.top, self.at - self.page + 1), self.at)
        self.top = self.bounded(top)

    # --- drawing --------------------------------------------------------------------------------------------

    def strips(self, size: Size) -> list[Strip]:
        """Return the header, the visible rows, the total, and blank lines."""
        blank = self.strip((), size.width)
        if self.view is None:
            return [blank] * size.height
        needed = self._needed(self.view)
        state = (size.width, self.app.theme, self.names, self.extra, self.bars, needed, id(self.view))
        if state != self._drawn_for:  # every row has to be redrawn
            self._drawn_for = state
            self._strips.clear()
            self.columns = plan(
                self.view.table,
                self.names,
                size.width,
                extra=self.extra,
                bars=self.bars,
                needed=needed,
            )
        end = min(len(self.order), self.top + self.page)
        lines = [
            self._header(self.view),
            *map(self._row, range(self.top, end)),
            self._total(self.view),
            blank,
        ]
        if not len(self.order):
            lines += self._why_empty(self.view, size.width)
        return (lines + [blank] * size.height)[: size.height]

    def _needed(self, view: View) -> tuple[str, ...]:
        """Return the columns that the filter compares, and from when visible rows need it on, what tells them apart."""
        if not self.extra:
            return ()
        apart, visible = self.row_style.apart, self.order[self.top : self.top + self.page]
        if apart is not None and not self._told_apart and apart.is_needed(view, visible):
            self._told_apart = (apart.column,)
        return *view.query.filter.names, *self._told_apart

    @property
    def has_room_for_bars(self) -> bool:
        """True if bars fit in the current width."""
        columns = self.columns
        if not self.bars and self.view is not None:
            columns = plan(self.view.table, self.names, self.size.width, extra=self.extra)
        return any(column.bar for column in columns)

    def _why_empty(self, view: View, width: int) -> list[Strip]:
        reasons = [self.row_style.empty_text(view)]
        if view.size and not view.query.filter.is_empty:
            reasons = [self.filtered_empty_text(view), *view.filter_remarks]
        texts = (line[0].text for line in wrapped("; ".join(reasons), width - 2, Role.DIM))
        return [self.strip([TextSpan(fit(f" {text}", width, left=True), Role.DIM)], width) for text in texts]

    def _row(self, at: int) -> Strip:
        place = int(self.order[at])
        chosen = at == self.at
        if (place, chosen) not in self._strips:
            self._draw_page()
        strip = self._strips[place, chosen]
        if at - self.top not in self.thumb():
            return strip
        return self.with_thumb(strip, background=Background.BAND if chosen else Background.SCREEN)

    def _draw_page(self) -> None:
        """Draw all visible rows not drawn yet in one batch: values are cheaper to read by column."""
        view = self.view
        assert view is not None
        places = self.order[self.top : self.top + self.page]
        wanted = [p for n, p in enumerate(as_list(places), self.top) if (p, n == self.at) not in self._strips]
        index = np.array(wanted, np.intp)
        flags_of = self.row_style.flags
        flags = [_PLAIN] * len(wanted) if flags_of is None else flags_of(view, index)
        cells = [self._cells(view, column, index, flags) for column in self.columns]
        chosen = None if self.at is None or self.at >= len(self.order) else int(self.order[self.at])
        for n, place in enumerate(wanted):
            on, line = place == chosen, [column[n] for column in cells]
            if place in self.folds:
                line = [(cell,) for cell in self._fold_cells(view, self.folds[place])]
            self._strips[place, on] = self._strip(line, flags[n], chosen=on)
        self.drawn += len(wanted)

    def _fold_cells(self, view: View, at: Index) -> list[Cell]:
        name = view.values(self.folded_by, at[:1])[0] or self.row_style.absent.get(self.folded_by, UNKNOWN)
        return fold_cells(view, self.columns, at, name)

    def _cells(
        self, view: View, column: Column, at: Index, flags: Sequence[RowFlags]
    ) -> Sequence[tuple[Cell, ...]]:
        """Return the cells of a column for the rows at `at`, each as pieces with their roles."""
        if column.bar and column.name not in view.missing:
            return bar_cells(view, column, at, flags)
        cells = column_cells(view, column, at, flags, self.row_style)
        note = self.row_style.note
        if note is not None and column.name in note.replaced and not self._shows(note.column):
            cells = noted_cells(cells, column, note.texts(view, at, column.width), flags)
        return [(cell,) for cell in cells]

    def _shows(self, name: str) -> bool:
        """Return whether a column is shown, or is not because the user chose others."""
        return not self.extra or any(column.name == name for column in self.columns)

    def _strip(self, cells: Sequence[tuple[Cell, ...]], row: RowFlags, *, chosen: bool) -> Strip:
        mark = CLOSED if row.gone else (FOLLOWED if self._is_followed else CHOSEN) if chosen else " "
        spans = [TextSpan(mark, Role.DIM)]
        for *pieces, (last, role) in cells:
            spans += [*(TextSpan(*piece) for piece in pieces), TextSpan(last + " ", role)]
        return self.strip(spans, self.size.width, Background.BAND if chosen else Background.SCREEN)

    def _header(self, view: View) -> Strip:
        sorting = self._sorting(view.table, view.query.sort.field)
        spans = [TextSpan(" ", Role.HEAD)]
        for column in self.columns:
            role, mark = Role.HEAD, ""
            if column.title and column.sort in sorting:
                role = Role.TOTAL_SENT if column.field.tone == Role.SENT.value else Role.KEY
                mark = DOWN if view.query.sort.descending else UP
            action = f"sort_by({column.sort!r})" if column.field.is_sortable else ""
            spans.append(TextSpan(title_of(column, mark), role, action=action))
        return self.strip(self.clickable(spans), self.size.width, Background.PANEL)

    def _sorting(self, table: Table, name: str) -> Sequence[str]:
        """Return the columns marked as sorted: the one sorted by, or the parts of a sum that is not shown."""
        field = declared(table, name)
        if field.kind is not Kind.SUM or any(column.sort == name for column in self.columns):
            return (name,)
        return [part + name.removeprefix(field.name) for part in field.parts]

    def _total(self, view: View) -> Strip:
        spans = (TextSpan(text + " ", role) for text, role in total_cells(view, self.columns))
        return self.strip([TextSpan(" ", Role.FAINT), *spans], self.size.width, Background.PANEL)

    # --- mouse ----------------------------------------------------------------------------------------------

    def on_click(self, event: events.Click) -> None:
        """Select and follow a clicked row; open it if it is already selected."""
        at = self.top + event.y - 1
        if 0 < event.y <= self.page and at < len(self.order):
            if at == self.at:
                self.post_message(self.Chosen(self.key, open=True))
            else:
                self.follow(on=True)
                self.choose(at)

    def on_resize(self) -> None:
        """Keep the selected row visible in the new height."""
        self._find_chosen()
        self.redraw()


def title_of(column: Column, mark: str) -> str:
    """Return a header with its gap; where room is short, the sort mark replaces `/s` or the end of the title."""
    text = column.title
    if mark and len(text) >= column.width:
        text = text.removesuffix("/s")[: column.width - 1]
    if mark:
        text = f"{text} {mark}" if len(text) + 2 <= column.width else text + mark
    return fit(text, column.width, left=column.left) + " "
