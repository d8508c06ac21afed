# SPDX-License-Identifier: Apache-2.0
"""The dashboard in a browser: sorting, filtering, zooming, reconnecting, and texts that look like markup."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from urllib.parse import parse_qsl

import pytest
from playwright.sync_api import Browser, Locator, Page, expect
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from nettop.process.interrupts import Requests
from nettop.query.filter import parse_filter
from nettop.query.query import checked_columns, parse_sort
from nettop.query.units import human, human_spread
from nettop.serve.api.parameters import MAX_STREAMED_ROWS
from nettop.serve.http.limits import Server
from nettop.serve.http.server import serve
from nettop.serve.pages import page_routes
from nettop.snapshots import find_table
from nettop.snapshots.connections import SOCKETS
from nettop.snapshots.schema import RATE, Kind
from tests.unit.chromium import needs_chromium

pytestmark = needs_chromium

HOSTILE = "<img src=x onerror=alert(1)>"
LENSES = ("connections", "bandwidth", "cpu", "latency", "drops", "findings", "self")
BEGAN = datetime(2026, 11, 22, 15, tzinfo=UTC)
PATIENCE_S = 60
"""Only a test that fails waits so long: a busy machine is slow."""
ROW = 18
"""Pixels of a row of the flame graph."""
expect.set_options(timeout=PATIENCE_S * 1000)

Row = dict[str, Any]


def connection(number: int, process: str | None, sent: float, **more: Any) -> Row:
    """Return a connection as the API gives it."""
    return {
        "id": number,
        "process": process,
        "pid": 1000 + number,
        "container": None,
        "protocol": "tcp",
        "local": "10.0.3.7:443",
        "remote": f"203.0.113.{number}:50000",
        "bytes_sent_per_s": sent,
        "bytes_received_per_s": 0,
        "rtt_us": 21_400,
        "rtt_var_us": 3_100,
        "retransmit_ratio": 0.0,
        "retransmits_per_s": 31.0,
        "data_packets_sent_per_s": 1000.0,
        "state": "ESTABLISHED",
    } | more


def stage(name: str, number: int) -> Row:
    """Return a stage whose durations are between 16 and 32 µs."""
    quantiles = dict.fromkeys(("p50", "p90", "p99", "max"), 24_000)
    return {"stage": name, "seen_per_s": number, "latency": [[16_000, 32_000, number]], **quantiles}


def interface(name: str, backing: str) -> Row:
    """Return an interface that receives 8 Mb/s and sends 16 Mb/s."""
    rates = {"bytes_received_per_s": 1e6, "bytes_sent_per_s": 2e6}
    packets = {"packets_received_per_s": 900.0, "packets_sent_per_s": 1500.0}
    row = {"interface": name, "kind": "ether", "namespace": "own", "backing": backing, "speed": None}
    return row | rates | packets


def stacks(*counts: tuple[str, str, str, int]) -> list[Row]:
    """Return sampled stacks: entry point, category, functions and samples."""
    return [
        {"entry": entry, "category": category, "stack": stack, "samples": n, "time_ns": n * 10_000_000}
        for entry, category, stack, n in counts
    ]


RECEIVE = "handle_softirqs;net_rx_action;ip_rcv;tcp_v4_rcv"
TABLES: dict[str, list[Row]] = {
    "connections": [
        connection(1, "nginx", 4_775_000.0),
        connection(2, HOSTILE, 1000.0),
        connection(3, "curl", 0.0, retransmit_ratio=0.031),
        connection(4, None, 2000.0, rtt_us=None, rtt_var_us=None, state="SYN_SENT"),
    ],
    "connections.events": [
        {
            "event_id": 1,
            "time": "2026-11-22T15:00:00.125000Z",
            "event": "fail",
            "reason": "refused",
            "process": HOSTILE,
            "pid": 7,
            "remote": "203.0.113.9:443",
            "duration_us": None,
        }
    ],
    "bandwidth": [interface("eth0", "uplink"), interface("docker0", "virtual")],
    "cpu": [{"cpu": number, "network_ns_per_s": 50_000_000.0} for number in range(2)],
    "cpu.stacks": stacks(
        ("RX softirq", "TCP", RECEIVE, 60),
        ("RX softirq", "other", f"handle_softirqs;{HOSTILE}", 10),
        ("TX syscalls", "TCP", "do_syscall_64;tcp_sendmsg", 30),
    ),
    "latency": [stage("wire-app", 1000), stage("rtt", 10)],
    "drops": [
        {
            "id": 1,
            "reason": "NO_SOCKET",
            "place": None,
            "protocol": "tcp",
            "interface": "eth0",
            "packets_per_s": 3.0,
            "packets": 1234,
            "last_seen": "2026-11-22T15:00:00Z",
        }
    ],
    "findings": [],
    "self": [{"time_ns_per_s": 9_000_000.0, "memory": 88_000_000}],
}


class Scripted:
    """A server with the dashboard at a fixed port; a test may change its tables, and publishes them on request.

    `opened` are the queries of each stream, `read` those of single tables.
    """

    def __init__(self) -> None:
        self.tables = {name: list(rows) for name, rows in TABLES.items()}
        self.lenses: tuple[str, ...] = LENSES
        self.not_available: dict[str, str] = {}
        self.failed: dict[str, str] = {}
        self.recording: dict[str, str] | None = None
        self.opened: list[list[str]] = []
        self.read: list[str] = []
        self.port = 0
        self._readings = 0

    def start(self) -> None:
        """Listen, and serve in a thread."""
        listener = socket.create_server(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        listener.setblocking(False)
        self._requests = Requests()
        self._ending = False
        ready = threading.Event()

        def app() -> Starlette:
            self._loop, self._news = asyncio.get_running_loop(), asyncio.Condition()
            return self._app()

        server = Server(app, [listener], self._requests, print, on_ready=ready.set)
        self._thread = threading.Thread(target=serve, args=(server,))
        self._thread.start()
        assert ready.wait(PATIENCE_S)

    def stop(self) -> None:
        """End the streams, and the server."""
        self._ending = True
        self._wake()
        self._requests.end()
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()

    def publish(self) -> None:
        """Publish a new reading of everything, a second later."""
        self._readings += 1
        self._wake()

    @property
    def url(self) -> str:
        """Return the page's URL."""
        return f"http://127.0.0.1:{self.port}/"

    def _wake(self) -> None:
        asyncio.run_coroutine_threadsafe(self._notify(), self._loop).result(PATIENCE_S)

    async def _notify(self) -> None:
        async with self._news:
            self._news.notify_all()

    def _app(self) -> Starlette:
        routes = [
            *page_routes(),
            Route("/health", self._health),
            Route("/api/v1/stream", self._stream),
            Route("/api/v1/{view}", self._table),
        ]
        return Starlette(routes=routes)

    async def _health(self, _request: Request) -> Response:
        lost = {"services": {"services without a row": 7}}
        lenses = {lens: {"state": "ok", "lost": lost.get(lens, {})} for lens in (*self.lenses, *lost)}
        health = {"status": "ok", "lenses": lenses, "version": "1.2", "host": "web-03"}
        return JSONResponse(health if self.recording is None else health | {"recording": self.recording})

    async def _table(self, request: Request) -> Response:
        query = f"{request.path_params['view']}?{request.url.query}"
        self.read.append(query)
        if "nosuch" in query:
            detail, remedy = "filter term ‘nosuch=1’: unknown field 'nosuch'", "did you mean 'process'?"
            problem = {"title": "Bad Request", "status": 400, "detail": detail, "remedy": remedy}
            return JSONResponse(problem, 400, media_type="application/problem+json")
        return JSONResponse(self._document(query))

    async def _stream(self, request: Request) -> Response:
        queries = request.query_params.getlist("view")
        if any(re.split("[.?]", query)[0] not in self.lenses for query in queries):
            return Response(status_code=404)
        self.opened.append(queries)
        return StreamingResponse(self._events(queries), media_type="text/event-stream")

    async def _events(self, queries: list[str]) -> AsyncIterator[str]:
        yield "retry: 2000\n\n"
        while not self._ending:
            last = self._readings
            for query in queries:
                yield self._event(query)
            async with self._news:
                await self._news.wait_for(partial(self._has_news, last))

    def _has_news(self, last: int) -> bool:
        return self._ending or self._readings != last

    def _event(self, query: str) -> str:
        why = self.failed.get(query.partition("?")[0])
        if why is None:
            return f"id: 1\nevent: view\ndata: {json.dumps(self._document(query))}\n\n"
        problem = {"query": query, "title": "Service Unavailable", "status": 503, "detail": why}
        return f"event: problem\ndata: {json.dumps(problem)}\n\n"

    def _document(self, query: str) -> Row:
        name, _, rest = query.partition("?")
        parameters = dict(parse_qsl(rest))
        rows = [row for row in self.tables[name] if passes(row, parameters.get("filter", ""))]
        sort = parameters.get("sort", "")
        column = sort.removeprefix("-")
        if rows and column in rows[0]:
            rows.sort(key=lambda row: (row[column] is not None, row[column] or 0), reverse=sort[:1] == "-")
        shown = rows[: int(parameters.get("limit", len(rows)))]
        return {
            "query": query,
            "view": name,
            "time": (BEGAN + timedelta(seconds=self._readings)).isoformat(),
            "interval_s": 1.0,
            "shown": len(shown),
            "total": len(rows),
            "lost": {"events": 3} if name.startswith("connections") else {},
            "not_available": self.not_available,
            "rows": shown,
        }


def passes(row: Row, text: str) -> bool:
    """Return whether a row passes a filter: `id=N`, or a text that its process contains. Others pass everything."""
    if text.startswith("id="):
        return bool(row["id"] == int(text[3:]))
    return re.search(r"\W", text) is not None or text in str(row.get("process"))


@pytest.fixture
def server() -> Iterator[Scripted]:
    """Yield a server that has started."""
    server = Scripted()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def messages() -> list[str]:
    """Return the page's console messages and dialogs, from which a test takes those that it expects."""
    return []


@pytest.fixture
def page(browser: Browser, server: Scripted, messages: list[str]) -> Iterator[Page]:
    """Yield the dashboard, with the first reading."""
    page = opened(browser, server, messages)
    yield page
    page.close()
    assert messages == []


def opened(browser: Browser, server: Scripted, messages: list[str], **context: Any) -> Page:
    """Return the dashboard in a window of its own, with the first reading."""
    page = browser.new_page(**{"viewport": {"width": 1280, "height": 900}, **context})
    page.set_default_timeout(PATIENCE_S * 1000)
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("dialog", lambda dialog: messages.append(f"dialog: {dialog.message}"))
    page.goto(server.url)
    expect(page.locator("#state")).to_have_text("live")
    expect(page.locator("#cost")).not_to_be_empty()
    return page


def cells(page: Page, column: str, panel: str = "connections") -> Locator:
    """Return the cells of a column."""
    return page.locator(f"#{panel} td[data-column={column}]")


def streamed(server: Scripted, name: str) -> dict[str, str]:
    """Return the parameters of a panel's view in the newest stream: totals read fewer columns."""
    query = max((query for query in server.opened[-1] if query.partition("?")[0] == name), key=len)
    return dict(parse_qsl(query.partition("?")[2]))


def readout(page: Page) -> Locator:
    """Return the flame graph's text about the frame at the pointer, or the selected or zoomed one."""
    return page.locator("#flame .readout")


# --- what is shown --------------------------------------------------------------------------------------------


def test_numbers_are_nettops(page: Page) -> None:
    """Format quantities as nettop's screens do."""
    values = [0, 0.01, 0.4, 1, 9.994, 9.996, 99.4, 99.96, 350, 999.4, 999.6]
    values += [21_400, 999_600, 38_245_000, 1.5e10]
    units = ["bytes", "bytes/s", "packets", "packets/s", "us", "ns", "ns/s"]
    amounts = [(value, unit) for unit in units for value in values]
    amounts += [(value, "ratio") for value in (0, 0.00001, 0.0004, 0.031, 0.9996, 2)]
    shown = page.evaluate(
        "async all => { const {human} = await import('/static/format.js'); return all.map(a => human(...a)); }",
        amounts,
    )
    assert shown == [human(value, unit) for value, unit in amounts]
    spreads = [(21_400, 3_100, "us"), (191_000, 64_000, "us"), (50, 3, "us"), (None, 1, "us")]
    shown = page.evaluate(
        "async all => { const {spread} = await import('/static/format.js'); return all.map(a => spread(...a)); }",
        spreads,
    )
    assert shown == [human_spread(*spread) for spread in spreads]


def test_totals(page: Page) -> None:
    """Count uplinks only in the totals, and warn by a sign and a colour."""
    shown = {
        name: page.locator(f"[data-total={name}] strong")
        for name in ("in", "out", "cpu", "retransmits", "drops")
    }
    expect(shown["in"]).to_have_text("8.0 Mb/s")
    expect(shown["out"]).to_have_text("16.0 Mb/s")
    expect(shown["cpu"]).to_have_text("5.0%")
    expect(shown["retransmits"]).to_have_text("▲ 3.1%")
    expect(shown["drops"]).to_have_text("3 p/s")
    expect(page.locator("[data-total=connections] strong")).to_have_text("4")
    expect(page.locator("#lost")).to_have_text(
        "▲ lost since nettop started: 3 events (connections), 7 services without a row (services)"
    )
    assert page.title() == "web-03 – nettop"


def test_a_recording_is_not_live(browser: Browser, server: Scripted) -> None:
    """Show the host and moment of a recording, and no link to metrics."""
    times = {name: f"2026-11-22T15:0{minute}:00.000000Z" for name, minute in (("begin", 0), ("end", 9))}
    server.recording = {"host": "db-07", "moment": times["begin"]} | times
    page = browser.new_page()
    page.goto(server.url)
    expect(page.locator("#recording")).to_have_text(
        "Recording of db-07, not live: 2026-11-22 15:00:00, of 2026-11-22 15:00:00 to 2026-11-22 15:09:00 UTC"
    )
    server.publish()
    expect(page.locator("#recording")).to_contain_text("not live: 2026-11-22 15:00:01,")
    expect(page.locator("#state")).to_have_text("replay")
    expect(page.locator("#host")).to_have_text("db-07")
    expect(page.locator("#metrics")).to_be_hidden()
    assert page.title() == "db-07 (recording) – nettop"
    assert page.locator("#reading").text_content() == ""
    page.close()


def test_unknown_is_not_zero(page: Page, server: Scripted) -> None:
    """Show unknown values as a dash, and those that this kernel lacks as n/a with the reason."""
    expect(cells(page, "rtt")).to_have_text(["21.4 ±3.1 ms", "21.4 ±3.1 ms", "21.4 ±3.1 ms", "–"])
    expect(cells(page, "place", "drops")).to_have_text("–")
    server.not_available = {"place": "no symbols"}
    server.publish()
    expect(cells(page, "place", "drops")).to_have_text("n/a")
    expect(cells(page, "place", "drops")).to_have_attribute("title", "no symbols")


def test_queries(page: Page, server: Scripted) -> None:
    """Request only existing tables and columns; request every field for the details."""
    cells(page, "process").first.click()
    expect(page.locator("#details dd")).not_to_have_count(0)
    for query in (*server.opened[-1], *server.read):
        view, _, text = query.partition("?")
        _, table = find_table(view)
        parameters = dict(parse_qsl(text))
        columns = checked_columns(parameters.pop("columns").split(","), table)
        assert columns
        parse_filter(table, parameters.pop("filter", ""))
        parse_sort(table, parameters.pop("sort", table.sort))
        assert 0 < int(parameters.pop("limit", 1)) <= MAX_STREAMED_ROWS
        assert parameters.keys() <= {"all", "deltas"}
    details = dict(parse_qsl(server.read[-1].partition("?")[2]))["columns"].split(",")
    shown = {field.name for field in SOCKETS.fields if field.kind is not Kind.GROUP}
    parts = {"local_address", "local_port", "remote_address", "remote_port", "bytes"}
    assert {name for name in details if not name.endswith(RATE)} == shown - parts


def test_markup_in_a_name_is_text(page: Page) -> None:
    """Show a process's name as text in tables, details and the flame graph."""
    row = cells(page, "process").filter(has_text=HOSTILE)
    expect(row).to_have_text(HOSTILE)
    expect(cells(page, "process", "events")).to_have_text(HOSTILE)
    row.click()
    expect(page.locator("#details-title")).to_contain_text(HOSTILE)
    expect(page.locator("#details dd").filter(has_text=HOSTILE)).to_have_text(HOSTILE)
    assert page.locator("img").count() == 1  # nettop's own


def test_findings_stand_above_the_panels(page: Page, server: Scripted) -> None:
    """Show a sentence per finding, with its severity and advice, and no empty space without any."""
    expect(page.locator("#findings")).to_be_hidden()
    server.tables["findings"] = [
        {"id": 1, "severity": "problem", "finding": f"{HOSTILE} has not read 129 kB", "lasted": 40_000_000_000,
         "advice": "see its log"},
        {"id": 2, "severity": "warning", "finding": "conntrack is nearly full", "lasted": 0, "advice": None},
    ]  # fmt: skip
    server.publish()
    lines = page.locator("#findings li")
    expect(lines).to_have_text(
        [f"▲ {HOSTILE} has not read 129 kB for 40.0 s", "▲ warning: conntrack is nearly full for 0 ns"]
    )
    expect(lines.first).to_have_attribute("title", "see its log")
    server.tables["findings"] = []
    server.publish()
    expect(page.locator("#findings")).to_be_hidden()


def test_a_lens_that_is_not_served(browser: Browser, server: Scripted, messages: list[str]) -> None:
    """Hide the panel and totals of a lens that is not served, and name it."""
    server.lenses = ("connections", "bandwidth", "self")
    page = opened(browser, server, messages)
    expect(page.locator("#latency, #flame, #drops, [data-total=cpu]").locator("visible=true")).to_have_count(
        0
    )
    expect(page.locator("#connections, #bandwidth, [data-total=in]").locator("visible=true")).to_have_count(3)
    expect(page.locator("#not-served")).to_have_text("not served: CPU, latency, drops (--lenses)")
    page.close()
    assert messages == []


def test_a_lens_that_fails(page: Page, server: Scripted) -> None:
    """Show in a lens's panel why it failed, until the next reading."""
    server.failed = {"latency": "latency: the programs were removed"}
    server.publish()
    notice = page.locator("#latency .notice")
    expect(notice).to_have_text("latency: the programs were removed")
    expect(page.locator("#trouble")).to_contain_text("the programs were removed")
    server.failed = {}
    server.publish()
    expect(notice).to_be_hidden()
    expect(page.locator("#trouble")).to_be_hidden()


@pytest.mark.parametrize(("scheme", "width"), [("dark", 1280), ("light", 390)])
def test_layout(browser: Browser, server: Scripted, messages: list[str], scheme: str, width: int) -> None:
    """Keep everything within the window, whatever the names, in the colours of the theme."""
    server.tables["connections"].append(connection(5, "long" * 60, 1.0, remote=f"[{'2001:' * 7}1]:65535"))
    page = opened(browser, server, messages, viewport={"width": width, "height": 844}, color_scheme=scheme)
    expect(cells(page, "process")).to_have_count(5)
    assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
    background = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert background == {"dark": "rgb(16, 21, 28)", "light": "rgb(251, 250, 247)"}[scheme]
    page.close()
    assert messages == []


def test_memory_is_bounded(page: Page) -> None:
    """Keep the readings of some minutes, whatever their number."""
    kept = page.evaluate(
        """async () => {
            const {timeline, WINDOW_MS} = await import('/static/timeline.js');
            let left = 0;
            const past = timeline({onLeave: () => left += 1});
            for (let number = 0; number < 20000; number += 1) past.push({time: number * 10});
            const many = past.readings.length;
            past.push({time: 10 * WINDOW_MS});
            return [many, past.readings.length, left];
        }"""
    )
    assert kept == [3000, 1, 20000]


# --- sorting and filtering ------------------------------------------------------------------------------------


def test_sort(page: Page, server: Scripted) -> None:
    """Sort by a clicked heading, the largest first; a second click reverses the order."""
    heading = page.locator("#connections th", has_text="Out")
    expect(heading).to_have_attribute("aria-sort", "descending")
    heading.locator("button").click()
    expect(cells(page, "process")).to_have_text(["nginx", "–", HOSTILE, "curl"])
    heading.locator("button").click()
    expect(heading).to_have_attribute("aria-sort", "ascending")
    expect(cells(page, "process")).to_have_text(["curl", HOSTILE, "–", "nginx"])
    name = page.locator("#connections th", has_text="Process")
    name.locator("button").press("Enter")
    expect(name).to_have_attribute("aria-sort", "ascending")
    expect(heading).to_have_attribute("aria-sort", "none")
    expect(cells(page, "process")).to_have_text(["–", HOSTILE, "curl", "nginx"])
    server.publish()
    expect(page.locator("#reading")).to_contain_text(":00:01")
    assert streamed(server, "connections")["sort"] == "process"


def test_filter(page: Page, server: Scripted, messages: list[str]) -> None:
    """Filter as nettop does; explain an invalid filter, and keep the rows."""
    box, problem = page.locator("#filter"), page.locator("#filter-problem")
    box.fill("curl")
    expect(cells(page, "process")).to_have_text(["curl"])
    expect(page.locator("#connections .aside")).to_have_text("1 of 1")
    box.fill("nosuch=1")
    expect(problem).to_contain_text("unknown field 'nosuch'")
    expect(problem).to_contain_text("did you mean 'process'?")
    expect(box).to_have_attribute("aria-invalid", "true")
    server.publish()
    expect(page.locator("#reading")).to_contain_text(":00:01")
    expect(cells(page, "process")).to_have_text(["curl"])
    assert streamed(server, "connections")["filter"] == "curl"
    box.fill("")
    expect(cells(page, "process")).to_have_count(4)
    expect(problem).to_be_hidden()
    # Chromium itself reports answers that are errors.
    assert [messages.pop() for _ in range(len(messages))] == [
        "Failed to load resource: the server responded with a status of 400 (Bad Request)"
    ]


def test_number_of_rows(page: Page, server: Scripted) -> None:
    """Show a hundred rows unless more are chosen."""
    server.tables["connections"] = [connection(number, f"p{number}", number) for number in range(1, 1235)]
    server.publish()
    expect(page.locator("#connections .aside")).to_have_text("100 of 1,234")
    expect(cells(page, "process")).to_have_count(100)
    page.locator("#rows").select_option("1000")
    expect(cells(page, "process")).to_have_count(1000)


def test_failures_only(page: Page, server: Scripted) -> None:
    """Mark failures by a word and a sign, and hide other events on request."""
    expect(cells(page, "event", "events")).to_have_text("▲ fail")
    page.locator("#failures").check()
    expect(page.locator("#events .aside")).to_have_text("1 event")
    expect(page.locator("#state")).to_have_text("live")
    assert 'reason!="closed by us"' in streamed(server, "connections.events")["filter"]


def test_a_closed_panel_is_not_read(page: Page, server: Scripted) -> None:
    """Request nothing for a closed panel, and keep it closed after a reload."""
    assert any(query.startswith("latency") for query in server.opened[-1])
    page.locator("#latency summary").click()
    server.publish()
    expect(page.locator("#reading")).to_contain_text(":00:01")
    page.reload()
    expect(page.locator("#cost")).not_to_be_empty()
    assert not page.locator("#latency .body").is_visible()
    assert not any(query.startswith("latency") for query in server.opened[-1])


# --- charts ---------------------------------------------------------------------------------------------------


def test_zoom_by_key(page: Page, server: Scripted) -> None:
    """Move among frames and zoom by keys; new readings change neither."""
    graph = page.locator("#flame svg")
    graph.focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowDown", "ArrowLeft"):
        graph.press(key)
    expect(page.locator("#announcer")).to_contain_text(
        "<img src=x onerror=alert(1)> · softirq loop · 10.0% of all"
    )
    graph.press("ArrowRight")
    graph.press("Enter")
    expect(page.locator("#announcer")).to_contain_text("zoomed: net_rx_action · softirq loop · 60.0% of all")
    server.publish()
    expect(page.locator("#flame .aside")).to_contain_text("200 samples")
    expect(readout(page)).to_contain_text("net_rx_action · softirq loop · 60.0% of all · 120 samples")
    graph.press("Backspace")
    expect(page.locator("#announcer")).to_contain_text("zoomed: handle_softirqs")
    graph.press("Escape")
    expect(page.locator("#unzoom")).to_be_hidden()


def test_search(page: Page) -> None:
    """Count each matching sample once; select a category in the legend."""
    page.locator("#search").fill("TCP_")
    expect(page.locator("#matched")).to_have_text("matched: 90.0%")
    page.locator(".legend button", has_text="other").click()
    expect(page.locator("#search")).to_have_value("")
    expect(page.locator("#matched")).to_have_text("matched: 0.0%")
    page.locator(".legend button", has_text="TCP").click()
    expect(page.locator("#matched")).to_have_text("matched: 90.0%")
    page.locator(".legend button", has_text="TCP").click()
    expect(page.locator("#matched")).to_have_text("")


def test_charts_are_read_by_key(page: Page, server: Scripted) -> None:
    """Move through readings of the bandwidth and of a stage by arrow keys."""
    server.tables["bandwidth"] = [interface("eth0", "uplink") | {"bytes_sent_per_s": 4e6}]
    server.tables["latency"] = [stage("wire-app", 500) | {"p50": 1_000_000}]
    server.publish()
    expect(page.locator("#bandwidth .readout")).to_contain_text("in 8.0 Mb/s   out 32.0 Mb/s")
    page.locator(".chart").press("ArrowLeft")
    expect(page.locator("#bandwidth .readout")).to_contain_text("in 8.0 Mb/s   out 16.0 Mb/s")
    expect(page.locator("#latency .readout")).to_contain_text("p50 1.0 ms")
    page.locator("#latency canvas").press("ArrowLeft")
    expect(page.locator("#latency .readout")).to_contain_text("p50 24.0 µs")
    page.locator("#latency td", has_text="wire-app").click()
    expect(page.locator("#stage")).to_have_text("wire-app")


def test_interface(page: Page) -> None:
    """Show all uplinks, or the chosen interface."""
    expect(page.locator("#interface option")).to_have_text(["all uplinks", "docker0 (ether)", "eth0 (ether)"])
    page.locator("#interface").select_option("docker0")
    expect(page.locator("#bandwidth .readout")).to_contain_text("in 8.0 Mb/s   out 16.0 Mb/s")
    assert page.evaluate("localStorage['nettop.interface']") == '"docker0"'


# --- keys, pause, restart -------------------------------------------------------------------------------------


def test_keyboard_only(page: Page) -> None:
    """Skip to the panels, filter, choose a row, read its details and return, by keys only."""
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("/")
    expect(page.locator("#filter")).to_be_focused()
    page.keyboard.type("nginx")
    expect(cells(page, "process")).to_have_text(["nginx"])
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    row = page.locator("#connections tbody tr[aria-selected=true]")
    expect(row).to_contain_text("nginx")
    assert page.locator("#connections table").get_attribute("aria-activedescendant") == row.get_attribute(
        "id"
    )
    page.keyboard.press("Enter")
    expect(page.locator("#details")).to_contain_text("38.2 Mb/s")
    page.keyboard.press("Escape")
    expect(page.locator("#details")).to_be_hidden()
    page.keyboard.press("?")
    expect(page.locator("#keys")).to_be_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("t")
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")


def test_pause(page: Page, server: Scripted) -> None:
    """Pause and continue with Space."""
    page.keyboard.press(" ")
    expect(page.locator("#state")).to_have_text("paused")
    server.tables["connections"] = [connection(9, "later", 1.0)]
    server.publish()
    expect(cells(page, "process")).to_have_count(4)
    page.keyboard.press(" ")
    expect(cells(page, "process")).to_have_text(["later"])
    expect(page.locator("#pause")).to_have_attribute("aria-pressed", "false")


def test_restart(page: Page, server: Scripted, messages: list[str]) -> None:
    """Reconnect after a restart of the server, with order, filter and zoom unchanged."""
    page.locator("#connections th button", has_text="State").click()
    page.locator("#filter").fill("n")
    expect(cells(page, "process")).to_have_text(["nginx", HOSTILE, "–"])
    page.locator("#flame svg").click(position={"x": 20, "y": ROW * 1.5})
    expect(page.locator("#unzoom")).to_be_visible()
    server.stop()
    expect(page.locator("#state")).to_have_text("reconnecting")
    server.start()
    expect(page.locator("#state")).to_have_text("live")
    server.publish()
    expect(page.locator("#reading")).to_contain_text(":00:01")
    parameters = streamed(server, "connections")
    assert (parameters["sort"], parameters["filter"]) == ("state", "n")
    expect(page.locator("#unzoom")).to_be_visible()
    # Chromium itself reports connections that fail.
    assert {messages.pop().partition(":")[0] for _ in range(len(messages))} <= {"Failed to load resource"}
