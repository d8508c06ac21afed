# SPDX-License-Identifier: Apache-2.0
"""The connections screen: who uses the network, and how well each connection does."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from nettop.query.filter import parse_filter
from nettop.query.units import RATIO, human
from nettop.query.view import View
from nettop.screens import headline
from nettop.screens.lens import LensScreen
from nettop.snapshots.arrays import Index, Mask
from nettop.widgets.bar import Part, Piece, part
from nettop.widgets.cells import Look, Manner
from nettop.widgets.themes import Role

RETRANSMITS_WARN_ABOVE = 0.01
"""Above 1 % of data segments sent again, TCP's throughput suffers visibly."""

_CONNS = "protocol=tcp state!=LISTEN state!=TIME_WAIT"
"""What counts as a connection, whatever is shown."""

_LISTED_ONLY = "state=LISTEN"
_SHORT_STATES = {"ESTABLISHED": "ESTAB"}
_STATES_SHOWN = 4
_OLD_MS = 1500
"""From this age on the headline says how old the rows without an owner are."""


def row_looks(view: View, at: Index) -> list[Look]:
    """Closed rows, listeners, and connections over which no packet went in the last interval."""
    moved = np.zeros(len(at), bool)
    known = np.zeros(len(at), bool)
    for name in ("packets_sent_per_s", "packets_received_per_s"):
        column = view.column(name)
        known |= column.known[at]
        moved |= column.known[at] & (column.numbers[at] > 0)
    quiet = parse_filter(view.table, _LISTED_ONLY).mask(view)[at]
    flags = zip(view.gone[at].tolist(), (known & ~moved).tolist(), quiet.tolist(), strict=True)
    return [Look(gone, idle, listed) for gone, idle, listed in flags]


class ConnectionsScreen(LensScreen):
    """Every socket of the machine."""

    manner: ClassVar[Manner] = Manner(
        absent={"owner": "(unattributed)", "process": "(unattributed)"},
        warn_above={"retransmit_ratio": RETRANSMITS_WARN_ABOVE},
        stale=frozenset({"rtt", "rtt_us", "rtt_var_us", "rtt_min_us", "delivery_rate"}),
        looks=row_looks,
    )

    def headline(self, view: View) -> list[Part]:
        """Totals both ways, connections that came and went, retransmits, states."""
        conns = parse_filter(view.table, _CONNS).mask(view)
        at = np.flatnonzero(conns & ~view.gone)
        parts = [
            headline.sum_of(view, "bytes_sent_per_s", Piece("↑ ", Role.TOTAL_SENT), at),
            headline.sum_of(view, "bytes_received_per_s", Piece("↓ ", Role.TOTAL_RECEIVED), at),
            part((f"{len(at):,}", Role.BOLD), (" conns", Role.DIM), (_churn(view, conns), Role.DIM)),
        ]
        if self.size.width < headline.NARROW:
            return parts
        share = view.total("retransmit_ratio", at)
        bad = share is not None and share > RETRANSMITS_WARN_ABOVE
        retransmits = Piece(("▲" if bad else "") + human(share, RATIO), Role.BAD if bad else Role.TEXT)
        parts.append(part(("retrans ", Role.DIM), retransmits, importance=90))
        counts = view.snapshot.counts
        for name, importance in (("unattributed", 80), ("time_wait", 70), ("unlisted", 60)):
            if counts.get(name) or (name == "unattributed" and name in counts):
                label = "TIME_WAIT" if name == "time_wait" else name
                parts.append(headline.count(label, counts[name], importance))
        age_ms = counts.get("walk_age_ms", 0)
        if age_ms >= _OLD_MS and counts.get("unattributed"):
            parts.append(part((f"those {age_ms / 1000:.0f} s old", Role.DIM), importance=79))
        return [*parts, *_states(view, at)]


def _churn(view: View, conns: Mask) -> str:
    """` +31/s −29/s`; nothing before there are two snapshots."""
    came = view.per_second(int((view.appeared & conns).sum()))
    went = view.per_second(int((view.gone & conns).sum()))
    return "" if came is None or went is None else f" (+{_few(came)}/s −{_few(went)}/s)"


def _few(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 or number == int(number) else f"{number:.1f}"


def _states(view: View, at: Index) -> list[Part]:
    """The most frequent states, as far as there is room."""
    found = list(view.count_by("state", at).items())[:_STATES_SHOWN]
    return [
        headline.count(_SHORT_STATES.get(state, state), number, 50 - n)
        for n, (state, number) in enumerate(found)
    ]


SCREEN = ConnectionsScreen
