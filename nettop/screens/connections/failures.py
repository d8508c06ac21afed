# SPDX-License-Identifier: Apache-2.0
"""The table of failures: connections that failed or were reset, by reason and remote."""

from __future__ import annotations

import re
from collections import Counter
from functools import partial

import numpy as np

from nettop.query.filter import quote
from nettop.query.view import View
from nettop.screens import headline
from nettop.screens.connections.churn import churn, why_empty, why_no_events
from nettop.screens.lens import LensScreen
from nettop.snapshots.arrays import Index
from nettop.snapshots.connections import EVENTS, UNATTRIBUTED
from nettop.widgets.bar import BarItem, item
from nettop.widgets.cells import RowStyle
from nettop.widgets.themes import Role

_REASONS_SHOWN = 4
_PLAIN = re.compile(r"[\w.:]+", re.ASCII)


class FailuresScreen(LensScreen):
    """Groups of failures; → opens a group's events."""

    about = "connections that failed or were reset, by reason and remote; → opens their events"
    row_style = RowStyle(
        absent={"process": UNATTRIBUTED},
        warn_above={"failed": 0},
        empty_text=partial(why_empty, what="failures", otherwise="no failures since nettop started"),
    )
    member_table = EVENTS

    def headline(self, view: View) -> list[BarItem]:
        """Return the numbers of failed and reset connections, their rate, and the main reasons."""
        if why_no_events(view) is not None:
            return [headline.not_available("failures")]
        at = np.arange(view.size)
        groups = headline.count("groups", view.size, 500)
        if "failures" in view.missing:
            return [headline.not_available("failures"), groups]
        rate = churn({"failures": view.total("failures_per_s", at)})
        return [*_kinds(view, at), *rate, groups, *_main_reasons(view, at)]

    def member_filter(self, view: View, key: int) -> str:
        """Return the filter for a group's events; only the newest events are kept."""
        names = ("reason", "remote_address", "port", "direction", "process", "netns")
        at = np.flatnonzero(view.raw(view.table.key) == key)
        group = {name: view.values(name, at)[0] for name in names}
        port = "local_port" if group.pop("direction") == "inbound" else "remote_port"
        terms = (
            (port if name == "port" else name, str(value))
            for name, value in group.items()
            if value is not None
        )
        return " ".join(f"{name}={text if _PLAIN.fullmatch(text) else quote(text)}" for name, text in terms)


def _kinds(view: View, at: Index) -> list[BarItem]:
    """Return `8 failed  1,000 reset`: connections that never opened are counted apart from reset ones."""
    return [
        item(
            (f"{view.total(name, at) or 0:,.0f}", role if view.total(name, at) else Role.BOLD),
            (f" {name}", Role.DIM),
        )
        for name, role in (("failed", Role.BAD), ("reset", Role.WARN))
    ]


def _main_reasons(view: View, at: Index) -> list[BarItem]:
    if "reason" in view.missing:
        return []
    failures = Counter[str]()
    for reason, count in zip(view.values("reason", at), view.values("failures", at), strict=True):
        failures[reason or "unknown"] += count
    most = failures.most_common(_REASONS_SHOWN)
    return [headline.count(reason, count, 400 - n) for n, (reason, count) in enumerate(most)]


SCREEN = FailuresScreen
