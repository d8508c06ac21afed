# SPDX-License-Identifier: Apache-2.0
"""The contents of lines, and the time of rows that have their own."""

from __future__ import annotations

import json

import numpy as np
import pytest

from nettop.formats.jsonl import JsonLines
from nettop.formats.separated import Separated
from nettop.output.log_lines import Lost, TextLines, lost_line
from nettop.output.log_plan import lines_of
from nettop.output.plan import whole_columns
from nettop.query.query import text_query
from nettop.query.view import View
from nettop.settings import LineFormat
from nettop.snapshots import find_table, views
from nettop.snapshots.connections import EVENTS, FAILURES
from nettop.snapshots.schema import Field, Kind, Table
from nettop.snapshots.snapshot import Frame
from tests.unit.build import WALL_NS, Row, make_frame, make_rows
from tests.unit.woken import CONNECT

TIME = "2026-11-18T11:06:40.123456Z"


def events(*rows: Row) -> View:
    """Return events, in a frame that was taken a second later than they happened."""
    frame = make_frame([], wall_ns=WALL_NS + 1_000_000_000)
    return View(Frame(frame.now, None, {"events": (make_rows(rows, EVENTS),)}), text_query(EVENTS))


def test_an_events_time_stands_once() -> None:
    """JSON Lines and CSV have the event's own time, as their first column and no other."""
    view = events(CONNECT)
    line = JsonLines(("event_id", "time", "event"))(view)
    assert line == f'{{"time":"{TIME}","event_id":1,"event":"connect"}}\n'
    assert Separated(("event_id", "time", "event"))(view) == f"time,event_id,event\n{TIME},1,connect\n"


def test_marks_stand_behind_the_time() -> None:
    """Values common to all lines come after the time."""
    marks = {"type": "event", "lens": 'a"b'}
    line = JsonLines(("time", "pid"), marks)(events(CONNECT))
    assert json.loads(line) == {"time": TIME, **marks, "pid": 4615}
    sockets = make_frame([{"pid": 7}])
    view = View(sockets, text_query(next(iter(sockets.now.tables.values())).table))
    assert JsonLines(("pid",), marks)(view).startswith(
        '{"time":"2026-11-18T11:06:41.123456Z","type":"event",'
    )


@pytest.mark.parametrize("view", views())
def test_no_key_stands_twice(view: str) -> None:
    """A log's lines have each key once, and every column."""
    table = find_table(view)[1]
    rows = make_frame([{}], table=table).now
    frame = Frame(rows, None, {table.name: (rows.tables[table.name],)})
    maker = lines_of(LineFormat.JSONL, "metrics", view, table, why=False)
    keys = json.loads(maker.lines(View(frame, text_query(table)), np.arange(1)), object_pairs_hook=list)
    names = [name for name, _ in keys]
    assert len(set(names)) == len(names) == len({"time", *whole_columns(table)}) + 2


def test_any_table() -> None:
    """A table of any lens has its time, its kind, names and values, then amounts with their units."""
    table = Table(
        name="packets",
        fields=(
            Field("id", Kind.KEY, "ID", "which", "u8"),
            Field("reason", Kind.TEXT, "REASON", "why", "u4"),
            Field("interface", Kind.ENUM, "IFACE", "where", "u1", labels={1: "eth 0"}),
            Field("bytes", Kind.COUNTER, "BYTES", "how much", "u8", "bytes"),
            Field("share", Kind.RATIO, "SHARE", "of all", parts=("bytes", "bytes")),
        ),
        key="id",
        screen=("reason",),
        text=("reason", "interface", "bytes", "bytes_per_s", "share"),
        sort="reason",
        text_sort="id",
    )
    rows = [{"reason": "NO SOCKET", "interface": "eth 0", "bytes": 1500}, {"reason": None, "interface": None}]
    before = [{"reason": "NO SOCKET", "bytes": 500}, {}]
    view = View(make_frame(rows, before, table=table, lens="drops"), text_query(table))
    assert TextLines("drops", table, "drops").lines(view, view.order) == (
        "2026-11-18T11:06:41.123456Z  drops    reason=NO_SOCKET  interface=eth_0  bytes 1,500 B  bytes/s 8.0 kb/s"
        "  share 100%\n"
        "2026-11-18T11:06:41.123456Z  drops    reason=–  interface=–\n"
    )


def test_a_table_with_a_time_and_an_owner() -> None:
    """Failures have a process without a PID: both are named, and no line is empty of a time."""
    row = {"reason": "refused", "process": "curl", "port": 1, "failed": 3, "reset": 0}
    row |= {"first_at": WALL_NS, "last_at": WALL_NS}
    view = View(make_frame([row], table=FAILURES), text_query(FAILURES))
    (line,) = TextLines("connections", FAILURES, "connections.failures").lines(view, view.order).splitlines()
    assert "  reason=refused  remote_address=::  port=1  process=curl  " in line
    assert f"  first_at={TIME}  last_at={TIME}  failed 3  reset 0" in line


@pytest.mark.parametrize(("cause", "why"), [("ring full", " (ring full)"), ("", "")])
def test_lost_lines(cause: str, why: str) -> None:
    """A loss is a line of its own type."""
    readable = lost_line(LineFormat.TEXT, WALL_NS, Lost("events", cause, 37, 40))
    assert readable == f"{TIME}  lost     37 events{why}, 40 in all\n"
    row = json.loads(lost_line(LineFormat.JSONL, WALL_NS, Lost("events", cause, 37, 40)))
    assert row == {"time": TIME, "type": "lost", "what": "events", "cause": cause, "count": 37, "total": 40}
