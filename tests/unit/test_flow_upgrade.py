# SPDX-License-Identifier: Apache-2.0
"""Stores of an earlier schema are upgraded in place, and damaged ones say so."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from nettop.collector.store.schema import SCHEMA_VERSION, TABLES, retention_of, statements
from nettop.errors import SourceFailed
from tests.builders.exports import NETFLOW_5
from tests.collecting import Running

pytest.importorskip("chdb")

from nettop.collector.store import schema
from nettop.collector.store.embedded import EmbeddedStore
from tests.builders.flow_rows import flow_block, random_flows

from .test_flow_store import number

HUGE = 2**64 - 1
ROLLUPS = [table for table in TABLES.values() if table.source]
DECLARED = "39ed4401"
"""Start of the digest of all tables and views of this version."""


def test_each_change_of_the_tables_has_a_version() -> None:
    """Who changes a table or a view raises SCHEMA_VERSION, without which existing stores would stay as they are."""
    declared = "\n".join(statements({}, retention_of({})))
    assert (SCHEMA_VERSION, hashlib.sha256(declared.encode()).hexdigest()[:8]) == (2, DECLARED)


def store_of_version_1(directory: Path) -> None:
    """Create a store as of the first version: times that are never NULL, sums of 64 bits, no names of AS.

    It contains two flows, one without a start.
    """
    with closing(EmbeddedStore(directory)) as store:
        for table in ROLLUPS:
            store._execute(f"DROP VIEW nettop.{table.name}_view SYNC")
        for name in ("start", "end"):
            store._execute(
                f"ALTER TABLE nettop.flows_raw DROP COLUMN {name}, ADD COLUMN {name} DateTime64(3)"
            )
        for table in ROLLUPS:
            sums = [name for name, kind in table.types.items() if kind == "UInt128"]
            changes = ", ".join(f"MODIFY COLUMN {name} UInt64" for name in sums)
            store._execute(f"ALTER TABLE nettop.{table.name} {changes}")
            select = table.select.format(source=f"nettop.{table.source}").replace("toUInt128", "")
            store._execute(
                f"CREATE MATERIALIZED VIEW nettop.{table.name}_view TO nettop.{table.name} AS {select}"
            )
        store._execute("ALTER TABLE nettop.flows_raw MODIFY COMMENT 'nettop schema 1'")
        flows = random_flows(0, 2)
        flows["start"] = np.array([0, 1_700_000_000_000])
        flows["bytes"], flows["sampling_rate"] = np.array([300, 400], "u8"), np.ones(2, "u4")
        store.insert({"flows_raw": flow_block(flows)}, "old")
        store._execute("DROP TABLE nettop.as_names SYNC")


def broken_flows() -> bytes:
    """Return flows of an exporter whose counters are the largest of 64 bits, without a start."""
    flows = random_flows(1, 3)
    flows["bytes"], flows["sampling_rate"] = np.full(3, HUGE, "u8"), np.ones(3, "u4")
    return flow_block(flows)


@pytest.mark.parametrize("interrupted_at", [None, 0, 1, 4, 8, 12])
def test_an_earlier_store_is_upgraded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interrupted_at: int | None
) -> None:
    """Sums do not overflow, and unknown times are unknown, also of earlier rows, wherever it was interrupted before."""
    directory = tmp_path / "flows"
    store_of_version_1(directory)
    said: list[str] = []
    if interrupted_at is not None:
        with monkeypatch.context() as patch:

            def run_some(of: list[str], execute: Callable[[str], object], _report: object) -> None:
                for statement in of[:interrupted_at]:
                    execute(statement)
                raise SourceFailed("interrupted")

            patch.setattr(schema, "run_statements", run_some)
            with pytest.raises(SourceFailed, match="interrupted"):
                EmbeddedStore(directory)
    with closing(EmbeddedStore(directory, report=said.append)) as store:
        assert said[-1].startswith("updating the stored flows, step ")
        assert said[-1].endswith(": nettop.flows_raw")
        store.insert({"flows_raw": broken_flows()}, "new")
        for table in ROLLUPS:
            assert number(store, f"SELECT sum(bytes) FROM {table.name}") == 700 + 3 * HUGE, table.name
            assert number(store, f"SELECT sum(flows) FROM {table.name}") == 5
        assert number(store, "SELECT toUnixTimestamp64Milli(min(start)) FROM flows_raw") == 1_700_000_000_000
        assert number(store, "SELECT countIf(start IS NULL AND end IS NULL) FROM flows_raw") == 4
        assert number(store, "SELECT count() FROM as_names") == 0
    said.clear()
    EmbeddedStore(directory, report=said.append).close()
    assert said == []


def test_a_damaged_part_is_not_the_query_s_fault(flows_dir: Path) -> None:
    """The error names the part, and the collector is not healthy."""
    with Running(flows_dir) as running:
        running.send(NETFLOW_5)
        running.stored(2)
        assert running.collector.document("/health")["status"] == "ok"
        ((path,),) = running.rows("SELECT data_paths[1] FROM system.tables WHERE name = 'flows_raw'")
        for file in Path(path).glob("*/data.bin"):
            content = file.read_bytes()
            file.write_bytes(content[:100] + bytes(byte ^ 0x55 for byte in content[100:]))
        with pytest.raises(SourceFailed, match=r"the stored flows in \S+/store/\S+ are damaged") as caught:
            running.rows("SELECT * FROM flows_raw")
        assert "correct the query" not in str(caught.value)
        assert "are damaged" in running.state()["failure"]
        with pytest.raises(SourceFailed, match="status 503"):
            running.collector.document("/health")


def test_parts_that_are_set_aside_are_named(tmp_path: Path) -> None:
    """A store that starts without some of its rows says which."""
    directory, said = tmp_path / "flows", list[str]()
    with closing(EmbeddedStore(directory)) as store:
        store.insert({"flows_raw": flow_block(random_flows(0, 2))}, "1")
        (path,) = store.query(
            "SELECT data_paths[1] FROM system.tables WHERE name = 'flows_raw'", "TSV"
        ).split()
    parts = list(Path(path.decode()).glob("*/data.bin"))
    for file in parts:
        file.unlink()
    with closing(EmbeddedStore(directory, report=said.append)) as store:
        assert len(said) == len(parts) > 0
        assert all("a damaged part of the store is set aside" in line for line in said)
        assert number(store, "SELECT count() FROM flows_raw") == 0
