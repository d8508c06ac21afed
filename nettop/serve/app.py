# SPDX-License-Identifier: Apache-2.0
"""The application: all routes and their handlers."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from nettop import __version__
from nettop.serve.api.health import health_paths, health_routes
from nettop.serve.api.openapi import description
from nettop.serve.api.stream import stream_routes
from nettop.serve.api.tables import table_routes
from nettop.serve.api.traffic import traffic_paths, traffic_routes
from nettop.serve.http.application import application
from nettop.serve.http.limits import ServerCounts
from nettop.serve.metrics.exposition import metrics_paths, metrics_routes
from nettop.serve.metrics.totals import Totals
from nettop.serve.pages import page_routes
from nettop.serve.served import Publications, Served


def make_app(served: Served, totals: Totals, counts: ServerCounts, publications: Publications) -> Starlette:
    """Return the application, without access control."""
    described = description(served.lenses, __version__, metrics_paths() | health_paths() | traffic_paths())

    async def openapi(_request: Request) -> Response:
        return JSONResponse(described)

    routes = [
        *page_routes(),
        *metrics_routes(served, totals, counts),
        *health_routes(served, totals),
        *traffic_routes(served, totals),
        Route("/api/openapi.json", openapi, methods=["GET"]),
        *stream_routes(served, publications),  # before the tables, whose pattern matches this path too
        *table_routes(served),
    ]
    return application(routes)
