# SPDX-License-Identifier: Apache-2.0
"""Top talkers: query the coarsest table that can answer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nettop.errors import unknown_word
from nettop.flows.columns import ADDED_COLUMNS, ADDRESS, COLUMNS
from nettop.flows.reader import Reader
from nettop.flows.store.schema import SERVICE_PORT_OF_FLOW, TABLES, as_names_query, flow_sums

_IN_RAW = {column.name: column for column in (*COLUMNS, *ADDED_COLUMNS)}
_NOT_KEYS = frozenset(("received", "start", "end", "sequence", "bytes", "packets"))
KEYS = tuple(name for name in (*_IN_RAW, "service_port") if name not in _NOT_KEYS)
"""Columns by which flows may be grouped."""
ORDERS = ("bytes", "packets", "flows")
SUMS = ("bytes", "packets", "estimated_bytes", "estimated_packets", "flows")
_FLOW_SUMS = flow_sums()
_ROLLUP_SUMS = {name: f"sum({name})" for name in SUMS}
AS_KEYS = ("src_as", "dst_as", "next_hop_as")
"""Keys that are AS numbers, which have names."""
_NAMES_BY_NUMBER_MAX = 1000
"""Maximum names to query singly; above it all are read, as a query has a maximum length."""
ROLLUPS = ((6 * 3600, "flows_1m"), (7 * 86_400, "flows_5m"), (float("inf"), "flows_1h"))
"""Rollup tables, and up to how many seconds back each is used."""
_ROW_STARTS = {
    **dict.fromkeys(("flows_1m", "talkers_1m"), "toStartOfMinute({})"),
    "flows_5m": "toStartOfFiveMinutes({})",
    "flows_1h": "toStartOfHour({}, 'UTC')",
}
"""A rollup row starts with its minute, five minutes or hour; the one that contains the start time counts as a whole."""
_RAW_S = 3600
"""Seconds up to which single flows are read instead of talkers_1m, which names only the largest."""
REST = "::"
"""Address in talkers_1m for all addresses that it does not name."""


@dataclass(frozen=True, slots=True)
class TopQuery:
    """A query for the flows of the last `since_s` seconds grouped by `keys`: the `limit` largest by `order`."""

    keys: tuple[str, ...]
    since_s: int
    order: str = "bytes"
    limit: int = 10


@dataclass(frozen=True, slots=True)
class Top:
    """Result of a query: the table used, rows with a value per key and sums by name, and the sums of all flows.

    Bytes and packets are as reported; estimates multiply them by the sampling rate, if known. `seconds` is the period
    covered, which starts no earlier than the first flow stored. `as_names` are the known names of AS numbers in the
    rows, unsanitized.
    """

    table: str
    rows: list[dict[str, Any]]
    totals: dict[str, int]
    seconds: float
    as_names: Mapping[int, str]


def checked_keys(names: Sequence[str]) -> tuple[str, ...]:
    """Return the column names without duplicates. Raise UsageError for one that flows cannot be grouped by."""
    for name in names:
        if name not in KEYS:
            raise unknown_word("column of flows", name, KEYS)
    return tuple(dict.fromkeys(names))


def table_for(query: TopQuery) -> str:
    """Return the coarsest table that has the keys."""
    if set(query.keys) <= set(TABLES["flows_1m"].types):
        return next(name for longest, name in ROLLUPS if query.since_s <= longest)
    if set(query.keys) <= set(TABLES["talkers_1m"].types) and query.since_s > _RAW_S:
        return "talkers_1m"
    return "flows_raw"


def read_top(reader: Reader, query: TopQuery) -> Top:
    """Return the result of a query. Raise what the reader raises."""
    table = table_for(query)
    sums = _FLOW_SUMS if table == "flows_raw" else _ROLLUP_SUMS
    begin = _ROW_STARTS.get(table, "{}").format(f"(now() - {query.since_s})")
    totals = ", ".join(f"{expression} AS sum_{name}" for name, expression in sums.items())
    keys = ", ".join(f"{key_expression(key, table)} AS key_{key}" for key in query.keys)
    order = query.order if query.order == "flows" else f"estimated_{query.order}"
    groups = ", ".join(f"key_{key}" for key in query.keys)
    source = f"FROM {table} WHERE {TABLES[table].time} >= {begin}"
    largest = f"GROUP BY {groups} ORDER BY sum_{order} DESC, {groups} LIMIT {query.limit}"
    answer = _rows(reader, f"SELECT {keys}, {totals} {source} {largest}")
    rows = [{name.partition("_")[2]: value for name, value in row.items()} for row in answer]
    (all_flows,) = _rows(reader, f"SELECT {totals} {source}")
    return Top(
        table,
        rows,
        {name: int(all_flows[f"sum_{name}"]) for name in SUMS},
        _seconds(reader, table, begin),
        _as_names(reader, {row[key] for key in AS_KEYS if key in query.keys for row in rows}),
    )


def _seconds(reader: Reader, table: str, begin: str) -> float:
    """Return how many seconds the table covers up to now: at most since `begin`, and at least 1."""
    # The time of the first flow is exact, but rollups are kept for longer than flows.
    first, flow = (_oldest(name) for name in (table, "flows_raw"))
    resolved = _ROW_STARTS.get(table, "{}").format(flow)
    oldest = f"if({resolved} = {first}, toFloat64({flow}), toFloat64({first}))"
    sql = f"SELECT toFloat64(now64(3)) - greatest({oldest}, toFloat64({begin})) AS seconds"
    (row,) = _rows(reader, sql)
    return max(1.0, float(row["seconds"]))


def _oldest(table: str) -> str:
    source = f"FROM {table}"
    return f"(SELECT min({TABLES[table].time}) {source})"


def _as_names(reader: Reader, numbers: set[int]) -> dict[int, str]:
    """Return the known names of AS numbers."""
    if not numbers:
        return {}
    are_few = len(numbers) <= _NAMES_BY_NUMBER_MAX
    where = f"WHERE as_number IN ({', '.join(map(str, numbers))})" if are_few else ""
    return {row["as_number"]: row["as_name"] for row in _rows(reader, as_names_query(where))}


def key_expression(key: str, table: str) -> str:
    """Return the expression for a key in readable form: IPv4 and MAC addresses in their usual notation."""
    if key == "service_port" and table == "flows_raw":
        return SERVICE_PORT_OF_FLOW.replace("f.", "")
    if key in ("src_mac", "dst_mac"):
        return f"MACNumToString({key})"
    if key in _IN_RAW and _IN_RAW[key].dtype == ADDRESS:
        return f"replaceRegexpOne(IPv6NumToString({key}), '^::ffff:([0-9.]+)$', '\\\\1')"
    return key


def _rows(reader: Reader, sql: str) -> list[dict[str, Any]]:
    answer = json.loads(reader.query(sql, "JSONCompact"))
    names = [column["name"] for column in answer["meta"]]
    kinds = [column["type"] for column in answer["meta"]]
    # ClickHouse writes UInt64 as strings.
    return [
        {
            name: int(value) if kind.startswith("UInt") else value
            for name, kind, value in zip(names, kinds, row, strict=True)
        }
        for row in answer["data"]
    ]
