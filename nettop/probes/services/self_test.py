# SPDX-License-Identifier: Apache-2.0
"""Self-test of the services lens: compare its counts with a known number of requests and answers."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from nettop.selftest.paths import IP_VERSIONS, TrafficPath
from nettop.selftest.process import CommandFailed
from nettop.selftest.result import SelfTestResult
from nettop.snapshots.services import LENS, SERVICES, SIDES
from nettop.snapshots.source import Source

_REQUESTS = (37, 41, 43, 47)
"""Primes, one per path and family."""
_REQUEST_BYTES, _ANSWER_BYTES = 101, 503


def run(source: Source, paths: Sequence[TrafficPath]) -> list[SelfTestResult]:
    """Send requests over loopback and between namespaces, each answered before the next, and compare the counts of both
    ends."""
    why = source.read(time.monotonic_ns()).why_unavailable(SERVICES)
    if why is not None:
        return [SelfTestResult(LENS.id, "answers", skipped=f"not available: {why}")]
    results = []
    kinds = ((path, family) for path in paths for family in IP_VERSIONS)
    for count, (path, family) in zip(_REQUESTS, kinds, strict=True):
        what = f"{path.name} {family}"
        try:
            port = _exchange(path, family, count)
        except CommandFailed as error:
            results.append(SelfTestResult(LENS.id, what, skipped=error.what))
            continue
        rows = source.read(time.monotonic_ns()).tables[SERVICES.name].array
        for number, side in SIDES.items():
            answers = rows["answers"][(rows["port"] == port) & (rows["side"] == number)]
            measured = int(answers.astype(np.int64).sum()) if len(answers) else None
            results.append(SelfTestResult(LENS.id, f"{what}, {side}", count, measured, "answers"))
    return results


def _exchange(path: TrafficPath, family: str, count: int) -> int:
    """Send requests over a connection, and an answer to each; return the port. Raises CommandFailed."""
    if path.unavailable:
        raise CommandFailed(path.unavailable)
    client, server, address = path.client, path.server, path.server_address[family]
    port = int(server.run("listen", "requests", address))
    client.run("connect", "request", address, port)
    server.run("accept", "requests", "answer")
    for _ in range(count):
        client.run("send", "request", _REQUEST_BYTES)
        server.run("receive", "answer", _REQUEST_BYTES)
        server.run("send", "answer", _ANSWER_BYTES)
        client.run("receive", "request", _ANSWER_BYTES)
    client.run("close", "request")
    for name in ("answer", "requests"):
        server.run("close", name)
    return port
