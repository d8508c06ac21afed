# SPDX-License-Identifier: Apache-2.0
"""GET /api/v1/VIEW: a table as JSON or CSV, in pieces, so that nothing else waits for a large one."""

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
from nettop.serve.api.streamed import Deliver, Streamed, nothing
from nettop.serve.problems import RETRY_SOON, Problem
from nettop.serve.served import Served
from nettop.snapshots.snapshot import Frame

MEDIA_TYPES: Final = {"json": "application/json", "csv": "text/csv; charset=utf-8; header=present"}
FORMATTED_AT_ONCE: Final = 2
OPEN_AT_ONCE: Final = 16
"""Tables of which some is sent and some is still to be made: each holds a view of all its rows."""

FORMATTERS: Final = ThreadPoolExecutor(FORMATTED_AT_ONCE, "format")
"""Threads that make tables into text. They are so few that the sampler gets its turn."""


def table_routes(served: Served) -> list[Route]:
    """The routes of the tables. A path below /api/v1/ that is no table needs a route before them."""
    open_tables = asyncio.Semaphore(OPEN_AT_ONCE)

    async def table(request: Request) -> Response:
        wanted = parse_wanted(served, request.path_params["view"], request.scope["query_string"])
        await served.have_read(wanted.lens.id, wanted.query.table, all_rows=wanted.query.all_rows)

        async def write(deliver: Deliver) -> None:
            async with open_tables:
                pieces = table_pieces(wanted, current_frame(served, wanted.lens.id))
                loop = asyncio.get_running_loop()
                while (piece := await loop.run_in_executor(FORMATTERS, next, pieces, None)) is not None:
                    await deliver(piece)

        if request.method == "HEAD":
            current_frame(served, wanted.lens.id)
            return Streamed(nothing, MEDIA_TYPES[wanted.format])
        return Streamed(write, MEDIA_TYPES[wanted.format])

    return [Route("/api/v1/{view}", table, methods=["GET"])]


def current_frame(served: Served, lens: str) -> Frame:
    """The newest frame of a lens. Raises Problem (503) where it failed, or was not read yet."""
    failure, frame = served.failure(lens), served.frame(lens)
    if failure is not None:
        raise failed(lens, failure)
    if frame is None:
        what, remedy = f"{lens} was not read yet", "ask again in a moment"
        raise Problem(503, what, remedy, headers=RETRY_SOON)
    return frame


def failed(lens: str, failure: NettopError) -> Problem:
    """The problem (503) that the failure of a lens is."""
    what, remedy = f"{lens}: {failure.what}", failure.remedy
    return Problem(503, what, remedy, headers=RETRY_SOON)


def table_pieces(wanted: Wanted, frame: Frame, query: str | None = None) -> Iterator[bytes]:
    """What is wanted, in pieces that are quickly made. With a `query` the document begins with it."""
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
    """Why there are no rows, by the table's name; why there are no values, by the column's."""
    why = view.snapshot.why_unavailable(view.table)
    missing = {name: view.missing[name] for name in wanted.columns if name in view.missing}
    return missing if why is None else {view.table.name: why} | missing
