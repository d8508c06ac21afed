# SPDX-License-Identifier: Apache-2.0
"""Frames of random rows of any table: new, continuing, vanishing and ending rows, and counters that
grow or decrease.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from nettop.snapshots import bandwidth, connections
from nettop.snapshots.bandwidth import EVICTED, INTERFACES
from nettop.snapshots.schema import Field, Kind, Table
from nettop.snapshots.snapshot import Ended, Frame, Rows, Snapshot
from tests.unit.build import TAKEN_NS, WALL_NS, Row, Tables, make_rows

_SECOND_NS = 1_000_000_000
_TEXTS = ("eth0", "docker0", "wg0", None)


def random_frame(table: Table, seed: int) -> Frame:
    """Return two snapshots of a table, of which the newer one also has what ended, and what of that is not listed."""
    chance = random.Random(seed)
    before = {key: _row(table, chance) for key in range(1, chance.randrange(2, 12))}
    kept = {key: _grown(table, row, chance) for key, row in before.items() if chance.random() < 0.7}
    now = kept | {key: _row(table, chance) for key in range(100, chance.randrange(100, 105))}
    texts: Tables = {}
    frame = Frame(
        _snapshot(table, now, 1, texts, chance), _snapshot(table, before, 0, texts, random.Random(seed + 1))
    )
    if not table.cumulative and table is not connections.SOCKETS:
        return frame
    ended = {key: _grown(table, before[key], chance) for key in before.keys() - kept.keys() if key % 2}
    sums = {field.name: _sum(ended.values(), field) for field in table.fields if field.kind is Kind.COUNTER}
    unlisted = {name: chance.choice((0, 5_000_000)) for name in sums}
    old = {name: chance.randrange(10**7) for name in sums}
    totals = [old, {name: old[name] + sums[name] + unlisted[name] for name in sums}]
    with_ended = []
    for step, snapshot in enumerate((frame.before, frame.now)):
        assert snapshot is not None
        rows = (_rows(table, ended, step, texts),) if step else ()
        total = _rows(table, {0: totals[step] | _REST.get(table.name, {})}, step, texts)
        with_ended.append(replace(snapshot, ended={table.name: Ended(rows, total)}))
    return Frame(with_ended[1], with_ended[0])


_REST: Mapping[str, Row] = {"flows": {"interface": EVICTED, "process": EVICTED}}


def _sum(rows: Any, field: Field) -> int:
    return sum(row[field.name] or 0 for row in rows)


def _snapshot(
    table: Table, rows: Mapping[int, Row], step: int, texts: Tables, chance: random.Random
) -> Snapshot:
    tables = {table.name: _rows(table, rows, step, texts)}
    if table in bandwidth.LENS.tables and table is not INTERFACES:
        interfaces = {
            n: {"interface": name, "namespace": "own", "backing": backing}
            for n, (name, backing) in enumerate(
                zip(_TEXTS[:3], ("uplink", "virtual", "virtual"), strict=True)
            )
        }
        tables[INTERFACES.name] = _rows(INTERFACES, interfaces, step, {})
    return Snapshot("any", WALL_NS, TAKEN_NS + step * _SECOND_NS, tables, counts={"drops": 0})


def _rows(table: Table, rows: Mapping[int, Row], step: int, texts: Tables) -> Rows:
    each = [row | {table.key: key} for key, row in rows.items()]
    return make_rows(each, table, TAKEN_NS + step * _SECOND_NS, texts=texts)


def _row(table: Table, chance: random.Random) -> Row:
    return {field.name: _value(field, chance) for field in table.stored if field.kind is not Kind.KEY}


def _value(field: Field, chance: random.Random) -> Any:
    if field.kind is Kind.ADDRESS:
        return "192.0.2.7"
    if field.kind is Kind.HISTOGRAM:
        return [chance.randrange(4) for _ in range(np.dtype(field.dtype).shape[0])]
    if field.kind is Kind.TEXT:
        return chance.choice(_TEXTS)
    if field.kind is Kind.ENUM:
        return chance.choice(list(field.labels.values()))
    if chance.random() < 0.1:
        return None
    return chance.randrange(10**7) if field.kind is Kind.COUNTER else chance.randrange(200)


def _grown(table: Table, row: Row, chance: random.Random) -> Row:
    """Return the row an interval later; a counter may have stood still, or gone back."""
    grown = dict(row)
    for field in table.stored:
        value = row.get(field.name)
        if field.kind is Kind.COUNTER and value is not None:
            grown[field.name] = max(0, value + chance.choice((0, 1, 123_457, -1)) * chance.randrange(1, 9))
        elif field.kind is Kind.HISTOGRAM:
            grown[field.name] = [count + chance.randrange(3) for count in value]
    return grown
