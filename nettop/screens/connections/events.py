# SPDX-License-Identifier: Apache-2.0
"""The events pane: connections as they open, close and fail, the newest first."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from nettop.query.view import View
from nettop.screens import headline
from nettop.screens.connections.sockets import opened_per_s, why_no_events
from nettop.screens.lens import LensScreen
from nettop.snapshots.arrays import Index, as_list
from nettop.snapshots.connections import EVENT_KINDS, GRACEFUL, SOCKETS, STATES
from nettop.snapshots.snapshot import known
from nettop.widgets.bar import Part
from nettop.widgets.cells import WARNING, Look, Manner

_ENDS = tuple(number for number, name in EVENT_KINDS.items() if name in ("close", "fail"))
_ENDED = tuple(number for number, name in STATES.items() if name in ("TIME_WAIT", "CLOSE"))


def event_looks(view: View, at: Index) -> list[Look]:
    """What opened is quiet, and what failed or was reset warns."""
    reasons = view.raw("reason")[at]
    ends = np.isin(view.raw("event")[at], _ENDS)
    failed = ends & known(reasons) & ~np.isin(reasons, tuple(GRACEFUL))
    return [Look(quiet=quiet, failed=bad) for quiet, bad in zip(as_list(~ends), as_list(failed), strict=True)]


def nothing(view: View) -> str:
    """Why there are no events."""
    why = why_no_events(view)
    if why is None:
        return "no connection opened, closed or failed yet"
    return f"this kernel does not tell when connections open, close or fail: {why}"


class EventsScreen(LensScreen):
    """What happened to connections, those included that lived between two readings of the table."""

    about: ClassVar[str] = "connections as they open, close and fail, the newest first"
    manner: ClassVar[Manner] = Manner(
        absent={"owner": "(unattributed)", "process": "(unattributed)", "reason": ""},
        failing={"event": f"{WARNING} ", "reason": ""},
        looks=event_looks,
        nothing=nothing,
    )

    def headline(self, view: View) -> list[Part]:
        """How many a second open, close and fail: counted in the kernel, exact when events are lost."""
        if why_no_events(view) is not None:
            return [headline.not_here(one, 900 - n) for n, one in enumerate(("opened", "closed", "failed"))]
        return [
            headline.rate("opened", opened_per_s(view), 800),
            headline.rate("closed", view.count_rate("closed"), 700),
            headline.rate("failed", view.count_rate("failed"), 900),
            headline.count("events", view.size, 500),
        ]

    def describes(self, view: View, key: int) -> int | None:
        """The connection's cookie while it lives: what its processes are, the source tells of sockets alone."""
        event = np.flatnonzero(view.raw(view.table.key) == key)
        sockets = view.snapshot.tables.get(SOCKETS.name)
        if not len(event) or sockets is None:
            return None
        cookie = int(view.raw("id")[event[0]])
        states = sockets.array["state"][sockets.array["id"] == cookie]
        return cookie if len(states) and int(states[0]) not in _ENDED else None


SCREEN = EventsScreen
