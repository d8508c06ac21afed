# SPDX-License-Identifier: Apache-2.0
"""The main table: services with their response times, and the selected one's histogram, current and over time."""

from __future__ import annotations

from nettop.query.view import View
from nettop.screens import headline
from nettop.screens.histogram_screen import HistogramScreen
from nettop.snapshots.arrays import Index, as_list
from nettop.snapshots.services import CLIENTS, NORMAL, OVERLAPPING, PUSHING, SERVED, SERVICES, SPEEDS, WAITING
from nettop.widgets.bar import BarItem
from nettop.widgets.cells import WARNING, RowFlags, RowStyle

_LINES_FIRST = 12
_WHY_NO_TIMES = {
    OVERLAPPING: "requests overlap: answers cannot be matched to them, so there are no response times",
    PUSHING: "the service also sends without a request: answers cannot be told apart, so there are no response times",
}
"""Reasons why a service has no response times, by pattern."""


def row_flags(view: View, at: Index) -> list[RowFlags]:
    """Return the flags of rows: failed if slower than usual or stuck, idle without answers in the last interval."""
    speeds, rates = view.raw("speed")[at], view.column("answers_per_s")
    idle = rates.known[at] & (rates.numbers[at] == 0)
    return [
        RowFlags(gone, idle=is_idle, failed=speed != NORMAL)
        for gone, is_idle, speed in zip(as_list(view.gone[at]), as_list(idle), as_list(speeds), strict=True)
    ]


class ServicesScreen(HistogramScreen):
    """Services; → opens the selected one's waiting requests or, if there are none, its clients."""

    about = "services by response time, slowest first; → opens the waiting requests, or else the clients"
    row_style = RowStyle(
        failing={"p99": f"{WARNING} ", "oldest": f"{WARNING} "},
        stale=frozenset({"p50", "p90", "p99", "max"}),
        flags=row_flags,
    )
    histogram = "response"
    empty_text = "no answers"
    min_table_lines = _LINES_FIRST
    recorded_tables = (SERVICES,)
    named_by = ("process", "service", "side")
    member_table = WAITING

    def meaning(self, view: View, at: int) -> str:
        """Return the end at which times are measured, or the reason why there are none."""
        if why := _WHY_NO_TIMES.get(int(view.raw("pattern")[at])):
            return why
        if int(view.raw("side")[at]) == SERVED:
            return "from a request's arrival here to the first byte of its answer"
        return "from a request's first byte to the arrival of its answer here"

    def headline(self, view: View) -> list[BarItem]:
        """Return answers, waiting requests, and how many services are in trouble."""
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
        """Draw the selected row; → will open its waiting requests, or its clients."""
        super().draw_chosen()
        view = self.view
        if view is None or not len(view.order):
            return
        row = self.chosen(view)
        has_clients = view.raw("side")[row][0] == SERVED and not view.raw("waiting")[row][0]
        self.member_table = CLIENTS if has_clients else WAITING

    def member_filter(self, view: View, key: int) -> str:  # noqa: ARG002 - members refer to the key itself
        """Return the filter for the members of this service."""
        return f"service={key}"


SCREEN = ServicesScreen
