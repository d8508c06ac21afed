# SPDX-License-Identifier: Apache-2.0
"""Tables: GET /api/v1/VIEW as JSON or CSV, sent in pieces so that a large one does not block other requests, and GET
/api/v1/stream as server-sent events, one per reading of their lens."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from types import MappingProxyType
from typing import Final
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Send

from nettop.errors import NettopError
from nettop.formats.jsonl import document
from nettop.formats.rows import with_own_time
from nettop.formats.separated import Separated
from nettop.query.batches import PIECE_ROWS
from nettop.query.times import rfc3339
from nettop.query.view import View
from nettop.serve.api.parameters import Wanted, bad_parameter, given_parameters, parse_streamed, parse_wanted
from nettop.serve.problems import RETRY_SOON, Problem, problem_document
from nettop.serve.served import Publications, Served
from nettop.snapshots import view_name
from nettop.snapshots.snapshot import Frame

MEDIA_TYPES: Final = {"json": "application/json", "csv": "text/csv; charset=utf-8; header=present"}
FORMATTED_AT_ONCE: Final = 2
RECORDING_OF: Final = "recording_of"
"""Member of documents with the recorded host; absent if the running kernel is read."""
RECORDING_HEADER: Final = "Nettop-Recording-Of"
AGE: Final = "age_s"
"""Member of a table's document with the age of the reading; absent from events, which come with theirs."""
SLICE: Final = 65_536
"""Bytes sent at once, and so the most that a stalled client costs in memory until it is disconnected."""
OPEN_AT_ONCE: Final = 16
"""Maximum tables being sent at once: each holds a view of all its rows."""

FORMATTERS: Final = ThreadPoolExecutor(FORMATTED_AT_ONCE, "format")
"""Threads that format tables: few, so that the sampler is not starved."""


STREAM_PATH: Final = "/api/v1/stream"
EVENT_STREAM: Final = "text/event-stream"
VIEW: Final = "view"
"""The only parameter of a stream."""
MAX_STREAMS: Final = 100
MAX_VIEWS: Final = 16
IDLE_S: Final = 15.0
"""Seconds without events before a keep-alive comment is sent."""
_RETRY: Final = b"retry: 2000\n\n"
_COMMENT: Final = b": \n\n"


def table_routes(served: Served) -> list[Route]:
    """Return the routes of the tables. Other paths below /api/v1/ need a route before them."""
    open_tables = asyncio.Semaphore(OPEN_AT_ONCE)

    async def table(request: Request) -> Response:
        wanted = parse_wanted(served, request.path_params["view"], request.scope["query_string"])
        served.watch()
        await served.freshen(wanted.lens.id)
        await served.start_reading(wanted.lens.id, wanted.query.table, all_rows=wanted.query.all_rows)

        async def pieces() -> AsyncGenerator[bytes, None]:
            async with open_tables:
                lens = wanted.lens.id
                origin = origin_of(served) or {AGE: served.age_s(lens)}
                formatted = table_pieces(wanted, current_frame(served, lens), origin)
                loop = asyncio.get_running_loop()
                while (piece := await loop.run_in_executor(FORMATTERS, next, formatted, None)) is not None:
                    yield piece

        return Streamed(request, pieces(), MEDIA_TYPES[wanted.format], _origin_header(served))

    return [Route("/api/v1/{view}", table, methods=["GET"])]


def origin_of(served: Served) -> dict[str, object]:
    """Return the members with which a document says that it is of a recording; none for the running kernel."""
    return {} if served.recording_of is None else {RECORDING_OF: served.recording_of}


def _origin_header(served: Served) -> dict[str, str]:
    """Return the header that says it, as CSV has no other place."""
    return {} if served.recording_of is None else {RECORDING_HEADER: quote(served.recording_of)}


class Streamed(StreamingResponse):
    """A response whose body is generated no faster than the client reads it, except for what fixed-size buffers hold.

    It sends the status with the first piece: an exception before that gets an ordinary error response.
    """

    def __init__(
        self,
        request: Request,
        pieces: AsyncGenerator[bytes, None],
        media_type: str,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(pieces, headers=headers, media_type=media_type)
        self._pieces = pieces
        self._has_body = request.method != "HEAD"

    async def stream_response(self, send: Send) -> None:
        """Send the response in slices."""
        async with aclosing(self._pieces):
            piece = await anext(self._pieces, None)
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            while piece is not None and self._has_body:
                for at in range(0, len(piece) or 1, SLICE):
                    await send(
                        {"type": "http.response.body", "body": piece[at : at + SLICE], "more_body": True}
                    )
                piece = await anext(self._pieces, None)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def current_frame(served: Served, lens: str) -> Frame:
    """Return the newest frame of a lens. Raise Problem (503) if it failed or has not been read yet."""
    failure, frame = served.failure(lens), served.frame(lens)
    if failure is not None:
        raise lens_problem(lens, failure)
    if frame is None:
        raise Problem(503, f"{lens} has not been read yet", "retry in a moment", headers=RETRY_SOON)
    return frame


def lens_problem(lens: str, failure: NettopError) -> Problem:
    """Return the problem (503) for the failure of a lens."""
    return Problem(503, f"{lens}: {failure.what}", failure.remedy, headers=RETRY_SOON)


def table_pieces(
    wanted: Wanted, frame: Frame, more: Mapping[str, object] = MappingProxyType({})
) -> Iterator[bytes]:
    """Yield the requested table in small pieces. A JSON document begins with the members in `more`."""
    view = View(frame, wanted.query)
    at = view.order[: wanted.limit]
    if wanted.format == "csv":
        lines = Separated(with_own_time(view.table, wanted.columns))
        yield lines.header.encode()
        for start in range(0, len(at), PIECE_ROWS):
            yield lines.lines(view, at[start : start + PIECE_ROWS]).encode("utf-8", "replace")
        return
    head: dict[str, object] = {
        **more,
        "view": view_name(wanted.lens, view.table),
        "time": rfc3339(frame.now.wall_ns),
        "interval_s": view.elapsed_s,
        "shown": len(at),
        "total": len(view.order),
        "lost": frame.now.notable_losses,
        "not_available": _not_available(view, wanted),
    }
    for piece in document(head, view, wanted.columns, at):
        yield piece.encode("utf-8", "replace")


def _not_available(view: View, wanted: Wanted) -> dict[str, str]:
    """Return the reasons why the table or some columns are unavailable, by name."""
    why = view.snapshot.why_unavailable(view.table)
    missing = {name: view.missing[name] for name in wanted.columns if name in view.missing}
    return missing if why is None else {view.table.name: why} | missing


# --- the stream ---------------------------------------------------------------------------------------------


def stream_routes(served: Served, publications: Publications) -> list[Route]:
    """Return the route of the stream, which must precede those of the tables."""
    events = Events(served)

    async def stream(request: Request) -> Response:
        ending = publications.ending  # taken before waiting for tables: the token may change meanwhile
        queries = _queries(served, request.scope["query_string"])
        for wanted in queries.values():
            await served.start_reading(wanted.lens.id, wanted.query.table, all_rows=wanted.query.all_rows)

        # Proxies must not buffer events.
        headers = {"X-Accel-Buffering": "no"} | _origin_header(served)
        return Streamed(
            request, _pieces(served, queries, events, publications, ending), EVENT_STREAM, headers
        )

    return [Route(STREAM_PATH, stream, methods=["GET"])]


class Events:
    """Newest event of each streamed query, formatted once for all streams."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self._streams = 0
        self._users: Counter[str] = Counter()
        self._made: dict[str, tuple[int, asyncio.Future[bytes]]] = {}
        self._states: dict[str, tuple[Frame | NettopError, int]] = {}

    @contextmanager
    def used_for(self, queries: Mapping[str, Wanted]) -> Iterator[None]:
        """Register a stream; at its end, drop events that no other stream uses.

        Raise Problem (503) if too many are open.
        """
        if self._streams == MAX_STREAMS:
            what, remedy = f"{MAX_STREAMS} streams are open", "close one, or request single tables"
            raise Problem(503, what, remedy, headers={"Retry-After": "10"})
        self._streams += 1
        self._users.update(queries.keys())
        try:
            yield
        finally:
            self._streams -= 1
            self._users -= Counter(queries.keys())
            for query in queries.keys() - self._users.keys():
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
            more = {"query": query} | origin_of(self._served)
            made = number, loop.run_in_executor(FORMATTERS, _event, more, wanted, state)
            self._made[query] = made
        # The client that started the formatting may disconnect while others wait for it.
        return number, await asyncio.shield(made[1])

    def _state(self, lens: str) -> tuple[Frame | NettopError | None, int]:
        """Return the newest frame or failure of a lens, and the number of its event. Waiting clients keep only the
        number.
        """
        state = self._served.failure(lens) or self._served.frame(lens)
        last, number = self._states.get(lens, (None, 0))
        is_same = isinstance(last, NettopError) and isinstance(state, NettopError) and last.what == state.what
        if state is None or state is last or is_same:
            return last, number
        self._states[lens] = state, number + 1
        return self._states[lens]


def _event(more: Mapping[str, object], wanted: Wanted, state: Frame | NettopError) -> bytes:
    if isinstance(state, Frame):
        head = f"id: {state.now.boot_ns}\nevent: view\ndata: ".encode()
        return b"".join((head, *table_pieces(wanted, state, more), b"\n\n"))
    problem = lens_problem(wanted.lens.id, state)
    document = {**more, **problem_document(problem, STREAM_PATH)}
    return f"event: problem\ndata: {json.dumps(document)}\n\n".encode()


async def _pieces(
    served: Served,
    queries: Mapping[str, Wanted],
    events: Events,
    publications: Publications,
    ending: asyncio.Event,
) -> AsyncGenerator[bytes, None]:
    """Yield the newest event of each query that this client has not received yet, a last time once `ending` is set."""
    loop = asyncio.get_running_loop()
    seen = dict.fromkeys(queries, 0)
    with events.used_for(queries):
        yield _RETRY
        idle_at = loop.time() + IDLE_S
        while True:
            is_last = ending.is_set()
            news = [query for query, wanted in queries.items() if events.number(wanted) != seen[query]]
            served.watch()
            for query in news:
                seen[query], event = await events.newest(query, queries[query])
                yield event
                # Wait until the client has read most of it; otherwise the next event would be stale when sent.
                yield b""
            if is_last:
                return
            if not news:
                try:
                    async with asyncio.timeout_at(idle_at):
                        await publications.wait()
                    continue
                except TimeoutError:
                    yield _COMMENT
            idle_at = loop.time() + IDLE_S


def _queries(served: Served, raw_query: bytes) -> dict[str, Wanted]:
    """Return the parsed views of a stream by their text. Raise Problem (400)."""
    texts = given_parameters(raw_query, (VIEW,), VIEW).get(VIEW, [])
    if not 1 <= len(texts) <= MAX_VIEWS:
        remedy = f"give 1 to {MAX_VIEWS}, as in ?view=connections"
        raise bad_parameter(VIEW, f"{len(texts)} views given", remedy)
    return {text: _streamed(served, text) for text in texts}


def _streamed(served: Served, text: str) -> Wanted:
    try:
        return parse_streamed(served, text)
    except Problem as problem:
        raise bad_parameter(VIEW, f"{text!r}: {problem.what}", problem.remedy) from None
