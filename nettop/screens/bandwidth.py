# SPDX-License-Identifier: Apache-2.0
"""The screens of the bandwidth lens: interfaces, protocols, services and flows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from textual.containers import Horizontal
from textual.geometry import Size

from nettop.query.filter import parse_filter, quote
from nettop.query.query import screen_query
from nettop.query.units import RATIO, human, unit_of
from nettop.query.view import View
from nettop.screens import headline
from nettop.screens.history import SPAN_NS, RowHistory, averages
from nettop.screens.lens import LensScreen
from nettop.screens.selected_row import SelectedRowScreen
from nettop.snapshots.arrays import Mask, as_list
from nettop.snapshots.bandwidth import (
    COUNTERS_MODE,
    INTERFACES,
    NEAR_SPEED,
    PROTOCOL_TABLE,
    SERVICE_TABLE,
    UPLINK,
    VIRTUAL,
)
from nettop.snapshots.connections import UNATTRIBUTED
from nettop.snapshots.schema import OWN_NAMESPACE, RATE, Table
from nettop.snapshots.snapshot import Frame, sum_of
from nettop.widgets.bar import ALWAYS_SHOWN, BarItem, item
from nettop.widgets.blocks import Curve, bar_parts, graph_lines
from nettop.widgets.cells import Apart, RowStyle
from nettop.widgets.lines import Drawing
from nettop.widgets.text import Line, TextSpan, fit
from nettop.widgets.themes import Role

_ARROWS = (("↓ ", Role.TOTAL_RECEIVED, "bytes_received"), ("↑ ", Role.TOTAL_SENT, "bytes_sent"))
_RATES = ("bytes_received" + RATE, "bytes_sent" + RATE)
_CURVES = (("in", Role.RECEIVED), ("out", Role.SENT))
_SPLITS = ((PROTOCOL_TABLE, "protocol"), (SERVICE_TABLE, "service"))
_TROUBLES = {"drops_received": "drops in", "drops_sent": "drops out", "errors": "errors"}
_MIN_ROOM = 15
"""Lines needed to show the graph below the table."""
_LABEL, _SHARE, _RATE = 9, 6, 9
_MIN_BAR = 8
"""Minimum width of the shares' bars; where they would be shorter, rates are left out."""


def rates_by_backing(view: View) -> list[BarItem]:
    """Return `uplinks ↓ 1.2 Gb/s ↑ 80 Mb/s`, the host's rates, then those of its virtual interfaces.

    Several virtual interfaces may carry the same packets. Together, both groups are all rows of the table.
    """
    interfaces = view if view.table.name == INTERFACES.name else View(view.frame, screen_query(INTERFACES))
    has_uplink = bool((interfaces.raw("backing")[~interfaces.gone] == UPLINK).any())
    items = [] if has_uplink else [item(("no uplink", Role.WARN), importance=950)]
    for backing, label, importance in ((UPLINK, "uplinks", ALWAYS_SHOWN), (VIRTUAL, "virtual", 940)):
        items += _rates(view, _with_backing(view, interfaces, backing), label, importance)
    return items


def _with_backing(view: View, interfaces: View, backing: int) -> Mask:
    """Return a mask of the rows that are interfaces of this backing, or belong to them."""
    is_meant: Mask = interfaces.raw("backing") == backing
    if view is interfaces:
        return is_meant
    at = np.flatnonzero(is_meant)
    rows = zip(interfaces.values("interface", at), interfaces.values("namespace", at), strict=True)
    names, places = view.texts("interface")
    named = np.isin(np.array(names, object), [name for name, netns in rows if netns == OWN_NAMESPACE])
    return np.append(named, False)[places]


def _rates(view: View, which: Mask, label: str, importance: int) -> Iterator[BarItem]:
    """Yield `label ↓ amount ↑ amount`; nothing without rows, or before rates are known."""
    at = np.flatnonzero(which)
    rates = [view.total(name + RATE, at) for _, _, name in _ARROWS]
    if None in rates:
        return
    yield item((label, Role.DIM), importance=importance)
    for rate, (arrow, role, _) in zip(rates, _ARROWS, strict=True):
        yield item(TextSpan(arrow, role), human(rate, "bytes/s"), importance=importance, beside=True)


class SplitScreen(LensScreen):
    """A row for each protocol or service of each interface."""

    def headline(self, view: View) -> list[BarItem]:
        """Return the host's rates and the number of rows; rows overlap, so they have no sum."""
        return [*rates_by_backing(view), headline.count("rows", len(headline.alive(view)), 900)]


class FlowsScreen(LensScreen):
    """Every flow on each interface it passes."""

    about = "flows by addresses and ports, with the process that owns their socket"
    row_style = RowStyle(absent={"process": UNATTRIBUTED})

    def headline(self, view: View) -> list[BarItem]:
        """Return the host's rates, the number of flows, and the rate of evicted flows."""
        items = [*rates_by_backing(view), headline.count("flows", len(view.now), 900)]
        if view.has_rest:
            rest = np.flatnonzero(view.rest)
            items.append(headline.sum_of(view, "bytes" + RATE, TextSpan("evicted ", Role.WARN), rest, 800))
        return items


class InterfacesScreen(SelectedRowScreen):
    """Every interface; below the table the selected or first one as a graph, with its protocols and services."""

    about = "traffic of each interface; the selected one as a graph, by protocol and by service"
    row_style = RowStyle(
        warn_above={"use_received": NEAR_SPEED, "use_sent": NEAR_SPEED},
        apart=Apart("namespace", ("interface",)),
    )

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.graph = Drawing(id="graph")
        self.shares = Drawing(id="shares")
        self.below = Horizontal(self.graph, self.shares, id="below")
        self._traced: dict[int, RowHistory] = {}

    def make_view(self, frame: Frame) -> None:
        """Apply the query to a frame, and record the rates of each interface."""
        super().make_view(frame)
        view = self.view
        if view is None or self.context.is_averaging:
            return
        for at in np.flatnonzero(~view.gone):
            row = self._traced.setdefault(int(view.raw("id")[at]), RowHistory(_RATES))
            row.add(view, np.array([at]))
        oldest_ns = frame.now.boot_ns - SPAN_NS
        self._traced = {
            key: row
            for key, row in self._traced.items()
            if row.intervals and row.intervals[-1].end_ns >= oldest_ns
        }

    def headline(self, view: View) -> list[BarItem]:
        """Return the host's rates, and the drops and errors of its interfaces."""
        alive = np.flatnonzero(~view.gone)
        sums = {label: sum_of(view.raw(name)[alive]) for name, label in _TROUBLES.items()}
        shown = len(headline.alive(view))
        hidden = item((f"of {len(alive):,}", Role.DIM), importance=899, beside=True)
        return [
            *rates_by_backing(view),
            headline.count("interfaces", shown, 900),
            *([hidden] if shown < len(alive) else []),
            *(headline.count(label, number, 800, warn=True) for label, number in sums.items() if number),
        ]

    def draw_chosen(self, view: View) -> None:
        """Draw the selected interface, or the first one, in the room below the table."""
        room = self.above.size.height
        if not self.share_room(min(len(view.order) + 2, room * 3 // 5), is_enough=room >= _MIN_ROOM):
            return
        at = self.chosen_or_first(view)
        name, mode = view.values("interface", at)[0], view.raw("mode")[at[0]]
        row = self._traced.get(int(view.raw("id")[at[0]]), RowHistory(_RATES))
        curves = [
            Curve(title, role, unit_of(INTERFACES, rate), partial(averages, row.intervals, n))
            for n, ((title, role), rate) in enumerate(zip(_CURVES, _RATES, strict=True))
        ]
        self.graph.show(partial(graph_lines, f"{name}: the last two minutes", curves))
        # Interfaces of other namespaces, which may have the same names, have only the kernel's counters.
        splits = () if mode == COUNTERS_MODE else _SPLITS
        self.shares.show(
            partial(share_lines, [_group(view, table, column, name) for table, column in splits])
        )


class Share(NamedTuple):
    """A part of an interface's traffic, in bytes/s."""

    label: str
    received: float
    sent: float

    @property
    def rate(self) -> float:
        """Sum of both directions."""
        return self.received + self.sent


Group = tuple[str, Sequence[Share]]
"""A title, and the parts of a whole."""


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


def share_lines(groups: Sequence[Group], size: Size) -> list[Line]:
    """Return a line for each part that is not 0; parts that do not fit are summed up.

    If there is room, an empty line separates the groups.
    """
    room = size.height // max(1, len(groups))
    lines: list[Line] = []
    for title, shares in groups:
        group = [share for share in shares if share.rate]
        whole = sum(share.rate for share in group)
        lines.append((TextSpan(f" {fit(title, size.width - 1, left=True)}", Role.DIM),))
        lines += [_share_line(share, whole, size.width) for share in fitting(group, room - 1)]
        lines += [()] * (room > len(group) + 1)
    return lines


def _share_line(share: Share, whole: float, width: int) -> Line:
    """Return `TCP        97.1% ████████  1.93 Gb/s`."""
    room = width - _LABEL - _SHARE - 4
    rate = f" {fit(human(share.rate, 'bytes/s'), _RATE, left=False)}"
    if room - len(rate) < _MIN_BAR:
        rate = ""
    received, sent = bar_parts(share.received, share.sent, whole, max(1, room - len(rate)))
    return (
        TextSpan(f" {fit(share.label, _LABEL, left=True)} "),
        TextSpan(f"{fit(human(share.rate / whole, RATIO), _SHARE, left=False)} "),
        TextSpan(received, Role.RECEIVED),
        TextSpan(sent, Role.SENT),
        TextSpan(rate, Role.DIM),
    )


def fitting(group: Sequence[Share], room: int) -> Sequence[Share]:
    """Return the parts that fit, with the others summed up as one."""
    if len(group) <= room:
        return group
    shown, rest = group[: max(0, room - 1)], group[max(0, room - 1) :]
    more = f"{len(rest)} more"
    return [*shown, Share(more, sum(s.received for s in rest), sum(s.sent for s in rest))]


SCREENS = {
    "interfaces": InterfacesScreen,
    "protocols": SplitScreen,
    "services": SplitScreen,
    "flows": FlowsScreen,
}
