# SPDX-License-Identifier: Apache-2.0
"""Prepared snapshots to serve, and applications of the routes without a server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import Message

from nettop.engine.session import Session
from nettop.serve.api.tables import table_routes
from nettop.serve.problems import application
from nettop.serve.served import Served
from nettop.settings import MAX_INTERVAL_S
from nettop.snapshots import lenses
from nettop.snapshots.own_cost import SELF
from nettop.snapshots.schema import Lens, Table
from nettop.snapshots.snapshot import Frame, Rows, Snapshot
from tests.builders import (
    example_bandwidth,
    example_cpu,
    example_drops,
    example_findings,
    example_flows,
    example_latency,
    example_self,
    example_services,
)
from tests.builders.example_events import eventful_host
from tests.unit.scripted import Scripted

LENSES = (*lenses(), SELF)

DEADLINE_S = 60.0

Published = Snapshot | Frame | tuple[Rows, ...]


class Prepared(Served):
    """A served session that does not run: no table can be read on request."""

    async def start_reading(self, lens: str, table: Table, *, all_rows: bool) -> None:
        """Do nothing: the session reads nothing."""

    async def freshen(self, *lenses: str) -> None:
        """Do nothing: the session reads nothing."""


def make_served(
    *published: Published, lenses: tuple[Lens, ...] = LENSES, filters: tuple[str, ...] = ()
) -> Served:
    """Return lenses served by a session that does not run, and has published this."""
    served = Prepared(Session(MAX_INTERVAL_S, lambda lens: Scripted([])), lenses, filters)
    for snapshot in published:
        publish(served, snapshot)
    return served


def publish(served: Served, published: Published) -> None:
    """Have the session publish a snapshot, both of a frame, or events of the connections."""
    bus = served.session.bus
    if isinstance(published, tuple):
        bus.append("connections", published)
    elif isinstance(published, Snapshot):
        bus.publish(published)
    else:
        for snapshot in (published.before, published.now):
            if snapshot is not None:
                bus.publish(snapshot)


def example_host(**kwargs: Any) -> Served:
    """Return a host with rows in every table of every lens, read twice; `kwargs` are those of make_served."""
    steps, batches = eventful_host()
    connections = [item for pair in zip(batches[:2], steps[:2], strict=True) for item in pair]
    others = [step for example in _EXAMPLES for step in example.example_steps(2)]
    return make_served(*connections, *others, *example_findings.own_steps(2), **kwargs)


_EXAMPLES = (
    example_bandwidth,
    example_cpu,
    example_drops,
    example_flows,
    example_latency,
    example_self,
    example_services,
)


def make_app(routes: Sequence[Route]) -> Starlette:
    """Return an application of these routes."""
    return application(routes)


def table_app(served: Served) -> Starlette:
    """Return an application of the tables alone."""
    return make_app(table_routes(served))


class Client:
    """A client's request, as a server passes it to an application, and the answer.

    The client reads everything that is sent, unless `takes` is clear.
    """

    def __init__(self, app: Starlette, path: str, query: bytes = b"", method: str = "GET") -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""
        self.pieces = 0
        self.ended = False
        self.blocked = asyncio.Event()
        """Set while something waits for this client to take it."""
        self.takes = asyncio.Event()
        self.takes.set()
        self._news = asyncio.Event()
        self._gone = asyncio.Event()
        self._requested = False
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode("utf-8", "replace"),
            "root_path": "",
            "query_string": query,
            "headers": [(b"host", b"localhost")],
            "server": ("localhost", 80),
            "client": ("127.0.0.1", 40_000),
        }
        self.task = asyncio.create_task(app(scope, self._receive, self._send))

    async def until(self, what: bytes) -> None:
        """Wait until this stands in the body, which the connection's end must not precede."""
        async with asyncio.timeout(DEADLINE_S):
            while what not in self.body:
                assert not self.ended, self.body
                self._news.clear()
                await self._news.wait()

    async def until_blocked(self) -> None:
        """Wait until something waits for this client to take it."""
        async with asyncio.timeout(DEADLINE_S):
            await self.blocked.wait()

    async def end(self) -> None:
        """Wait until the application has nothing more to do. What it raised it has answered too."""
        async with asyncio.timeout(DEADLINE_S):
            with suppress(Exception):
                await self.task

    async def go(self) -> None:
        """Disconnect the client."""
        self._gone.set()
        await self.end()

    async def _receive(self) -> Message:
        if not self._requested:
            self._requested = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if not self.takes.is_set():
            self.blocked.set()
        await self.takes.wait()
        self.blocked.clear()
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            self.body += message["body"]
            self.pieces += bool(message["body"])
            self.ended = not message.get("more_body", False)
        self._news.set()


async def ask(app: Starlette, path: str, query: str | bytes = b"", method: str = "GET") -> Client:
    """Return the whole answer to a request."""
    client = Client(app, path, query.encode() if isinstance(query, str) else query, method)
    await client.end()
    return client


async def table(served: Served, view: str, query: str = "") -> dict[str, Any]:
    """Return the document of a table."""
    answer = await ask(table_app(served), f"/api/v1/{view}", query)
    assert answer.status == 200, answer.body
    document: dict[str, Any] = json.loads(answer.body)
    return document
