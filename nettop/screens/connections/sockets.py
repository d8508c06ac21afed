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
from nettop.snapshots.arrays import Index, Mask, as_list
from nettop.snapshots.connections import EVENTS, HOOK_UNATTRIBUTED, WITHOUT_ROOT
from nettop.snapshots.snapshot import NOT_AVAILABLE
from nettop.widgets.bar import Part, Piece, part
from nettop.widgets.cells import WARNING, Look, Manner
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
    flags = zip(as_list(view.gone[at]), as_list(known & ~moved), as_list(quiet), strict=True)
    return [Look(gone, idle, listed) for gone, idle, listed in flags]


class ConnectionsScreen(LensScreen):
    """Every socket of the machine."""

    about: ClassVar[str] = "every socket, with its process and its numbers"
    manner: ClassVar[Manner] = Manner(
        absent={"owner": "(unattributed)", "process": "(unattributed)"},
        warn_above={"retransmit_ratio": RETRANSMITS_WARN_ABOVE},
        stale=frozenset({"rtt", "rtt_us", "rtt_var_us", "rtt_min_us", "delivery_rate"}),
        looks=row_looks,
    )

    def headline(self, view: View) -> list[Part]:
        """Totals both ways, connections that came and went, retransmits, states."""
        is_conn = parse_filter(view.table, _CONNS)
        uncounted = any(name in view.missing for name in is_conn.names)
        conns = np.ones(view.size, bool) if uncounted else is_conn.mask(view)
        at = np.flatnonzero(conns & ~view.gone)
        number = NOT_AVAILABLE if uncounted else f"{len(at):,}"
        parts = [
            headline.sum_of(view, "bytes_sent_per_s", Piece("↑ ", Role.TOTAL_SENT), at),
            headline.sum_of(view, "bytes_received_per_s", Piece("↓ ", Role.TOTAL_RECEIVED), at),
            part((number, Role.BOLD), (" conns", Role.DIM), importance=990),
            *_churn(view, conns),
            *without_root(view),
        ]
        if self.size.width < headline.NARROW:
            return parts
        return [*parts, _retransmits(view, at), *_counts(view), *_states(view, at)]


def without_root(view: View) -> list[Part]:
    """What somebody who is not root should know of this picture."""
    if WITHOUT_ROOT not in view.snapshot.gaps:
        return []
    adds = Piece("  sudo adds owners, namespaces, events", Role.DIM)
    return [part((f"{WARNING} without root", Role.WARN), adds, importance=900)]


def why_no_events(view: View) -> str | None:
    """Why this kernel does not tell what happens to connections; None where it does."""
    return view.snapshot.why_unavailable(EVENTS)


def opened_per_s(view: View) -> float | None:
    """Connections that were opened, from here or from elsewhere, in a second of the last interval."""
    mechanisms = [view.count_rate(name) for name in ("connected", "accepted")]
    return None if None in mechanisms else sum(filter(None, mechanisms))


def _churn(view: View, conns: Mask) -> list[Part]:
    """Connections that opened and closed a second.

    Before the kernel tells, it is what two readings of the table show; where it never does that would be less than
    happened between them, down to 0.
    """
    if why_no_events(view) is not None:
        return headline.no_churn(2)
    came, went = opened_per_s(view), view.count_rate("closed")
    if came is not None and went is not None:
        return headline.churn(came, went)
    appeared, gone = (int((rows & conns).sum()) for rows in (view.appeared, view.gone))
    return headline.churn(view.per_second(appeared), view.per_second(gone))


def _retransmits(view: View, at: Index) -> Part:
    """The share of all data segments that were sent again."""
    if "retransmit_ratio" in view.missing:
        return headline.not_here("retrans", 90)
    share = view.total("retransmit_ratio", at)
    bad = share is not None and share > RETRANSMITS_WARN_ABOVE
    amount = Piece(("▲" if bad else "") + human(share, RATIO), Role.BAD if bad else Role.TEXT)
    return part(("retrans ", Role.DIM), amount, importance=90)


def _counts(view: View) -> list[Part]:
    """Sockets that no process holds and those that are not listed, where there are any, and how old the former are."""
    counts, parts = view.snapshot.counts, []
    unheld = view.snapshot.why_not(HOOK_UNATTRIBUTED.name) is None
    if not unheld:
        parts.append(headline.not_here("unattributed", 80))
    elif "unattributed" in counts:
        parts.append(headline.count("unattributed", counts["unattributed"], 80))
    for name, label, importance in (("time_wait", "TIME_WAIT", 70), ("unlisted", "unlisted", 60)):
        if counts.get(name):
            parts.append(headline.count(label, counts[name], importance))
    age_ms = counts.get("walk_age_ms", 0)
    if unheld and age_ms >= _OLD_MS and counts.get("unattributed"):
        parts.append(part((f"those {age_ms / 1000:.0f} s old", Role.DIM), importance=79))
    return parts


def _states(view: View, at: Index) -> list[Part]:
    """The most frequent states, as far as there is room."""
    found = list(view.count_by("state", at).items())[:_STATES_SHOWN]
    return [
        headline.count(_SHORT_STATES.get(state, state), number, 50 - n)
        for n, (state, number) in enumerate(found)
    ]


SCREEN = ConnectionsScreen
