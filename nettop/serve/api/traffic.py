# SPDX-License-Identifier: Apache-2.0
"""/api/metrics/realtime and /api/stats/summary: current and total traffic of the host or one interface."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from nettop.errors import unknown_word
from nettop.serve.api.openapi import operation, parameter, problem_answers
from nettop.serve.api.parameters import decode_pairs, given_parameters
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
        ("bandwidth_bps", f"bits per second{of} in the last interval, both directions"),
        ("packets_per_sec", f"packets per second{of} in the last interval, both directions"),
    )
}
TOTALS = {
    "total_packets": "packets since serving started, both directions",
    "total_bytes": "bytes since serving started, both directions, with link-layer headers",
}
AVERAGES = {
    "uptime_seconds": "seconds since serving started",
    "avg_bandwidth_bps": "average bits per second",
    "peak_bandwidth_bps": "bits per second in the busiest interval",
}
SHARES = {
    f"{part}_percentage": f"{part.upper()} as a percentage of bytes" for part in ("tcp", "http", "https")
}


def traffic_routes(served: Served, totals: Totals) -> list[Route]:
    """Return the routes; without the bandwidth lens they answer 404."""

    def route(path: str, answer_of: Callable[[Traffic, str], Answer | None]) -> Route:
        async def answer(request: Request) -> Response:
            return JSONResponse(_answer(served, totals, request, answer_of))

        return Route(path, answer, methods=["GET"], name=path)

    return [route(REALTIME, Traffic.realtime), route(SUMMARY, Traffic.summary)]


def _answer(
    served: Served, totals: Totals, request: Request, answer_of: Callable[[Traffic, str], Answer | None]
) -> Answer:
    """Return the traffic. Raise Problem for an unknown parameter or interface, or before the first reading."""
    given = given_parameters(decode_pairs(request.scope["query_string"]), (INTERFACE,))
    if served.lens(LENS.id) is None:
        raise Problem(404, "the lens bandwidth is not served", "add it to --lenses")
    name = given[INTERFACE][0] if INTERFACE in given else HOST
    with totals.lock:
        answer = answer_of(totals.traffic, name)
        known = totals.traffic.interfaces
    if answer is None and name in (HOST, *known):
        raise Problem(503, "bandwidth has not been read yet", headers=RETRY_SOON)
    if answer is None:
        error = unknown_word(INTERFACE, name, known)
        raise Problem(404, error.what, error.remedy, parameter=INTERFACE)
    return answer


def traffic_paths() -> dict[str, Any]:
    """Return the paths for the OpenAPI description."""
    return {
        REALTIME: _path("realtime", "Current traffic", RATES | TOTALS),
        SUMMARY: _path("summary", "Traffic since serving started", AVERAGES | TOTALS | SHARES),
    }


def _path(name: str, summary: str, fields: dict[str, str]) -> dict[str, Any]:
    numbers = {
        "type": "object",
        "required": list(fields),
        "additionalProperties": False,
        "properties": {
            name: {"type": ["number", "null"], "description": meaning} for name, meaning in fields.items()
        },
    }
    return operation(
        name,
        LENS.id,
        summary,
        parameter(INTERFACE, "limit to this interface", {"type": "string"}),
        about="Sum over the interfaces backed by a device, or of one interface. Unknown values are null.",
        answer="numbers by name",
        schemas={"application/json": numbers},
        others=problem_answers("400", "404", "503"),
    )
