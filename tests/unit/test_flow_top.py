# SPDX-License-Identifier: Apache-2.0
"""Who moved most: sums by any column, from whichever table, with a sum of all; and what is shown of them."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from nettop.errors import UsageError
from nettop.flows.top import KEYS, SUMS, TopQuery, checked_keys, read_top, table_for
from nettop.output.flow_queries import write_answer, write_top
from nettop.settings import Format

pytest.importorskip("chdb")

from nettop.flows.enrichment.texts import Coded
from nettop.flows.store.embedded import EmbeddedStore

from .test_flow_store import flow_block, random_flows, rows_of

COUNT = 3000
HOUR, DAY = 3600, 86_400


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """Flows that have come in the last minute, one by one."""
    return rows_of(_flows())


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedStore]:
    """A store of these."""
    store = EmbeddedStore(tmp_path_factory.mktemp("flows"))
    store.insert("flows_raw", flow_block(_flows()), "t")
    yield store
    store.close()


def _flows() -> dict[str, Any]:
    flows: dict[str, Any] = random_flows(5, COUNT)
    now_ms = int(time.time()) * 1000
    flows["received"] = np.full(COUNT, now_ms, "i8")
    flows["in_if_name"] = Coded(np.arange(COUNT, dtype=np.uint32) % 2, ("", "bad\x1b[2J"))
    return flows


@pytest.mark.parametrize(
    ("keys", "since_s", "table"),
    [
        (("exporter",), HOUR, "flows_1m"),
        (("src_as", "protocol"), DAY, "flows_5m"),
        (("service_port",), 30 * DAY, "flows_1h"),
        (("src", "dst"), HOUR, "flows_raw"),
        (("src", "exporter"), DAY, "talkers_1m"),
        (("src_port",), 30 * DAY, "flows_raw"),
        (("src_network", "in_if_name"), HOUR, "flows_raw"),
    ],
)
def test_sums_are_those_of_the_flows(
    store: EmbeddedStore, rows: list[dict[str, Any]], keys: tuple[str, ...], since_s: int, table: str
) -> None:
    """Whichever table they are read from, the rows are the largest, and the totals those of all flows."""
    for order, name in (("bytes", "estimated_bytes"), ("packets", "estimated_packets"), ("flows", "flows")):
        query = TopQuery(keys, since_s, order, 5)
        assert table_for(query) == table
        top = read_top(store, query)
        assert top.table == table
        assert top.totals == {name: sum(row[name] for row in rows) for name in SUMS}
        sums: dict[tuple[Any, ...], int] = {}
        for row in rows:
            key = tuple(row[key] for key in keys)
            sums[key] = sums.get(key, 0) + row[name]
        assert [row[name] for row in top.rows] == sorted(sums.values(), reverse=True)[:5]
        assert all(set(row) == {*keys, *SUMS} for row in top.rows)


def test_every_column_may_be_a_key(store: EmbeddedStore) -> None:
    """Each has values that people read."""
    for key in KEYS:
        top = read_top(store, TopQuery((key,), HOUR, "flows", COUNT))
        assert sum(row["flows"] for row in top.rows) == COUNT, key


def test_columns_that_do_not_exist() -> None:
    """The nearest ones are named."""
    assert checked_keys(["src", "dst", "src"]) == ("src", "dst")
    for word, near in (("scr", "src"), ("quantity", "known are"), ("services_port", "service_port")):
        with pytest.raises(UsageError) as refused:
            checked_keys([word])
        assert near in refused.value.remedy


def written(store: EmbeddedStore, query: TopQuery, form: Format) -> list[str]:
    """What is written, line by line."""
    stdout = io.StringIO()
    write_top(stdout, read_top(store, query), query, form)
    return stdout.getvalue().splitlines()


def test_a_table_names_what_it_lacks(store: EmbeddedStore, rows: list[dict[str, Any]]) -> None:
    """Behind the rows come all others together, and the sum of all."""
    query = TopQuery(("src_port",), HOUR, "flows", 2)
    header, *lines, others, together = written(store, query, Format.TABLE)
    assert header.split() == ["SRC_PORT", "BYTES", "RATE", "PACKETS", "FLOWS", "SHARE"]
    assert len(lines) == 2
    assert others.split()[0] == "(others)"
    assert together.split()[0] == "(all)"
    counts = [int(line.split()[-2].replace(",", "")) for line in (*lines, others, together)]
    assert sum(counts[:-1]) == counts[-1] == len(rows)
    everything = written(store, TopQuery(("side",), HOUR, "flows", 10), Format.TABLE)
    assert not any(line.startswith("(others)") for line in everything)


def test_what_is_known_of_nothing(store: EmbeddedStore) -> None:
    """An empty text is shown as unknown, and a name cannot control the terminal."""
    lines = written(store, TopQuery(("in_if_name",), HOUR, "flows", 2), Format.TABLE)
    assert any(line.startswith("–") for line in lines)
    assert not any("\x1b" in line for line in lines)


def test_formats_for_programs(store: EmbeddedStore) -> None:
    """CSV and JSON Lines have the same values, and nothing but rows."""
    query = TopQuery(("exporter", "protocol"), HOUR, "bytes", 3)
    header, *lines = written(store, query, Format.CSV)
    assert header.split(",") == ["exporter", "protocol", *SUMS]
    documents = [json.loads(line) for line in written(store, query, Format.JSONL)]
    assert [[str(value) for value in document.values()] for document in documents] == [
        line.split(",") for line in lines
    ]


@pytest.mark.parametrize("form", list(Format))
def test_answers_of_queries(store: EmbeddedStore, form: Format) -> None:
    """In each format; what could control a terminal is escaped in the table."""
    stdout = io.StringIO()
    write_answer(stdout, store, "SELECT in_if_name, count() FROM flows_raw GROUP BY 1 ORDER BY 1", form)
    text = stdout.getvalue()
    assert str(COUNT // 2) in text
    assert ("\x1b" in text) == (form is Format.CSV)
    with pytest.raises(UsageError):
        write_answer(stdout, store, "SELECT nothing", form)


def test_a_time_without_flows(store: EmbeddedStore) -> None:
    """There are no rows, and the sum is nothing."""

    class Later:
        """The store, as it is when all flows are older than what is queried."""

        def query(self, sql: str, form: str) -> bytes:
            return store.query(sql.replace("now()", "now() + 86400"), form)

    query = TopQuery(("src",), HOUR)
    top = read_top(Later(), query)
    assert (top.rows, top.totals) == ([], dict.fromkeys(SUMS, 0))
    stdout = io.StringIO()
    write_top(stdout, top, query, Format.TABLE)
    assert stdout.getvalue().splitlines()[-1].split() == ["(all)", "0", "B", "0", "b/s", "0", "0", "–"]
