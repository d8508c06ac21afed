# SPDX-License-Identifier: Apache-2.0
"""A host on a bad day: a reader that has stopped, a full listener, connects without a local port, and a small leak."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from nettop.query.finding_tracker import FindingTracker
from nettop.snapshots.connections import FAILURES, SOCKETS
from nettop.snapshots.connections import LENS as CONNECTIONS
from nettop.snapshots.findings import CPUS, FINDINGS, FIREWALL, LIMITS, LOSSES
from nettop.snapshots.findings import LENS as FINDINGS_LENS
from nettop.snapshots.snapshot import Frame, Snapshot
from tests.unit.build import TAKEN_NS, WALL_NS, Row, example_rows, later, make_hooks, make_rows

READINGS = 50
_SECOND_NS = 1_000_000_000
_OWN = {"netns": 4026531840, "namespace": "own"}
_READER = _OWN | {
    "id": 90_001, "process": "reportd", "pid": 25406, "local_address": "10.0.3.7", "local_port": 7000,
    "remote_address": "10.0.3.7", "remote_port": 60968, "state": "ESTABLISHED", "receive_queue": 129_000,
    "bytes_received": 912_000, "bytes_acked": 0, "send_queue": 0,
}  # fmt: skip
_WRITER = _OWN | {
    "id": 90_002, "process": "ordersvc", "pid": 25411, "local_address": "10.0.3.7", "local_port": 60968,
    "remote_address": "10.0.3.7", "remote_port": 7000, "state": "ESTABLISHED", "send_queue": 244_000,
    "bytes_acked": 912_000, "bytes_in_flight": 0, "peer_window": 0,
}  # fmt: skip
_LISTENER = _OWN | {
    "id": 90_003, "process": "payapi", "pid": 1201, "local_address": "10.0.3.7", "local_port": 7003,
    "remote_address": "0.0.0.0", "remote_port": None, "state": "LISTEN", "accept_queue": 9, "backlog": 8,
    "syn_queue": 0,
}  # fmt: skip
_FAILURE = _OWN | {
    "id": 1, "direction": "outbound", "reason": "no local port", "process": "fetcher",
    "remote_address": "10.91.0.2", "port": 7005, "reset": 0,
}  # fmt: skip
_TICKS = _OWN | {
    "id": 90_004, "process": "tickerd", "pid": 77, "local_address": "10.0.3.7", "local_port": 40400,
    "remote_address": "10.0.9.1", "remote_port": 9000, "state": "ESTABLISHED", "bytes_received": 0,
}  # fmt: skip


def example_steps(readings: int = READINGS, *, calm: bool = False) -> list[Snapshot]:
    """Return readings of the connections lens, a second apart; `calm`: only what is healthy."""
    steps, rows = [], example_rows(30, 7)
    for second in range(readings):
        rows = later(rows, second + 8)
        healthy = [row | {"retransmits": None} for row in rows]
        steps.append(_snapshot(healthy if calm else [*healthy, *_in_trouble(second)], second, calm=calm))
    return steps


def _in_trouble(second: int) -> list[Row]:
    leaked = [
        _OWN
        | {
            "id": 91_000 + n,
            "process": "ledgerd",
            "pid": 640,
            "state": "CLOSE_WAIT",
            "local_port": 8080,
            "send_queue": 0,
        }
        for n in range(40 + 3 * second)
    ]
    sent = 6000 * second
    ticks = _TICKS | {
        "bytes_sent": 24 * sent,
        "data_packets_sent": sent,
        "packets_sent": sent,
        "retransmits": 0,
    }
    reader = _READER | {"last_received_ms": 2_000 + 1000 * second}
    return [reader, _WRITER | {"busy_us": 1_000_000 * second}, _LISTENER, ticks, *leaked]


def _snapshot(rows: list[Row], second: int, *, calm: bool) -> Snapshot:
    taken_ns = TAKEN_NS + second * _SECOND_NS
    failures = [] if calm else [_FAILURE | {"failed": 26 * second, "failures": 26 * second}]
    tables = {
        SOCKETS.name: make_rows(rows, SOCKETS, taken_ns),
        FAILURES.name: make_rows(failures, FAILURES, taken_ns),
    }
    made = Snapshot("connections", WALL_NS + second * _SECOND_NS, taken_ns + 5_000_000_000, tables)
    return replace(
        made, counts={"time_wait": 14, "unattributed": 2}, hooks=make_hooks({"sockets": "iterator"})
    )


def own_steps(readings: int) -> list[Snapshot]:
    """Return readings of the findings lens on this host, with a row in each of its tables."""
    tracker, connections = FindingTracker(), example_steps(readings)
    return [_findings(tracker, now, before) for before, now in pairwise((None, *connections))]


def _findings(tracker: FindingTracker, now: Snapshot, before: Snapshot | None) -> Snapshot:
    taken_ns = now.tables[SOCKETS.name].taken_ns
    found = tracker.update([(CONNECTIONS, Frame(now, before))], taken_ns, now.wall_ns)
    limit: Row = _OWN | {
        "id": 1, "resource": "conntrack entries", "used": 230_112, "limit": 262_144, "when_full": "new ones drop",
        "growth": 102.5, "full_in": 312_507_000_000,
    }  # fmt: skip
    rule: Row = _OWN | {
        "id": 1,
        "family": "inet",
        "table": "filter",
        "chain": "input",
        "action": "drop",
        "packets": 9,
    }
    loss: Row = {"id": 1, "lens": "Services", "what": "unwatched", "lost": 3, "meaning": "for lack of memory"}
    tables = {
        FINDINGS.name: found,
        LIMITS.name: make_rows([limit], LIMITS, taken_ns),
        CPUS.name: make_rows([{"id": 0, "cpu": 0, "softirq_ns": 10_000_000}], CPUS, taken_ns),
        FIREWALL.name: make_rows([rule], FIREWALL, taken_ns),
        LOSSES.name: make_rows([loss], LOSSES, taken_ns),
    }
    return Snapshot(FINDINGS_LENS.id, now.wall_ns, now.boot_ns, tables)
