# SPDX-License-Identifier: Apache-2.0
"""Connections opened and closed per second, and the reasons in headlines if these are unknown."""

from __future__ import annotations

from collections.abc import Mapping

from nettop.query.view import View
from nettop.screens.headline import format_rate
from nettop.snapshots.connections import EVENTS, WITHOUT_ROOT
from nettop.widgets.bar import BarItem, Span, item
from nettop.widgets.cells import WARNING
from nettop.widgets.themes import Role


def without_root(view: View) -> list[BarItem]:
    """Return a warning that some data is visible only to root."""
    if WITHOUT_ROOT not in view.snapshot.gaps:
        return []
    remedy = Span("  sudo adds owners, namespaces, events", Role.DIM)
    return [item((f"{WARNING} without root", Role.WARN), remedy, importance=900)]


def why_no_events(view: View) -> str | None:
    """Return why connection events are not available, or None if they are."""
    return view.snapshot.why_unavailable(EVENTS)


def why_empty(view: View, what: str, otherwise: str) -> str:
    """Return why a table of connection events is empty: `what` is not available, or `otherwise`."""
    lacking = view.snapshot.missing_hook(EVENTS)
    return otherwise if lacking is None else f"{what} of connections are not available: {lacking.advice}"


def opened_per_s(view: View) -> float | None:
    """Return connections opened per second in the last interval, outbound and inbound."""
    rates = [view.count_rate(name) for name in ("connected", "accepted")]
    return None if None in rates else sum(filter(None, rates))


def rate(label: str, per_second: float | None, importance: int) -> BarItem:
    """Return `label 31/s`."""
    return item((f"{label} ", Role.DIM), (f"{format_rate(per_second)}/s", Role.TEXT), importance=importance)


def churn(rates: Mapping[str, float | None]) -> list[BarItem]:
    """Return `opened 31/s` and so on; nothing until all rates are known."""
    if None in rates.values():
        return []
    return [rate(label, per_second, 950 - n) for n, (label, per_second) in enumerate(rates.items())]
