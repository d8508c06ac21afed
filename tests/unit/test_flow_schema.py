# SPDX-License-Identifier: Apache-2.0
"""Statements for the tables of flows: what is created, altered, left alone and rejected."""

from __future__ import annotations

from datetime import timedelta

import pytest

from nettop.collector.columns import ADDED_COLUMNS, COLUMNS
from nettop.collector.decode.batch import INTERFACE_COUNTERS
from nettop.collector.store.schema import (
    SCHEMA_VERSION,
    SERVICE_PORTS,
    TABLES,
    Existing,
    Retention,
    retention_of,
    statements,
)
from nettop.errors import UsageError

COMMENT = f"nettop schema {SCHEMA_VERSION}"
ROLLUPS = ("flows_1m", "flows_5m", "flows_1h", "talkers_1m")


def stored(retention: Retention, suffix: str = "") -> dict[str, Existing]:
    """Return what system.tables lists after everything is created."""
    tables = {
        f"{name}{suffix}": Existing(
            COMMENT, f"MergeTree TTL toDateTime(x) + toIntervalSecond({retention[name]}) SETTINGS y = 1"
        )
        for name in TABLES
    }
    views = {f"{name}_view": Existing("", "") for name in ROLLUPS}
    distributed = {name: Existing(COMMENT, "Distributed('c')") for name in TABLES} if suffix else {}
    return {**tables, **views, **distributed}


def firsts(created: list[str]) -> list[str]:
    return [statement.splitlines()[0] for statement in created]


def test_a_database_without_tables_gets_them_all_and_then_the_views() -> None:
    created = statements({}, retention_of({}))
    assert firsts(created) == [
        "CREATE DATABASE IF NOT EXISTS nettop",
        *(f"CREATE TABLE IF NOT EXISTS nettop.{name}" for name in TABLES),
        *(
            f"CREATE MATERIALIZED VIEW IF NOT EXISTS nettop.{name}_view TO nettop.{name} AS"
            for name in ROLLUPS
        ),
    ]
    assert not [statement for statement in created if "{" in statement]


def test_a_cluster_has_replicated_tables_below_distributed_ones() -> None:
    created = statements({}, retention_of({}), "two")
    assert firsts(created) == [
        "CREATE DATABASE IF NOT EXISTS nettop ON CLUSTER `two`",
        *(
            line
            for name in TABLES
            for line in (
                f"CREATE TABLE IF NOT EXISTS nettop.{name}_local ON CLUSTER `two`",
                f"CREATE TABLE IF NOT EXISTS nettop.{name} ON CLUSTER `two` AS nettop.{name}_local",
            )
        ),
        *(
            f"CREATE MATERIALIZED VIEW IF NOT EXISTS nettop.{name}_view ON CLUSTER `two` TO nettop.{name}_local AS"
            for name in ROLLUPS
        ),
    ]
    for statement in created:
        if "ENGINE = " in statement:
            assert "ENGINE = Replicated" in statement or "ENGINE = Distributed(`two`, nettop, " in statement
        if "_view" in statement:
            assert "_local AS f GROUP BY" in statement
    assert "cityHash64(exporter))" in created[2]


def test_missing_tables_are_created() -> None:
    existing = stored(retention_of({}))
    del existing["talkers_1m"], existing["flows_1h_view"]
    assert firsts(statements(existing, retention_of({}))) == [
        "CREATE TABLE IF NOT EXISTS nettop.talkers_1m",
        "CREATE MATERIALIZED VIEW IF NOT EXISTS nettop.flows_1h_view TO nettop.flows_1h AS",
    ]


@pytest.mark.parametrize(("cluster", "name"), [("", "flows_5m"), ("two", "flows_5m_local ON CLUSTER `two`")])
def test_another_retention_alters_that_table_alone(cluster: str, name: str) -> None:
    existing = stored(retention_of({}), "_local" if cluster else "")
    assert statements(existing, retention_of({"flows_5m": 36 * 3600}), cluster) == [
        f"ALTER TABLE nettop.{name} MODIFY TTL toDateTime(time) + toIntervalSecond(129600)"
    ]


@pytest.mark.parametrize(("cluster", "on"), [("", ""), ("two", "_local ON CLUSTER `two`")])
def test_an_earlier_version_is_altered_and_recorded_last(cluster: str, on: str) -> None:
    """Tables with other columns, all views and, on a cluster, the tables on top; the version comes last."""
    earlier = {
        name: existing._replace(comment=existing.comment.replace(COMMENT, "nettop schema 1"))
        for name, existing in stored(retention_of({}), "_local" if cluster else "").items()
    }
    suffix = "_local" if cluster else ""
    for table in TABLES.values():
        columns = [(name, "UInt64" if kind == "UInt128" else kind) for name, kind in table.types.items()]
        earlier[f"{table.name}{suffix}"] = earlier[f"{table.name}{suffix}"]._replace(columns=columns)
    earlier[f"ledger{suffix}"] = earlier[f"ledger{suffix}"]._replace(columns=[("time", "DateTime64(3)")])
    changes = firsts(statements(earlier, None, cluster))
    rollups = [line for line in changes if "MODIFY COLUMN" in line]
    assert [line.split()[2].removesuffix("_local") for line in rollups] == [
        f"nettop.{name}" for name in ROLLUPS
    ]
    (added,) = (line for line in changes if "ADD COLUMN" in line)
    assert added.startswith(f"ALTER TABLE nettop.ledger{on} ADD COLUMN token String")
    dropped = [line.split()[4].removeprefix("nettop.") for line in changes if line.startswith("DROP TABLE")]
    assert dropped == [*(f"{name}_view" for name in ROLLUPS), *(TABLES if cluster else ())]
    created = [line.split()[5 + line.startswith("CREATE M")] for line in changes if line.startswith("CREATE")]
    assert sorted(name.split(".")[1] for name in created) == sorted(dropped)
    assert changes[-1] == f"ALTER TABLE nettop.flows_raw{on} MODIFY COMMENT '{COMMENT}'"


@pytest.mark.parametrize(
    ("suffix", "cluster", "what"),
    [("", "two", "a single server, not for a cluster"), ("_local", "", "a cluster")],
)
def test_tables_of_a_server_are_not_taken_for_those_of_a_cluster(
    suffix: str, cluster: str, what: str
) -> None:
    with pytest.raises(UsageError, match=f"^the database nettop was set up for {what}$"):
        statements(stored(retention_of({}), suffix), retention_of({}), cluster)


@pytest.mark.parametrize(
    "kept", [timedelta(seconds=3599), timedelta(0), timedelta(days=-1), timedelta(days=18_251)]
)
def test_a_retention_that_would_drop_everything_is_refused(kept: timedelta) -> None:
    with pytest.raises(UsageError, match=f"cannot keep rows of flows_raw for {kept}"):
        retention_of({"flows_raw": int(kept.total_seconds())})
    retention_of({"flows_raw": 3600, "flows_1m": 18_250 * 86_400})


def test_tables_of_a_newer_nettop_are_refused() -> None:
    existing = {"flows_raw": Existing(f"nettop schema {SCHEMA_VERSION + 1}", "")}
    with pytest.raises(UsageError, match=f"schema {SCHEMA_VERSION + 1}, but this nettop supports") as caught:
        statements(existing, retention_of({}))
    assert "newer nettop" in caught.value.remedy


@pytest.mark.parametrize("comment", ["", "nettop schema", "flows of my router"])
def test_tables_of_somebody_else_are_refused(comment: str) -> None:
    with pytest.raises(UsageError, match="a table flows_raw that nettop did not create"):
        statements({"flows_raw": Existing(comment, "")}, retention_of({}))


def test_a_flow_has_the_columns_of_decoding_and_of_enrichment() -> None:
    types = {column.name: column.clickhouse for column in (*COLUMNS, *ADDED_COLUMNS)}
    assert TABLES["flows_raw"].types == types
    assert list(TABLES["interface_counters"].types) == list(INTERFACE_COUNTERS.names or ())


def test_tables_sort_by_columns_that_they_have() -> None:
    for table in TABLES.values():
        assert table.time in table.types
        assert all(any(column in key for column in table.types) for key in table.order)
        if table.engine == "SummingMergeTree":
            sums = [name for name, kind in table.types.items() if kind in ("UInt64", "UInt128")]
            assert [*table.order, *sums] == list(table.types)


def test_service_ports_exclude_well_known_ports() -> None:
    assert list(SERVICE_PORTS) == sorted(set(SERVICE_PORTS))
    assert SERVICE_PORTS[0] >= 1024
    assert SERVICE_PORTS[-1] < 65_536
