# SPDX-License-Identifier: Apache-2.0
"""The main table: who uses the network, and how well each connection does."""

from __future__ import annotations

import numpy as np

from nettop.query.filter import parse_filter
from nettop.query.units import RATIO, human
from nettop.query.view import View
from nettop.screens import headline
from nettop.screens.connections.headline import churn, no_churn, opened_per_s, why_no_events, without_root
from nettop.screens.lens import LensScreen
from nettop.snapshots.arrays import Index, Mask, as_list
from nettop.snapshots.connections import HOOK_UNATTRIBUTED, UNATTRIBUTED
from nettop.snapshots.hooks import NOT_AVAILABLE
from nettop.widgets.bar import BarItem, Span, item
from nettop.widgets.cells import RowFlags, RowStyle
from nettop.widgets.themes import Role

RETRANSMITS_WARN_ABOVE = 0.01
"""Above 1 % of data segments sent again, TCP's throughput suffers visibly."""

_CONNS = "protocol=tcp state!=LISTEN state!=TIME_WAIT"
"""What counts as a connection, whatever the filter."""

_SHORT_STATES = {"ESTABLISHED": "ESTAB"}
_STATES_SHOWN = 4
_OLD_MS = 1500
"""From this age on the headline says how old the unattributed rows are."""


def row_flags(view: View, at: Index) -> list[RowFlags]:
    """Closed rows, connections without a packet in the last interval, listeners."""
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
    """Every socket of the machine."""

    about = "every socket, with its process and its numbers"
    row_style = RowStyle(
        absent={"owner": UNATTRIBUTED, "process": UNATTRIBUTED},
        warn_above={"retransmit_ratio": RETRANSMITS_WARN_ABOVE},
        stale=frozenset({"rtt", "rtt_us", "rtt_var_us", "rtt_min_us", "delivery_rate"}),
        flags=row_flags,
    )

    def headline(self, view: View) -> list[BarItem]:
        """Throughput both ways, connections and their churn, retransmits, sockets by kind and state."""
        is_conn = parse_filter(view.table, _CONNS)
        unknown = any(name in view.missing for name in is_conn.names)
        conns = np.ones(view.size, bool) if unknown else is_conn.mask(view)
        at, every = np.flatnonzero(conns & ~view.gone), np.arange(view.size)
        number = NOT_AVAILABLE if unknown else f"{len(at):,}"
        parts = [
            headline.sum_of(view, "bytes_sent_per_s", Span("↑ ", Role.TOTAL_SENT), every),
            headline.sum_of(view, "bytes_received_per_s", Span("↓ ", Role.TOTAL_RECEIVED), every),
            item((number, Role.BOLD), (" conns", Role.DIM), importance=990),
            *_churn(view, conns),
            *without_root(view),
        ]
        if self.size.width < headline.NARROW:
            return parts
        states = list(view.count_by("state", at).items())[:_STATES_SHOWN]
        return [
            *parts,
            _retransmits(view, every),
            *_counts(view),
            *(
                headline.count(_SHORT_STATES.get(s, s), number, 50 - n)
                for n, (s, number) in enumerate(states)
            ),
        ]


def _churn(view: View, conns: Mask) -> list[BarItem]:
    """Connections opened and closed per second.

    Until the first events arrive, the two last readings of the table are compared. Without events that would be too
    low: it misses what opens and closes between two readings.
    """
    if why_no_events(view) is not None:
        return no_churn(2)
    opened, closed = opened_per_s(view), view.count_rate("closed")
    if opened is not None and closed is not None:
        return churn(opened, closed)
    rows = [int((rows & conns).sum()) for rows in (view.appeared, view.gone)]
    return churn(*map(view.per_second, rows))


def _retransmits(view: View, at: Index) -> BarItem:
    if "retransmit_ratio" in view.missing:
        return headline.not_available("retrans", 90)
    share = view.total("retransmit_ratio", at)
    if share is None:
        return item()
    bad = share > RETRANSMITS_WARN_ABOVE
    amount = Span(("▲" if bad else "") + human(share, RATIO), Role.BAD if bad else Role.TEXT)
    return item(("retrans ", Role.DIM), amount, importance=90)


def _counts(view: View) -> list[BarItem]:
    """Sockets without an owner process and those not listed, where there are any, and the age of the former."""
    counts, parts = view.snapshot.counts, []
    attributable = view.snapshot.why_not(HOOK_UNATTRIBUTED.name) is None
    if not attributable:
        parts.append(headline.not_available("unattributed", 80))
    elif "unattributed" in counts:
        parts.append(headline.count("unattributed", counts["unattributed"], 80))
    for name, label, importance in (("time_wait", "TIME_WAIT", 70), ("unlisted", "unlisted", 60)):
        if counts.get(name):
            parts.append(headline.count(label, counts[name], importance))
    age_ms = counts.get("walk_age_ms", 0)
    if attributable and age_ms >= _OLD_MS and counts.get("unattributed"):
        parts.append(item((f"those {age_ms / 1000:.0f} s old", Role.DIM), importance=79))
    return parts


SCREEN = ConnectionsScreen
