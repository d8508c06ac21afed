# SPDX-License-Identifier: Apache-2.0
"""Readings of every lens of a busy host with 26 services: each table has rows, and their counts grow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nettop.process.clocks import boot_ns
from nettop.snapshots import view_name
from nettop.snapshots.schema import NAMESPACE, NETNS, Field, Kind, Lens, Table
from nettop.snapshots.snapshot import Rows, Snapshot
from tests.unit.build import WALL_NS, Row, Tables, make_hooks, make_rows

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
OF_SOME = {"queued", "service_time", "failed_responses", "missing_names", "oldest", "late", "lost"}
"""Columns that every other row lacks. No row refers to another."""


def reading(lens: Lens, number: int, counts: Mapping[str, int] = ROWS) -> Snapshot:
    """Return the reading of a lens with this number, from 1, and so many rows in each table."""
    tables: dict[str, Rows] = {}
    texts: Tables = {}
    for table in lens.tables:
        if rows := [row(table, n, number) for n in range(counts.get(view_name(lens, table), 0))]:
            tables[table.name] = make_rows(rows, table, boot_ns(), texts=texts)
    return Snapshot(
        lens.id,
        WALL_NS,
        boot_ns(),
        tables,
        counts={field.name: 10_000 * number for field in lens.counts},
        lost=dict.fromkeys(lens.losses, number - 1),
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
            return number * 123_457 * (n + 1)
        case _:
            return n % 100 + 1
