# SPDX-License-Identifier: Apache-2.0
"""Failures and groups by pilot: rows that open into events or sockets, and rates that turn into totals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from nettop.query.filter import parse_filter
from nettop.query.query import screen_query
from nettop.query.view import View
from nettop.snapshots.connections import EVENTS, FAILURES, GROUP, GROUPS, LENS, SOCKETS
from nettop.snapshots.schema import NO_GROUP
from nettop.snapshots.snapshot import Frame, Snapshot
from nettop.widgets.table import LiveTable
from tests.builders.driving import on_eventful_host, press, running, shown, text_of, tick
from tests.builders.example_events import (
    batch_of,
    eventful_host,
    example_events,
    example_failures,
    frame_of_events,
    only,
)
from tests.unit.build import WALL_NS, Row, make_rows


def row_of(table: LiveTable, word: str) -> dict[str, str]:
    """Return the row that begins with a word, by the columns' titles; spaces are cut."""
    line = next(line for line in text_of(table) if line[1:].startswith(word))
    cells, at = {}, 1
    for column in table.columns:
        cells[column.title] = line[at : at + column.width].strip()
        at += column.width + 1
    return cells


# --- failures -----------------------------------------------------------------------------------------------


async def test_a_group_opens_into_its_events() -> None:
    """→ shows the events of the group, ← goes back to it; the filter of the tables stays as it was."""
    async with on_eventful_host((160, 30)) as run:
        await press(run, "p", "slash", *"java", "enter", "p", "down")
        failures = shown(run)
        await press(run, "right")
        inside = shown(run)
        assert run[0].app.screen is inside
        assert (inside.table.name, inside.opened_from) == ("events", FAILURES)
        assert inside.third_line.text.split()[:5] == ["sockets", "events", "failures", "→", "events"]
        assert {*inside.view.values("reason", inside.view.order)} == {"refused"}
        assert {*inside.view.values("process", inside.view.order)} == {"java"}
        assert "← failures" in inside.footer.text
        await press(run, "right", "left")
        assert shown(run) is inside
        failures.action_details()
        await press(run, "left")
        assert shown(run) is failures
        assert failures.rows.at == 0
        await press(run, "P")
        assert shown(run).state.query.filter.text == "java"


async def test_a_group_whose_events_were_overwritten_says_so() -> None:
    """The number of kept events does not look like a count, and an empty table gives its reason."""
    steps, batches = eventful_host()
    batches[0] = (
        batch_of(example_events(1, 30)),
        batch_of([row | {"event": "accept", "reason": None} for row in example_events(31, 10_000)]),
    )
    async with running(steps[:1], batches=batches[:1], view="connections.failures", ticks=1) as run:
        await press(run, "down", "right")
        inside = shown(run)
        assert (
            "the events of this group were overwritten: the newest 10,000 are kept" in text_of(inside.rows)[3]
        )
        assert "0 of the newest 10,000" in inside.third_line.text
        assert "newest events 10,000" in inside.headline_bar.text
        await press(run, "left", "P")
        assert "─ ≥10,000 " in "".join(text_of(shown(run).rows))


async def test_an_opened_group_goes_on_and_waits() -> None:
    """New events come in; while another table is shown it waits where it is, and a click on its table closes it."""
    async with on_eventful_host((160, 30)) as run:
        await press(run, "p", "p", "down", "right")
        inside = shown(run)
        rows = len(inside.rows.order)
        await tick(run)
        assert len(inside.rows.order) > rows
        await press(run, "p")
        assert shown(run).table.name == "groups"
        assert inside.view is None
        await press(run, "P")
        assert shown(run) is inside
        assert inside.view is not None
        await run[0].click(inside.third_line, offset=(inside.third_line.text.index("failures"), 0))
        await run[0].pause()
        assert shown(run).opened_from is None
        assert shown(run).table.name == "failures"


def event(number: int, **more: object) -> Row:
    """Return an event of the host's first group of failures, but for what is said."""
    row = {"event_id": number, "event": "fail", "reason": "refused", "time": WALL_NS, "netns": 4026531840}
    ends = {"remote_address": "10.0.9.4", "remote_port": 9092, "local_port": 40000, "direction": "outbound"}
    return row | ends | {"process": "java", "pid": 2210} | more


@pytest.mark.parametrize("group", example_failures(), ids=lambda g: str(g["reason"]))
async def test_a_groups_filter_passes_its_events_alone(group: Row) -> None:
    """An event with another reason, remote, port, process or namespace belongs to another group."""
    ends = (
        {"remote_port": group["port"]} if group["direction"] == "outbound" else {"local_port": group["port"]}
    )
    own = event(1, **{k: v for k, v in group.items() if k in EVENTS.by_name and k != "id"}) | ends
    others = [{"reason": "killed"}, {"remote_address": "10.0.9.5"}, dict.fromkeys(ends, 7), {"netns": 1}]
    others += [{"process": "javac"}] if group["process"] else []
    rows = [own, *(own | {"event_id": n} | other for n, other in enumerate(others, 2))]
    steps, batches = eventful_host()
    async with running(only(FAILURES, [group], steps), batches=batches, view="connections.failures") as run:
        screen = shown(run)
        assert screen.view is not None
        text = screen.member_filter(screen.view, np.array([0]))
    view = View(frame_of_events(rows), screen_query(EVENTS))
    assert parse_filter(EVENTS, text).mask(view).tolist() == [True] + [False] * len(others)


# --- groups of sockets --------------------------------------------------------------------------------------


async def test_groups_are_rates_that_turn_into_totals() -> None:
    """Groups show each second's growth, including closed connections; `t` shows totals, and the sort follows."""
    async with on_eventful_host((160, 30), view="connections.groups") as run:
        screen = shown(run)
        assert row_of(screen.rows, "nginx")["OPENED/s"] == "29"
        await press(run, "t")
        nginx = row_of(screen.rows, "nginx")
        assert [nginx[title] for title in ("OPENED", "FAILED", "SENT")] == ["8,271", "3", "982 MB"]
        assert str(screen.state.query.sort) == "-bytes"
        assert screen.headline_bar.text.startswith(
            " ↑ 1.10 GB   ↓ 116 MB   4 by process   conns 47   opened 9,510"
        )
        await press(run, "t")
        assert screen.state.names == GROUPS.screen


async def test_a_group_opens_into_its_sockets() -> None:
    """→ shows the sockets of a process or of a namespace, ← goes back."""
    async with on_eventful_host((160, 30), view="connections.groups") as run:
        groups = shown(run)
        await press(run, "down", "right")
        inside = shown(run)
        assert (inside.table.name, inside.opened_from) == ("sockets", GROUPS)
        assert inside.state.query.filter.text == "pid=1812"
        assert {*inside.view.values("pid", inside.view.order)} == {1812}
        await press(run, "left")
        assert shown(run) is groups
        assert run[2].script.described == []
        await press(run, "end", "right")
        assert shown(run).state.query.filter.text == "pid=–"
        rows = replace(
            make_rows([{"id": 1, "group": "web"}, {"id": 2, "group": NO_GROUP}], GROUPS), variant="netns"
        )
        view = View(Frame(Snapshot(LENS.id, 1, 1, {GROUPS.name: rows})), screen_query(GROUPS))
        filters = [groups.member_filter(view, np.array([at])) for at in (0, 1)]
        assert filters == ['namespace="web"', "namespace=–"]
        assert parse_filter(SOCKETS, str(filters[0])).names == ("namespace",)


async def test_g_shows_the_groups_and_folds_by_something_else() -> None:
    """`g` shows the groups from any table of the lens; there it selects the next grouping."""
    async with on_eventful_host((120, 30)) as run:
        await press(run, "g")
        assert shown(run).table is GROUPS
        assert GROUP not in run[2].script.options.values
        await press(run, "g")
        assert run[2].script.options[GROUP] == "remote"
