# SPDX-License-Identifier: Apache-2.0
"""The main table: each service with its response times, and the chosen one as a histogram, now and over time."""

from __future__ import annotations

from nettop.query.view import View
from nettop.screens import headline
from nettop.screens.histogram_screen import HistogramScreen
from nettop.snapshots.arrays import Index, as_list
from nettop.snapshots.services import CLIENTS, NORMAL, OVERLAPPING, PUSHING, SERVED, SERVICES, SPEEDS, WAITING
from nettop.widgets.bar import BarItem
from nettop.widgets.cells import WARNING, RowFlags, RowStyle

_LINES_FIRST = 12
_UNKNOWN = {
    OVERLAPPING: "requests overlap: which answer is whose is not known, and so no response times",
    PUSHING: "the service sends unasked: what answers a request is not known, and so no response times",
}
"""Why a service has no response times."""


def row_flags(view: View, at: Index) -> list[RowFlags]:
    """A failure: slower than usual, or stuck. Idle: no answer lately."""
    speeds, rates = view.raw("speed")[at], view.column("answers_per_s")
    idle = rates.known[at] & (rates.numbers[at] == 0)
    return [
        RowFlags(gone, idle=is_idle, failed=speed != NORMAL)
        for gone, is_idle, speed in zip(as_list(view.gone[at]), as_list(idle), as_list(speeds), strict=True)
    ]


class ServicesScreen(HistogramScreen):
    """Services; → opens the requests that wait at the chosen one, or, where none does, its clients."""

    about = "services by how fast they answer, the slowest first; → opens the requests that wait, or else the clients"
    row_style = RowStyle(
        failing={"p99": f"{WARNING} ", "oldest": f"{WARNING} "},
        stale=frozenset({"p50", "p90", "p99", "max"}),
        flags=row_flags,
    )
    histogram = "response"
    nothing = "no answers"
    lines_first = _LINES_FIRST
    remembered = (SERVICES,)
    named_by = ("process", "service", "side")
    member_table = WAITING

    def meaning(self, view: View, at: int) -> str:
        """Of which end these are the times, or why there are none."""
        if why := _UNKNOWN.get(int(view.raw("pattern")[at])):
            return why
        if int(view.raw("side")[at]) == SERVED:
            return "from a request's arrival here to the first byte of its answer"
        return "from a request's first byte to the arrival of its answer here"

    def headline(self, view: View) -> list[BarItem]:
        """Answers, requests that wait, and how many services are in trouble."""
        at = view.order[~view.gone[view.order]]
        speeds = view.raw("speed")[at]
        troubled = [
            headline.count(name, int((speeds == number).sum()), 950 - number, warn=True)
            for number, name in SPEEDS.items()
            if number != NORMAL and (speeds == number).any()
        ]
        return [
            headline.count("services", len(at), 900),
            *troubled,
            headline.count_of(view, "answers_per_s", "answers", at, 880),
            headline.count_of(view, "waiting", "waiting", at, 870),
            headline.count_of(view, "unanswered_per_s", "unanswered", at, 800),
        ]

    def draw_chosen(self) -> None:
        """The chosen row; → opens the requests that wait there, or its clients."""
        super().draw_chosen()
        view = self.view
        if view is None or not len(view.order):
            return
        row = self.chosen(view)
        has_clients = view.raw("side")[row][0] == SERVED and not view.raw("waiting")[row][0]
        self.member_table = CLIENTS if has_clients else WAITING

    def member_filter(self, view: View, key: int) -> str:  # noqa: ARG002 - the key is what members name
        """Those of this service."""
        return f"service={key}"


SCREEN = ServicesScreen
