# SPDX-License-Identifier: Apache-2.0
"""The common headline of the latency lens's tables: the main delays, and the share of packets followed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from nettop.query.query import screen_query
from nettop.query.units import human
from nettop.query.view import View
from nettop.screens.headline import not_available, unavailable
from nettop.screens.lens import LensScreen
from nettop.snapshots.latency import (
    HOOKS,
    ONE_IN,
    QDISC,
    SOCKET_WAIT,
    STAGE_TABLE,
    STAGES,
    WIRE_APP,
)
from nettop.snapshots.snapshot import Snapshot
from nettop.widgets.bar import ALWAYS_SHOWN, BarItem, Span, item
from nettop.widgets.themes import Role

_QUANTILES = {WIRE_APP: ("p50", "p99"), SOCKET_WAIT: ("p99",), QDISC: ("p99",)}
"""The stages and quantiles in the headline, the most important first."""


class LatencyTable(LensScreen):
    """A table of the lens, with the headline common to all of them."""

    def headline(self, view: View) -> list[BarItem]:
        """Return the main delays, how many packets are followed, and the delays not available."""
        return [*_delays(view), *_followed(view.snapshot), *_missing(view.snapshot)]


def _delays(view: View) -> list[BarItem]:
    """Return `wire-app p50 51 µs p99 1.2 ms` and others, over all protocols and pairs; the view may be of any table."""
    query = replace(screen_query(STAGE_TABLE), deltas=view.query.deltas, gone=False)
    whole = View(view.frame, query)
    items = []
    for n, (number, quantiles) in enumerate(_QUANTILES.items()):
        label, importance = STAGES[number], ALWAYS_SHOWN if n == 0 else 900 - n
        if why_not(view.snapshot, number) is not None:
            items.append(not_available(label, importance))
            continue
        at = np.flatnonzero(whole.raw("stage") == number)
        spans = [Span(label, Role.DIM)]
        for name in quantiles:
            spans += [Span(f" {name} ", Role.DIM), Span(human(whole.total(name, at), "ns"), Role.BOLD)]
        items.append(item(*spans, importance=importance))
    return items


def _followed(snapshot: Snapshot) -> list[BarItem]:
    one_in = snapshot.counts.get(ONE_IN)
    if one_in is None:
        return []
    if one_in == 1:
        return [item(("followed ", Role.DIM), ("every packet", Role.TEXT), importance=700)]
    # More important than above: counts are only estimates.
    return [item(("followed ", Role.DIM), (f"1 in {one_in:,}", Role.TEXT), importance=950)]


def _missing(snapshot: Snapshot) -> list[BarItem]:
    """Return the delays that this kernel does not provide."""
    return unavailable([STAGES[number] for number in HOOKS if why_not(snapshot, number) is not None])


def why_not(snapshot: Snapshot, number: int) -> str | None:
    """Return why this kernel does not provide the delay with this number, or None if it does."""
    return snapshot.why_not(HOOKS[number].name)
