# SPDX-License-Identifier: Apache-2.0
"""The tables of events, failures and groups, and connections opened and closed per second."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from nettop.query.filter import quote
from nettop.query.units import UNKNOWN
from nettop.query.view import View
from nettop.screens import headline
from nettop.screens.headline import format_rate
from nettop.screens.lens import LensScreen
from nettop.snapshots.arrays import Index
from nettop.snapshots.connections import (
    ENDED_GROUPS,
    EVENT_KINDS,
    EVENTS,
    FAILURES,
    GRACEFUL,
    NOT_LISTED,
    OTHER_GROUPS,
    RETRANSMITS_WARN_ABOVE,
    SOCKETS,
    STATES,
    UNATTRIBUTED,
    WITHOUT_ROOT,
)
from nettop.snapshots.schema import NO_GROUP, RATE
from nettop.snapshots.snapshot import known
from nettop.widgets.bar import BarItem, item
from nettop.widgets.cells import WARNING, Apart, RowFlags, RowStyle, flags_of
from nettop.widgets.columns import as_rates
from nettop.widgets.text import TextSpan
from nettop.widgets.themes import Role


def without_root(view: View) -> list[BarItem]:
    """Return a warning that some data is visible only to root."""
    if WITHOUT_ROOT not in view.snapshot.gaps:
        return []
    remedy = TextSpan("  sudo adds owners, namespaces, events", Role.DIM)
    return [item((f"{WARNING} without root", Role.WARN), remedy, importance=900)]


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


_ENDS = tuple(number for number, name in EVENT_KINDS.items() if name in ("close", "fail"))
_ENDED = tuple(number for number, name in STATES.items() if name in ("TIME_WAIT", "CLOSE"))


def event_flags(view: View, at: Index) -> list[RowFlags]:
    """Return the flags of rows: quiet if a connection opened, failed if one failed or was reset."""
    reasons = view.raw("reason")[at]
    ends = np.isin(view.raw("event")[at], _ENDS)
    failed = ends & known(reasons) & ~np.isin(reasons, tuple(GRACEFUL))
    return flags_of(view, at, quiet=~ends, failed=failed)


def why_group_is_empty(view: View) -> str:
    """Return why a group of counted failures has no events."""
    if not view.is_full:
        return "no event of this group is kept"
    return f"the events of this group were overwritten: the newest {view.table.kept_rows:,} are kept"


class EventsScreen(LensScreen):
    """Connections as they open, close and fail, including those shorter than an interval."""

    about = "connections as they open, close and fail, newest first"
    row_style = RowStyle(
        absent={"owner": UNATTRIBUTED, "process": UNATTRIBUTED, "reason": ""},
        failing={"event": f"{WARNING} ", "reason": ""},
        flags=event_flags,
        empty="no connection opened, closed or failed yet",
        lacking="events of connections are not available",
    )

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.opened_from is FAILURES:
            self.rows.filtered_empty_text = why_group_is_empty

    def headline(self, view: View) -> list[BarItem]:
        """Return how many connections open, close and fail per second, and how many changes were not counted, if any.

        The kernel counts them, even if events are lost.
        """
        if view.snapshot.why_unavailable(EVENTS) is not None:
            labels = ("opened", "closed", "failed")
            return [headline.not_available(label, 900 - n) for n, label in enumerate(labels)]
        uncounted = view.snapshot.counts.get("uncounted")
        return [
            rate("opened", opened_per_s(view), 800),
            rate("closed", view.count_rate("closed"), 700),
            rate("failed", view.count_rate("failed"), 900),
            headline.count("newest events" if view.is_full else "events", view.size, 500),
            *([headline.count("uncounted", uncounted, 600, warn=True)] if uncounted else []),
        ]

    def source_key(self, view: View, key: int) -> int | None:
        """Return the connection's cookie while its socket exists: the source has details of sockets only."""
        event = np.flatnonzero(view.raw(view.table.key) == key)
        sockets = view.snapshot.tables.get(SOCKETS.name)
        if not len(event) or sockets is None:
            return None
        cookie = int(view.raw("id")[event[0]])
        states = sockets.array["state"][sockets.array["id"] == cookie]
        return cookie if len(states) and int(states[0]) not in _ENDED else None


_REASONS_SHOWN = 4
_PLAIN = re.compile(r"[\w.:]+", re.ASCII)


class FailuresScreen(LensScreen):
    """Groups of failures; → opens a group's events."""

    about = "connections that failed or were reset, by reason and remote; → opens their events"
    row_style = RowStyle(
        absent={"process": UNATTRIBUTED},
        warn_above={"failed": 0},
        apart=Apart("namespace", ("reason", "remote_address", "port", "process")),
        empty="no failures since nettop started",
        lacking="failures of connections are not available",
    )
    members = EVENTS

    def headline(self, view: View) -> list[BarItem]:
        """Return the numbers of failed and reset connections, their rate, and the main reasons."""
        if view.snapshot.why_unavailable(EVENTS) is not None:
            return [headline.not_available("failures")]
        at = np.arange(view.size)
        groups = headline.count("groups", len(view.now), 500)
        if "failures" in view.missing:
            return [headline.not_available("failures"), groups]
        rate = churn({"failures": view.total("failures_per_s", at)})
        return [*_kinds(view, at), *rate, groups, *_main_reasons(view, at)]

    def member_filter(self, view: View, at: Index) -> str:
        """Return the filter for a group's events; only the newest events are kept."""
        names = ("reason", "remote_address", "port", "direction", "process", "netns")
        group = {name: view.values(name, at)[0] for name in names}
        port = "local_port" if group.pop("direction") == "inbound" else "remote_port"
        terms = ((port if n == "port" else n, str(v)) for n, v in group.items() if v is not None)
        return " ".join(f"{name}={text if _PLAIN.fullmatch(text) else quote(text)}" for name, text in terms)


def _kinds(view: View, at: Index) -> list[BarItem]:
    """Return `8 failed  1,000 reset`: connections that never opened are counted apart from reset ones."""
    kinds = (
        (name, role, view.total(name, at) or 0) for name, role in (("failed", Role.BAD), ("reset", Role.WARN))
    )
    return [
        item((f"{total:,.0f}", role if total else Role.BOLD), (f" {name}", Role.DIM))
        for name, role, total in kinds
    ]


def _main_reasons(view: View, at: Index) -> list[BarItem]:
    if "reason" in view.missing:
        return []
    failures = Counter[str]()
    for reason, count in zip(view.values("reason", at), view.values("failures", at), strict=True):
        failures[reason or "unknown"] += count or 0  # of the unlisted rest: None until it grows
    most = (+failures).most_common(_REASONS_SHOWN)
    return [headline.count(reason, count, 400 - n) for n, (reason, count) in enumerate(most)]


class GroupsScreen(LensScreen):
    """Groups of sockets; → opens a group's sockets."""

    about = (
        "sockets by process, remote, network, port, container, namespace or state; → opens a group's sockets"
    )
    row_style = RowStyle(warn_above={"retransmit_ratio": RETRANSMITS_WARN_ABOVE})
    members = SOCKETS

    def headline(self, view: View) -> list[BarItem]:
        """Return the groups' traffic, their number and kind, and their connections."""
        at = np.arange(view.size)
        names = ("bytes_sent", "bytes_received", "opened", "closed", "failed")
        sent, received, *churn = (n if self.state.totals else as_rates(view.table, n) for n in names)
        return [
            headline.sum_of(view, sent, TextSpan("↑ ", Role.TOTAL_SENT), at),
            headline.sum_of(view, received, TextSpan("↓ ", Role.TOTAL_RECEIVED), at),
            item((f"{len(view.now):,}", Role.BOLD), (f" by {view.now.variant}", Role.DIM), importance=980),
            *without_root(view),
            headline.count_of(view, "connections", "conns", at, 800),
            *(
                headline.count_of(view, name, name.removesuffix(RATE), at, 700 - n)
                for n, name in enumerate(churn)
            ),
        ]

    def member_filter(self, view: View, at: Index) -> str | None:
        """Return the filter for a group's sockets, or None if they are not listed."""
        group, pid, protocol, port = (
            view.values(name, at)[0] for name in ("group", "pid", "protocol", "port")
        )
        if group in (NOT_LISTED, OTHER_GROUPS, ENDED_GROUPS):
            return None
        value = UNKNOWN if group == NO_GROUP else quote(str(group))
        return {
            "process": f"pid={UNKNOWN if pid is None else pid}",
            "remote": f"remote_address={value}",
            "network": f"remote_address={value}",
            "port": f"protocol={protocol} :{port}",
            "netns": f"namespace={value}",
        }.get(view.now.variant, f"{view.now.variant}={value}")
