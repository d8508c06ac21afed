# SPDX-License-Identifier: Apache-2.0
"""The table of failures: connections that failed or were reset, by reason and remote."""

from __future__ import annotations

import re
from collections import Counter
from typing import ClassVar

import numpy as np

from nettop.query.filter import quote
from nettop.query.view import View
from nettop.screens import headline
from nettop.screens.connections.headline import churn, no_churn, why_no_events
from nettop.screens.lens import LensScreen
from nettop.snapshots.arrays import Index
from nettop.snapshots.connections import EVENTS
from nettop.snapshots.schema import Table
from nettop.widgets.bar import BarItem, item
from nettop.widgets.cells import RowStyle
from nettop.widgets.themes import Role

_REASONS_SHOWN = 4
_PLAIN = re.compile(r"[\w.:]+", re.ASCII)


def empty_text(view: View) -> str:
    """Why there are no failures."""
    why = why_no_events(view)
    return (
        "no failure since nettop began"
        if why is None
        else f"failures of connections are not available: {why}"
    )


class FailuresScreen(LensScreen):
    """Groups of failures; → opens the events of one."""

    about: ClassVar[str] = "connections that failed or were reset, by reason and remote; → opens their events"
    row_style: ClassVar[RowStyle] = RowStyle(absent={"process": "(unattributed)"}, empty_text=empty_text)
    member_table: ClassVar[Table | None] = EVENTS

    def headline(self, view: View) -> list[BarItem]:
        """How many failures, how fast they come, and their main reasons."""
        if why_no_events(view) is not None:
            return [headline.not_available("failures")]
        at = np.arange(view.size)
        return [*_how_many(view, at), headline.count("groups", view.size, 500), *_reasons(view, at)]

    def member_filter(self, view: View, key: int) -> str:
        """What the events of a group have in common. Only the newest events are kept."""
        names = ("reason", "remote_address", "port", "direction", "process", "netns")
        at = np.flatnonzero(view.raw(view.table.key) == key)
        group = {name: view.values(name, at)[0] for name in names}
        port = "local_port" if group.pop("direction") == "inbound" else "remote_port"
        terms = ((port if name == "port" else name, value) for name, value in group.items())
        return " ".join(f"{name}={_filter_value(value)}" for name, value in terms if value is not None)


def _how_many(view: View, at: Index) -> list[BarItem]:
    """`12 failures (+2/s)`."""
    if "failures" in view.missing:
        return [headline.not_available("failures"), *no_churn(1)]
    total, rate = view.total("failures", at), view.total("failures_per_s", at)
    return [item((f"{total or 0:,.0f}", Role.BOLD), (" failures", Role.DIM)), *churn(rate)]


def _reasons(view: View, at: Index) -> list[BarItem]:
    """The most frequent reasons, as far as there is room."""
    if {"reason", "failures"} & view.missing.keys():
        return []
    failures = Counter[str]()
    for reason, count in zip(view.values("reason", at), view.values("failures", at), strict=True):
        failures[reason or "unknown"] += count
    most = failures.most_common(_REASONS_SHOWN)
    return [headline.count(reason, count, 400 - n) for n, (reason, count) in enumerate(most)]


def _filter_value(value: str | int) -> str:
    """A value as filters take it, in quotes where needed."""
    text = str(value)
    return text if _PLAIN.fullmatch(text) else quote(text)


SCREEN = FailuresScreen
