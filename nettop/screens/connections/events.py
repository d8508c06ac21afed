# SPDX-License-Identifier: Apache-2.0
"""The table of events: connections as they open, close and fail, newest first."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from nettop.query.view import View
from nettop.screens import headline
from nettop.screens.connections.churn import opened_per_s, rate, why_empty, why_no_events
from nettop.screens.lens import LensScreen
from nettop.snapshots.arrays import Index, as_list
from nettop.snapshots.connections import EVENT_KINDS, FAILURES, GRACEFUL, SOCKETS, STATES, UNATTRIBUTED
from nettop.snapshots.snapshot import known
from nettop.widgets.bar import BarItem
from nettop.widgets.cells import WARNING, RowFlags, RowStyle

_ENDS = tuple(number for number, name in EVENT_KINDS.items() if name in ("close", "fail"))
_ENDED = tuple(number for number, name in STATES.items() if name in ("TIME_WAIT", "CLOSE"))


def event_flags(view: View, at: Index) -> list[RowFlags]:
    """Return the flags of rows: quiet if a connection opened, failed if one failed or was reset."""
    reasons = view.raw("reason")[at]
    ends = np.isin(view.raw("event")[at], _ENDS)
    failed = ends & known(reasons) & ~np.isin(reasons, tuple(GRACEFUL))
    return [
        RowFlags(quiet=quiet, failed=bad) for quiet, bad in zip(as_list(~ends), as_list(failed), strict=True)
    ]


def why_group_is_empty(view: View) -> str:
    """Return why a group of counted failures has no events."""
    kept = f"the newest {view.table.kept_rows:,} are kept"
    return (
        f"the events of this group were overwritten: {kept}"
        if view.is_full
        else "no event of this group is kept"
    )


class EventsScreen(LensScreen):
    """Connections as they open, close and fail, including those shorter than an interval."""

    about = "connections as they open, close and fail, newest first"
    row_style = RowStyle(
        absent={"owner": UNATTRIBUTED, "process": UNATTRIBUTED, "reason": ""},
        failing={"event": f"{WARNING} ", "reason": ""},
        flags=event_flags,
        empty_text=partial(why_empty, what="events", otherwise="no connection opened, closed or failed yet"),
    )

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.opened_from is FAILURES:
            self.rows.filtered_empty_text = why_group_is_empty

    def headline(self, view: View) -> list[BarItem]:
        """Return how many connections open, close and fail per second, and how many changes were not counted, if any.

        The kernel counts them, even if events are lost.
        """
        if why_no_events(view) is not None:
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


SCREEN = EventsScreen
