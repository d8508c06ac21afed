# SPDX-License-Identifier: Apache-2.0
"""Top talkers: query the coarsest table that can answer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from nettop.collector.columns import ADDED_COLUMNS, ADDRESS, COLUMNS
from nettop.collector.reader import Reader
from nettop.collector.store.schema import SERVICE_PORT_OF_FLOW, TABLES, as_names_query, flow_sums
from nettop.errors import UsageError, unknown_word

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
_FLOWS_MAX = 50_000_000
"""Flows up to which they are read even beyond _RAW_S: on two cores, about as many as a query may read in its time."""
_SETTLED_S = 600
"""Seconds after which a flow is in all tables, unless it waited in the spool."""
REST = "::"
"""Address in talkers_1m for all addresses that it does not name."""


@dataclass(frozen=True, slots=True)
class TopQuery:
    """A query for the flows of the last `since_s` seconds grouped by `keys`: the `limit` largest by `order`."""

    keys: tuple[str, ...]
    since_s: int
    order: str = "bytes"
    limit: int = 10

    @property
    def measure(self) -> str:
        """The sum by which rows are ranked."""
        return self.order if self.order == "flows" else f"estimated_{self.order}"


@dataclass(frozen=True, slots=True)
class Top:
    """Result of a query: the table used, rows with a value per key and sums by name, and the sums of all flows.

    Bytes and packets are as reported; estimates multiply them by the sampling rate, if known. `seconds` is the period
    covered, which starts no earlier than the first flow stored. `as_names` are the known names of AS numbers in the
    rows, unsanitized. `unnamed` is the sum, in the query's order, of what the table does not attribute to a host or
    pair: no row, and no host that is not among the rows, lacks more than that.
    """

    table: str
    rows: list[dict[str, Any]]
    totals: dict[str, int]
    seconds: float
    as_names: Mapping[int, str]
    unnamed: int = 0


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
    """Return the result of a query. Raise what the reader raises.

    Only single flows rank hosts and pairs exactly, so use talkers_1m only if it has more, or if they are too many.
    """
    table = table_for(query)
    if table == "talkers_1m" and _has_all_flows(reader, query.since_s):
        with suppress(UsageError):  # they exceed a limit of queries
            return _read(reader, query, "flows_raw", table)
    return _read(reader, query, table, table)


def _has_all_flows(reader: Reader, since_s: int) -> bool:
    """Return whether flows_raw has every flow that talkers_1m counts, and few enough to read them."""
    begin, end = (f"toStartOfMinute(now() - {age_s})" for age_s in (since_s, _SETTLED_S))
    counts = f"sum(flows) AS counted, sumIf(flows, time < {end}) AS settled"
    source = "FROM talkers_1m"
    (talkers,) = _rows(reader, f"SELECT {counts} {source} WHERE time >= {begin}")
    if talkers["counted"] > _FLOWS_MAX:
        return False
    source = f"FROM flows_raw WHERE received >= {begin} AND received < {end}"
    (raw,) = _rows(reader, f"SELECT count() AS flows {source}")
    return bool(raw["flows"] >= talkers["settled"])


def _read(reader: Reader, query: TopQuery, table: str, covering: str) -> Top:
    """Read from a table; the `covering` one shows how far back it reaches."""
    sums = _FLOW_SUMS if table == "flows_raw" else _ROLLUP_SUMS
    begin = _ROW_STARTS.get(table, "{}").format(f"(now() - {query.since_s})")
    totals = ", ".join(f"{expression} AS sum_{name}" for name, expression in sums.items())
    keys = ", ".join(f"{key_expression(key, table)} AS key_{key}" for key in query.keys)
    # Grouping by numbers takes half the time of grouping by their text.
    groups = ", ".join(key if key in TABLES[table].types else f"key_{key}" for key in query.keys)
    source = f"FROM {table} WHERE {TABLES[table].time} >= {begin}"
    is_unnamed = "false"
    if table == "talkers_1m":
        is_unnamed = " OR ".join(f"{key} = toIPv6('{REST}')" for key in query.keys if key != "exporter")
    largest = f"GROUP BY {groups} ORDER BY sum_{query.measure} DESC, {groups} LIMIT {query.limit}"
    answer = _rows(reader, f"SELECT {keys}, {totals} {source} AND NOT ({is_unnamed}) {largest}")
    rows = [{name.partition("_")[2]: value for name, value in row.items()} for row in answer]
    unnamed = f"sumIf({query.measure}, {is_unnamed})" if table == "talkers_1m" else "0"
    (all_flows,) = _rows(reader, f"SELECT {totals}, {unnamed} AS unnamed {source}")
    return Top(
        table,
        rows,
        {name: int(all_flows[f"sum_{name}"]) for name in SUMS},
        _seconds(reader, covering, begin),
        _as_names(reader, {row[key] for key in AS_KEYS if key in query.keys for row in rows}),
        int(all_flows["unnamed"]),
    )


def _seconds(reader: Reader, table: str, begin: str) -> float:
    """Return how many seconds the table covers up to now: at most since `begin`, and at least 1."""
    # The time of the first flow is exact, but rollups are kept for longer than flows.
    sources = ((TABLES[name].time, f"FROM {name}") for name in (table, "flows_raw"))
    first, flow = (f"(SELECT min({column}) {source})" for column, source in sources)
    resolved = _ROW_STARTS.get(table, "{}").format(flow)
    oldest = f"if({resolved} = {first}, toFloat64({flow}), toFloat64({first}))"
    sql = f"SELECT toFloat64(now64(3)) - greatest({oldest}, toFloat64({begin})) AS seconds"
    (row,) = _rows(reader, sql)
    return max(1.0, float(row["seconds"]))


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
