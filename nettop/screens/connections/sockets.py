# SPDX-License-Identifier: Apache-2.0
"""The main table: sockets, their processes, and how well their connections perform."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from nettop.query.filter import parse_filter
from nettop.query.trouble import present_troubles
from nettop.query.units import RATIO, human, plural, unit_of
from nettop.query.view import View
from nettop.screens import headline
from nettop.screens.actions import Action
from nettop.screens.connections.churn import churn, opened_per_s, why_no_events, without_root
from nettop.screens.connections.closed import ClosedRows
from nettop.screens.connections.commands import COLUMNS, commands_for
from nettop.screens.history import SPAN_NS, RowHistory, averages
from nettop.screens.lens import LensScreen
from nettop.snapshots.arrays import Index, Mask, as_list
from nettop.snapshots.connections import HOOK_UNATTRIBUTED, RETRANSMITS_WARN_ABOVE, UNATTRIBUTED
from nettop.snapshots.hooks import NOT_AVAILABLE
from nettop.snapshots.schema import Table
from nettop.snapshots.snapshot import Rows
from nettop.widgets.bar import BarItem, Span, item
from nettop.widgets.blocks import sparkline
from nettop.widgets.cells import RowFlags, RowStyle, fit, role_of
from nettop.widgets.columns import declared
from nettop.widgets.details import TITLE_CELLS, described_lines
from nettop.widgets.page import Line
from nettop.widgets.themes import Role

_CONNS = "protocol=tcp state!=LISTEN state!=TIME_WAIT"
"""Filter that defines a connection, regardless of the user's."""

_TRACED = ("bytes_sent_per_s", "bytes_received_per_s", "rtt_us")
"""Columns that the details draw over time."""
_TRACE_CELLS = 60

_SHORT_STATES = {"ESTABLISHED": "ESTAB"}
_STATES_SHOWN = 4
_OLD_MS = 1500
"""Age in ms from which the headline shows the age of the unattributed rows."""


def row_flags(view: View, at: Index) -> list[RowFlags]:
    """Return the flags of rows: gone if closed, idle without packets in the last interval, quiet for listeners."""
    moved = np.zeros(len(at), bool)
    known = np.zeros(len(at), bool)
    for name in ("packets_sent_per_s", "packets_received_per_s"):
        column = view.column(name)
        known |= column.known[at]
        moved |= column.known[at] & (column.numbers[at] > 0)
    listens = parse_filter(view.table, "state=LISTEN").mask(view)[at]
    flags = zip(as_list(view.gone[at]), as_list(known & ~moved), as_list(listens), strict=True)
    return [RowFlags(gone, idle, quiet) for gone, idle, quiet in flags]


class ConnectionsScreen(LensScreen):
    """Every socket of the host."""

    about = "every socket, with its process and its numbers"
    row_style = RowStyle(
        absent={"owner": UNATTRIBUTED, "process": UNATTRIBUTED},
        warn_above={"retransmit_ratio": RETRANSMITS_WARN_ABOVE},
        stale=frozenset({"rtt", "rtt_us", "rtt_var_us", "rtt_min_us", "delivery_rate"}),
        flags=row_flags,
    )

    closed: ClosedRows | None = None
    """Rows closed since `x` was pressed, while they are kept."""

    _copied = -1
    _traced: RowHistory | None = None

    @property
    def closed_rows(self) -> Rows | None:
        """The closed rows that are kept."""
        return None if self.closed is None else self.closed.rows

    def show_newest(self) -> None:
        """Record closed rows, even while the screen is frozen, and show the newest frame."""
        frame = self.context.session.bus.frame(self.lens.id)
        if self.closed is not None and frame is not None and self.has_table(frame):
            self.closed.add(frame)
        super().show_newest()

    def conditions(self) -> dict[str, Callable[[], bool]]:
        """Return the conditions of actions, including those only this table has."""
        return super().conditions() | {
            "keep_closed": self.is_shown,
            "copy_command": lambda: self.is_shown() and bool(self.commands()),
        }

    def label_of(self, action: Action) -> str:
        """Return the current label of a key."""
        is_dropping = action.id == "keep_closed" and self.closed is not None
        return "drop closed" if is_dropping else super().label_of(action)

    def action_keep_closed(self) -> None:
        """Start keeping the rows of closed connections, or drop them."""
        self.closed = ClosedRows(self.table) if self.closed is None else None
        self.show_newest()  # keeps those of the last interval, which are visible now
        self.update_view()

    def commands(self) -> dict[str, str]:
        """Return the commands of other tools for the selected row."""
        if self.view is None or self.rows.at is None:
            return {}
        at = self.view.order[self.rows.at : self.rows.at + 1]
        return commands_for({name: self.view.values(name, at)[0] for name in COLUMNS})

    def action_copy_command(self) -> None:
        """Copy the next of the commands."""
        commands = self.commands()
        self._copied = (self._copied + 1) % len(commands)
        self.copy(list(commands.values())[self._copied])

    def more_details(self) -> list[Line]:
        """Return graphs of rates and round-trip time since the details were opened, and commands of other tools."""
        view, key, width = self.view, self.rows.key, self.details.size.width - 2
        if view is None or key is None:
            return []
        if self._traced is None or self._traced.key != key:
            self._traced = RowHistory(key, _TRACED)
        self._traced.add(view)
        commands = {f"{tool} (Y)": command for tool, command in self.commands().items()}
        return [(), *_trace_lines(view.table, self._traced, width), (), *described_lines(commands, width)]

    def headline(self, view: View) -> list[BarItem]:
        """Return throughput both ways, connections and their churn, trouble, retransmits, sockets by kind and state."""
        is_conn = parse_filter(view.table, _CONNS)
        unknown = any(name in view.missing for name in is_conn.names)
        conns = np.ones(view.size, bool) if unknown else is_conn.mask(view)
        at, every = np.flatnonzero(conns & ~view.gone), np.arange(view.size)
        number, noun = (NOT_AVAILABLE, "conns") if unknown else (f"{len(at):,}", plural("conn", len(at)))
        parts = [
            headline.sum_of(view, "bytes_sent_per_s", Span("↑ ", Role.TOTAL_SENT), every),
            headline.sum_of(view, "bytes_received_per_s", Span("↓ ", Role.TOTAL_RECEIVED), every),
            item((number, Role.BOLD), (f" {noun}", Role.DIM), importance=990),
            *_churn(view, conns),
            *headline.troubles(present_troubles(view, self.trouble_filters)),
            *without_root(view),
            *_kept(self.closed),
        ]
        if self.size.width < headline.NARROW:
            return parts
        states = list(view.count_by("state", at).items())[:_STATES_SHOWN]
        return [
            *parts,
            *_retransmits(view, every),
            *_counts(view),
            *(
                headline.count(_SHORT_STATES.get(s, s), number, 50 - n)
                for n, (s, number) in enumerate(states)
            ),
        ]


def _trace_lines(table: Table, traced: RowHistory, width: int) -> list[Line]:
    """Return a sparkline with its peak for each traced column of a row, once there are two intervals."""
    if len(traced.intervals) < 2:
        return []
    cells = max(1, min(_TRACE_CELLS, width - 40))
    seconds = f"last {min(traced.covered_s, SPAN_NS / 1e9):.0f} s, since the details were opened"
    lines: list[Line] = [(Span(seconds, Role.BOLD),)]
    for place, name in enumerate(traced.names):
        amounts = averages(traced.intervals, place, cells)
        peak = max((amount for amount in amounts if amount is not None), default=None)
        title = Span(fit(table.title_of(name), TITLE_CELLS, left=True) + " ", Role.HEAD)
        line = Span(sparkline(amounts, peak or 0.0), role_of(declared(table, name)))
        lines.append((title, line, Span(f"  peak {human(peak, unit_of(table, name))}")))
    return lines


def _kept(closed: ClosedRows | None) -> list[BarItem]:
    """Return how many closed rows are kept, and how many were dropped."""
    if closed is None:
        return []
    items = [headline.count("closed kept", 0 if closed.rows is None else len(closed.rows), 890)]
    return [*items, headline.count("dropped", closed.dropped, 889, warn=True)] if closed.dropped else items


def _churn(view: View, conns: Mask) -> list[BarItem]:
    """Return connections opened and closed per second.

    Until the first events arrive, compare the last two readings of the table. If events are not available, return n/a
    instead: comparing misses connections that open and close between readings.
    """
    if why_no_events(view) is not None:
        return [headline.not_available(label, 950 - n) for n, label in enumerate(("opened", "closed"))]
    opened, closed = opened_per_s(view), view.count_rate("closed")
    if opened is not None and closed is not None:
        return churn({"opened": opened, "closed": closed})
    rows = {"opened": view.appeared, "closed": view.just_gone}
    return churn({label: view.per_second(int((which & conns).sum())) for label, which in rows.items()})


def _retransmits(view: View, at: Index) -> list[BarItem]:
    """Return `retrans 0.5% of segments`; nothing until it is known."""
    if "retransmit_ratio" in view.missing:
        return [headline.not_available("retrans", 90)]
    share = view.total("retransmit_ratio", at)
    if share is None:
        return []
    bad = share > RETRANSMITS_WARN_ABOVE
    amount = Span(("▲" if bad else "") + human(share, RATIO), Role.BAD if bad else Role.TEXT)
    of = item(("of segments", Role.DIM), importance=75, beside=True)
    return [item(("retrans ", Role.DIM), amount, importance=90), of]


def _counts(view: View) -> list[BarItem]:
    """Return the numbers of sockets without a process, with their age, in TIME_WAIT, and not listed, if any."""
    counts, parts = view.snapshot.counts, []
    attributable = view.snapshot.why_not(HOOK_UNATTRIBUTED.name) is None
    if not attributable:
        parts.append(headline.not_available("no process", 80))
    elif "unattributed" in counts:
        parts.append(headline.count("no process", counts["unattributed"], 80))
        age_ms = counts.get("walk_age_ms", 0)
        if age_ms >= _OLD_MS and counts["unattributed"]:
            parts.append(item((f"({age_ms / 1000:.0f} s ago)", Role.DIM), importance=79, beside=True))
    if counts.get("time_wait"):
        parts.append(headline.count("TIME_WAIT", counts["time_wait"], 70))
    if counts.get("unlisted"):
        parts.append(headline.count("not shown", counts["unlisted"], 60))
        parts.append(
            item(("(the kernel counts them, no table lists them)", Role.DIM), importance=59, beside=True)
        )
    return parts


SCREEN = ConnectionsScreen
