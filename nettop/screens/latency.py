# SPDX-License-Identifier: Apache-2.0
"""The screens of the latency lens: where packets wait, and for how long."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from nettop.query.filter import quote
from nettop.query.query import screen_query
from nettop.query.units import human
from nettop.query.view import View
from nettop.screens import headline
from nettop.screens.lens import LensScreen
from nettop.screens.selected_row import HistogramScreen
from nettop.snapshots.arrays import Index, as_list
from nettop.snapshots.latency import (
    HOOKS,
    MEANINGS,
    ONE_IN,
    PAIRS_EVICTED,
    PROTOCOL_TABLE,
    QDISC,
    SOCKET_WAIT,
    STAGE_TABLE,
    STAGES,
    WIRE_APP,
)
from nettop.snapshots.snapshot import Snapshot
from nettop.widgets.bar import ALWAYS_SHOWN, BarItem, item
from nettop.widgets.cells import RowFlags, RowStyle, flags_of
from nettop.widgets.text import TextSpan
from nettop.widgets.themes import Role

_QUANTILES = {WIRE_APP: ("p50", "p99"), SOCKET_WAIT: ("p99",), QDISC: ("p99",)}
"""The stages and quantiles in the headline, the most important first."""


class LatencyTable(LensScreen):
    """A table of the lens, with the headline common to all of them."""

    def headline(self, view: View) -> list[BarItem]:
        """Return the main delays, how many packets are followed, and the delays not available."""
        missing = [STAGES[number] for number in HOOKS if why_not(view.snapshot, number) is not None]
        return [*_delays(view), *_followed(view.snapshot), *headline.unavailable(missing)]


def _delays(view: View) -> list[BarItem]:
    """Return `wire-app p50 51 µs p99 1.2 ms` and others, over all protocols and pairs; the view may be of any table."""
    query = replace(screen_query(STAGE_TABLE), deltas=view.query.deltas, gone=False)
    whole = View(view.frame, query)
    items = []
    for n, (number, quantiles) in enumerate(_QUANTILES.items()):
        label, importance = STAGES[number], ALWAYS_SHOWN if n == 0 else 900 - n
        if why_not(view.snapshot, number) is not None:
            items.append(headline.not_available(label, importance))
            continue
        at = np.flatnonzero(whole.raw("stage") == number)
        spans = [TextSpan(label, Role.DIM)]
        for name in quantiles:
            spans += [
                TextSpan(f" {name} ", Role.DIM),
                TextSpan(human(whole.total(name, at), "ns"), Role.BOLD),
            ]
        items.append(item(*spans, importance=importance))
    return items


def _followed(snapshot: Snapshot) -> list[BarItem]:
    one_in = snapshot.counts.get(ONE_IN)
    if one_in is None:
        return []
    # More important if counts are only estimates.
    text, importance = ("every packet", 700) if one_in == 1 else (f"1 in {one_in:,}", 950)
    return [item(("followed ", Role.DIM), text, importance=importance)]


def why_not(snapshot: Snapshot, number: int) -> str | None:
    """Return why this kernel does not provide the delay with this number, or None if it does."""
    return snapshot.why_not(HOOKS[number].name)


class BucketsScreen(LatencyTable):
    """A row for each bucket that has counted anything."""

    about = "the histograms as numbers: the count of each bucket"


class PairsScreen(LatencyTable):
    """A row for each pair of hosts, protocol and place; the longest delays first."""

    about = "pairs of hosts by how long their packets wait, longest first"

    def headline(self, view: View) -> list[BarItem]:
        """Return the common headline, and the number of evicted pairs."""
        return [*super().headline(view), *headline.evicted(view, PAIRS_EVICTED)]


def row_flags(view: View, at: Index) -> list[RowFlags]:
    """Return the flags of rows: quiet and missing if this kernel does not provide their stage."""
    missing = np.array([why_not(view.snapshot, n) is not None for n in as_list(view.raw("stage")[at])], bool)
    return flags_of(view, at, quiet=missing, missing=missing)


class LatencyHistograms(HistogramScreen, LatencyTable):
    """A table of stages, and below it the selected one."""

    row_style = RowStyle(flags=row_flags)
    histogram = "latency"
    empty_text = "no packets"
    min_table_lines = 2 + len(STAGES)
    recorded_tables = (STAGE_TABLE, PROTOCOL_TABLE)

    def meaning(self, view: View, at: int) -> str:
        """Return the meaning of the row's stage."""
        return MEANINGS[int(view.raw("stage")[at])]

    def why_not(self, view: View, at: int) -> str | None:
        """Return why this kernel does not provide the row's stage, or None if it does."""
        return why_not(view.snapshot, int(view.raw("stage")[at]))


class StagesScreen(LatencyHistograms):
    """Stages where packets wait; → opens a stage's protocols."""

    about = "where packets wait and for how long, the selected stage as a histogram; → opens its protocols"
    named_by = ("stage",)
    members = PROTOCOL_TABLE

    def member_filter(self, view: View, at: Index) -> str:
        """Return the filter for the protocols of this stage."""
        return f"stage={quote(view.values('stage', at)[0])}"


class ProtocolsScreen(LatencyHistograms):
    """A row for each stage, protocol and family; below them the selected one's histogram."""

    about = "where packets of each protocol and IP version wait, the selected row as a histogram"
    named_by = ("stage", "protocol", "family")


SCREENS = {
    "stages": StagesScreen,
    "protocols": ProtocolsScreen,
    "pairs": PairsScreen,
    "buckets": BucketsScreen,
}
