# SPDX-License-Identifier: Apache-2.0
"""/api/metrics/realtime and /api/stats/summary: what the host, or one interface, carries and has carried."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from nettop.errors import unknown_word
from nettop.serve.api.openapi import problem_answers
from nettop.serve.api.parameters import decoded_pairs, given_parameters
from nettop.serve.metrics.totals import Totals
from nettop.serve.metrics.traffic import HOST, Answer, Traffic
from nettop.serve.problems import RETRY_SOON, Problem
from nettop.serve.served import Served
from nettop.snapshots.bandwidth import LENS

REALTIME, SUMMARY = "/api/metrics/realtime", "/api/stats/summary"
INTERFACE = "interface"

RATES = {
    f"{part}{name}": meaning
    for part, of in (
        ("", ""),
        ("tcp_", " of TCP"),
        ("http_", " of HTTP, TCP port 80"),
        ("https_", " of HTTPS, TCP port 443"),
    )
    for name, meaning in (
        ("bandwidth_bps", f"bits per second{of} in the last interval, both ways"),
        ("packets_per_sec", f"packets per second{of} in the last interval, both ways"),
    )
}
IN_ALL = {
    "total_packets": "packets since serving began, both ways",
    "total_bytes": "bytes since serving began, both ways, with link-layer headers",
}
AVERAGES = {
    "uptime_seconds": "seconds since serving began",
    "avg_bandwidth_bps": "bits per second on average",
    "peak_bandwidth_bps": "bits per second in the interval that had most",
}
SHARES = {
    f"{part}_percentage": f"share of the bytes that are {part.upper()}" for part in ("tcp", "http", "https")
}


def traffic_routes(served: Served, totals: Totals) -> list[Route]:
    """The routes; without the bandwidth lens they are problems (404)."""

    def route(path: str, answer_of: Callable[[Traffic, str], Answer | None]) -> Route:
        async def answer(request: Request) -> Response:
            return JSONResponse(_answer(served, totals, request, answer_of))

        return Route(path, answer, methods=["GET"], name=path)

    return [route(REALTIME, Traffic.realtime), route(SUMMARY, Traffic.summary)]


def _answer(
    served: Served, totals: Totals, request: Request, answer_of: Callable[[Traffic, str], Answer | None]
) -> Answer:
    """The numbers. Raises Problem for unknown parameters and interfaces, and before the first reading."""
    given = given_parameters(decoded_pairs(request.scope["query_string"]), (INTERFACE,))
    if served.lens(LENS.id) is None:
        raise Problem(404, "the lens bandwidth is not served", "add it to --lenses")
    name = given[INTERFACE][0] if INTERFACE in given else HOST
    with totals.lock:
        answer = answer_of(totals.traffic, name)
        known = totals.traffic.interfaces
    if answer is None and name in (HOST, *known):
        raise Problem(503, "bandwidth was not read yet", headers=RETRY_SOON)
    if answer is None:
        error = unknown_word(INTERFACE, name, known)
        raise Problem(404, error.what, error.remedy, parameter=INTERFACE)
    return answer


def traffic_paths() -> dict[str, Any]:
    """The paths for the OpenAPI description."""
    return {
        REALTIME: _path("realtime", "What is carried now", RATES | IN_ALL),
        SUMMARY: _path("summary", "What was carried since serving began", AVERAGES | IN_ALL | SHARES),
    }


def _path(operation: str, text: str, fields: dict[str, str]) -> dict[str, Any]:
    return {
        "get": {
            "operationId": operation,
            "tags": [LENS.id],
            "summary": text,
            "description": "Of the interfaces with a device together, or of one. What is not known is null.",
            "parameters": [
                {
                    "name": INTERFACE,
                    "in": "query",
                    "description": "narrows it to one",
                    "schema": {"type": "string"},
                }
            ],
            "responses": {
                "200": {
                    "description": "numbers by name",
                    "content": {
                        "application/json": {
                            "schema": {
                                "type": "object",
                                "required": list(fields),
                                "additionalProperties": False,
                                "properties": {
                                    name: {"type": ["number", "null"], "description": meaning}
                                    for name, meaning in fields.items()
                                },
                            }
                        }
                    },
                }
            }
            | problem_answers("400", "404", "503"),
        }
    }
