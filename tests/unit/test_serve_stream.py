# SPDX-License-Identifier: Apache-2.0
"""The stream: the newest reading of each view, made once for all clients, never faster than a client reads."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import weakref
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
import pytest_asyncio
from starlette.applications import Starlette

from nettop.errors import SourceFailed
from nettop.process.interrupts import Requests
from nettop.serve import served
from nettop.serve.api import tables
from nettop.serve.api.tables import MAX_STREAMS, MAX_VIEWS, SLICE, STREAM_PATH, stream_routes
from nettop.serve.http.connection import Connection, OpenConnections
from nettop.serve.http.limits import Server
from nettop.serve.served import Publications, Served
from nettop.snapshots.connections import SOCKETS
from nettop.snapshots.cpu import LENS as CPU
from nettop.snapshots.snapshot import Frame, Snapshot
from tests.unit.build import Row, big_frame, make_frame
from tests.unit.logging_run import until
from tests.unit.serving import DEADLINE_S, Client, ask, make_app, make_served, publish

VIEW = "connections?columns=process&sort=id"
WRITE_BUFFER = 1 << 16
"""Bytes that a transport keeps before it pauses its writer."""
OTHER = "connections?columns=pid&sort=id"


def reading(process: str, second: int, **kwargs: Any) -> Snapshot:
    """Return one connection, that of a process of this name."""
    rows: list[Row] = [{"process": process, "pid": second}]
    return make_frame(rows, None, float(second), **kwargs).now


class Host:
    """A served host, its stream, and its events."""

    def __init__(self) -> None:
        self.served: Served = make_served(reading("first", 1))
        self.publications = Publications(self.served.session)
        self.app: Starlette = make_app(stream_routes(self.served, self.publications))

    def read(self, process: str, second: int) -> None:
        """Read the lens again."""
        publish(self.served, reading(process, second))

    def client(self, *views: str, method: str = "GET") -> Client:
        """Return a client of these views."""
        return Client(self.app, STREAM_PATH, _query(views), method)


def _query(views: tuple[str, ...]) -> bytes:
    return urlencode([("view", view) for view in views]).encode()


@pytest_asyncio.fixture
async def host() -> AsyncIterator[Host]:
    """Yield a host that was read once."""
    made = Host()
    yield made
    made.publications.close()


def events_of(body: bytes) -> list[dict[str, str]]:
    """Return the events in a body, as a browser takes them apart: fields by name; what is no event is left out."""
    *blocks, rest = body.decode().split("\n\n")
    assert rest == ""
    fields = [dict(line.split(": ", 1) for line in block.split("\n") if line[:1] != ":") for block in blocks]
    return [field for field in fields if "data" in field]


def processes_in(client: Client) -> list[str]:
    """Return the processes in the events that a client of VIEW got."""
    return [json.loads(event["data"])["rows"][0]["process"] for event in events_of(client.body)]


async def test_the_first_event_comes_at_once_and_others_with_each_reading(host: Host) -> None:
    """An event has the time of the reading as id, and the document of the table with its query."""
    client = host.client(VIEW)
    await client.until(b"first")
    host.read("second", 2)
    await client.until(b"second")
    assert client.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert client.headers["x-accel-buffering"] == "no"
    assert client.body.startswith(b"retry: 2000\n\n")
    event, later = events_of(client.body)
    document = json.loads(event["data"])
    frame = make_served(reading("first", 1)).frame("connections")
    assert frame is not None
    assert (event["event"], event["id"]) == ("view", str(frame.now.boot_ns))
    assert int(later["id"]) == int(event["id"]) + 1_000_000_000
    assert [*document][:2] == ["query", "view"]
    assert (document["query"], document["view"]) == (VIEW, "connections")
    assert document["rows"] == [{"process": "first"}]
    await client.go()


async def test_events_name_their_queries(host: Host) -> None:
    """A stream has events of each of its views, one per view even if named twice, and none of an unread lens."""
    client = host.client(VIEW, OTHER, "cpu", VIEW)
    await client.until(b'"pid"')
    publish(host.served, make_frame([], lens="cpu", table=CPU.main).now)
    await client.until(b'"cpu"')
    queries = [json.loads(event["data"])["query"] for event in events_of(client.body)]
    assert sorted(queries) == sorted([VIEW, OTHER, "cpu"])
    await client.go()


async def test_a_failure_is_a_problem_and_its_end_a_reading(host: Host) -> None:
    """A lens that fails is one event, with the query; when it is read again its rows come again."""
    client = host.client(VIEW)
    await client.until(b"first")
    host.served.session.bus.fail("connections", SourceFailed("it broke", "mend it"))
    await client.until(b"event: problem")
    host.read("second", 2)
    await client.until(b"second")
    _, problem, _ = events_of(client.body)
    assert problem["event"] == "problem"
    document = json.loads(problem["data"])
    assert (document["query"], document["status"]) == (VIEW, 503)
    assert (document["detail"], document["remedy"]) == ("connections: it broke", "mend it")
    await client.go()


async def test_clients_with_the_same_query_share_its_events(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event is made once per query and reading, and dropped when no client needs it."""
    made: list[object] = []
    make = tables._event

    def counted(more: Mapping[str, object], wanted: Any, state: Any) -> bytes:
        made.append(more["query"])
        return make(more, wanted, state)

    monkeypatch.setattr(tables, "_event", counted)
    clients = [host.client(VIEW) for _ in range(20)] + [host.client(OTHER)]
    await asyncio.gather(*(client.until(b'"rows"') for client in clients))
    host.read("second", 2)
    await asyncio.gather(*(client.until(b"second") for client in clients[:20]))
    await clients[20].until(b'{"pid":2}')
    assert sorted(map(str, made)) == sorted([VIEW, OTHER] * 2)
    assert len({client.body for client in clients[:20]}) == 1
    await asyncio.gather(*(client.go() for client in clients))
    again = host.client(VIEW)
    await again.until(b"second")
    assert len(made) == 5
    await again.go()


async def test_a_slow_client_skips_readings(host: Host) -> None:
    """No events are made for a client that reads nothing; later it gets the newest."""
    slow, quick = host.client(VIEW), host.client(VIEW)
    await asyncio.gather(slow.until(b"first"), quick.until(b"first"))
    slow.takes.clear()
    for second in range(2, 12):
        host.read(f"reading {second}", second)
        await quick.until(b"reading %d" % second)
    slow.takes.set()
    await slow.until(b"reading 11")
    assert processes_in(slow) == ["first", "reading 2", "reading 11"]
    assert len(processes_in(quick)) == 11
    await asyncio.gather(slow.go(), quick.go())


async def test_a_slow_client_keeps_no_frame(host: Host) -> None:
    """The rows of a reading are freed while a client has not yet taken its event."""
    slow = host.client(VIEW)
    await slow.until(b"first")
    slow.takes.clear()
    host.read("second", 2)
    await slow.until_blocked()
    frame = host.served.frame("connections")
    assert frame is not None
    rows = weakref.ref(frame.now.tables["sockets"].array)
    del frame
    other = host.client(OTHER)
    for second in range(3, 6):  # the bus keeps the two newest
        host.read("later", second)
        await other.until(b'{"pid":%d}' % second)
    # A thread that has made an event may be about to forget what it made it of.
    until(lambda: gc.collect() >= 0 and rows() is None)
    await asyncio.gather(slow.go(), other.go())


async def test_a_comment_follows_silence(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """During silence comments are sent repeatedly; other views' readings cause no event."""
    monkeypatch.setattr(tables, "IDLE_S", 0.0)
    client = host.client(VIEW)
    await client.until(b": \n\n: \n\n")
    assert processes_in(client) == ["first"]
    await client.go()


async def test_a_client_that_goes_ends_its_stream(host: Host) -> None:
    """A client that leaves ends its stream, even while it waits for news or reads nothing."""
    waiting, stalled = host.client(VIEW), host.client(VIEW)
    await asyncio.gather(waiting.until(b"first"), stalled.until(b"first"))
    stalled.takes.clear()
    host.read("second", 2)
    await stalled.until_blocked()
    for client in (waiting, stalled):
        await client.go()
        assert client.task.done() and not client.ended


async def test_the_end_of_the_server_ends_streams(host: Host) -> None:
    """At the end of the server each body is complete, even for a slow client."""
    waiting, stalled = host.client(VIEW), host.client(VIEW)
    await asyncio.gather(waiting.until(b"first"), stalled.until(b"first"))
    stalled.takes.clear()
    host.read("second", 2)
    await stalled.until_blocked()
    host.publications.end()
    await waiting.end()
    assert waiting.ended
    stalled.takes.set()
    await stalled.end()
    assert stalled.ended
    late = host.client(VIEW)
    await late.end()
    assert late.ended and late.status == 200


async def test_the_end_of_the_server_sends_a_last_reading(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Send a last reading of every view at the end, and end the streams in time without one."""
    reading: Future[None] = Future()
    monkeypatch.setattr(host.served.session, "sample_now", lambda **_: reading)
    client = host.client(VIEW, OTHER)
    await client.until(b"first")
    host.publications.end_after_last_reading()
    host.read("last", 2)
    reading.set_result(None)
    await client.end()
    assert [event["data"].count('"last"') for event in events_of(client.body)[2:]] == [1, 0]
    assert len(events_of(client.body)) == 4

    monkeypatch.setattr(served, "LAST_READING_WAIT_S", 0.0)
    monkeypatch.setattr(host.served.session, "sample_now", lambda **_: Future())
    host.publications.end_streams()
    late = host.client(VIEW)
    await late.until(b"last")
    host.publications.end_after_last_reading()
    await late.end()
    assert late.ended


async def test_a_new_token_ends_streams(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new token ends streams begun with the old one, also during their first reading, and no later ones."""
    read = asyncio.Event()
    begun = host.client(VIEW)
    await begun.until(b"first")
    monkeypatch.setattr(host.served, "start_reading", lambda *_, **__: read.wait())
    waiting = host.client(VIEW)
    await asyncio.sleep(0)
    host.publications.end_streams()
    read.set()
    later = host.client(VIEW)
    await asyncio.gather(begun.end(), waiting.end())
    assert begun.ended and waiting.ended
    await later.until(b"first")
    assert not later.ended
    await later.go()


async def test_only_so_many_streams(host: Host) -> None:
    """A stream beyond the limit gets a problem until another ends; invalid views take no place."""
    clients = [host.client(VIEW) for _ in range(MAX_STREAMS)]
    await asyncio.gather(*(client.until(b"first") for client in clients))
    await ask(host.app, STREAM_PATH, b"view=conections")
    refused = host.client(VIEW)
    await refused.end()
    assert refused.status == 503
    assert json.loads(refused.body)["detail"] == f"{MAX_STREAMS} streams are open"
    assert refused.headers["retry-after"] == "10"
    await clients[0].go()
    another = host.client(VIEW)
    await another.until(b"first")
    await asyncio.gather(*(client.go() for client in (*clients[1:], another)))


async def test_head_ends_at_once(host: Host) -> None:
    """HEAD has the headers of a stream, and no body."""
    client = host.client(VIEW, method="HEAD")
    await client.end()
    assert (client.status, client.body) == (200, b"")
    assert client.headers["content-type"].startswith("text/event-stream")


@pytest.mark.parametrize(
    ("query", "said"),
    [
        (b"", "0 views"),
        (_query(tuple("v" * (MAX_VIEWS + 1))), f"{MAX_VIEWS + 1} views"),
        (b"veiw=connections", "did you mean view?"),
        (b"view=", "unknown view ''"),
        (b"view=conections", "connections"),
        (b"view=connections&view=connections%3Flimt%3D5", "did you mean limit?"),
        (b"view=connections%3Flimit%3D0", "'0'"),
        (b"view=connections%3Flimit%3D1001", "1000"),
        (b"view=connections%3Fformat%3Dcsv", "format"),
        (b"view=connections%3Ffilter%3D%25FF", "UTF-8"),
        (b"view=connections%3Ffilter%3D%2522", "quote"),
        (b"view=%FF", "UTF-8"),
    ],
)
async def test_errors_precede_the_stream(host: Host, query: bytes, said: str) -> None:
    """An invalid request gets a problem document before the stream begins, as for tables."""
    answer = await ask(host.app, STREAM_PATH, query)
    problem = json.loads(answer.body)
    assert (answer.status, answer.headers["content-type"]) == (400, "application/problem+json")
    assert said in problem["detail"] + problem.get("remedy", "")


async def test_the_default_limit(host: Host) -> None:
    """Without a limit a stream gives 200 rows."""
    publish(host.served, big_frame(1500))
    client = host.client("connections?columns=id", "connections?columns=id&limit=1000")
    await client.until(b"limit=1000")
    await client.go()
    shown = {document["shown"] for document in (json.loads(e["data"]) for e in events_of(client.body))}
    assert shown == {200, 1000}


# --- over a real connection ---------------------------------------------------------------------------------


class Watched(Connection):
    """A connection that tells when its client reads too little, and when it has gone."""

    def __init__(self, others: OpenConnections) -> None:
        super().__init__(others)
        self.is_paused = False
        self.paused = asyncio.Event()
        self.task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Answer requests."""
        super().connection_made(transport)
        self.task = asyncio.create_task(self.run())

    def pause_writing(self) -> None:
        """Note that the send buffer is full."""
        super().pause_writing()
        self.is_paused = True
        self.paused.set()

    def resume_writing(self) -> None:
        """Note that the send buffer has room again."""
        super().resume_writing()
        self.is_paused = False


async def test_clients_that_never_read_take_little_memory(host: Host, tmp_path: Path) -> None:
    """Each client's unsent data stays below two slices and the buffer's bound, however much is published.

    A client that reads at last gets complete events, the last one of the newest reading.
    """
    others = OpenConnections(Server(lambda: host.app, [], Requests(), print), host.app)
    loop, path = asyncio.get_running_loop(), str(tmp_path / "socket")
    connections = [Watched(others) for _ in range(5)]
    free = iter(connections)
    listening = await loop.create_unix_server(lambda: next(free), path)
    frame = big_frame(1000)
    publish(host.served, _at(frame, 100))
    wide = f"connections?limit=1000&all=true&columns={','.join(SOCKETS.names)}"
    clients = [_ask_over(path, wide) for _ in connections]
    async with asyncio.timeout(DEADLINE_S):
        await asyncio.gather(*(connection.paused.wait() for connection in connections))
    quick = host.client(OTHER)
    for second in range(101, 111):
        publish(host.served, _at(frame, second))
        await quick.until(b"id: %d" % _at(frame, second).now.boot_ns)
    sizes = [connection.transport.get_write_buffer_size() for connection in connections]
    assert max(sizes) <= WRITE_BUFFER + 2 * SLICE
    assert all(connection.is_paused for connection in connections)

    reader, writer = await asyncio.open_unix_connection(sock=clients[0])
    newest = b'"time":"' + json.loads(events_of(quick.body)[-1]["data"])["time"].encode()
    taken = b""
    async with asyncio.timeout(DEADLINE_S):
        while b"]}\n\n" not in taken.partition(newest)[2]:
            taken += await reader.read(1 << 20)
    host.publications.end()
    async with asyncio.timeout(DEADLINE_S):
        taken += await reader.read()
    events = events_of(_unchunked(taken))
    assert 2 <= len(events) <= 4, "it skipped most of eleven readings"
    assert all(len(json.loads(event["data"])["rows"]) == 1000 for event in events)
    writer.close()
    await writer.wait_closed()
    for client in clients[1:]:
        client.close()
    async with asyncio.timeout(DEADLINE_S):
        await asyncio.gather(*(connection.task for connection in connections if connection.task is not None))
    await quick.end()
    listening.close()
    await listening.wait_closed()


def _at(frame: Frame, second: int) -> Frame:
    """Return the newest snapshot of a frame, as if it had been taken in another second."""
    step = second * 1_000_000_000
    return Frame(replace(frame.now, wall_ns=frame.now.wall_ns + step, boot_ns=frame.now.boot_ns + step))


def test_a_reading_as_the_server_ends() -> None:
    """Nothing fails if the loop closes just before the session publishes."""

    async def opened() -> Host:
        return Host()

    with asyncio.Runner() as runner:
        host = runner.run(opened())
    host.read("second", 2)


def _ask_over(path: str, view: str) -> socket.socket:
    """Return a connection that has requested a stream, and does not read."""
    client = socket.socket(socket.AF_UNIX)
    client.connect(path)
    request = b"GET %s?%s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    client.sendall(request % (STREAM_PATH.encode(), _query((view,))))
    client.setblocking(False)
    return client


def _unchunked(answer: bytes) -> bytes:
    """Return the body of an answer in chunks."""
    _, _, rest = answer.partition(b"\r\n\r\n")
    body = b""
    while True:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size, 16)
        if not length:
            return body
        body, rest = body + rest[:length], rest[length + 2 :]


async def test_a_lens_that_is_late_is_a_problem_once(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream gets a problem when its lens becomes late, not one for each wake-up, and its next reading after that."""
    client = host.client(VIEW)
    await client.until(b"first")
    monkeypatch.setattr("nettop.serve.served.LATE_S", 0.0)
    monkeypatch.setattr("nettop.serve.served.LATE_INTERVALS", 0)
    for _ in range(3):
        host.served.session.bus.fail("drops", SourceFailed("it broke"))  # wakes the streams
        await client.until(b"event: problem")
    monkeypatch.undo()
    host.read("second", 2)
    await client.until(b"second")
    assert [event["event"] for event in events_of(client.body)] == ["view", "problem", "view"]
    assert "not read since" in events_of(client.body)[1]["data"]
    await client.go()
