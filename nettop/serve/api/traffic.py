# SPDX-License-Identifier: Apache-2.0
"""/api/metrics/realtime and /api/stats/summary: current and total traffic of the host or one interface."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from nettop.errors import unknown_word
from nettop.query.view import View
from nettop.serve.api.parameters import given_parameters
from nettop.serve.api.tables import AGE, lens_problem
from nettop.serve.problems import RETRY_SOON, Problem
from nettop.serve.served import Served
from nettop.snapshots.arrays import Array, as_list
from nettop.snapshots.bandwidth import COUNTERS_MODE, INTERFACES, LENS, PROTOCOL_TABLE, SERVICE_TABLE, UPLINK

REALTIME, SUMMARY = "/api/metrics/realtime", "/api/stats/summary"
INTERFACE = "interface"
HOST = ""
"""Key of the sum over the uplinks, in place of an interface."""

_PARTS = ("", "tcp_", "http_", "https_")
_ALL, _LABELS = 0, {"tcp": 1, "HTTP": 2, "HTTPS": 3}
_BYTES, _PACKETS = range(2)
_COLUMNS = {
    "bytes_received": _BYTES,
    "bytes_sent": _BYTES,
    "packets_received": _PACKETS,
    "packets_sent": _PACKETS,
}
_RATES = tuple(f"{part}{name}" for part in _PARTS for name in ("bandwidth_bps", "packets_per_sec"))

Answer = dict[str, float | int | None]


# --- totals -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class InterfaceTraffic:
    """Traffic of an interface in both directions: bytes and packets, in total and per part. Shape (4, 2).

    `rates` are per second in the last interval; None before the second reading. `has_parts` is false if only the
    interface's own counters are read.
    """

    totals: Array = field(default_factory=lambda: np.zeros((len(_PARTS), 2)))
    rates: Array | None = None
    peak_bytes_per_s: float = 0.0
    has_parts: bool = True

    def plus(self, counted: Array, elapsed_s: float, *, has_parts: bool) -> InterfaceTraffic:
        """Add the increments of a reading."""
        rates = counted / elapsed_s if elapsed_s > 0 else None
        peak = 0.0 if rates is None else float(rates[_ALL, _BYTES])
        return InterfaceTraffic(self.totals + counted, rates, max(self.peak_bytes_per_s, peak), has_parts)

    def realtime(self, _uptime_s: float) -> Answer:
        """Return bits and packets per second in the last interval, and totals."""
        rates = [] if self.rates is None else (self.rates * (8, 1)).ravel().tolist()
        known = rates if self.has_parts else rates[:2]
        return dict.fromkeys(_RATES) | dict(zip(_RATES, known, strict=False)) | self._totals()

    def summary(self, uptime_s: float) -> Answer:
        """Return averages and shares since serving started."""
        in_all, *parts = as_list(self.totals[:, _BYTES])
        is_known = in_all and self.has_parts
        averages: Answer = {
            "uptime_seconds": uptime_s,
            "avg_bandwidth_bps": in_all * 8 / uptime_s,
            "peak_bandwidth_bps": self.peak_bytes_per_s * 8,
        }
        shares: Answer = {
            f"{part}percentage": 100 * counted / in_all if is_known else None
            for part, counted in zip(_PARTS[1:], parts, strict=True)
        }
        return averages | self._totals() | shares

    def _totals(self) -> Answer:
        in_bytes, packets = self.totals[_ALL].astype(int).tolist()
        return {"total_packets": packets, "total_bytes": in_bytes}


class Traffic:
    """Sums over readings of the bandwidth lens, for interfaces in nettop's own network namespace."""

    def __init__(self) -> None:
        self.began_s = time.monotonic()
        self._netns = os.stat("/proc/self/ns/net").st_ino
        self.by_name: dict[str, InterfaceTraffic] = {}
        """Traffic of the host and of each current interface; replaced at each reading."""

    def add(self, views: Mapping[str, View], elapsed_s: float) -> None:
        """Add the views of a reading taken `elapsed_s` after the previous one, 0 if it is the first.

        Interfaces missing from it are gone and dropped: with short-lived containers they would accumulate.
        """
        interfaces = views[INTERFACES.name]
        names = _names(interfaces)
        is_own = interfaces.raw("netns") == self._netns
        counted = {names[at]: np.zeros((len(_PARTS), 2)) for at in np.flatnonzero(is_own)}
        _add_rows(counted, interfaces, dict.fromkeys(np.flatnonzero(is_own), _ALL))
        for table, label in ((PROTOCOL_TABLE, "protocol"), (SERVICE_TABLE, "service")):
            if table.name in views:
                labels = views[table.name].values(label, np.arange(views[table.name].size))
                parts = {at: _LABELS[text] for at, text in enumerate(labels) if text in _LABELS}
                _add_rows(counted, views[table.name], parts)
        uplinks = {names[at] for at in np.flatnonzero(is_own & (interfaces.raw("backing") == UPLINK))}
        totals_only = {names[at] for at in np.flatnonzero(is_own & (interfaces.raw("mode") == COUNTERS_MODE))}
        counted[HOST] = sum((counted[name] for name in uplinks), np.zeros((len(_PARTS), 2)))
        totals_only |= {HOST} if uplinks & totals_only else set()
        self.by_name = {
            name: self.by_name.get(name, InterfaceTraffic()).plus(
                growth, elapsed_s, has_parts=name not in totals_only
            )
            for name, growth in counted.items()
        }


def _names(view: View) -> list[str]:
    names: list[str] = view.values("interface", np.arange(view.size))
    return names


def _add_rows(counted: dict[str, Array], view: View, part_of: dict[int, int]) -> None:
    """Add rows, given by position, to their parts."""
    names = _names(view)
    for name, unit in _COLUMNS.items():
        column = view.column(name)
        for at, part in part_of.items():
            if names[at] in counted and column.known[at]:
                counted[names[at]][part, unit] += column.numbers[at]


# --- routes -------------------------------------------------------------------------------------------------


def traffic_routes(served: Served, traffic: Traffic, catch_up: Callable[[], None]) -> list[Route]:
    """Return the routes; without the bandwidth lens they answer 404. `catch_up` adds what was read to `traffic`."""

    def route(path: str, answer_of: Callable[[InterfaceTraffic, float], Answer]) -> Route:
        async def answer(request: Request) -> Response:
            served.watch()
            await served.freshen(LENS.id)
            await run_in_threadpool(catch_up)
            wanted = _wanted(served, traffic, request)
            answer = answer_of(wanted, time.monotonic() - traffic.began_s)
            return JSONResponse(answer | {AGE: served.age_s(LENS.id)})

        return Route(path, answer, methods=["GET"], name=path)

    return [route(REALTIME, InterfaceTraffic.realtime), route(SUMMARY, InterfaceTraffic.summary)]


def _wanted(served: Served, traffic: Traffic, request: Request) -> InterfaceTraffic:
    """Return the traffic. Raise Problem for an unknown parameter or interface, or before the first reading."""
    given = given_parameters(request.scope["query_string"], (INTERFACE,))
    if served.lens(LENS.id) is None:
        raise Problem(404, "the lens bandwidth is not served", "add it to --lenses")
    if (failure := served.failure(LENS.id)) is not None:
        raise lens_problem(LENS.id, failure)
    name, known = given.get(INTERFACE, [HOST])[0], traffic.by_name
    if name in known:
        return known[name]
    if name == HOST:
        raise Problem(503, "bandwidth has not been read yet", headers=RETRY_SOON)
    error = unknown_word(INTERFACE, name, sorted(known.keys() - {HOST}))
    raise Problem(404, error.what, error.remedy, parameter=INTERFACE)
