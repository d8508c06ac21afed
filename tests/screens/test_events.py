# SPDX-License-Identifier: Apache-2.0
"""The events pane by pilot: the newest first, rows that stay where somebody looks, what failed, what is shown of it."""

from __future__ import annotations

import numpy as np
import pytest

from nettop.query.query import screen_query
from nettop.query.view import View
from nettop.screens.connections.tables import EventsScreen, event_flags
from nettop.snapshots.connections import EVENTS, FAILURES, SOCKETS
from nettop.snapshots.schema import Table
from nettop.widgets.cells import Cell, column_cells, when
from nettop.widgets.columns import plan
from nettop.widgets.details import sections_of
from nettop.widgets.table import LiveTable
from nettop.widgets.themes import Role
from tests.builders.driving import Running, press, running, shown, text_of, tick
from tests.builders.example_events import (
    LATER,
    batch_of,
    eventful_host,
    example_events,
    frame_of_events,
    only,
    quiet_seconds,
)
from tests.unit.build import WALL_NS, Row

VIEW = "connections.events"


def keys_in_sight(table: LiveTable) -> list[int]:
    """Return the events on the table's lines, from the top."""
    return table.view.values("event_id", table.order[table.top : table.top + table.page])


# --- what is in sight ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["down", "end", "pagedown"])
async def test_a_chosen_event_stays_on_its_line(key: str) -> None:
    """While others come above it, the selected row and all rows around it do not move, nor do rows scrolled to; without
    either, the newest is the first line."""
    steps, batches = quiet_seconds(5)
    async with running(steps, (120, 20), batches=batches, view=VIEW, ticks=1) as run:
        rows = shown(run).rows
        await press(run, key, "up") if key == "end" else await press(run, key, key)
        key_before, seen = rows.key, keys_in_sight(rows)
        for _ in range(3):
            await tick(run)
            assert rows.key == key_before
            assert keys_in_sight(rows) == seen
        assert any(line.startswith("◆") for line in text_of(rows))
        await press(run, "escape")
        assert keys_in_sight(rows)[0] == 80
        rows.scroll_by(3)
        seen = keys_in_sight(rows)
        await tick(run)
        assert keys_in_sight(rows) == seen
        await press(run, "slash", *"nobody", "enter")
        assert any("no row passes the filter" in line for line in text_of(rows))


async def test_a_chosen_event_keeps_its_line_while_another_table_is_shown() -> None:
    """Back from another table the chosen row is where it was, however many events came."""
    steps, batches = quiet_seconds(4)
    async with running(steps, (120, 20), batches=batches, view=VIEW, ticks=1) as run:
        await press(run, *["down"] * 5)
        rows = shown(run).rows
        key, line = rows.key, (rows.at or 0) - rows.top
        await press(run, "P")
        await tick(run)
        await tick(run)
        await press(run, "p")
        assert (rows.key, (rows.at or 0) - rows.top) == (key, line)


async def test_a_choice_ends_with_its_event() -> None:
    """An event that is too old to be kept any more is chosen no longer, and the newest are followed."""
    steps, _ = quiet_seconds(2)
    batches = [(batch_of(example_events(1, 30)),), (batch_of(example_events(31, 10_000, LATER)),)]
    async with running(steps, (120, 20), batches=batches, view=VIEW, ticks=1) as run:
        rows = shown(run).rows
        await press(run, "down", "down", "right")
        await tick(run)
        assert (rows.key, rows.at) == (None, None)
        assert keys_in_sight(rows)[0] == 10_030
        assert shown(run).details.text == "no row selected"


async def test_ten_thousand_events_draw_a_page() -> None:
    """However many events are kept, only those in sight are made into text, and an arrow draws two rows anew."""
    steps, _ = quiet_seconds(2)
    batches = [(batch_of(example_events(1, 10_000)),), (batch_of(example_events(10_001, 500, LATER)),)]
    async with running(steps, (120, 30), batches=batches, view=VIEW, ticks=1) as run:
        rows = shown(run).rows
        assert len(rows.order) == 10_000
        assert rows.drawn <= rows.page
        drawn = rows.drawn
        await tick(run)
        assert rows.drawn - drawn <= rows.page
        assert keys_in_sight(rows)[0] == 10_500
        await press(run, "down")
        drawn = rows.drawn
        await press(run, "down")
        assert rows.drawn - drawn <= 2
        assert text_of(rows)[-1].strip() == "─ ≥10,000"


# --- how it looks -------------------------------------------------------------------------------------------


def cells_of(row: Row, width: int = 200) -> dict[str, Cell]:
    """Return the cells of one event, by the columns' names."""
    view = View(frame_of_events([row]), screen_query(EVENTS))
    at = np.array([0])
    looks = event_flags(view, at)
    return {
        column.name: column_cells(view, column, at, looks, EventsScreen.row_style)[0]
        for column in plan(EVENTS, EVENTS.screen, width)
    }


@pytest.mark.parametrize(
    ("event", "reason", "words", "role"),
    [
        ("fail", "refused", ("▲ fail", "refused"), Role.WARN),
        ("close", "reset by peer", ("▲ close", "reset by peer"), Role.WARN),
        ("close", "reset by us", ("▲ close", "reset by us"), Role.WARN),
        ("close", "timed out", ("▲ close", "timed out"), Role.WARN),
        ("close", "closed by peer", ("close", "closed by peer"), Role.TEXT),
        ("connect", None, ("connect", ""), Role.DIM),
        ("accept", None, ("accept", ""), Role.DIM),
    ],
)
def test_failures_warn_and_openings_are_dim(
    event: str, reason: str | None, words: tuple[str, str], role: Role
) -> None:
    """Failures and resets have a sign and a colour, openings are dim, and orderly ends plain."""
    cells = cells_of({"event": event, "reason": reason, "time": WALL_NS, "process": "nginx", "pid": 1})
    assert (cells["event"][0].strip(), cells["reason"][0].strip()) == words
    assert cells["event"][1] is role


NOW = "2026-11-18T11:06:40.123456Z"


@pytest.mark.parametrize(
    ("moment", "width", "text"),
    [
        (NOW, 15, "11:06:40.123456"),
        (NOW, 14, "11:06:40.123"),
        (NOW, 12, "11:06:40.123"),
        (NOW, 11, "11:06:40"),
        (NOW, 8, "11:06:40"),
        ("2026-11-17T23:59:59.999999Z", 15, "11-17 23:59:59"),
        ("2026-11-17T23:59:59.999999Z", 12, "11-17 23:59"),
        ("2026-11-17T23:59:59.999999Z", 8, "11-17"),
        ("2025-11-18T11:06:40.123456Z", 19, "2025-11-18 11:06:40"),
        ("2025-11-18T11:06:40.123456Z", 12, "2025-11-18"),
    ],
)
def test_times_are_short_and_never_ambiguous(moment: str, width: int, text: str) -> None:
    """Times of today have no date, those of another year begin with it."""
    assert when(moment, width, NOW) == text


def test_words_of_events_are_whole_from_80_on() -> None:
    """At 80 columns an IPv4 endpoint, the usual reasons and a time with milliseconds fit."""
    for width in range(80, 220):
        columns = {c.name: c.width for c in plan(EVENTS, EVENTS.screen, width)}
        assert next(iter(plan(EVENTS, EVENTS.screen, width))).title == "TIME UTC"
        assert columns["remote"] >= len("255.255.255.255:65535")
        assert columns["reason"] >= len("closed by peer")
        assert columns["time"] >= len("12:26:40.123")


# --- headline and words -------------------------------------------------------------------------------------


async def test_headline_counts_exactly() -> None:
    """Opened, closed and failed come from the kernel's counters, not from the events that were seen."""
    steps, _ = eventful_host(lost={"events": 1234})
    async with running(steps, (160, 20), view=VIEW) as run:
        text = shown(run).headline_bar.text
        assert text.split("   ")[:4] == [" opened 31/s", "closed 29/s", "failed 2/s", "events 0"]
        assert text.rstrip().endswith("1,234 events missed")
        await press(run, "P")
        assert "conns   opened 31/s   closed 29/s" in shown(run).headline_bar.text


@pytest.mark.parametrize(
    ("table", "words"),
    [(EVENTS, "no connection opened, closed or failed yet"), (FAILURES, "no failures since nettop started")],
    ids=["events", "failures"],
)
async def test_an_empty_table_says_why(table: Table, words: str) -> None:
    """An empty table says that nothing happened yet, or why it is not available."""
    view = f"connections.{table.name}"
    steps = only(FAILURES, [], eventful_host()[0])
    async with running(steps, (80, 24), view=view) as run:
        assert any(line.strip() == words for line in text_of(shown(run).rows))
    steps, _ = eventful_host(counts={}, via={"events": "n/a: tracepoints are not allowed"})
    async with running(only(FAILURES, [], steps), (60, 20), view=view) as run:
        text = " ".join(line.strip() for line in text_of(shown(run).rows))
        assert "are not available" in text
        assert "tracepoints are not allowed" in text
        first = "opened n/a   closed n/a   failed n/a" if table is EVENTS else "failures n/a"
        assert shown(run).headline_bar.text.strip().startswith(first)
        if table is EVENTS:
            await press(run, "P")
            assert "conns   opened n/a" in shown(run).headline_bar.text


# --- details ------------------------------------------------------------------------------------------------


async def open_details(run: Running) -> list[int]:
    """Open the details of the newest event; returns the keys that the source described."""
    await press(run, "down", "right")
    return run[2].script.described


async def test_details_of_a_living_connection_ask_by_its_cookie() -> None:
    """The source describes the socket, by the cookie of the event, and its answer stands first."""
    steps, _ = eventful_host()
    event = {"event_id": 9, "event": "accept", "id": 4096, "time": WALL_NS, "process": "nginx", "pid": 1812}
    async with running(steps, (160, 45), batches=[(batch_of([event]),)], view=VIEW) as run:
        assert await open_details(run) == [4096]
        await press(run, "m")
        text = shown(run).details.text
        assert text.startswith("COMMAND         nginx -g daemon off;")
        for field in (field for _, fields in sections_of(EVENTS) for field in fields):
            assert f"{field.name}: {field.help.split()[0]}" in text
        assert "2026-11-18T11:06:40.123456Z" in text


@pytest.mark.parametrize("cookie", [9, 5000], ids=["another's key", "nobody"])
async def test_details_of_an_ended_connection_ask_nobody(cookie: int) -> None:
    """A connection that is no more has its fields alone: the event's own number may be another socket's cookie."""
    steps, _ = eventful_host()
    sockets = [{"id": 4096 + cookie, "process": "other"}, {"id": 9, "state": "TIME_WAIT"}]
    event = {"event_id": 4096 + cookie, "event": "close", "id": cookie, "time": WALL_NS, "reason": "refused"}
    batches = [(batch_of([event]),)]
    async with running(only(SOCKETS, sockets, steps), (160, 45), batches=batches, view=VIEW) as run:
        assert await open_details(run) == []
        assert shown(run).details.text.startswith("PROCESS")
