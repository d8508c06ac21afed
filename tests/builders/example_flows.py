# SPDX-License-Identifier: Apache-2.0
"""Example data for the collector lens: a collector and the routers and switches that report to it."""

from __future__ import annotations

from nettop.snapshots.collector import EXPORTERS, LEDGER
from nettop.snapshots.snapshot import Snapshot
from tests.unit.build import TAKEN_NS, WALL_NS, Row, make_hooks, make_rows

_SECOND_NS = 1_000_000_000

_EXPORTERS: tuple[tuple[str, int, int, int, int, int, int, int, int, int], ...] = (
    ("10.255.0.1", 50_123, 10, 256, 1_400, 39_200, 0, 14, 0, 1000),
    ("10.255.0.2", 50_123, 10, 256, 1_100, 30_800, 37, 14, 2, 1000),
    ("10.255.0.21", 0, 105, 1, 900, 6_300, 0, 0, 0, 4096),
    ("10.255.0.22", 0, 105, 1, 850, 5_950, 0, 0, 0, 4096),
    ("2001:db8:255::7", 2055, 9, 0, 210, 5_040, 0, 5, 0, 0),
    ("192.0.2.99", 40_000, 5, 0, 12, 360, 0, 0, 0, 100),
    ("203.0.113.66", 31_337, 0, 0, 1, 0, 0, 0, 0, 0),
)
"""Address, port, protocol, domain; datagrams and flows per second; lost, templates, waiting, sampling rate."""

_COUNTINGS = {0: 0, 5: 2, 9: 1, 10: 3, 105: 1}
"""What the numbers of each protocol count: nothing, datagrams, flows or records."""

_TERMS = (
    ("datagrams", "arrived", 4_473, 0),
    ("datagrams", "decoded", 4_472, 0),
    ("datagrams", "malformed", 1, 0),
    ("datagrams", "dropped by kernel", 0, 0),
    ("sets without template", "held", 0, 5),
    ("sets without template", "released", 0, 3),
    ("sets without template", "forgotten", 0, 0),
    ("sets without template", "waiting", 0, 2),
    ("flows", "received", 87_650, 0),
    ("flows", "filtered", 0, 0),
    ("flows", "pending", 0, 41_200),
    ("flows", "waiting", 0, 87_650),
    ("flows", "stored", 87_650, -128_850),
    ("flows", "dropped by spool", 0, 0),
)
"""What is counted, what became of it; how many in a second, and how many more."""


def example_steps(seconds: int = 3) -> list[Snapshot]:
    """Return snapshots a second apart."""
    return [_snapshot(second) for second in range(seconds)]


def _snapshot(second: int) -> Snapshot:
    since = second + 600
    now_ns = WALL_NS + second * _SECOND_NS
    exporters = [_exporter(number, since, now_ns) for number in range(len(_EXPORTERS))]
    ledger: list[Row] = [
        {"id": number, "of": of, "term": term, "items": per_second * since + more}
        for number, (of, term, per_second, more) in enumerate(_TERMS)
    ]
    taken_ns = TAKEN_NS + second * _SECOND_NS
    tables = {
        EXPORTERS.name: make_rows(exporters, EXPORTERS, taken_ns),
        LEDGER.name: make_rows(ledger, LEDGER, taken_ns),
    }
    hooks = make_hooks({"collector": "http"})
    return Snapshot("collector", now_ns, taken_ns + 5_000_000_000, tables, hooks=hooks)


def _exporter(number: int, since: int, now_ns: int) -> Row:
    address, port, protocol, domain, datagrams, flows, lost, templates, waiting, sampling = _EXPORTERS[number]
    counting = _COUNTINGS[protocol]
    return {
        "id": number + 1,
        "exporter": address,
        "port": port,
        "protocol": protocol,
        "domain": domain,
        "datagrams": datagrams * since,
        "bytes": datagrams * since * 1_390,
        "flows": flows * since,
        "lost": lost if counting else None,
        "numbered": (0, datagrams, flows, flows)[counting] * since,
        "counting": counting,
        "restarts": 0,
        "unchecked": 0,
        "malformed": datagrams * since if protocol == 0 else 0,
        "broken": 0,
        "options": templates * since // 60,
        "templates": templates,
        "waiting": waiting,
        "sampling_rate": sampling or None,
        "first_seen": now_ns - since * _SECOND_NS,
        "last_seen": now_ns,
    }
