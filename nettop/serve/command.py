# SPDX-License-Identifier: Apache-2.0
"""`nettop serve`: open what needs privileges, then serve what the session reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, TextIO

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from nettop import __version__
from nettop.diagnostics import Diagnostics
from nettop.engine.session import Session
from nettop.errors import ExitCode, NettopError, UsageError
from nettop.process.interrupts import Requests
from nettop.query.filter import parse_filter
from nettop.serve.api.health import health_routes
from nettop.serve.api.openapi import description
from nettop.serve.api.tables import stream_routes, table_routes
from nettop.serve.api.traffic import REALTIME, SUMMARY, Traffic, traffic_routes
from nettop.serve.http.credentials import read_credentials
from nettop.serve.http.guard import Guard, own_names
from nettop.serve.http.limits import Server, ServerCounts
from nettop.serve.http.listeners import OpeningAs, checked_listen, open_sockets, url_of
from nettop.serve.http.server import serve
from nettop.serve.metrics.exposition import METRICS_PATH, metrics_routes
from nettop.serve.metrics.totals import Totals
from nettop.serve.pages import page_routes
from nettop.serve.problems import Problem, application
from nettop.serve.served import Publications, Served, applicable_filter
from nettop.settings.serve import ServeSettings
from nettop.snapshots import lenses
from nettop.snapshots.bandwidth import LENS as BANDWIDTH
from nettop.snapshots.own_cost import SELF
from nettop.snapshots.schema import Lens
from nettop.snapshots.source import SourceOptions

if TYPE_CHECKING:
    from nettop.recording.player import Player

_SUMS = (METRICS_PATH, REALTIME, SUMMARY)
"""Paths of what is summed since serving started."""


ServeRun = Callable[..., ExitCode]
"""Function that serves what a session reads until shutdown is requested: of the kernel, or of a recording with its
`player`."""


@contextmanager
def open_server(
    settings: ServeSettings, requests: Requests, stderr: TextIO | None, opening_files: OpeningAs = nullcontext
) -> Iterator[ServeRun]:
    """Read the token and the certificate, and open the sockets; connections wait in the backlog until the server runs.

    Open files named in the settings inside `opening_files`, while there is only one thread. Raise UsageError for
    unusable addresses and files, PermissionMissing and NettopError if they cannot be opened.
    """
    _check_filters(settings)
    endpoints = checked_listen(settings)
    with opening_files():
        credentials = read_credentials(settings)
    names = own_names(endpoints)

    report = Diagnostics(stderr).report_lines

    with open_sockets(endpoints, opening_files) as listeners:

        def run(session: Session, player: Player | None = None) -> ExitCode:
            chosen = (lens for lens in lenses() if lens.id in settings.lenses)
            own = (SELF,) if player is None else ()  # what serving costs now is not part of the recording
            served = Served(session, (*chosen, *own), settings.filters, player)
            options = SourceOptions(mechanisms=settings.mechanisms, whole=True, values=settings.options)
            traffic = Traffic()
            totals = Totals(served, settings.top, options, {BANDWIDTH.id: traffic.add})
            with totals.running(report):
                counts = ServerCounts()

                def make_guarded_app() -> ASGIApp:
                    publications = Publications(session)
                    server.on_ending = publications.end_after_last_reading
                    server.on_new_token = publications.end_streams
                    server.until_ready = partial(_until_ready, served, publications, report)
                    app = make_app(served, totals, traffic, counts, publications)
                    return Guard(app, credentials, names)

                server = Server(make_guarded_app, listeners, requests, report, credentials, counts=counts)
                server.log = report if settings.access_log else None
                urls = (url_of(listener, is_tls=credentials.tls is not None) for listener in listeners)
                what = "" if served.recording_of is None else f" a recording of {served.recording_of}"
                server.status = f"serving{what} at {', '.join(urls)}"
                server.on_ready = partial(report, server.status)
                if not requests.ending:
                    serve(server)
            return ExitCode.DONE

        yield run


def make_app(
    served: Served, totals: Totals, traffic: Traffic, counts: ServerCounts, publications: Publications
) -> Starlette:
    """Return the application, without access control."""
    described = description(served.lenses, __version__, without=_SUMS if served.player else ())

    async def openapi(_request: Request) -> Response:
        return JSONResponse(described)

    # What is summed since serving started has no time: of a recording, a client would take it for current.
    sums = [*metrics_routes(served, totals, counts), *traffic_routes(served, traffic, totals.catch_up)]
    routes = [
        *page_routes(),
        *(_refused_routes(served) if served.player else sums),
        *health_routes(served, totals),
        Route("/api/openapi.json", openapi, methods=["GET"]),
        *stream_routes(served, publications),  # before the tables, whose pattern matches this path too
        *table_routes(served),
    ]
    return application(routes)


def _refused_routes(served: Served) -> list[Route]:
    """Return routes of the paths of sums, which refuse for a recording."""

    async def refuse(_request: Request) -> Response:
        what = f"this is a recording of {served.recording_of}, whose numbers would be taken for current ones here"
        raise Problem(404, what, "read the tables below /api/v1/, which have the time of each reading")

    return [Route(path, refuse, methods=["GET"]) for path in _SUMS]


def _check_filters(settings: ServeSettings) -> None:
    """Raise UsageError if no table accepts a filter; the error is that of the first table."""
    tables = [table for lens in lenses() if lens.id in settings.lenses for table in lens.tables]
    for text in settings.filters:
        if all(applicable_filter(table, text) is None for table in tables):
            parse_filter(tables[0], text)


async def _until_ready(served: Served, publications: Publications, report: Callable[[str], None]) -> None:
    """Wait until every lens has been read or has failed. Report failures. Raise what `_report_failures` raises."""
    while not served.is_ready:
        await publications.wait()
    _report_failures(served, report)


def _why_empty(served: Served, lens: Lens) -> NettopError | None:
    """Return why no table of a lens has rows; None if one has, or may have later, such as when a collector starts."""
    frame = served.frame(lens.id)
    refusal = None if frame is None else frame.now.refusal(lens.tables)
    may_come = refusal is not None and refusal.exit_code is ExitCode.SOURCE
    return served.failure(lens.id) or (None if may_come else refusal)


def _report_failures(served: Served, report: Callable[[str], None]) -> None:
    """Report the lenses that have nothing to serve. Raise the first failure if all have failed, and any UsageError."""
    lens_failures = ((lens.id, _why_empty(served, lens)) for lens in served.lenses if lens is not SELF)
    failures = {name: failure for name, failure in lens_failures if failure is not None}
    misused = [failure for failure in failures.values() if isinstance(failure, UsageError)]
    if misused or (failures and len(failures) == sum(lens is not SELF for lens in served.lenses)):
        raise next(iter(misused or failures.values()))
    for name, failure in failures.items():
        report(f"{name} is not served: {failure.what}")
