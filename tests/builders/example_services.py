# SPDX-License-Identifier: Apache-2.0
"""Example data for the services lens: a web server whose backend holds its event loop for a while."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from nettop.probes.services.rows import Withheld
from nettop.probes.services.usual import UsualTimes
from nettop.snapshots.arrays import Array
from nettop.snapshots.histograms import Buckets
from nettop.snapshots.schema import Table
from nettop.snapshots.services import (
    BUCKETS,
    CLIENT_BUCKETS,
    CLIENTS,
    CLIENTS_EVICTED,
    CONNECTIONS,
    DNS_PORT,
    HOOK_CALLS,
    HOOK_UDP_REQUESTS,
    LENS,
    PROTOCOLS,
    SERVED,
    SERVICES,
    SIDES,
    TCP,
    UDP,
    UNLISTED_FAILURES,
    USED,
    WAITING,
)
from nettop.snapshots.snapshot import Snapshot
from tests.unit.build import TAKEN_NS, WALL_NS, Row, make_hooks, make_rows

SECOND_NS = 1_000_000_000
MS = 1_000_000
HELD = range(70, 91)
"""The seconds in which the backend reads late."""
MECHANISM = "tp_btf/sock_send_length + sock_recv_length + sk_data_ready"
UDP_MECHANISM = "cgroup_skb + cgroup/sock_release + post_bind"


class _Service(NamedTuple):
    """A service: who serves or uses it, how many responses each second, and the medians of their times in ns."""

    process: str
    pid: int
    side: int
    address: str
    port: int
    responses: int
    queued_ns: float
    service_ns: float
    connections: int
    container: str = ""


_SERVICES = (
    _Service("nginx", 1204, SERVED, "::", 443, 2_140, 40_000, 3_900_000, 612, "nginx.service"),
    _Service("orders", 1812, SERVED, "::", 8000, 410, 60_000, 3_100_000, 32, "docker:4f1c22a09b7e"),
    _Service("nginx", 1204, USED, "172.17.0.2", 8000, 410, 0, 3_300_000, 32, "nginx.service"),
    _Service("postgres", 990, SERVED, "::", 5432, 5_200, 22_000, 240_000, 48, "postgresql.service"),
    _Service("orders", 1812, USED, "10.0.3.9", 6379, 9_800, 0, 410_000, 16, "docker:4f1c22a09b7e"),
    _Service("sshd", 702, SERVED, "::", 22, 3, 30_000, 90_000, 1, "ssh.service"),
    _Service("orders", 1812, USED, "10.0.0.2", DNS_PORT, 28, 0, 620_000, 0, "docker:4f1c22a09b7e"),
)
FIRST_ID = 2
ORDERS, NGINX_TO_ORDERS = FIRST_ID + 1, FIRST_ID + 2
_HELD_NS = 840_000_000
_WAITED_NS = [n * 431 * MS for n in range(7, 0, -1)]
_SPREAD = 0.6
_CLIENTS = (("10.0.9.4", 0.5, 1.0), ("203.0.113.9", 0.3, 1.7), ("2001:db8:1::24", 0.2, 0.8))
"""Addresses, their share of nginx's requests, and how much longer these take."""


@cache
def example_steps(count: int = 3, *, held: range = HELD) -> tuple[Snapshot, ...]:
    """Return snapshots a second apart; the backend reads late in the seconds in `held`."""
    chance = np.random.default_rng(7)
    usual = UsualTimes()
    totals = {
        (n, name): np.zeros(BUCKETS.count, np.uint64)
        for n in range(len(_SERVICES))
        for name in ("response", "queued", "service_time")
    }
    clients = np.zeros((len(_CLIENTS), CLIENT_BUCKETS.count), np.uint64)
    steps = []
    for second in range(1, count + 1):
        for n, service in enumerate(_SERVICES):
            late_ns = _HELD_NS if second in held and service.port == 8000 else 0
            queued_ns = service.queued_ns + (late_ns if service.side == SERVED else 0)
            response_ns = service.queued_ns + service.service_ns + late_ns
            totals[n, "response"] += _drawn(service.responses, response_ns, BUCKETS, chance)
            if service.side == SERVED:
                totals[n, "queued"] += _drawn(service.responses, queued_ns, BUCKETS, chance)
                totals[n, "service_time"] += _drawn(service.responses, service.service_ns, BUCKETS, chance)
        for n, (_, share, factor) in enumerate(_CLIENTS):
            of_nginx = _SERVICES[0]
            median_ns = factor * of_nginx.service_ns
            clients[n] += _drawn(share * of_nginx.responses, median_ns, CLIENT_BUCKETS, chance)
        steps.append(_snapshot(totals, clients, second, held, usual))
    return tuple(steps)


def _drawn(count: float, median_ns: float, buckets: Buckets, chance: np.random.Generator) -> Array:
    """Draw `count` durations from a log-normal distribution; return the number in each bucket."""
    ends = (*buckets.edges[1:], math.inf)
    below = [(1 + math.erf(math.log(end / median_ns) / _SPREAD / math.sqrt(2))) / 2 for end in ends]
    return chance.poisson(count * np.diff(below, prepend=0.0)).astype(np.uint64)


def _snapshot(
    totals: dict[tuple[int, str], Array], clients: Array, second: int, held: range, usual: UsualTimes
) -> Snapshot:
    taken_ns, wall_ns = TAKEN_NS + second * SECOND_NS, WALL_NS + second * SECOND_NS
    waiting = _waiting_rows(wall_ns, _WAITED_NS if second in held else (2 * MS,))
    connections = [*waiting, *map(_idle_connection_row, range(len(_CLIENTS)))]
    services = make_rows(
        [_service_row(n, totals, second, waiting) for n in range(len(_SERVICES))], SERVICES, taken_ns
    )
    usual.set_columns(services.array, taken_ns)
    Withheld().set_columns(services.array)
    tables = {
        SERVICES.name: services,
        CLIENTS.name: make_rows([_client_row(n, clients[n]) for n in range(len(clients))], CLIENTS, taken_ns),
        CONNECTIONS.name: make_rows(connections, CONNECTIONS, taken_ns),
        WAITING.name: make_rows([_declared_by(WAITING, row) for row in waiting], WAITING, taken_ns),
    }
    return Snapshot(
        LENS.id,
        wall_ns,
        taken_ns + 5 * SECOND_NS,
        tables,
        counts={CLIENTS_EVICTED: 4, UNLISTED_FAILURES: 0},
        lost={"skipped calls": 0, "unwatched": 0},
        hooks=make_hooks({HOOK_CALLS.name: MECHANISM, HOOK_UDP_REQUESTS.name: UDP_MECHANISM}),
    )


def not_available(reason: str) -> Snapshot:
    """Return the snapshot of a kernel without the hook."""
    hooks = make_hooks({HOOK_CALLS.name: f"n/a: {reason}"})
    return Snapshot(LENS.id, WALL_NS, TAKEN_NS, {}, counts={}, lost={}, hooks=hooks)


def _service_row(n: int, totals: dict[tuple[int, str], Array], second: int, waiting: list[Row]) -> Row:
    of = _SERVICES[n]
    own = [row["waited"] for row in waiting if row["service"] == FIRST_ID + n]
    responses = int(totals[n, "response"].sum())
    served = {name: totals[n, name].copy() for name in ("queued", "service_time")}
    unknown = {name: np.full_like(counts, np.iinfo(np.uint64).max) for name, counts in served.items()}
    row: Row = {
        "id": FIRST_ID + n,
        "process": of.process,
        "pid": of.pid,
        "container": of.container,
        "namespace": "own",
        "side": SIDES[of.side],
        "protocol": PROTOCOLS[UDP if of.port == DNS_PORT else TCP],
        "address": of.address,
        "port": of.port,
        "responses": responses,
        "timed": responses,
        "response": totals[n, "response"].copy(),
        **(served if of.side == SERVED else unknown),
        "response_ns": round(responses * (of.queued_ns + of.service_ns)),
        "waiting": len(own),
        **({"oldest": max(own), "stalled": max(own)} if own else {}),
        "unanswered": 0,
        "unanswered_ns": 0,
        "closed": 0,
        "failed_connects": 0,
        "refused": 0,
        "request_bytes": responses * 412,
        "response_bytes": responses * 5_310,
        "transfer_ns": responses * 190_000,
        "connections": of.connections,
        "overlaps": second if of.process == "sshd" else 0,
        "pushes": 0,
        "replies": 0,
        "pattern": "overlapping" if of.process == "sshd" else "alternating",
    }
    only_tcp = (
        "closed",
        "failed_connects",
        "refused",
        "transfer_ns",
        "connections",
        "overlaps",
        "pushes",
        "replies",
    )
    if of.port != DNS_PORT:
        return row
    known = {name: value for name, value in row.items() if name not in {*only_tcp, "pattern"}}
    return known | {"failed_responses": 0, "missing_names": responses // 9}


def _client_row(n: int, counts: Array) -> Row:
    of = _SERVICES[0]
    return {
        "id": 9_000 + n,
        "service": FIRST_ID,
        "process": of.process,
        "port": of.port,
        "namespace": "own",
        "client": _CLIENTS[n][0],
        "responses": int(counts.sum()),
        "response": counts.copy(),
        "response_ns": round(int(counts.sum()) * of.service_ns),
        "waiting": 0,
        "connections": 200 + n,
    }


def _waiting_rows(wall_ns: int, waited_ns: Sequence[int]) -> list[Row]:
    """Return the same requests at both ends: nginx waits for the backend, which has read the oldest one."""
    rows: list[Row] = []
    for n, waited in enumerate(waited_ns):
        ends = ("172.17.0.2", 8000), ("172.17.0.1", 41_200 + n)
        for side, service, (local, remote) in ((SERVED, ORDERS, ends), (USED, NGINX_TO_ORDERS, ends[::-1])):
            rows.append(
                _connection_row(70_000 + 2 * n + side, service, local, remote)
                | {"waited": waited, "since": wall_ns - waited, "inferred": "no"}
                | ({"was_read": "no" if n else "yes"} if side == SERVED else {})
            )
    return rows


def _idle_connection_row(n: int) -> Row:
    return _connection_row(80_000 + n, FIRST_ID, ("10.0.9.1", 443), (_CLIENTS[n][0], 50_100 + n))


def _connection_row(id_: int, service: int, local: tuple[str, int], remote: tuple[str, int]) -> Row:
    of = _SERVICES[service - FIRST_ID]
    return {
        "id": id_,
        "service": service,
        "process": of.process,
        "pid": of.pid,
        "container": of.container,
        "namespace": "own",
        "side": SIDES[of.side],
        "local_address": local[0],
        "local_port": local[1],
        "remote_address": remote[0],
        "remote_port": remote[1],
        "responses": 18,
        "response_ns": round(18 * (of.queued_ns + of.service_ns)),
    }


def _declared_by(table: Table, row: Row) -> Row:
    return {name: value for name, value in row.items() if name in table.by_name}
