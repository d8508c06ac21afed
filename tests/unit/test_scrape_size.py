# SPDX-License-Identifier: Apache-2.0
"""The size of a scrape of every lens, of a busy host with 26 services."""

from __future__ import annotations

import asyncio
from typing import Any

from prometheus_client.parser import text_string_to_metric_families as parse

from nettop.process.clocks import boot_ns
from nettop.serve.http.limits import ServerCounts
from nettop.serve.metrics.exposition import metrics_routes
from nettop.serve.metrics.families import series_sets
from nettop.serve.metrics.totals import Totals
from nettop.snapshots import view_name
from nettop.snapshots.schema import NAMESPACE, NETNS, Field, Kind, Lens, Table
from nettop.snapshots.snapshot import Rows, Snapshot
from nettop.snapshots.source import SourceOptions
from tests.unit.build import WALL_NS, Row, Tables, make_hooks, make_rows
from tests.unit.serving import LENSES, ask, make_app, make_served

MOST_BYTES = 200_000
UNKNOWN = (1 << 64) - 1
ROWS = {
    "connections": 400,
    "connections.failures": 6,
    "cpu": 4,
    "cpu.stacks": 24,
    "cpu.categories": 12,
    "cpu.processes": 10,
    "bandwidth": 4,
    "bandwidth.protocols": 10,
    "bandwidth.services": 12,
    "latency.protocols": 28,
    "latency.pairs": 400,
    "drops": 10,
    "drops.counters": 20,
    "collector": 2,
    "collector.ledger": 20,
    "services": 26,
    "findings": 4,
    "findings.limits": 8,
    "self": 24,
}
"""Rows of each table that metrics are made from."""
TEXTS = {"process": 40, "namespace": 2, "container": 8}
ADDRESSES, PORTS = 16, 40
"""Number of different texts in some columns, of addresses, and of ports."""
OF_SOME = {"queued", "service_time", "failed_answers", "missing_names", "oldest", "late", "lost"}
"""Columns that every other row lacks. No row refers to another."""


def test_a_scrape_is_small() -> None:
    """All lenses of a host with 26 services, all busy, and more processes and peers than are listed."""
    declared = [each for lens in LENSES for each in series_sets(lens)]
    assert {view_name(each.lens, each.table) for each in declared} == ROWS.keys()
    text = asyncio.run(scrape())
    listed = {family.name for family in parse(text)}
    assert {family.name for each in declared for family in each.all_families} <= listed
    assert len(text.encode()) <= MOST_BYTES


async def scrape() -> str:
    """Return the metrics after two readings of each lens."""
    served = make_served(*(reading(lens, 1) for lens in LENSES))
    totals = Totals(served, {}, SourceOptions())
    totals.catch_up()
    for lens in LENSES:
        served.session.bus.publish(reading(lens, 2))
    answer = await ask(make_app(metrics_routes(served, totals, ServerCounts())), "/metrics")
    assert answer.status == 200, answer.body
    return answer.body.decode()


def reading(lens: Lens, number: int) -> Snapshot:
    """Return the reading of a lens with this number, from 1."""
    tables: dict[str, Rows] = {}
    texts: Tables = {}
    for table in lens.tables:
        if rows := [row(table, n, number) for n in range(ROWS.get(view_name(lens, table), 0))]:
            tables[table.name] = make_rows(rows, table, boot_ns(), texts=texts)
    return Snapshot(
        lens.id,
        WALL_NS,
        boot_ns(),
        tables,
        counts={field.name: 10_000 * number for field in lens.counts},
        hooks=make_hooks({hook.name: "fentry" for hook in lens.hooks}),
    )


def row(table: Table, n: int, number: int) -> Row:
    """Return a row of a reading; the enums of the rows differ in all combinations."""
    made: Row = {}
    combination = n
    for field in reversed(table.stored):
        if field.kind is Kind.ENUM:
            combination, at = divmod(combination, len(field.labels))
            made[field.name] = list(field.labels.values())[at]
        else:
            made[field.name] = value(field, n, number)
    return made


def value(field: Field, n: int, number: int) -> Any:
    """Return the value of another field: different texts and addresses, and counts that grow."""
    if field.refers or (field.name in OF_SOME and n % 2):
        return None if field.buckets is None else [UNKNOWN] * field.buckets.count
    match field.kind:
        case Kind.TEXT:
            return f"{field.name}-{n % TEXTS.get(field.name, n + 1):04}"
        case Kind.ADDRESS:
            return f"10.0.{n % ADDRESSES % 8}.{n % ADDRESSES}"
        case Kind.LABEL if field.name == NETNS.name:
            return 4_026_531_833 + n % TEXTS[NAMESPACE.name]
        case Kind.LABEL:
            return 8000 + n % PORTS
        case Kind.HISTOGRAM:
            return [number * (1000 + n)] * (field.buckets.count if field.buckets else 0)
        case Kind.COUNTER:
            return number * 1_234_567 * (n + 1)
        case _:
            return n % 100 + 1
