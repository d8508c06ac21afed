# SPDX-License-Identifier: Apache-2.0
"""Tables over HTTP: a valid request gets its table, and an invalid one a problem document."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import threading
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nettop.errors import SourceFailed, UsageError
from nettop.formats.jsonl import document
from nettop.query.batches import PIECE_ROWS
from nettop.query.query import Query, parse_filter, parse_sort
from nettop.query.view import View
from nettop.serve.api.parameters import MAX_FILTER_CHARS, MAX_QUERY_BYTES, default_columns, parse_wanted
from nettop.serve.api.tables import FORMATTED_AT_ONCE, FORMATTERS, OPEN_AT_ONCE, current_frame, table_pieces
from nettop.serve.served import Served
from nettop.snapshots import find_table, view_name
from nettop.snapshots.connections import LENS as CONNECTIONS
from nettop.snapshots.connections import SOCKETS
from nettop.snapshots.own_cost import SELF
from nettop.snapshots.schema import Kind
from tests.unit.build import Row, big_frame, make_frame
from tests.unit.serving import DEADLINE_S, LENSES, Client, ask, example_host, make_served, table, table_app

VIEWS = [view_name(lens, other) for lens in LENSES for other in lens.tables]
PATH = "/api/v1/connections"
FEW: list[Row] = [
    {"process": "nginx", "bytes_sent": 300, "rtt_us": 50},
    {"process": "ms-tool", "bytes_sent": 100, "rtt_us": 20},
    {"process": "curl", "bytes_sent": 200, "rtt_us": 12_000},
    {"process": "sshd", "state": "LISTEN", "bytes_sent": 0, "bytes_received": 0},
]


def grown(rows: list[Row]) -> list[Row]:
    """Return the rows after each connection has sent ten more bytes."""
    return [row | {"bytes_sent": row["bytes_sent"] + 10 * (row.get("state") != "LISTEN")} for row in rows]


def few(**kwargs: Any) -> Served:
    """Return a few connections, each of which sent ten bytes in the last second."""
    return make_served(make_frame(grown(FEW), FEW), **kwargs)


def processes(shown: dict[str, Any]) -> list[str]:
    """Return the processes of a table, in its order."""
    return [row["process"] for row in shown["rows"]]


async def problem_of(served: Served, path: str, query: str = "", method: str = "GET") -> dict[str, Any]:
    """Return the problem that an answer is, which is checked for what every problem has."""
    answer = await ask(table_app(served), path, query, method)
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = json.loads(answer.body)
    assert problem["status"] == answer.status >= 400
    assert problem["type"] == "about:blank"
    assert problem["instance"] == quote(path)
    return problem | {"headers": answer.headers}


# --- what is given ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", VIEWS)
async def test_rows_are_what_the_view_has(view: str) -> None:
    """Every column of every table has the values of the view, under its name, in the order of the request."""
    served = example_host()
    lens, declared = find_table(view)
    names = declared.names[::-1]
    shown = await table(served, view, urlencode({"columns": ",".join(names), "all": "true"}))
    frame = current_frame(served, lens.id)
    query = Query(
        declared, parse_sort(declared, declared.sort), parse_filter(declared, ""), all_rows=True, closed=True
    )
    seen = View(frame, query)
    columns = [seen.values(name, seen.order) for name in names]
    assert shown["rows"] == [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    assert shown["rows"], "the example has rows in every table"
    assert [*shown["rows"][0]] == list(names)
    assert shown["shown"] == shown["total"] == len(seen.order)
    assert shown["interval_s"] == seen.elapsed_s
    assert shown["view"] == view
    assert shown["lost"] == frame.now.lost


@pytest.mark.parametrize("view", VIEWS)
async def test_the_default_columns_have_the_key_the_order_and_no_group(view: str) -> None:
    """By default a table gives its key, the columns of plain text, their rates, and the sort column."""
    _, declared = find_table(view)
    shown = await table(example_host(), view)
    columns = [*shown["rows"][0]]
    assert columns == list(default_columns(declared))
    assert {declared.key, declared.sort.removeprefix("-"), *declared.text} <= set(columns)
    kinds = {declared.by_name[name].kind for name in columns if name in declared.by_name}
    assert Kind.GROUP not in kinds


async def test_a_document_says_what_it_is_of() -> None:
    """A document has view, time, interval, rows omitted by the limit, losses, and unavailable fields."""
    frame = make_frame(grown(FEW), FEW, lost={"events": 3}, missing={"rtt_us": "no such hook"})
    shown = await table(make_served(frame), "connections", "limit=2&columns=rtt_us,process")
    assert shown.pop("age_s") > 0
    assert shown == {
        "view": "connections",
        "time": "2026-11-18T11:06:41.123456Z",
        "interval_s": 1.0,
        "shown": 2,
        "total": 3,
        "lost": {"events": 3},
        "not_available": {"rtt_us": "no such hook"},
        "rows": [{"rtt_us": None, "process": "nginx"}, {"rtt_us": None, "process": "ms-tool"}],
    }


async def test_a_table_without_its_hook_says_why_it_has_no_rows() -> None:
    """The reason for missing rows is listed under the table's name."""
    frame = make_frame(FEW, via={"events": "n/a: this kernel has no tracepoint"})
    shown = await table(make_served(frame), "connections.events")
    assert (shown["rows"], shown["not_available"]["events"]) == ([], "this kernel has no tracepoint")


async def test_no_rows() -> None:
    """A table without rows is an empty array, and in CSV a header."""
    served = make_served(make_frame([]))
    assert (await table(served, "connections"))["rows"] == []
    answer = await ask(table_app(served), PATH, "format=csv&columns=pid,state")
    assert answer.body == b"time,pid,state\n"


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("sort=-bytes_sent", ["nginx", "curl", "ms-tool"]),
        ("sort=bytes_sent&limit=2", ["ms-tool", "curl"]),
        ("sort=process&all=true", ["curl", "ms-tool", "nginx", "sshd"]),
        ("filter=bytes_sent%3E150&filter=rtt_us%3C1ms", ["nginx"]),
        ("filter=curl", ["curl"]),
        ("filter=&sort=id", ["nginx", "ms-tool", "curl"]),
        ("sort=id&limit=999999999&all=false&deltas=false&format=json", ["nginx", "ms-tool", "curl"]),
    ],
)
async def test_a_request_gets_what_it_wants(query: str, expected: list[str]) -> None:
    """A request selects order, limit, filters and the default filter."""
    assert processes(await table(few(), "connections", query)) == expected


async def test_deltas_are_what_the_last_interval_added() -> None:
    """With deltas a counter is its growth, otherwise its total."""
    totals = await table(few(), "connections", "columns=bytes_sent&sort=id&limit=1")
    deltas = await table(few(), "connections", "columns=bytes_sent&sort=id&limit=1&deltas=true")
    assert (totals["rows"], deltas["rows"]) == ([{"bytes_sent": 310}], [{"bytes_sent": 10}])


async def test_the_newest_events_come_first() -> None:
    """A table of events has those of all readings, in its own order."""
    shown = await table(example_host(), "connections.events", "columns=time,event_id&limit=3")
    assert shown["total"] == 120
    assert [row["event_id"] for row in shown["rows"]] == [120, 119, 118]


async def test_csv_is_its_header_and_a_line_a_row() -> None:
    """CSV has one header before all pieces; the time is the first column."""
    served = make_served(big_frame(2 * PIECE_ROWS + 7))
    answer = await ask(table_app(served), PATH, "format=csv&columns=id,remote,bytes_sent&sort=id&all=true")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8; header=present"
    rows = list(csv.DictReader(io.StringIO(answer.body.decode())))
    shown = await table(served, "connections", "columns=id,remote,bytes_sent&sort=id&all=true")
    expected = [{name: "" if v is None else str(v) for name, v in row.items()} for row in shown["rows"]]
    assert [{name: row[name] for name in expected[0]} for row in rows] == expected
    assert {row["time"] for row in rows} == {shown["time"]}
    assert len(rows) == 2 * PIECE_ROWS + 7


@pytest.mark.parametrize("rows", [1, PIECE_ROWS - 1, PIECE_ROWS, PIECE_ROWS + 1, 3 * PIECE_ROWS])
async def test_large_tables_are_made_in_pieces(rows: int) -> None:
    """The pieces form one document with every row once, and none exceeds the limit of rows."""
    served = make_served(big_frame(rows))
    wanted = parse_wanted(served, "connections", b"columns=id&sort=id&all=true")
    made = list(table_pieces(wanted, current_frame(served, "connections")))
    assert max(piece.count(b'"id"') for piece in made) <= PIECE_ROWS
    keys = [row["id"] for row in json.loads(b"".join(made))["rows"]]
    assert len(set(keys)) == len(keys) == rows


async def test_json_is_valid_for_any_name() -> None:
    """Names with quotes, control characters or invalid encodings are valid UTF-8 strings."""
    names = ["\x1b]0;owned\x07\x1b[31mred", 'quo"te,comma\\back', "new\nline\ttab", "", "中文 e\u0301\u202e"]
    names += ["\ufffd\ufffd", "lone \ud800 surrogate", "\x00\x9b\u2028"]
    served = make_served(make_frame([{"process": name} for name in names]))
    shown = await table(served, "connections", "columns=process&sort=id")
    assert processes(shown) == [name.encode("utf-8", "replace").decode() for name in names]


def test_a_document_repeats_no_text_as_it_was_given() -> None:
    """The head escapes all but ASCII, so that a query cannot send control characters to a terminal."""
    view = View(make_frame(FEW), Query(SOCKETS, parse_sort(SOCKETS, "id"), parse_filter(SOCKETS, "")))
    text = "".join(document({"query": "\x9b31m\ud800\x1b"}, view, ["id"], view.order))
    assert text.isascii() and text.isprintable()
    assert json.loads(text)["query"] == "\x9b31m\ud800\x1b"


# --- filters of the server ----------------------------------------------------------------------------------


async def test_filters_of_the_server_hold_where_their_fields_are() -> None:
    """A server's filter applies only to tables with its field."""
    served = example_host(filters=("process=nginx", "bytes_sent>=0"))
    assert set(processes(await table(served, "connections"))) == {"nginx"}
    failures = await table(served, "connections.failures")
    assert set(processes(failures)) == {"nginx"}
    assert (await table(served, "drops"))["rows"]


async def test_a_request_cannot_change_a_filter_of_the_server() -> None:
    """`rtt_us>10` still means microseconds if a request's own filter is `ms`."""
    served = few(filters=("rtt_us>10",))
    assert processes(await table(served, "connections", "filter=ms")) == ["ms-tool"]
    assert processes(await table(few(filters=("process~x",)), "connections", "filter=process~n")) == ["nginx"]


# --- what is wrong ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "parameter", "said"),
    [
        ("limt=3", "limt", "did you mean limit?"),
        ("x=1", "x", "choose from: all, columns, deltas, filter, format, limit, sort"),
        ("limit=1&limit=2", "limit", "more than once"),
        ("sort=id&sort=id", "sort", "more than once"),
        *(
            (f"limit={limit}", "limit", repr(limit.replace("+", " ")))
            for limit in ("0", "-1", "1e9", "", "+5")
        ),
        ("limit=5%0A", "limit", "whole number"),
        ("limit=1000000000", "limit", "999999999"),
        (f"limit={'9' * 5000}", "limit", "999999999"),
        ("limit=%E0%A5%A7", "limit", "'१'"),
        ("all=1", "all", "true or false"),
        ("deltas=True", "deltas", "true or false"),
        ("format=xml", "format", "json or csv"),
        ("sort=bytes_snt", "sort", "bytes_sent"),
        ("sort=", "sort", "unknown sort field"),
        ("sort=--id", "sort", "id"),
        ("columns=", "columns", "unknown column ''"),
        ("columns=pid,,uid", "columns", "unknown column ''"),
        ("columns=proces", "columns", "process"),
        ("filter=proces%3Dx", "filter", "process"),
        ("filter=%22open", "filter", "quote"),
        (f"filter={'a' * MAX_FILTER_CHARS}&filter=b", "filter", str(MAX_FILTER_CHARS)),
        ("filter=%FF", None, "UTF-8"),
        ("filter=%ED%A0%80", None, "UTF-8"),
        (f"filter={'a' * MAX_QUERY_BYTES}", None, str(MAX_QUERY_BYTES)),
    ],
)
async def test_bad_parameters_are_named(query: str, parameter: str | None, said: str) -> None:
    """An unknown parameter or bad value is a 400 that names it, and a valid one."""
    problem = await problem_of(few(), PATH, query)
    assert problem["status"] == 400
    assert problem.get("parameter") == parameter
    assert said in problem["detail"] + problem.get("remedy", "")
    assert max(map(len, map(str, problem.values()))) <= 500


async def test_a_histogram_is_no_order() -> None:
    """The error for sorting by a histogram names its quantiles."""
    problem = await problem_of(example_host(), "/api/v1/latency", "sort=histogram")
    assert (problem["status"], problem["parameter"]) == (400, "sort")
    assert "p50" in problem["remedy"]


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/api/v1/conections", "connections"),
        ("/api/v2/connections", "/api/openapi.json"),
        ("/api/v1/cpu.stacks", "the lens cpu is not served it is served if --lenses names it"),
    ],
)
async def test_a_view_that_does_not_exist(path: str, said: str) -> None:
    """Return 404 with the nearest names, where paths are listed, or the option that adds the lens."""
    problem = await problem_of(few(lenses=(CONNECTIONS, SELF)), path)
    assert problem["status"] == 404
    assert said in f"{problem['detail']} {problem['remedy']}"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_lens_that_was_not_read_yet(method: str) -> None:
    """A lens is a 503 until its first reading."""
    problem = await problem_of(few(), "/api/v1/cpu", method=method)
    assert (problem["status"], problem["headers"]["retry-after"]) == (503, "1")


@pytest.mark.parametrize("failure", [SourceFailed("it broke", "mend it"), UsageError("it broke", "mend it")])
async def test_a_lens_that_failed(failure: SourceFailed | UsageError) -> None:
    """A failed lens gives its reason instead of its last rows, for any kind of error."""
    served = few()
    served.session.bus.fail("connections", failure)
    problem = await problem_of(served, PATH)
    assert (problem["status"], problem["headers"]["retry-after"]) == (503, "1")
    assert (problem["detail"], problem["remedy"]) == ("connections: it broke", "mend it")


async def test_only_get_and_head() -> None:
    """Other methods are a 405 with what is allowed; HEAD has the headers of GET and no body."""
    problem = await problem_of(few(), PATH, method="DELETE")
    assert problem["status"] == 405
    assert set(problem["headers"]["allow"].split(", ")) == {"GET", "HEAD"}
    for query in ("", "format=csv"):
        head, whole = [await ask(table_app(few()), PATH, query, method) for method in ("HEAD", "GET")]
        whole.headers.pop("vary", None)  # of what is long enough to be compressed
        assert (head.status, head.headers, head.body) == (200, whole.headers, b"")
        assert whole.body


async def test_a_bug_tells_nothing_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unexpected error is a 500 whose text is always the same."""
    served = few()
    monkeypatch.setattr(Served, "frame", lambda self, lens: 1 / 0)
    problem = await problem_of(served, PATH)
    assert problem["status"] == 500
    assert "division" not in str(problem)


_WORDS = [
    "sort", "limit", "columns", "filter", "all", "deltas", "format", "id", "bytes_sent", "time", "remote",
]  # fmt: skip
_MARKS = [
    "=", "&", "+", "%00", "%FF", "%ED%A0%80", "%", "-", ",", '"', "~", ">", "<", "/", ";", "#", "\x00", "\xff",
]  # fmt: skip
_QUERIES = st.one_of(
    st.binary(max_size=60),
    st.lists(
        st.sampled_from((*_WORDS, *_MARKS, "9" * 30, "2026-11-20", "10.0.0.0/8", "10ms", "1e99")), max_size=14
    ).map(lambda words: "".join(words).encode("latin-1")),
    st.builds(
        lambda name, value: urlencode({name: value}, errors="surrogatepass").encode(),
        st.sampled_from(_WORDS[:7]),
        st.text(st.characters(), max_size=30),
    ),
)


@settings(max_examples=400)
@given(view=st.sampled_from(VIEWS), query=_QUERIES)
def test_any_query_is_answered(view: str, query: bytes) -> None:
    """Any query gets a document or a problem, in valid JSON and UTF-8."""
    answer = asyncio.run(ask(_ANY_QUERY, f"/api/v1/{view}", query))
    assert answer.status in {200, 400}
    if answer.headers["content-type"].startswith("text/csv"):
        assert answer.body.decode().startswith("time")
    else:
        json.loads(answer.body.decode())


@settings(max_examples=100)
@given(path=st.text(st.characters(), max_size=20))
def test_any_path_is_answered(path: str) -> None:
    """Any path gets a document or a problem."""
    answer = asyncio.run(ask(_ANY_QUERY, f"/api/v1/{path}"))
    assert answer.status in {200, 404}
    json.loads(answer.body.decode())


_ANY_QUERY = table_app(example_host())


# --- many at once -------------------------------------------------------------------------------------------


async def test_few_tables_are_formatted_at_once() -> None:
    """At the limit of concurrent tables, another one waits while the loop answers other requests."""
    released = threading.Event()
    busy = [FORMATTERS.submit(released.wait, DEADLINE_S) for _ in range(FORMATTED_AT_ONCE)]
    try:
        app = table_app(few())
        waiting = Client(app, PATH)
        other = await ask(app, PATH, "limit=0")
        assert (other.status, waiting.status) == (400, 0)
    finally:
        released.set()
    await waiting.end()
    assert waiting.status == 200 and json.loads(waiting.body)["rows"]
    assert all(request.result() for request in busy)


async def test_clients_that_take_nothing_hold_no_more_than_their_places() -> None:
    """At the limit of unread tables a request waits until one of their clients leaves."""
    app = table_app(few())
    slow = [Client(app, PATH) for _ in range(OPEN_AT_ONCE)]
    for client in slow:
        client.takes.clear()
    await asyncio.gather(*(client.until_blocked() for client in slow))
    waiting = Client(app, PATH)
    assert (await ask(app, PATH, "limit=0")).status == 400
    assert waiting.status == 0 and not waiting.task.done()
    await slow[0].go()
    await waiting.end()
    assert waiting.status == 200 and json.loads(waiting.body)["rows"]
    for client in slow[1:]:
        await client.go()
        assert client.body == b""
