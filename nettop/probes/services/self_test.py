# SPDX-License-Identifier: Apache-2.0
"""Self-test of the services lens: compare its counts with a known number of requests and responses, and its response
times over UDP with the time that the exchange took."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from nettop.process.clocks import monotonic_ns
from nettop.selftest.paths import IP_VERSIONS, TrafficPath
from nettop.selftest.process import CommandFailed
from nettop.selftest.result import SelfTestResult
from nettop.snapshots.services import HOOK_UDP_REQUESTS, LENS, SERVICES, SIDES, UDP_PORT
from nettop.snapshots.source import Source

_REQUESTS = (37, 41, 43, 47)
"""Primes, one per path and family."""
_REQUEST_BYTES, _RESPONSE_BYTES = 101, 503
_UDP_PORTS = (19_853, 19_854, 19_855, 19_856)
"""Unassigned ports, one per path and family."""

OPTIONS = {UDP_PORT: ",".join(map(str, _UDP_PORTS))}


def run(source: Source, paths: Sequence[TrafficPath]) -> list[SelfTestResult]:
    """Send requests over loopback and between namespaces, each answered before the next, and compare what both ends
    show."""
    snapshot = source.read(monotonic_ns())
    why = snapshot.why_unavailable(SERVICES)
    if why is not None:
        return [SelfTestResult(LENS.id, "responses", skipped=f"not available: {why}")]
    results = _compare(source, paths, _exchange, "")
    why = snapshot.why_not(HOOK_UDP_REQUESTS.name)
    if why is not None:
        return [*results, SelfTestResult(LENS.id, "UDP responses", skipped=f"not available: {why}")]
    return results + _compare(source, paths, _exchange_datagrams, " UDP")


class _Exchanged(NamedTuple):
    """The port of an exchange, and the least and most ns that its responses may have taken in all, if known."""

    port: int
    took_ns: tuple[int, int] | None = None


def _compare(
    source: Source,
    paths: Sequence[TrafficPath],
    exchange: Callable[[TrafficPath, str, int, int], _Exchanged],
    protocol: str,
) -> list[SelfTestResult]:
    """Exchange requests and responses on each path, by `exchange(path, family, port, count)`; compare both sides."""
    results = []
    kinds = ((path, family) for path in paths for family in IP_VERSIONS)
    for count, port, (path, family) in zip(_REQUESTS, _UDP_PORTS, kinds, strict=True):
        what = f"{path.name} {family}{protocol}"
        try:
            exchanged = exchange(path, family, port, count)
        except CommandFailed as error:
            results.append(SelfTestResult(LENS.id, what, skipped=error.what))
            continue
        rows = source.read(monotonic_ns()).tables[SERVICES.name].array
        for number, side in SIDES.items():
            here = rows[(rows["port"] == exchanged.port) & (rows["side"] == number)]
            responses, took_ns = (
                int(here[name].astype(np.int64).sum()) if len(here) else None
                for name in ("responses", "response_ns")
            )
            results.append(SelfTestResult(LENS.id, f"{what}, {side}", count, responses, "responses"))
            if exchanged.took_ns is not None:
                what_took = f"{what}, {side}, within the time that it took"
                results.append(_compare_time(what_took, took_ns, *exchanged.took_ns))
    return results


def _compare_time(what: str, took_ns: int | None, least_ns: int, most_ns: int) -> SelfTestResult:
    """Compare a time with the nearest one between two bounds."""
    expected = least_ns if took_ns is None else min(max(took_ns, least_ns), most_ns)
    return SelfTestResult(LENS.id, what, expected, took_ns, "ns")


def _exchange_datagrams(path: TrafficPath, family: str, port: int, count: int) -> _Exchanged:
    """Send datagrams to a port, and a response to each. Raise CommandFailed."""
    client, server = path.ends()
    server.run("bind_udp", "response", path.server_address[family], port)
    back = path.client_address[family], client.run("bind_udp", "request", path.client_address[family])
    least_ns = most_ns = 0
    for _ in range(count):
        before_ns = monotonic_ns()
        client.run("send_datagrams", "request", (path.server_address[family], port), 1, _REQUEST_BYTES)
        sent_ns = monotonic_ns()
        server.run("receive_datagram", "response")
        received_ns = monotonic_ns()
        server.run("send_datagrams", "response", back, 1, _RESPONSE_BYTES)
        client.run("receive_datagram", "request")
        least_ns += received_ns - sent_ns
        most_ns += monotonic_ns() - before_ns
    for process, name in ((client, "request"), (server, "response")):
        process.run("close", name)
    return _Exchanged(port, (least_ns, most_ns))


def _exchange(path: TrafficPath, family: str, _: int, count: int) -> _Exchanged:
    """Send requests over a connection to any port, and a response to each. Raise CommandFailed."""
    client, server = path.ends()
    port = int(server.run("listen", "requests", path.server_address[family]))
    client.run("connect", "request", path.server_address[family], port)
    server.run("accept", "requests", "response")
    for _ in range(count):
        client.run("send", "request", _REQUEST_BYTES)
        server.run("receive", "response", _REQUEST_BYTES)
        server.run("send", "response", _RESPONSE_BYTES)
        client.run("receive", "request", _RESPONSE_BYTES)
    client.run("close", "request")
    for name in ("response", "requests"):
        server.run("close", name)
    return _Exchanged(port)
