# SPDX-License-Identifier: Apache-2.0
"""GET /api/v1/VIEW: a table as JSON or CSV, sent in pieces so that a large one does not block other requests."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from nettop.errors import NettopError
from nettop.formats.document import document
from nettop.formats.separated import Separated
from nettop.query.batches import PIECE_ROWS
from nettop.query.times import rfc3339
from nettop.query.view import View
from nettop.serve.api.parameters import Wanted, parse_wanted
from nettop.serve.api.streamed import Deliver, Streamed, empty_body
from nettop.serve.problems import RETRY_SOON, Problem
from nettop.serve.served import Served
from nettop.snapshots.snapshot import Frame

MEDIA_TYPES: Final = {"json": "application/json", "csv": "text/csv; charset=utf-8; header=present"}
FORMATTED_AT_ONCE: Final = 2
OPEN_AT_ONCE: Final = 16
"""Maximum tables being sent at once: each holds a view of all its rows."""

FORMATTERS: Final = ThreadPoolExecutor(FORMATTED_AT_ONCE, "format")
"""Threads that format tables: few, so that the sampler is not starved."""


def table_routes(served: Served) -> list[Route]:
    """Return the routes of the tables. Other paths below /api/v1/ need a route before them."""
    open_tables = asyncio.Semaphore(OPEN_AT_ONCE)

    async def table(request: Request) -> Response:
        wanted = parse_wanted(served, request.path_params["view"], request.scope["query_string"])
        await served.start_reading(wanted.lens.id, wanted.query.table, all_rows=wanted.query.all_rows)

        async def write(deliver: Deliver) -> None:
            async with open_tables:
                pieces = table_pieces(wanted, current_frame(served, wanted.lens.id))
                loop = asyncio.get_running_loop()
                while (piece := await loop.run_in_executor(FORMATTERS, next, pieces, None)) is not None:
                    await deliver(piece)

        if request.method == "HEAD":
            current_frame(served, wanted.lens.id)
            return Streamed(empty_body, MEDIA_TYPES[wanted.format])
        return Streamed(write, MEDIA_TYPES[wanted.format])

    return [Route("/api/v1/{view}", table, methods=["GET"])]


def current_frame(served: Served, lens: str) -> Frame:
    """Return the newest frame of a lens. Raise Problem (503) if it failed or has not been read yet."""
    failure, frame = served.failure(lens), served.frame(lens)
    if failure is not None:
        raise lens_problem(lens, failure)
    if frame is None:
        what, remedy = f"{lens} has not been read yet", "retry in a moment"
        raise Problem(503, what, remedy, headers=RETRY_SOON)
    return frame


def lens_problem(lens: str, failure: NettopError) -> Problem:
    """Return the problem (503) for the failure of a lens."""
    what, remedy = f"{lens}: {failure.what}", failure.remedy
    return Problem(503, what, remedy, headers=RETRY_SOON)


def table_pieces(wanted: Wanted, frame: Frame, query: str | None = None) -> Iterator[bytes]:
    """Yield the requested table in small pieces. With a `query`, the document begins with it."""
    view = View(frame, wanted.query)
    at = view.order[: wanted.limit]
    if wanted.format == "csv":
        lines = Separated(wanted.columns)
        yield lines.header.encode()
        for start in range(0, len(at), PIECE_ROWS):
            yield lines.lines(view, at[start : start + PIECE_ROWS]).encode("utf-8", "replace")
        return
    head: dict[str, object] = {} if query is None else {"query": query}
    head |= {
        "view": wanted.view,
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
