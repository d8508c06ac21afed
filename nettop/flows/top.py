# SPDX-License-Identifier: Apache-2.0
"""Who and what moved most: a query of the coarsest table that can answer, and its rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from nettop.errors import UsageError, unknown_word
from nettop.flows.columns import ADDED_COLUMNS, ADDRESS, COLUMNS
from nettop.flows.reader import Reader
from nettop.flows.store.schema import SERVICE_PORT_OF_FLOW, TABLES, as_names_query, flow_sums

_IN_RAW = {column.name: column for column in (*COLUMNS, *ADDED_COLUMNS)}
_NOT_KEYS = frozenset(("received", "start", "end", "sequence", "bytes", "packets"))
KEYS = tuple(name for name in (*_IN_RAW, "service_port") if name not in _NOT_KEYS)
"""The columns by which flows may be summed up."""
ORDERS = ("bytes", "packets", "flows")
SUMS = ("bytes", "packets", "estimated_bytes", "estimated_packets", "flows")
_OF_FLOW = flow_sums()
# Sums of tables that an earlier nettop made have 64 bits.
_OF_ROLLUP = {name: f"sum(toUInt128({name}))" for name in SUMS}
AS_KEYS = ("src_as", "dst_as", "next_hop_as")
"""The keys that are numbers of autonomous systems, which have names."""
_NAMES_BY_NUMBER_MAX = 1000
"""For more of them all names are read: a query has a longest length."""
ROLLUPS = ((6 * 3600, "flows_1m"), (7 * 86_400, "flows_5m"), (float("inf"), "flows_1h"))
"""For how many seconds back a table of sums is used."""
_BEGIN = {
    **dict.fromkeys(("flows_1m", "talkers_1m"), "toStartOfMinute({})"),
    "flows_5m": "toStartOfFiveMinutes({})",
    "flows_1h": "toStartOfHour({}, 'UTC')",
}
"""A row of sums begins with its minute, five minutes or hour: the one in which the time begins counts as a whole."""
_RAW_S = 3600
"""For how long back single flows are read where talkers_1m, which names only the largest, would do."""
REST = "::"
"""In talkers_1m the address of all that are not named."""


@dataclass(frozen=True, slots=True)
class TopQuery:
    """What to sum up: flows of the last `since_s` seconds by `keys`, the largest `limit` of `order` first."""

    keys: tuple[str, ...]
    since_s: int
    order: str = "bytes"
    limit: int = 10


@dataclass(frozen=True, slots=True)
class Top:
    """The answer, from this table: rows with a value for each key and sums by name, and the sums of all flows.

    Bytes and packets are as reported; estimates are multiplied by the sampling rate where that is known. `seconds` is
    the time that was summed up: not that before the first flow of all. `as_names` are those of AS numbers in the rows,
    as far as a file of --networks had them; they are not safe to show.
    """

    table: str
    rows: list[dict[str, Any]]
    totals: dict[str, int]
    seconds: float
    as_names: Mapping[int, str]


def checked_keys(names: Sequence[str]) -> tuple[str, ...]:
    """The names of columns, each once. Raises UsageError for one that flows cannot be summed up by."""
    for name in names:
        if name not in KEYS:
            raise unknown_word("column of flows", name, KEYS)
    return tuple(dict.fromkeys(names))


def table_for(query: TopQuery) -> str:
    """The coarsest table that has the keys."""
    if set(query.keys) <= set(TABLES["flows_1m"].types):
        return next(name for longest, name in ROLLUPS if query.since_s <= longest)
    if set(query.keys) <= set(TABLES["talkers_1m"].types) and query.since_s > _RAW_S:
        return "talkers_1m"
    return "flows_raw"


def read_top(reader: Reader, query: TopQuery) -> Top:
    """The answer to a query. Raises what the reader does."""
    table = table_for(query)
    sums = _OF_FLOW if table == "flows_raw" else _OF_ROLLUP
    begin = _BEGIN.get(table, "{}").format(f"(now() - {query.since_s})")
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
    """For how long up to now the table has flows: since `begin` at most, and at least 1."""
    # The first flow tells the moment, but sums are kept for longer than flows.
    first, flow = (_oldest(name) for name in (table, "flows_raw"))
    resolved = _BEGIN.get(table, "{}").format(flow)
    oldest = f"if({resolved} = {first}, toFloat64({flow}), toFloat64({first}))"
    sql = f"SELECT toFloat64(now64(3)) - greatest({oldest}, toFloat64({begin})) AS seconds"
    (row,) = _rows(reader, sql)
    return max(1.0, float(row["seconds"]))


def _oldest(table: str) -> str:
    source = f"FROM {table}"
    return f"(SELECT min({TABLES[table].time}) {source})"


def _as_names(reader: Reader, numbers: set[int]) -> dict[int, str]:
    """The names of those AS numbers that have one."""
    if not numbers:
        return {}
    are_few = len(numbers) <= _NAMES_BY_NUMBER_MAX
    where = f"WHERE as_number IN ({', '.join(map(str, numbers))})" if are_few else ""
    with suppress(UsageError):  # of a collector that was started before names were stored
        return {row["as_number"]: row["as_name"] for row in _rows(reader, as_names_query(where))}
    return {}


def key_expression(key: str, table: str) -> str:
    """The key as people read it: IPv4 addresses in their own form, MAC addresses as such."""
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
    # ClickHouse writes UInt64 as texts.
    return [
        {
            name: int(value) if kind.startswith("UInt") else value
            for name, kind, value in zip(names, kinds, row, strict=True)
        }
        for row in answer["data"]
    ]
