# SPDX-License-Identifier: Apache-2.0
"""GET /api/v1/stream: tables as server-sent events, one per reading of their lens."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Mapping
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from nettop.errors import NettopError
from nettop.serve.api.parameters import Wanted, bad_parameter, decode_pairs, given_parameters, parse_streamed
from nettop.serve.api.streamed import Deliver, Streamed, empty_body
from nettop.serve.api.tables import FORMATTERS, lens_problem, table_pieces
from nettop.serve.problems import Problem, problem_document
from nettop.serve.served import Publications, Served
from nettop.snapshots.snapshot import Frame

PATH: Final = "/api/v1/stream"
MEDIA_TYPE: Final = "text/event-stream"
VIEW: Final = "view"
"""The only parameter of a stream."""
MAX_STREAMS: Final = 100
MAX_VIEWS: Final = 16
IDLE_S: Final = 15.0
"""Seconds without events before a keep-alive comment is sent."""
_RETRY: Final = b"retry: 2000\n\n"
_COMMENT: Final = b": \n\n"


def stream_routes(served: Served, publications: Publications) -> list[Route]:
    """Return the route of the stream, which must precede those of the tables."""
    events = Events(served)

    async def stream(request: Request) -> Response:
        ending = publications.ending  # taken before waiting for tables: the token may change meanwhile
        queries = _queries(served, request.scope["query_string"])
        for wanted in queries.values():
            await served.start_reading(wanted.lens.id, wanted.query.table, all_rows=wanted.query.all_rows)

        async def write(deliver: Deliver) -> None:
            events.use(queries)
            try:
                await _write(queries, events, publications, deliver)
            finally:
                events.release(queries)

        is_head = request.method == "HEAD"
        # Proxies must not buffer events.
        headers = {"X-Accel-Buffering": "no"}
        return Streamed(empty_body if is_head else write, MEDIA_TYPE, headers=headers, ending=ending)

    return [Route(PATH, stream, methods=["GET"])]


class Events:
    """Newest event of each streamed query, formatted once for all streams."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self._streams = 0
        self._users: Counter[str] = Counter()
        self._made: dict[str, tuple[int, asyncio.Future[bytes]]] = {}
        self._states: dict[str, tuple[Frame | NettopError, int]] = {}

    def use(self, queries: Mapping[str, Wanted]) -> None:
        """Register a stream. Raise Problem (503) if too many are open."""
        if self._streams == MAX_STREAMS:
            what, remedy = f"{MAX_STREAMS} streams are open", "close one, or request single tables"
            raise Problem(503, what, remedy, headers={"Retry-After": "10"})
        self._streams += 1
        self._users.update(queries.keys())

    def release(self, queries: Mapping[str, Wanted]) -> None:
        """Unregister a stream, and drop events that no other stream uses."""
        self._streams -= 1
        self._users.subtract(queries.keys())
        for query in queries:
            if not self._users[query]:
                del self._users[query]
                self._made.pop(query, None)

    def number(self, wanted: Wanted) -> int:
        """Return the number of events of a lens so far (readings and failures); 0 before the first."""
        return self._state(wanted.lens.id)[1]

    async def newest(self, query: str, wanted: Wanted) -> tuple[int, bytes]:
        """Return the number and text of the newest event, which must exist."""
        state, number = self._state(wanted.lens.id)
        assert state is not None
        made = self._made.get(query)
        if made is None or made[0] != number:
            loop = asyncio.get_running_loop()
            made = number, loop.run_in_executor(FORMATTERS, _event, query, wanted, state)
            self._made[query] = made
        # The client that started the formatting may disconnect while others wait for it.
        return number, await asyncio.shield(made[1])

    def _state(self, lens: str) -> tuple[Frame | NettopError | None, int]:
        """Return the newest frame or failure of a lens, and the number of its event. Waiting clients keep only the
        number.
        """
        state = self._served.failure(lens) or self._served.frame(lens)
        last, number = self._states.get(lens, (None, 0))
        if state is None or state is last:
            return last, number
        self._states[lens] = state, number + 1
        return self._states[lens]


def _event(query: str, wanted: Wanted, state: Frame | NettopError) -> bytes:
    if isinstance(state, Frame):
        head = f"id: {state.now.boot_ns}\nevent: view\ndata: ".encode()
        return b"".join((head, *table_pieces(wanted, state, query), b"\n\n"))
    problem = lens_problem(wanted.lens.id, state)
    about = problem_document(problem.status, problem.what, remedy=problem.remedy, path=PATH)
    return f"event: problem\ndata: {json.dumps({'query': query} | about)}\n\n".encode()


async def _write(
    queries: Mapping[str, Wanted], events: Events, publications: Publications, deliver: Deliver
) -> None:
    """Deliver the newest event of each query that this client has not received yet."""
    loop = asyncio.get_running_loop()
    seen = dict.fromkeys(queries, 0)
    await deliver(_RETRY)
    idle_at = loop.time() + IDLE_S
    while True:
        news = [query for query, wanted in queries.items() if events.number(wanted) != seen[query]]
        for query in news:
            seen[query], event = await events.newest(query, queries[query])
            await deliver(event)
            # Wait until the client has read most of it; otherwise the next event would be stale when sent.
            await deliver(b"")
        if news:
            idle_at = loop.time() + IDLE_S
            continue
        try:
            async with asyncio.timeout_at(idle_at):
                await publications.wait()
        except TimeoutError:
            await deliver(_COMMENT)
            idle_at = loop.time() + IDLE_S


def _queries(served: Served, raw_query: bytes) -> dict[str, Wanted]:
    """Return the parsed views of a stream by their text. Raise Problem (400)."""
    texts = given_parameters(decode_pairs(raw_query), (VIEW,), VIEW).get(VIEW, [])
    if not 1 <= len(texts) <= MAX_VIEWS:
        what, remedy = f"{len(texts)} views given", f"give 1 to {MAX_VIEWS}, as in ?view=connections"
        raise bad_parameter(VIEW, what, remedy)
    return {text: _streamed(served, text) for text in texts}


def _streamed(served: Served, text: str) -> Wanted:
    try:
        return parse_streamed(served, text)
    except Problem as problem:
        raise bad_parameter(VIEW, f"{text!r}: {problem.what}", problem.remedy) from None
