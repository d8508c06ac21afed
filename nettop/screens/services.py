# SPDX-License-Identifier: Apache-2.0
"""The screens of the services lens: services, their clients, and waiting requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nettop.query.columns import FEW_COUNTS
from nettop.query.units import human
from nettop.query.view import View
from nettop.screens import headline
from nettop.screens.history import RecentSnapshots
from nettop.screens.lens import LensScreen
from nettop.screens.selected_row import HistogramScreen
from nettop.snapshots.arrays import Index
from nettop.snapshots.connections import NO_YES
from nettop.snapshots.schema import Table
from nettop.snapshots.services import (
    CLIENTS,
    CLIENTS_EVICTED,
    NORMAL,
    OVERLAPPING,
    PUSHING,
    RECENT_S,
    SERVED,
    SERVICES,
    TCP,
    WAITING,
)
from nettop.snapshots.snapshot import Frame
from nettop.widgets.bar import BarItem, item
from nettop.widgets.cells import WARNING, Apart, RowFlags, RowStyle, flags_of, is_zero
from nettop.widgets.themes import Role

_NOT_READ = next(number for number, name in NO_YES.items() if name == "no")
_WHY_NO_TIMES = {
    OVERLAPPING: "requests overlap, or may: responses cannot be matched to them, so there are no response times",
    PUSHING: "the service also sends without a request: responses cannot be told apart, so there are no response times",
}
"""Reasons why a service has no response times, by pattern."""
_SERVED_TIMES = "from a request's arrival here to the first byte of its response"
_USED_TIMES = "from a request's first byte to the arrival of its response here"
_RECENT = f"last {RECENT_S:g} s"


def row_flags(view: View, at: Index) -> list[RowFlags]:
    """Return the flags of rows: failed if slower than usual or stuck, idle without responses in the last interval."""
    idle = is_zero(view, "responses_per_s", at)
    return flags_of(view, at, idle=idle, failed=view.raw("speed")[at] != NORMAL)


class TimesScreen(LensScreen):
    """A table of response times: those of the last seconds where an interval has few responses."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._recent_snapshots = RecentSnapshots(self.table, RECENT_S)

    def make_view(self, frame: Frame) -> None:
        """Apply the query to a frame and the last seconds."""
        self.recent = self._recent_snapshots.add(frame.now)
        super().make_view(frame)

    def release_view(self) -> None:
        """Release the rows of a hidden screen."""
        super().release_view()
        self.recent = None
        self._recent_snapshots.forget()

    def more_help(self) -> Mapping[str, Sequence[tuple[str, str]]]:
        """Return the time that the quantiles cover."""
        return {
            "TIMES": [
                (
                    "P50 … MAX",
                    f"over the interval, or the {_RECENT} where it has under {FEW_COUNTS} responses",
                )
            ]
        }


class ServicesScreen(TimesScreen, HistogramScreen):
    """Services; → opens the selected one's waiting requests or, if there are none, its clients."""

    about = "services by response time, slowest first; → opens the waiting requests, or else the clients"
    row_style = RowStyle(
        failing={"p99": f"{WARNING} ", "oldest": f"{WARNING} "},
        stale=frozenset({"p50", "p90", "p99", "max"}),
        flags=row_flags,
        apart=Apart("namespace", ("process", "service", "side")),
    )
    histogram = "response"
    empty_text = "no responses"
    min_table_lines = 12
    recorded_tables = (SERVICES,)
    named_by = ("process", "service", "side")

    def meaning(self, view: View, at: int) -> str:
        """Return the end at which times are measured, or the reason why there are none."""
        if why := _WHY_NO_TIMES.get(int(view.raw("pattern")[at])):
            return why
        is_served = int(view.raw("side")[at]) == SERVED
        ends = _SERVED_TIMES if is_served else _USED_TIMES
        return f"{ends}; {_RECENT}" if view.counts_recent(self.histogram)[at] else ends

    def headline(self, view: View) -> list[BarItem]:
        """Return responses, waiting requests, and how many services are in trouble."""
        at = headline.alive(view)
        return [
            headline.count("services", len(at), 900),
            headline.count_of(view, "responses_per_s", "responses", at, 880),
            headline.count_of(view, "waiting", "waiting", at, 870),
            headline.count_of(view, "unanswered_per_s", "unanswered", at, 800),
        ]

    @property
    def member_table(self) -> Table:
        """The waiting requests of the selected service, or else its clients, of which only TCP servers have a list."""
        view = self.view
        row = () if view is None else self.chosen_or_first(view)
        if view is None or not len(row):
            return WAITING
        is_listed = view.raw("side")[row][0] == SERVED and view.raw("protocol")[row][0] == TCP
        return CLIENTS if is_listed and not view.raw("waiting")[row][0] else WAITING

    def member_filter(self, view: View, at: Index) -> str:
        """Return the filter for the members of this service, which refer to its key."""
        return f"service={view.raw(view.table.key)[at[0]]}"


class ClientsScreen(TimesScreen):
    """A row for each service and client."""

    about = "clients by response time, slowest first; → opens a client's waiting requests"
    row_style = RowStyle(apart=Apart("namespace", ("process", "port", "client")))
    members = WAITING

    def headline(self, view: View) -> list[BarItem]:
        """Return the numbers of clients, responses, waiting requests, and evicted clients."""
        at = headline.alive(view)
        return [
            headline.count("clients", len(at), 900),
            headline.count_of(view, "responses_per_s", "responses", at, 880),
            headline.count_of(view, "waiting", "waiting", at, 870),
            *headline.evicted(view, CLIENTS_EVICTED),
        ]

    def member_filter(self, view: View, at: Index) -> str:
        """Return the filter for this client's requests to this service."""
        service, client = (view.values(name, at)[0] for name in ("service", "client"))
        return f"service={service} remote_address={client}"


class WaitingScreen(LensScreen):
    """A row for each request without a response."""

    about = "requests now waiting for their responses, oldest first, and whether they were read yet"
    describable = False  # the probe describes services, by their keys

    def headline(self, view: View) -> list[BarItem]:
        """Return the number of requests, how many were not read, and how long the oldest has waited."""
        at = headline.alive(view)
        not_read = (view.raw("side")[at] == SERVED) & (view.raw("was_read")[at] == _NOT_READ)
        items = [
            headline.count("waiting", len(at), 900),
            headline.count("not read", int(not_read.sum()), 880),
        ]
        if len(at):
            oldest = (human(float(view.raw("waited")[at].max()), "ns"), Role.BOLD)
            items.append(item(("oldest ", Role.DIM), oldest, importance=890))
        return items


SCREENS = {"services": ServicesScreen, "clients": ClientsScreen, "waiting": WaitingScreen}
