# SPDX-License-Identifier: Apache-2.0
"""The main table: traffic of interfaces, and the selected one's over time, by protocol and by service."""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical

from nettop.query.filter import parse_filter, quote
from nettop.query.query import screen_query
from nettop.query.units import unit_of
from nettop.query.view import View
from nettop.screens import headline
from nettop.screens.bandwidth.rates import rates_by_backing
from nettop.screens.bandwidth.shares import Group, Share, ShareBars
from nettop.screens.chosen_row import SelectedRowScreen
from nettop.screens.history import SPAN_NS, Interval, averages
from nettop.snapshots.arrays import as_list
from nettop.snapshots.bandwidth import COUNTERS_MODE, INTERFACES, PROTOCOL_TABLE, SERVICE_TABLE
from nettop.snapshots.schema import RATE, Table
from nettop.snapshots.snapshot import Frame, sum_of
from nettop.widgets.bar import BarItem
from nettop.widgets.cells import RowStyle
from nettop.widgets.graph import Curve, Graph
from nettop.widgets.themes import Role

_RATES = ("bytes_received" + RATE, "bytes_sent" + RATE)
_SPLITS = ((PROTOCOL_TABLE, "protocol"), (SERVICE_TABLE, "service"))
_MIN_ROOM = 15
"""Lines needed to show the graph below the table."""


class InterfacesScreen(SelectedRowScreen):
    """Every interface; below the table the selected or first one as a graph, with its protocols and services."""

    about = "traffic of each interface; the selected one as a graph, by protocol and by service"
    row_style = RowStyle(warn_above={"use_received": 0.9, "use_sent": 0.9})

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.graph = Graph(id="graph")
        self.shares = ShareBars(id="shares")
        self.above = Vertical(id="table-and-graph")
        self.below = Horizontal(id="below")
        self._intervals: dict[int, deque[Interval]] = defaultdict(deque)

    def body(self) -> ComposeResult:
        """Yield the table, the graph and the shares below it, and the details."""
        with self.above:
            yield self.rows
            with self.below:
                yield self.graph
                yield self.shares
        yield self.details

    def make_view(self, frame: Frame) -> None:
        """Apply the query to a frame, and record the rates of each interface."""
        super().make_view(frame)
        view = self.view
        if view is None or frame.before is None or self.context.is_averaging:
            return
        rates = [view.column(name) for name in _RATES]
        for at in as_list(np.flatnonzero(~view.gone)):
            amounts = tuple(float(rate.numbers[at]) if rate.known[at] else None for rate in rates)
            intervals = self._intervals[int(view.raw("id")[at])]
            begin_ns = max(frame.before.boot_ns, intervals[-1].end_ns if intervals else 0)
            if begin_ns < frame.now.boot_ns:
                intervals.append(Interval(begin_ns, frame.now.boot_ns, amounts))
        for key, intervals in list(self._intervals.items()):
            while intervals and intervals[0].end_ns < frame.now.boot_ns - SPAN_NS:
                intervals.popleft()
            if not intervals:
                del self._intervals[key]

    def headline(self, view: View) -> list[BarItem]:
        """Return the host's rates, and the drops and errors of its interfaces."""
        alive = np.flatnonzero(~view.gone)
        items = [*rates_by_backing(view), headline.count("interfaces", len(alive), 900)]
        for name, label in (
            ("drops_received", "drops in"),
            ("drops_sent", "drops out"),
            ("errors", "errors"),
        ):
            number = sum_of(view.raw(name)[alive])
            if number:
                items.append(headline.count(label, number, 800, warn=True))
        return items

    # --- the chosen interface -------------------------------------------------------------------------------

    def draw_chosen(self) -> None:
        """Draw the selected interface, or the first one, in the room below the table."""
        view, room = self.view, self.above.size.height
        if view is None:
            return
        self.below.display = room >= _MIN_ROOM and len(view.order) > 0
        self.rows.styles.height = min(len(view.order) + 2, room * 3 // 5) if self.below.display else "1fr"
        if not self.below.display:
            return
        at = self.chosen(view)
        name, mode = view.values("interface", at)[0], view.raw("mode")[at[0]]
        intervals = self._intervals[int(view.raw("id")[at[0]])]
        curves = [
            Curve(title, role, unit_of(INTERFACES, rate), partial(averages, intervals, n))
            for n, (title, role, rate) in enumerate(
                zip(("in", "out"), (Role.RECEIVED, Role.SENT), _RATES, strict=True)
            )
        ]
        self.graph.show(f"{name}: the last two minutes", curves)
        # Interfaces of other namespaces, which may have the same names, have only the kernel's counters.
        splits = () if mode == COUNTERS_MODE else _SPLITS
        self.shares.show([_group(view, table, column, name) for table, column in splits])


def _group(view: View, table: Table, column: str, interface: str) -> Group:
    """Return an interface's traffic by protocol or by service, the largest first."""
    query = replace(screen_query(table), filter=parse_filter(table, f"interface={quote(interface)}"))
    split = View(view.frame, query)
    rates = [split.column(name) for name in _RATES]
    return f"{interface}: {table.name}", [
        Share(label, *(float(rate.numbers[at]) for rate in rates))
        for at, label in zip(as_list(split.order), split.values(column, split.order), strict=True)
        if all(rate.known[at] for rate in rates)
    ]


SCREEN = InterfacesScreen
