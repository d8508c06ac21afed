# SPDX-License-Identifier: Apache-2.0
"""nettop serve: its options, what it rejects before opening anything, tables read on request, /health."""

from __future__ import annotations

import asyncio
import io
import json
import re
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nettop import cli
from nettop.engine.session import Session
from nettop.errors import ExitCode, NettopError, SourceFailed, UsageError
from nettop.process.interrupts import Requests
from nettop.query.batches import empty_rows
from nettop.query.times import rfc3339
from nettop.serve.api.traffic import Traffic
from nettop.serve.command import make_app, open_server
from nettop.serve.http.limits import ServerCounts
from nettop.serve.metrics.totals import Totals
from nettop.serve.pages import page_routes
from nettop.serve.served import LATE_S, Publications, Served
from nettop.settings import MAX_INTERVAL_S
from nettop.settings.serve import ServeSettings, series_set_names
from nettop.snapshots import lenses
from nettop.snapshots.connections import GROUPS, SOCKETS
from nettop.snapshots.connections import LENS as CONNECTIONS
from nettop.snapshots.snapshot import Snapshot
from nettop.snapshots.source import SourceOptions
from tests.builders import example_bandwidth
from tests.unit import serving
from tests.unit.build import WALL_NS, make_frame
from tests.unit.scripted import Scripted
from tests.unit.serving import DEADLINE_S, Client
from tests.words import settings_of

ONE = ServeSettings(listen=("127.0.0.1:0",), lenses=("connections",))


def settings(**given: Any) -> ServeSettings:
    """Return the settings for these options."""
    return settings_of("serve", **given)  # type: ignore[no-any-return]


# --- options --------------------------------------------------------------------------------------------------


def test_lenses_come_with_those_that_they_use() -> None:
    """Required lenses are added, in the order of the screens, each once."""
    assert settings(lenses="drops,latency, drops").read_lenses == ("connections", "latency", "drops")


def test_top() -> None:
    """--top sets a set's number of series by its name; 0 means none."""
    assert settings(top=["process=50", "pair=0"]).top == {"process": 50, "pair": 0}
    assert {"process", "remote", "network", "port", "pair"} <= set(series_set_names())


@pytest.mark.parametrize(
    ("given", "what", "remedy"),
    [
        ({"lenses": "conections"}, "unknown lens 'conections'", "connections"),
        ({"lenses": " , "}, "--lenses is empty", "leave it out for all"),
        ({"top": ["proces=5"]}, "unknown set of series 'proces'", "process"),
        ({"top": ["process"]}, "--top 'process' is not NAME=N", "--top process=20"),
        ({"top": ["process=-1"]}, "--top 'process=-1' is not NAME=N", "--top process=20"),
        ({"top": ["process=10001"]}, "with N from 0 to 10000", "--top process=20"),
        ({"interval": "0"}, "--interval 0 is out of range", "0.1"),
        ({"lenses": "drops", "sampling": "4"}, "--sampling is an option of", "leave it out"),
    ],
)
def test_errors_name_cause_and_remedy(given: dict[str, Any], what: str, remedy: str) -> None:
    """The error names the invalid argument, and a valid one."""
    with pytest.raises(UsageError) as raised:
        settings(**given)
    assert what in raised.value.what
    assert remedy in raised.value.remedy


def test_missing_packages(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without the extra, one line says what to install."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "uvloop" else object())
    assert cli.run(["serve"]) == ExitCode.FAILURE
    assert "not installed: uvloop" in capsys.readouterr().err


def test_a_filter_that_no_table_understands() -> None:
    """A filter that no table understands is rejected before anything is opened; one table is enough."""
    wrong = replace(ONE, filters=("proces=nginx",))
    with pytest.raises(UsageError, match="proces"), open_server(wrong, Requests(), None):
        pass
    with open_server(replace(ONE, filters=("reason=refused",)), Requests(), None):
        pass


def test_every_lens_failed() -> None:
    """If every lens fails, the server exits with the first one's error, and serves nothing."""
    failing = Scripted([SourceFailed("no sockets here")])
    with (
        open_server(ONE, Requests(), io.StringIO()) as run,
        Session(MAX_INTERVAL_S, lambda _: failing) as session,
        pytest.raises(SourceFailed, match="no sockets here"),
    ):
        run(session)


def test_the_end_is_requested_while_lenses_start(tmp_path: Path) -> None:
    """A request to end while lenses start leaves no socket, and nothing is served."""
    requests = Requests()
    requests.end()
    path = tmp_path / "http.sock"
    source = Scripted([make_frame([]).now])
    with open_server(replace(ONE, listen=(f"unix:{path}",)), requests, None) as run:
        assert path.is_socket()
        with Session(MAX_INTERVAL_S, lambda _: source) as session:
            assert run(session) == ExitCode.DONE
    assert not path.exists()


# --- tables on request ----------------------------------------------------------------------------------------


class OnRequest(Scripted):
    """A source that returns groups only once a client requests them."""

    def read(self, taken_ns: int) -> Snapshot:
        """Return what is wanted now."""
        frame = make_frame([{"id": 1, "process": "nginx"}])
        has_groups = self.options is not None and GROUPS.name in self.options.tables
        read = (SOCKETS, GROUPS) if has_groups else (SOCKETS,)
        tables = {table.name: frame.now.tables.get(table.name, empty_rows(table)) for table in read}
        return replace(frame.now, tables=tables)


def answered(sources: Mapping[str, Scripted], path: str, query: bytes = b"") -> tuple[int, dict[str, Any]]:
    """Return the status and the document of an answer by lenses with these sources, once each was read or failed."""
    served_lenses = tuple(lens for lens in lenses() if lens.id in sources)
    traffic = Traffic()

    async def ask() -> Client:
        publications = Publications(session)
        app = make_app(served, totals, traffic, ServerCounts(), publications)
        client = await serving.ask(app, path, query)
        publications.close()
        return client

    with Session(MAX_INTERVAL_S, lambda lens: sources[lens]) as session:
        served = Served(session, served_lenses)
        totals = Totals(served, {}, SourceOptions(), {"bandwidth": traffic.add})
        with totals.running():
            session.sample_now().result(DEADLINE_S)
            client = asyncio.run(ask())
    return client.status, json.loads(client.body) if client.body.startswith(b"{") else {}


def test_a_table_is_read_on_request() -> None:
    """Make the first request for a table, or for all rows with sockets in TIME_WAIT, wait for their reading."""
    source = Read(0)
    status, document = answered({"connections": source}, "/api/v1/connections.groups")
    assert (status, document["view"]) == (200, "connections.groups")
    assert source.options is not None
    assert (GROUPS.name in source.options.tables, source.options.all_rows) == (True, False)
    assert answered({"connections": source}, "/api/v1/connections", b"all=true")[0] == 200
    assert source.options.all_rows


@pytest.mark.parametrize("path", ["/metrics", "/api/v1/connections", "/health"])
def test_a_request_gets_the_present(path: str) -> None:
    """A scrape or a request for a table reads again if the last reading is older than the interval."""
    fresh, old = Read(0), Read(MAX_INTERVAL_S + 1)
    assert answered({"connections": fresh}, path)[0] == 200
    answered({"connections": old}, path)
    assert old.readings - fresh.readings == (path != "/health")


def test_read_less_often_while_nobody_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a minute after the last request for a table it is read every 5 s; the next request restores the interval."""
    chosen: list[float] = []
    monkeypatch.setattr(Session, "set_interval", lambda _, seconds: chosen.append(seconds))
    served = Served(Session(1.0, lambda _: Read(0)), ())
    began_s = time.monotonic()
    for after_s, act in ((29, served.slow_down), (31, served.slow_down), (40, served.slow_down), (41, served.watch),
                         (70, served.slow_down), (72, served.slow_down)):  # fmt: skip
        monkeypatch.setattr(time, "monotonic", lambda now_s=began_s + after_s: now_s)
        act()
    assert chosen == [5.0, 1.0, 5.0]
    slow = Served(Session(7.0, lambda _: Read(0)), ())
    monkeypatch.setattr(time, "monotonic", lambda: began_s + 200)
    slow.slow_down()
    assert chosen[3:] == [7.0]


# --- health ---------------------------------------------------------------------------------------------------


class Read(OnRequest):
    """A lens that was read `age_s` seconds ago."""

    def __init__(self, age_s: float) -> None:
        super().__init__([])
        self._age_ns = round(age_s * 1e9)
        self.readings = 0

    def read(self, taken_ns: int) -> Snapshot:
        """Return the reading of that moment."""
        self.readings += 1
        boot_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - self._age_ns
        return replace(super().read(taken_ns), boot_ns=boot_ns)


class ReadTraffic(Read):
    """The same, of the bandwidth lens."""

    def read(self, taken_ns: int) -> Snapshot:
        """Return the reading of that moment."""
        (step,) = example_bandwidth.example_steps(1)
        return replace(step, boot_ns=super().read(taken_ns).boot_ns)


def test_health(monkeypatch: pytest.MonkeyPatch) -> None:
    """/health is 200 while all lenses are read on time."""
    status, document = answered({"connections": Read(0)}, "/health")
    assert (status, document["status"], document["reasons"]) == (200, "ok", [])
    assert document["lenses"]["connections"]["state"] == "ok"
    monkeypatch.setattr("nettop.serve.served.LATE_INTERVALS", 0)
    status, document = answered({"connections": Read(LATE_S + 1)}, "/health")
    assert (status, document["status"]) == (503, "failing")
    age_s = document["lenses"]["connections"]["age_s"]
    assert age_s >= LATE_S + 1
    reason, stuck = document["reasons"]
    assert stuck == "no lens is read"
    assert reason.startswith(f"connections: not read since {rfc3339(WALL_NS + 10**9)[:19]}Z")


@pytest.mark.parametrize(
    "path", ["/api/v1/connections", "/api/metrics/realtime", "/api/stats/summary", "/metrics", "/live"]
)
def test_what_is_late_is_not_served_as_current(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reading beyond both bounds is answered by 503 wherever it would be served."""
    monkeypatch.setattr("nettop.serve.served.LATE_INTERVALS", 0)
    sources = {"connections": Read(LATE_S + 1), "bandwidth": ReadTraffic(LATE_S + 1)}
    status, _ = answered(sources, path)
    assert status == 503
    assert answered({"connections": Read(0), "bandwidth": ReadTraffic(0)}, path)[0] == 200


def test_a_table_says_how_old_it_is() -> None:
    """`age_s` is the age of the reading, also where that is within the bound."""
    _, document = answered({"connections": Read(LATE_S / 2)}, "/api/v1/connections")
    assert LATE_S / 2 <= document["age_s"] < LATE_S
    assert answered({"connections": Read(LATE_S + 1)}, "/live")[0] == 200


def test_health_of_a_lens_that_failed() -> None:
    """/health is 503 with the reason for a failed lens; the others continue."""
    sources = {"connections": Read(0), "drops": Scripted([NettopError("no tracepoint", "load it")])}
    status, document = answered(sources, "/health")
    assert status == 503
    assert document["reasons"] == ["drops: no tracepoint: load it"]
    assert document["lenses"]["connections"]["state"] == "ok"
    assert answered(sources, "/api/v1/drops")[0] == 503
    assert answered(sources, "/api/v1/connections")[0] == 200


@pytest.mark.parametrize("path", ["/api/metrics/realtime", "/api/stats/summary"])
def test_traffic_needs_its_lens(path: str) -> None:
    """Without the bandwidth lens the problem names the option to add."""
    status, document = answered({"connections": Read(0)}, path)
    assert (status, document["remedy"]) == (404, "add it to --lenses")
    status, document = answered({"connections": Read(0)}, path, b"interfce=eth0")
    assert (status, document["parameter"]) == (400, "interfce")


async def test_the_page_and_its_files() -> None:
    """Serve each file of the page, and a page that restricts the origin of scripts."""
    app = serving.make_app(page_routes())
    page = await serving.ask(app, "/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'; script-src 'self'" in page.headers["content-security-policy"]
    names = re.findall(rb'(?:src|href)="(static/[^"]+)"', page.body)
    assert {b"static/dashboard.js", b"static/dashboard.css", b"static/icon.svg"} <= set(names)
    for name in names:
        file = await serving.ask(app, f"/{name.decode()}")
        assert (file.status, file.headers["cache-control"]) == (200, "no-cache")


def test_nothing_else_answers() -> None:
    """Return 404 for paths with an extra slash, and for files that were not read at the start."""
    static = ("", "no.js", "../served.py", "..%2fserved.py", "/icon.svg")
    other = ("/api/v1/connections/", "/metrics/x", "/x", "//static/icon.svg")
    for path in (*other, *(f"/static/{name}" for name in static)):
        status, document = answered({"connections": Read(0)}, path)
        assert (status, document["title"]) == (404, "Not Found")


def test_every_view_that_is_served_is_described() -> None:
    """The description has exactly the paths of the served lenses."""
    _, document = answered({"connections": Read(0)}, "/api/openapi.json")
    other = {"/metrics", "/health", "/api/metrics/realtime"}
    assert other | {"/api/v1/stream", "/api/v1/connections.events"} <= document["paths"].keys()
    assert "/api/v1/drops" not in document["paths"]
    assert CONNECTIONS.question in json.dumps(document, ensure_ascii=False)
