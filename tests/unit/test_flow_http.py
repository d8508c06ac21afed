# SPDX-License-Identifier: Apache-2.0
"""The collector's HTTP API: queries as in ClickHouse, flows of other producers, and its own state."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.routing import Route

from nettop.collector.collector import CollectorState
from nettop.collector.enrichment.lookups import LookupFiles
from nettop.collector.exporters import EXPORTER
from nettop.collector.pipeline import LEDGER, SPOOL, WorkerOutput
from nettop.collector.protobuf import encoded_batch
from nettop.collector.reader import EXPORTERS_PATH, STATE_PATH
from nettop.collector.spool import DROPPED, Spool
from nettop.collector.store.queries import QUERY_MAX
from nettop.collector.worker import ProducedFlows, WorkerState
from nettop.errors import NettopError, SourceFailed, UsageError
from nettop.serve.flows.queries import query_routes
from nettop.serve.flows.state import ingest_routes, state_routes
from tests.builders.native_reader import Reader
from tests.unit.serving import make_app
from tests.unit.test_flow_protobuf import example_flows


class Answering:
    """A store that answers with the query itself."""

    def __init__(self, failure: NettopError | None = None) -> None:
        self.failure = failure

    def insert(self, blocks: Mapping[str, bytes], token: str) -> None:
        """Fail: queries never insert."""
        raise AssertionError

    def check(self) -> None:
        """Do nothing."""

    def query(self, sql: str, form: str = "JSONCompact") -> bytes:
        """Return the query and the format."""
        if self.failure is not None:
            raise self.failure
        return f"{form}|{sql}".encode()

    def close(self) -> None:
        """Do nothing."""


async def ask(routes: list[Route], method: str, url: str, **how: Any) -> httpx.Response:
    """Return the answer to one request."""
    transport = httpx.ASGITransport(make_app(routes))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        return await client.request(method, url, **how)


# --- queries --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "how", "answer"),
    [
        ("GET", {"params": {"query": "SELECT 1"}}, "TabSeparated|SELECT 1"),
        ("POST", {"content": "SELECT 1 FORMAT JSON;"}, "JSON|SELECT 1 "),
        ("POST", {"params": {"query": "SELECT"}, "content": "2"}, "TabSeparated|SELECT\n2"),
        ("POST", {"params": {"default_format": "CSV"}, "content": "SELECT 3"}, "CSV|SELECT 3"),
        ("POST", {"headers": {"X-ClickHouse-Format": "CSV"}, "content": "SELECT 4"}, "CSV|SELECT 4"),
        ("GET", {"params": {"query": "SELECT 5", "database": "nettop"}}, "TabSeparated|SELECT 5"),
        ("POST", {"content": "SELECT 'ü'".encode()}, "TabSeparated|SELECT 'ü'"),
    ],
)
async def test_queries_as_of_clickhouse(method: str, how: dict[str, Any], answer: str) -> None:
    """The query is the parameter and the body, one behind the other; the format is said in any of three places."""
    response = await ask(query_routes(Answering()), method, "/", **how)
    assert (response.status_code, response.text) == (200, answer)
    assert response.headers["X-ClickHouse-Format"] == answer.partition("|")[0]


@pytest.mark.parametrize(
    ("given", "is_kept"),
    [("grafana-1", True), ("", False), ("a\r\nX: 1", False), ("\U0001f600", False), ("a" * 9000, False)],
)
async def test_names_of_queries(given: str, is_kept: bool) -> None:
    """The answer has the client's, if a header can hold it."""
    params = {"query": "SELECT 1", "query_id": given}
    response = await ask(query_routes(Answering()), "GET", "/", params=params)
    assert response.status_code == 200
    name = response.headers["X-ClickHouse-Query-Id"]
    assert name == given if is_kept else uuid.UUID(name)


class Engine(Answering):
    """A store that knows its version and time zone."""

    def query(self, sql: str, form: str = "JSONCompact") -> bytes:
        """Answer only that."""
        assert (sql, form) == ("SELECT version(), timezone()", "JSONCompactEachRow")
        return b'["26.9.2.1", "Etc/UTC"]\n'


@pytest.mark.parametrize("revision", ["54483", "54453", "x", ""])
async def test_the_first_query_of_clients_for_go(revision: str) -> None:
    """Grafana's data source reads this answer as the revision that it names, and later ones as that in the answer."""
    params = {"database": "nettop", "default_format": "Native", "client_protocol_version": revision}
    hello = "SELECT displayName(), version(), revision(), timezone()"
    response = await ask(query_routes(Engine()), "POST", "/", params=params, content=hello)
    assert response.status_code == 200
    block = Reader(response.content).block(int(revision) if revision.isdecimal() else 0)
    assert block == {
        "displayName()": ("String", ["nettop"]),
        "version()": ("String", ["26.9.2.1"]),
        "revision()": ("UInt32", [0]),
        "timezone()": ("String", ["Etc/UTC"]),
    }


async def test_nothing_is_queried() -> None:
    """Clients look whether a server is there by a request without a query, or /ping."""
    for url in ("/", "/ping"):
        response = await ask(query_routes(Answering()), "GET", url)
        assert (response.status_code, response.text) == (200, "Ok.\n")


@pytest.mark.parametrize(
    ("failure", "status", "words"),
    [
        (
            UsageError("the query failed: no", "correct it"),
            400,
            "Code: 62. DB::Exception: the query failed: no; ",
        ),
        (
            SourceFailed("the store is away", "wait"),
            503,
            "Code: 1002. DB::Exception: the store is away; wait. ",
        ),
        (UsageError("bad \x1b[2J", "mend it"), 400, "Code: 62. DB::Exception: bad ␛[2J; mend it. "),
    ],
)
async def test_failures_as_of_clickhouse(failure: NettopError, status: int, words: str) -> None:
    """Clients tell an error by its code, which is in a header too."""
    response = await ask(query_routes(Answering(failure)), "POST", "/", content="SELECT 1")
    assert response.status_code == status
    assert response.text.startswith(words)
    assert response.headers["X-ClickHouse-Exception-Code"] == words.split()[1].rstrip(".")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"params": {"query": "SELECT 1", "database": "other"}}, "there is no database 'other'"),
        ({"content": b"x" * (4 * QUERY_MAX + 1)}, f"more than {QUERY_MAX} characters"),
    ],
)
async def test_queries_that_are_refused(how: dict[str, Any], words: str) -> None:
    """They do not get to the store."""
    response = await ask(query_routes(Answering()), "POST", "/", **how)
    assert response.status_code == 400
    assert words in response.text


# --- other producers ------------------------------------------------------------------------------------------


def producing(directory: Path, most_bytes: int = 1 << 30) -> ProducedFlows:
    """Return a ProducedFlows for this directory."""
    to = WorkerOutput(200, directory, most_bytes, LookupFiles([], [], None))
    return ProducedFlows(to, lambda _: None)


async def test_flows_of_other_producers(tmp_path: Path) -> None:
    """Accepted flows are in the spool, on the disk."""
    produced = producing(tmp_path)
    content = encoded_batch(example_flows(3), 0, 3)
    response = await ask(ingest_routes(produced), "POST", "/ingest/flows", content=content)
    assert (response.status_code, response.json()) == (200, {"accepted": 3})
    (token,) = Spool(tmp_path / SPOOL, 1 << 30).waiting()
    assert Spool(tmp_path / SPOOL, 1 << 30).read(token).blocks["flows_raw"].rows == 3
    assert produced.state().spooled == {"flows_raw": 3}
    assert produced.state().ledger["rows"] == 3


@pytest.mark.parametrize(
    ("content", "headers", "status", "detail"),
    [
        (b"\xff\xff", {}, 400, "the body is not a FlowBatch"),
        (b"", {"Origin": "http://example.org"}, 403, "web pages may not send flows"),
    ],
)
async def test_flows_that_are_refused(
    tmp_path: Path, content: bytes, headers: dict[str, str], status: int, detail: str
) -> None:
    """Nothing is stored, and the answer says why."""
    produced = producing(tmp_path)
    response = await ask(ingest_routes(produced), "POST", "/ingest/flows", content=content, headers=headers)
    assert (response.status_code, response.json()["detail"]) == (status, detail)
    assert produced.state().ledger["rows"] == 0


async def test_flows_for_a_full_spool(tmp_path: Path) -> None:
    """The producer is to send them again; what was dropped is counted."""
    produced = producing(tmp_path, most_bytes=1)
    content = encoded_batch(example_flows(3), 0, 3)
    response = await ask(ingest_routes(produced), "POST", "/ingest/flows", content=content)
    assert (response.status_code, response.json()["detail"]) == (503, "the spool is full")
    assert response.headers["Retry-After"] == "1"
    state = produced.state()
    assert (state.ledger["rows"], state.spooled) == (3, {f"flows_raw{DROPPED}": 3})


# --- what it does itself ----------------------------------------------------------------------------------------


def collector_state(**changed: Any) -> CollectorState:
    """Return a collector state with ten flows: five stored, two waiting, and one in each other state."""
    exporters = np.zeros(1, EXPORTER)
    exporters["exporter"] = np.void(bytes(10) + b"\xff\xff\xc0\0\2\1")
    exporters["rows"] = 10
    counted = {
        "datagrams": 4,
        "decoded": 3,
        "unknown_version": 1,
        "kernel_drops": 2,
        "refused": 5,
        "rows": 10,
        "filtered": 1,
    }
    received = WorkerState(
        ledger=Counter(dict.fromkeys(LEDGER, 0) | counted),
        spooled=Counter({"flows_raw": 7, f"flows_raw{DROPPED}": 1}),
        queued=4,
        pending=1,
        waiting=0,
        sockets=(),
        exporters=exporters,
        evicted=0,
        evicted_unrecognized=0,
        forgotten=Counter(),
        failure=None,
    )
    given = {
        "stored": Counter(flows_raw=5),
        "stored_earlier": Counter(flows_raw=3),
        "waiting_blocks": 1,
        "waiting_bytes": 900,
        "failure": None,
    }
    return CollectorState(received, **given | changed)


def always(state: CollectorState) -> Callable[[], CollectorState]:
    """Always return this state."""
    return lambda: state


async def test_fate_of_flows() -> None:
    """Every flow that was received is in one of the other counts."""
    response = await ask(state_routes(always(collector_state())), "GET", STATE_PATH)
    document = response.json()
    assert document["datagrams"] == {
        "arrived": 15,
        "decoded": 3,
        "malformed": 1,
        "refused": 5,
        "queued": 4,
        "dropped_by_kernel": 2,
    }
    assert document["flows"] == {
        "received": 10,
        "filtered": 1,
        "pending": 1,
        "waiting": 2,
        "stored": 5,
        "dropped_by_spool": 1,
    }
    assert document["stored_from_before"] == 3
    assert document["spool"] == {"blocks": 1, "bytes": 900}


async def test_exporters() -> None:
    """Each with its address as people write it, and the word for its protocol."""
    state = collector_state()
    state.received.exporters["protocol_version"] = 9
    response = await ask(state_routes(always(state)), "GET", EXPORTERS_PATH)
    (exporter,) = response.json()["exporters"]
    assert (exporter["exporter"], exporter["rows"]) == ("192.0.2.1", 10)
    assert (exporter["protocol"], exporter["protocol_version"]) == ("NetFlow 9", 9)


async def test_health() -> None:
    """503 while flows cannot be stored, with the reason."""
    routes = state_routes(always(collector_state()))
    assert (await ask(routes, "GET", "/health")).status_code == 200
    routes = state_routes(always(collector_state(failure=SourceFailed("the server is away", "wait"))))
    response = await ask(routes, "GET", "/health")
    assert (response.status_code, response.json()["reasons"]) == (503, ["the server is away"])
