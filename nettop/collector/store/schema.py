# SPDX-License-Identifier: Apache-2.0
"""Declare the tables of flows, and the ClickHouse statements that create them, in this process or on a cluster."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple

from nettop.collector.columns import ADDED_COLUMNS, COLUMNS, ICMP_PROTOCOLS, SMALL, FlowColumn
from nettop.collector.decode.batch import INTERFACE_COUNTERS
from nettop.errors import UsageError

DATABASE = "nettop"
SCHEMA_VERSION = 2
"""Schema version, kept as the comment of `flows_raw`. Raise it with every change of a table or a view, so that
`statements` upgrades those of earlier versions.
"""

DAY_S = 86_400
_DAYS_MAX = 50 * 365
"""Maximum retention: expiry is a DateTime, which overflows in 2106."""
TALKERS_MAX = 1000
"""Address pairs that `talkers_1m` keeps individually, per minute of an inserted block."""
HOST_SHARE_MIN = 0.001
"""Minimum sum of a host's shares of the bytes, packets and flows in that minute, from which `talkers_1m` names it even
if its pairs are smaller. At most 3,000 sources and as many destinations can have it.
"""
REMEMBERED_TOKENS_MAX = 1000
"""Number of recent blocks whose tokens a non-replicated table remembers."""
_REPLICATED_WINDOW = (
    "replicated_deduplication_window = 10000, replicated_deduplication_window_seconds = 604800"
)
"""Newer servers default to one hour, but a block may wait longer for a failed server."""

INSERT_SETTINGS = {
    # Views also deduplicate by the block's token.
    "deduplicate_blocks_in_dependent_materialized_views": 1,
    # A view's sums have no equal keys; summing again would double the cost of an insert.
    "optimize_on_insert": 0,
}
"""Settings of every insert, besides `insert_deduplication_token`, the block's name."""

EXISTING_TABLES_QUERY = (
    "SELECT database, name, comment, engine_full, columns FROM system.tables LEFT JOIN (SELECT database, "
    "table AS name, groupArray((system.columns.name, type)) AS columns FROM system.columns GROUP BY database, table) "
    "AS c USING (database, name) FORMAT JSONCompactEachRow"
)
"""The query whose answer `existing_tables` reads."""

SERVICE_PORTS = (
    *(1080, 1194, 1433, 1521, 1701, 1723, 1812, 1813, 1883, 1935, 2049, 2083, 2087, 2375, 2376, 3000, 3128),
    *(3260, 3306, 3389, 3478, 3868, 4222, 4443, 4500, 4789, 5000, 5004, 5060, 5061, 5201, 5222, 5223, 5228),
    *(5269, 5353, 5355, 5432, 5671, 5672, 5900, 5938, 5984, 6379, 6443, 6514, 6653, 6667, 6881, 7844, 8000),
    *(8080, 8086, 8123, 8125, 8333, 8443, 8801, 8883, 8888, 9000, 9042, 9090, 9092, 9100, 9200, 9418, 9443),
    *(9993, 10050, 10051, 11211, 19302, 25565, 27015, 27017, 32400, 41641, 51413, 51820),
)
"""Well-known service ports from 1024 on; all lower ports count as services."""


@dataclass(frozen=True, slots=True)
class StoreTable:
    """A table sorted by `order`, whose first `indexed` columns are the primary key; `time` is a row's timestamp, by
    which rows are kept for `days` unless configured otherwise. ClickHouse drops whole partitions.

    If the table has a `source`, a view fills it: `select`, in which {source} is the source's name.
    """

    name: str
    columns: tuple[FlowColumn, ...]
    order: tuple[str, ...]
    indexed: int
    days: int
    time: str = "time"
    partition: str = "toYYYYMMDD({time}, 'UTC')"
    engine: str = "MergeTree"
    shard_by: str = "cityHash64(exporter)"
    source: str = ""
    select: str = ""

    @property
    def types(self) -> dict[str, str]:
        """ClickHouse's types by column, in order, as `native_block` takes them."""
        return {column.name: column.clickhouse for column in self.columns}


class Existing(NamedTuple):
    """A table's row in system.tables, and the names and types of its columns."""

    comment: str
    engine_full: str
    columns: Sequence[tuple[str, str]] = ()


# --- tables ---------------------------------------------------------------------------------------------------

_FLOW = {column.name: column for column in (*COLUMNS, *ADDED_COLUMNS)}
_KEYS = (
    *("exporter", "in_if", "out_if", "side", "etype", "protocol"),
    *("src_as", "dst_as", "src_country", "dst_country", "service_port"),
)
# fmt: off
_TIME = FlowColumn("time", "", "DateTime", "start of the minute, five minutes or hour in which the datagrams arrived")
_SERVICE_PORT = FlowColumn("service_port", "", "UInt16",
                       "the lower port that is below 1024 or a well-known service; 0 if neither is, or for ICMP")
_ESTIMATE = "multiplied by each flow's sampling rate, if known"
_SUMS = (
    # 128 bits, as a broken exporter may report up to 2⁶⁴ - 1, which must not overflow the sum of others.
    FlowColumn("bytes", "", "UInt128", "as reported"),
    FlowColumn("packets", "", "UInt128", "as reported"),
    FlowColumn("estimated_bytes", "", "UInt128", _ESTIMATE),
    FlowColumn("estimated_packets", "", "UInt128", _ESTIMATE),
    FlowColumn("flows", "", "UInt64", "number of rows of flows_raw", codec=SMALL),
)
# fmt: on


def flow_sums(flow: str = "") -> dict[str, str]:
    """Return the sums over flows_raw by name, given a prefix for its columns. 128 bits hold any total."""
    rate = f"greatest({flow}sampling_rate, 1)"
    return {
        "bytes": f"sum(toUInt128({flow}bytes))",
        "packets": f"sum(toUInt128({flow}packets))",
        "estimated_bytes": f"sum(toUInt128({flow}bytes) * {rate})",
        "estimated_packets": f"sum(toUInt128({flow}packets) * {rate})",
        "flows": "count()",
    }


_FLOW_SUMS = flow_sums("f.")
_SUMS_OF_SUMS = {column.name: f"sum(f.{column.name})" for column in _SUMS}


def _select(source: str, keys: Mapping[str, str], sums: Mapping[str, str]) -> str:
    """Build a SELECT from named expressions. Source columns are prefixed `f.`; a bare name is a result column."""
    columns = ", ".join(f"{expression} AS {name}" for name, expression in {**keys, **sums}.items())
    return " ".join(("SELECT", columns, "FROM", source, "AS f GROUP BY", ", ".join(keys)))


def _is_service(port: str) -> str:
    return f"({port} BETWEEN 1 AND 1023 OR {port} IN ({', '.join(map(str, SERVICE_PORTS))}))"


_LOWER, _HIGHER = "least(f.src_port, f.dst_port)", "greatest(f.src_port, f.dst_port)"
_HAS_NO_PORTS = f"f.protocol IN ({', '.join(map(str, ICMP_PROTOCOLS))})"
SERVICE_PORT_OF_FLOW = (
    f"multiIf({_HAS_NO_PORTS}, 0, {_is_service(_LOWER)}, {_LOWER}, {_is_service(_HIGHER)}, {_HIGHER}, 0)"
)
_DAY, _MONTH = "toYYYYMMDD({time}, 'UTC')", "toYYYYMM({time}, 'UTC')"


def _rollup(name: str, days: int, source: str, time: str, partition: str = _DAY) -> StoreTable:
    """Return a rollup table. `time` is the source row's time, truncated to this table's resolution."""
    keys = {"time": time, **{key: f"f.{key}" for key in _KEYS}}
    if source == "flows_raw":
        select = _select("{source}", {**keys, "service_port": SERVICE_PORT_OF_FLOW}, _FLOW_SUMS)
    else:
        select = _select("{source}", keys, _SUMS_OF_SUMS)
    columns = (_TIME, *(_FLOW.get(key, _SERVICE_PORT) for key in _KEYS), *_SUMS)
    return StoreTable(
        name,
        columns,
        tuple(keys),
        indexed=4,
        days=days,
        partition=partition,
        engine="SummingMergeTree",
        source=source,
        select=select,
    )


def _named(host: str, is_larger: str) -> str:
    """Return the expression for a host in talkers_1m. A pair that is not kept is counted under the larger of its hosts,
    if that is large enough, so that hosts with many small pairs are still there.
    """
    return f"if(f.is_kept OR ({is_larger} AND f.{host}_share >= {HOST_SHARE_MIN}), f.{host}, toIPv6('::'))"


_PAIRS = _select(
    "{source}",
    {
        "time": "toStartOfMinute(f.received)",
        "exporter": "f.exporter",
        "source": "f.src",
        "destination": "f.dst",
    },
    _FLOW_SUMS,
)
_MEASURES = ("estimated_bytes", "estimated_packets", "flows")
_SHARE = " + ".join(f"{name} / greatest(sum({name}) OVER minute, 1)" for name in _MEASURES)
_RANK = "row_number() OVER (PARTITION BY time ORDER BY estimated_bytes DESC)"
_RANKED = " ".join(
    (
        *("SELECT *,", _RANK, "<=", str(TALKERS_MAX), "AS is_kept,", _SHARE, "AS share"),
        *("FROM (", _PAIRS, ") WINDOW minute AS (PARTITION BY time)"),
    )
)
_SHARES = ", ".join(
    f"sum(share) OVER (PARTITION BY time, {host}) AS {host}_share" for host in ("source", "destination")
)
_FROM_RANKED = f"FROM ({_RANKED})"
_TALKERS = _select(
    f"(SELECT *, {_SHARES} {_FROM_RANKED})",
    {
        "time": "f.time",
        "exporter": "f.exporter",
        "src": _named("source", "f.source_share >= f.destination_share"),
        "dst": _named("destination", "f.source_share < f.destination_share"),
    },
    _SUMS_OF_SUMS,
)

_COUNTER_TYPES = {"u4": "UInt32", "u8": "UInt64"}
_SAMPLE_COLUMNS = ("exporter", "domain", "received")
_COUNTERS = tuple(
    _FLOW[name]
    if name in _SAMPLE_COLUMNS
    else FlowColumn(
        name, "", _COUNTER_TYPES[dtype.str[1:]], "as reported by the agent; all ones if not reported"
    )
    for name, (dtype, *_) in (INTERFACE_COUNTERS.fields or {}).items()
)

TABLES = {
    table.name: table
    for table in (
        StoreTable(
            "flows_raw",
            tuple(_FLOW.values()),
            # Of the orders by time, exporter, interfaces and addresses, this one is the smallest and merges fast.
            ("toStartOfMinute(received)", "exporter", "in_if", "out_if"),
            indexed=4,
            days=7,
            time="received",
        ),
        _rollup("flows_1m", 30, "flows_raw", "toStartOfMinute(f.received)"),
        _rollup("flows_5m", 90, "flows_1m", "toStartOfFiveMinutes(f.time)"),
        _rollup("flows_1h", 730, "flows_5m", "toStartOfHour(f.time, 'UTC')", _MONTH),
        StoreTable(
            "talkers_1m",
            (_TIME, _FLOW["exporter"], _FLOW["src"], _FLOW["dst"], *_SUMS),
            ("time", "exporter", "src", "dst"),
            indexed=2,
            days=30,
            engine="SummingMergeTree",
            source="flows_raw",
            select=_TALKERS,
        ),
        StoreTable(
            "interface_counters",
            _COUNTERS,
            ("toStartOfMinute(received)", "exporter", "if_index"),
            indexed=3,
            days=90,
            time="received",
        ),
        StoreTable(
            "ledger",
            (
                FlowColumn("time", "", "DateTime64(3)", "when the block was written"),
                FlowColumn("token", "", "String", "the block's name"),
                FlowColumn("counters", "", "Map(String, Int64)", "counts since the previous block"),
            ),
            ("time",),
            indexed=1,
            days=90,
            shard_by="cityHash64(token)",
        ),
        StoreTable(
            "as_names",
            (
                FlowColumn("time", "", "DateTime64(3)", "when a collector last loaded it"),
                FlowColumn("as_number", "", "UInt32", "autonomous system"),
                FlowColumn("name", "", "String", "its name in the files of --networks"),
            ),
            ("as_number",),
            indexed=1,
            days=_DAYS_MAX,
            partition="tuple()",
            engine="ReplacingMergeTree(time)",
            shard_by="intHash64(as_number)",
        ),
    )
}
"""All tables by name; sources come before the tables filled from them."""

Retention = Mapping[str, int]
"""Seconds for which each table keeps its rows, by name."""


def retention_of(given: Retention) -> Retention:
    """Complete the given seconds with the defaults. Raise UsageError for less than an hour or more than 50 years."""
    for name, seconds in given.items():
        if not 3600 <= seconds <= _DAYS_MAX * DAY_S:
            kept = timedelta(seconds=seconds)
            raise UsageError(f"cannot keep rows of {name} for {kept}", "use one hour to 50 years")
    return {name: given.get(name, table.days * DAY_S) for name, table in TABLES.items()}


def as_names_query(where: str = "") -> str:
    """Return a query for the most recent name of each autonomous system."""
    source = " ".join(filter(None, ("FROM as_names", where)))
    return f"SELECT as_number, argMax(name, time) AS as_name {source} GROUP BY as_number"


# --- statements -----------------------------------------------------------------------------------------------

_COMMENT = f"nettop schema {SCHEMA_VERSION}"
_VERSION = re.compile(r"nettop schema (\d+)")
_NULLABLE = re.compile(r"Nullable\((.*)\)")
_KEPT = re.compile(r"toIntervalSecond\((\d+)\)")


def existing_tables(answer: bytes) -> dict[str, Existing]:
    """Parse the answer to EXISTING_TABLES_QUERY into the database's tables by name."""
    rows = map(json.loads, answer.splitlines())
    return {name: Existing(*rest) for database, name, *rest in rows if database == DATABASE}


def statements(
    existing: Mapping[str, Existing], retention: Retention | None = None, cluster: str = ""
) -> list[str]:
    """Return the statements, in order, that bring the database up to date with TABLES and the retention.

    Tables of an earlier version are altered; the last statement records the version, so that the next start
    continues an interrupted upgrade. Without `retention`, existing tables keep theirs. `existing` are the current
    tables by name; those up to date need no statement. On a `cluster`, tables are replicated on all nodes, each with a
    Distributed table on top.

    Raise UsageError if the database is from a newer nettop, has tables of the same name that are not nettop's, or was
    set up for a cluster when none is given, or vice versa.
    """
    is_earlier = _version(existing) < SCHEMA_VERSION
    _check_distribution(existing, cluster)
    suffix, on_cluster = ("_local", f" ON CLUSTER `{cluster}`") if cluster else ("", "")
    # A statement ON CLUSTER waits for all servers, one of which may be down.
    result = [] if existing else [f"CREATE DATABASE IF NOT EXISTS {DATABASE}{on_cluster}"]
    if is_earlier:
        # These contain no rows.
        replaced = [
            *(f"{table.name}_view" for table in TABLES.values() if table.source),
            *(cluster and TABLES),
        ]
        result += [f"DROP TABLE IF EXISTS {DATABASE}.{name}{on_cluster} SYNC" for name in replaced]
        existing = {name: declared for name, declared in existing.items() if name not in replaced}
    for table in TABLES.values():
        stored = f"{table.name}{suffix}"
        alter = f"ALTER TABLE {DATABASE}.{stored}{on_cluster}"
        if stored not in existing:
            result.append(_create_table(table, retention or retention_of({}), suffix, on_cluster))
        elif is_earlier:
            result += _changed_columns(table, dict(existing[stored].columns), alter)
        if stored in existing and retention and _ttl_seconds(existing[stored]) != retention[table.name]:
            result.append(f"{alter} MODIFY TTL {_ttl(table, retention)}")
        if cluster and table.name not in existing:
            result.append(_create_distributed(table, cluster, on_cluster))
    views = (table for table in TABLES.values() if table.source and f"{table.name}_view" not in existing)
    result += (_create_view(table, suffix, on_cluster) for table in views)
    if is_earlier:
        result.append(f"ALTER TABLE {DATABASE}.flows_raw{suffix}{on_cluster} MODIFY COMMENT '{_COMMENT}'")
    return result


def run_statements(
    of: Sequence[str], execute: Callable[[str], object], report: Callable[[str], None]
) -> None:
    """Execute statements in order, and report each that alters a table, which may take a while."""
    for number, statement in enumerate(of, 1):
        if statement.startswith("ALTER"):
            report(f"updating the stored flows, step {number} of {len(of)}: {statement.split()[2]}")
        execute(statement)


def _changed_columns(table: StoreTable, types: Mapping[str, str], alter: str) -> Iterator[str]:
    """Yield the statements that give a table of an earlier version these columns; repeating them is harmless."""
    changes = [
        f"{'MODIFY' if column.name in types else 'ADD'} COLUMN {_column(column)}"
        for column in table.columns
        if types.get(column.name) != column.clickhouse
    ]
    if changes:
        yield f"{alter} {', '.join(changes)}"
    for column in table.columns:
        if match := _NULLABLE.fullmatch(column.clickhouse):
            is_unknown = f"{column.name} = defaultValueOfTypeName('{match[1]}')"
            yield f"{alter} UPDATE {column.name} = NULL WHERE {is_unknown} SETTINGS mutations_sync = 1"


def _version(existing: Mapping[str, Existing]) -> int:
    """Return the version of the existing tables, SCHEMA_VERSION if there are none. Raise UsageError."""
    if (flows := existing.get("flows_raw_local") or existing.get("flows_raw")) is None:
        return SCHEMA_VERSION
    match = _VERSION.fullmatch(flows.comment)
    if not match:
        raise UsageError(
            f"the database {DATABASE} has a table flows_raw that nettop did not create",
            "rename that database, or use another server",
        )
    if int(match[1]) > SCHEMA_VERSION:
        raise UsageError(
            f"the flows are stored with schema {match[1]}, but this nettop supports up to {SCHEMA_VERSION}",
            "use the newer nettop that stored them, or another database",
        )
    return int(match[1])


def _check_distribution(existing: Mapping[str, Existing], cluster: str) -> None:
    if "flows_raw" not in existing:
        return
    is_distributed = existing["flows_raw"].engine_full.startswith("Distributed")
    if is_distributed and not cluster:
        raise UsageError(f"the database {DATABASE} was set up for a cluster", "name it with --cluster")
    if cluster and not is_distributed:
        raise UsageError(
            f"the database {DATABASE} was set up for a single server, not for a cluster",
            "leave out --cluster, or rename that database",
        )


def _create_table(table: StoreTable, retention: Retention, suffix: str, on_cluster: str) -> str:
    columns = ",\n    ".join(_column(column) for column in table.columns)
    engine = f"Replicated{table.engine}" if on_cluster else table.engine
    repeats = (
        _REPLICATED_WINDOW if on_cluster else f"non_replicated_deduplication_window = {REMEMBERED_TOKENS_MAX}"
    )
    return (
        f"CREATE TABLE IF NOT EXISTS {DATABASE}.{table.name}{suffix}{on_cluster}\n(\n    {columns}\n)\n"
        f"ENGINE = {engine}\nPARTITION BY {table.partition.format(time=table.time)}\n"
        f"PRIMARY KEY ({', '.join(table.order[: table.indexed])})\nORDER BY ({', '.join(table.order)})\n"
        f"TTL {_ttl(table, retention)}\n"
        # An inserted part is on disk when the insert returns; one file per part keeps that cheap.
        f"SETTINGS {repeats}, fsync_after_insert = 1, fsync_part_directory = 1, "
        "min_bytes_for_wide_part = 134217728, ttl_only_drop_parts = 1, materialize_ttl_recalculate_only = 1\n"
        f"COMMENT '{_COMMENT}'"
    )


def _column(column: FlowColumn) -> str:
    comment = column.help.replace("'", "\\'")
    return f"{column.name} {column.clickhouse} COMMENT '{comment}' CODEC({column.codec})"


def _ttl(table: StoreTable, retention: Retention) -> str:
    return f"toDateTime({table.time}) + toIntervalSecond({retention[table.name]})"


def _ttl_seconds(existing: Existing) -> int | None:
    match = _KEPT.search(existing.engine_full)
    return int(match[1]) if match else None


def _create_distributed(table: StoreTable, cluster: str, on_cluster: str) -> str:
    stored = f"{table.name}_local"
    return (
        f"CREATE TABLE IF NOT EXISTS {DATABASE}.{table.name}{on_cluster} AS {DATABASE}.{stored}\n"
        f"ENGINE = Distributed(`{cluster}`, {DATABASE}, {stored}, {table.shard_by})\n"
        f"COMMENT '{_COMMENT}'"
    )


def _create_view(table: StoreTable, suffix: str, on_cluster: str) -> str:
    select = table.select.format(source=f"{DATABASE}.{table.source}{suffix}")
    return (
        f"CREATE MATERIALIZED VIEW IF NOT EXISTS {DATABASE}.{table.name}_view{on_cluster} "
        f"TO {DATABASE}.{table.name}{suffix} AS\n{select}"
    )
