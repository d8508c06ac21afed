# SPDX-License-Identifier: Apache-2.0
"""The formats of plain output, byte by byte."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Sequence

import numpy as np
import pytest

from nettop.formats.jsonl import JsonLines
from nettop.formats.separated import Separated
from nettop.output.log import lines_of
from nettop.output.log_lines import Lost, TextLines, lost_line
from nettop.output.table import AlignedTable, Terminal, cell_width, cut, make_plan, whole_columns
from nettop.query.query import text_query
from nettop.query.view import View
from nettop.settings import Format, LineFormat, Settings, TextSettings, ViewSettings
from nettop.snapshots import find_table, views
from nettop.snapshots.bandwidth import INTERFACES
from nettop.snapshots.connections import EVENTS, FAILURES, SOCKETS
from nettop.snapshots.safe_text import safe_bytes
from nettop.snapshots.schema import Field, Kind, Table
from nettop.snapshots.services import SERVICES, WAITING
from nettop.snapshots.snapshot import Frame
from tests.unit.build import WALL_NS, Row, big_frame, example_frame, make_frame, make_rows, make_view
from tests.unit.woken import CONNECT

HOSTILE = [
    b"\x1b]0;owned\x07\x1b[31mred",
    b'quo"te,comma\\back',
    b"new\nline\ttab",
    b"100% %s %d",
    b"Web Content",
    b"",
    "中文 e\u0301\u202e".encode(),
    b"\xff\xfe",
    b"=1+1",
]
"""Process names that try to break a terminal, a row or a program."""

COLUMNS = ("process", "pid", "remote", "bytes_sent", "retransmit_ratio")
LONG = 2**63
"""A counter that a signed 64-bit number could not hold."""


def hostile_frame() -> Frame:
    """Return a row for each hostile name, numbers unknown, zero and huge."""
    numbers = [None, 0, 2**64 - 2, LONG, 1, 12, 123, 1234, 12345]
    rows: list[Row] = [
        {"process": safe_bytes(name), "pid": at or None, "bytes_sent": number}
        for at, (name, number) in enumerate(zip(HOSTILE, numbers, strict=True))
    ]
    return make_frame(rows)


def rows_of(frame: Frame, columns: Sequence[str] = COLUMNS) -> dict[Format, str]:
    """Return the frame's rows in each format, by key."""
    view, names = make_view(frame), tuple(columns)
    return {
        Format.TABLE: AlignedTable(SOCKETS, names)(view),
        Format.CSV: Separated(names)(view),
        Format.JSONL: JsonLines(names)(view),
    }


def test_table_golden() -> None:
    """The table aligns numbers right and text left, in raw base units, and ends no line in spaces; without
    rows it has only a header."""
    assert rows_of(make_frame([]), ("pid",)) == {
        Format.TABLE: "pid\n", Format.CSV: "time,pid\n", Format.JSONL: "",
    }  # fmt: skip
    rows: list[Row] = [
        {"process": "nginx", "pid": 1812, "bytes_sent": 982116204, "bytes_received": 4120417, "retransmits": 0},
        {"process": "postgres", "pid": 977, "remote_address": "2001:db8::1", "remote_port": 40922,
         "bytes_sent": 0, "retransmits": 3, "data_packets_sent": 96},
        {"bytes_sent": None, "remote_port": None, "remote_address": "0.0.0.0"},
    ]  # fmt: skip
    block = rows_of(make_frame(rows), (*COLUMNS, "state"))[Format.TABLE]
    assert block == (
        "process   pid   remote               bytes_sent  retransmit_ratio  state\n"
        "nginx     1812  203.0.113.9:52114     982116204                 –  ESTABLISHED\n"
        "postgres  977   [2001:db8::1]:40922           0          0.031250  ESTABLISHED\n"
        "–         –     0.0.0.0:*                     –                 –  ESTABLISHED\n"
    )


def test_csv_golden() -> None:
    """CSV quotes what would break a row, or run in a spreadsheet, and keeps an empty text apart from unknown values."""
    block = rows_of(hostile_frame(), ("process", "pid", "bytes_sent"))[Format.CSV]
    time_now = "2026-11-18T"
    assert time_now in block
    assert [line.partition(",")[2] for line in block.splitlines()] == [
        "process,pid,bytes_sent",
        "␛]0;owned␇␛[31mred,,",
        '"quo""te,comma\\back",1,0',
        "new␊line␉tab,2,18446744073709551614",
        "100% %s %d,3,9223372036854775808",
        "Web Content,4,1",
        '"",5,12',
        "中文 e\u0301\ufffd,6,123",
        "\ufffd\ufffd,7,1234",
        '"\'=1+1",8,12345',
    ]


def test_jsonl_golden() -> None:
    """JSON Lines say null for unknown, keep integers whole, and put the time first."""
    block = rows_of(hostile_frame(), ("process", "pid", "bytes_sent"))[Format.JSONL]
    first, second = block.splitlines()[:2]
    head, _, tail = second.partition(',"process"')
    assert head.startswith('{"time":"2026-11-18T') and head.endswith('Z"')
    assert first.endswith(',"process":"␛]0;owned␇␛[31mred","pid":null,"bytes_sent":null}')
    assert tail == ':"quo\\"te,comma\\\\back","pid":1,"bytes_sent":0}'


def test_hostile_table_keeps_its_columns() -> None:
    """With any process name, a row has one word per column and is aligned."""
    block = rows_of(hostile_frame())[Format.TABLE]
    header, *lines = block.splitlines()
    assert len(lines) == len(HOSTILE)
    assert {len(line.split()) for line in lines} == {len(COLUMNS)}
    at = header.index("pid")
    for line in lines:
        before = cut(line, at)
        assert cell_width(before) == at
        assert before.endswith("  ")
        assert line[len(before)] != " "


@pytest.mark.parametrize("form", list(Format))
def test_no_control_character_reaches_the_output(form: Format) -> None:
    """No format passes on escape sequences, bidi marks or bells of a name."""
    assert all(char.isprintable() or char in "\n\u0301" for char in rows_of(hostile_frame())[form])


def test_programs_read_back_what_was_meant() -> None:
    """csv and json modules give back each name and number as the snapshot has it; CSV shows formulas as text."""
    blocks = rows_of(hostile_frame())
    names = [safe_bytes(name) for name in HOSTILE]
    assert [row["process"] for row in map(json.loads, blocks[Format.JSONL].splitlines())] == names
    cells = [row["process"] for row in csv.DictReader(io.StringIO(blocks[Format.CSV]))]
    assert cells == ["'=1+1" if name == "=1+1" else name for name in names]
    assert json.loads(blocks[Format.JSONL].splitlines()[3])["bytes_sent"] == LONG


@pytest.mark.parametrize(
    ("table", "name", "wanted"),
    [
        (SERVICES, "oldest", "oldest[ns]"),
        (SERVICES, "response_ns", "response_ns"),
        (SERVICES, "response_ns_per_s", "response_ns_per_s"),
        (SERVICES, "waiting", "waiting"),  # requests are counted
        (WAITING, "since", "since"),  # a date and time
        (SOCKETS, "delivery_rate", "delivery_rate[bytes/s]"),
        (SOCKETS, "limited_share", "limited_share[ratio]"),
        (INTERFACES, "capacity_per_s", "capacity_per_s[bytes/s]"),
    ],
)
def test_headers_name_the_unit(table: Table, name: str, wanted: str) -> None:
    """Where the name does not; a header stays one word. CSV and JSON Lines have the name alone."""
    view = make_view(make_frame([{}], table=table))
    assert AlignedTable(table, (name,))(view).split()[0] == wanted
    assert Separated((name,))(view).splitlines()[0] == f"time,{name}"
    assert list(json.loads(JsonLines((name,))(view)))[1:] == [name]


def test_widths_only_grow() -> None:
    """A column that was wide once stays so: nothing jumps from one refresh to the next."""
    table = AlignedTable(SOCKETS, ("process", "bytes_sent"))
    blocks = [table(make_view(make_frame([{"process": name, "bytes_sent": n}]))) for name, n in
              (("sh", 1), ("a-long-process-name", 10**12), ("sh", 1))]  # fmt: skip
    assert blocks[0] == "process  bytes_sent\nsh                1\n"
    assert blocks[1] == "\nprocess                 bytes_sent\na-long-process-name  1000000000000\n"
    assert blocks[2] == "\nprocess                 bytes_sent\nsh                               1\n"


def test_csv_has_one_header() -> None:
    """Only the first refresh of CSV has a header."""
    lines = Separated(("pid",))
    view = make_view(make_frame([{"pid": 1}]))
    assert [lines(view).count("time,pid") for _ in range(3)] == [1, 0, 0]


def test_terminal_cuts_lines_and_marks_the_header() -> None:
    """On a terminal lines end at its width, wide characters counted as two cells, and the header is bold."""
    terminal = Terminal(lambda: 10, bold=True)
    block = AlignedTable(SOCKETS, ("process", "pid"), terminal)(
        make_view(make_frame([{"process": "中文中文中文", "pid": 12345}]))
    )
    assert block == "\x1b[1mprocess   \x1b[0m\n中文中文中\n"


def test_rates_and_deltas() -> None:
    """Rates have a decimal in the table and all of them elsewhere; deltas of a counter stay whole."""
    frame = make_frame([{"id": 1, "bytes_sent": 1000}], [{"id": 1, "bytes_sent": 1}], elapsed_s=2.0)
    assert rows_of(frame, ("bytes_sent_per_s",))[Format.TABLE] == "bytes_sent_per_s\n           499.5\n"
    assert rows_of(frame, ("bytes_sent_per_s",))[Format.JSONL].endswith('"bytes_sent_per_s":499.5}\n')
    deltas = JsonLines(("bytes_sent",))(make_view(frame, deltas=True))
    assert deltas.endswith('"bytes_sent":999}\n')


def test_every_column_in_every_format() -> None:
    """Every word that --columns takes can be printed, and rows keep their length."""
    blocks = rows_of(example_frame(60), SOCKETS.names)
    assert len({line.count('":') for line in blocks[Format.JSONL].splitlines()}) == 1
    assert all(
        set(json.loads(line)) == {"time", *SOCKETS.names} for line in blocks[Format.JSONL].splitlines()
    )
    assert {len(row) for row in csv.reader(io.StringIO(blocks[Format.CSV]))} == {len(SOCKETS.names) + 1}
    assert {len(line.split()) for line in blocks[Format.TABLE].splitlines()} == {len(SOCKETS.names)}


@pytest.mark.parametrize("form", [Format.CSV, Format.JSONL])
def test_rows_are_written_by_the_column(form: Format) -> None:
    """A row takes a few calls, for the text of its own address, and none for each of its forty columns."""
    few, many = (calls_for(rows, form) for rows in (2_000, 20_000))
    assert (many - few) / 18_000 < 16


def calls_for(rows: int, form: Format) -> int:
    """Return the number of Python calls that writing `count` rows with all columns takes."""
    plan = make_plan(Settings(view=ViewSettings(all_rows=True), text=TextSettings(form)))
    frame = big_frame(rows)
    format_view = JsonLines(plan.columns) if form is Format.JSONL else Separated(plan.columns)
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        block = format_view(View(frame, plan.query))
    finally:
        sys.setprofile(None)
    assert block.count("\n") >= rows
    return calls


# --- lines of logs --------------------------------------------------------------------------------------------

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
