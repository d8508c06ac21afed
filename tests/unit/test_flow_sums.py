# SPDX-License-Identifier: Apache-2.0
"""Top queries on purpose-built stores: rates by the clock, sums beyond 64 bits, and names beside numbers."""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nettop.collector.collector import AsNames
from nettop.collector.columns import COLUMNS, Coded, default_values
from nettop.collector.enrichment.lookups import LookupFiles
from nettop.collector.reader import Reader
from nettop.collector.spool import Spool, Storing
from nettop.collector.store.schema import TABLES
from nettop.collector.top import AS_KEYS, KEYS, SUMS, TopQuery, read_top, table_for
from nettop.output.flow_queries import write_top
from nettop.settings import Format

pytest.importorskip("chdb")

from nettop.collector.store.embedded import EmbeddedStore
from tests.builders.flow_rows import flow_block

HOUR, DAY = 3600, 86_400


def written(store: Reader, query: TopQuery, form: Format) -> list[str]:
    """Return what is written, line by line."""
    stdout = io.StringIO()
    write_top(stdout, read_top(store, query), query, form)
    return stdout.getvalue().splitlines()


# --- rates ------------------------------------------------------------------------------------------------------


class At:
    """A store as of this second."""

    def __init__(self, store: Reader, now_s: int) -> None:
        self._store, self._now_s = store, now_s

    def query(self, sql: str, form: str) -> bytes:
        """Query as in Reader."""
        for function in ("now64(3)", "now()"):
            sql = sql.replace(function, f"toDateTime({self._now_s})")
        return self._store.query(sql, form)


def plain_flows(received_s: list[int], **columns: Any) -> dict[str, Any]:
    """Return flows received in these seconds, with values for all rows or per row."""
    count = len(received_s)
    flows: dict[str, Any] = {column.name: default_values(column.name, count) for column in COLUMNS}
    flows["received"] = np.array(received_s, "i8") * 1000
    for name in ("src_country", "dst_country", "src_network", "dst_network", "in_if_name", "out_if_name"):
        flows[name] = Coded(np.zeros(count, np.uint32), ("",))
    flows["side"] = np.zeros(count, "i1")
    for name, value in columns.items():
        flows[name][:] = np.array(value, flows[name].dtype)
    return flows


@pytest.fixture
def fill(tmp_path: Path) -> Iterator[Callable[..., EmbeddedStore]]:
    """Create a store of such flows."""
    made: list[EmbeddedStore] = []

    def filled(*blocks: Mapping[str, Any]) -> EmbeddedStore:
        made.append(EmbeddedStore(tmp_path))
        for at, flows in enumerate(blocks):
            made[0].insert({"flows_raw": flow_block(flows)}, f"t{at}")
        return made[0]

    yield filled
    for store in made:
        store.close()


KEYS_OF_TABLES = ("exporter", "src_port", "src")
"""Keys answered from rollups, from single flows and, for long periods, from address pairs."""


@pytest.mark.parametrize("key", KEYS_OF_TABLES)
def test_rates_cover_the_time_with_data(fill: Callable[..., EmbeddedStore], key: str) -> None:
    """Since the first flow, or since the start of the period if flows are older; at least one second."""
    day_s = int(time.time()) // DAY * DAY
    first_s = day_s + 12 * HOUR + 7
    store = fill(plain_flows([first_s, first_s + 100], bytes=6000))
    for now_s, since_s, seconds in (
        (first_s + 120, HOUR, 120),
        (first_s + 120, 30 * DAY, 120),
        (first_s + 120, 60, 60),
        (first_s + 3 * HOUR, 4 * HOUR, 3 * HOUR),
        (first_s + 5 * HOUR, HOUR, HOUR),
        (first_s + 100, 10 * DAY, 100),
        (first_s, HOUR, 1),
    ):
        query = TopQuery((key,), since_s)
        top = read_top(At(store, now_s), query)
        # In rollups the period starts with the minute that contains its start.
        rounded = table_for(query) != "flows_raw" and seconds == since_s
        assert seconds <= top.seconds < seconds + (60 if rounded else 1), (now_s, since_s)


@pytest.mark.parametrize("since_s", [60, 600, 7 * HOUR, 8 * DAY])
def test_the_time_begins_with_a_whole_row(fill: Callable[..., EmbeddedStore], since_s: int) -> None:
    """The sums cover the seconds that the rate is divided by: 1,000 B in each here."""
    end_s = int(time.time()) // DAY * DAY + 12 * HOUR + 59
    received = list(range(end_s - 9 * DAY, end_s - 2 * HOUR, 600)) + list(range(end_s - 2 * HOUR, end_s))
    amounts = [600_000] * (len(received) - 2 * HOUR) + [1000] * (2 * HOUR)
    store = fill(plain_flows(received, bytes=amounts))
    top = read_top(At(store, end_s), TopQuery(("exporter",), since_s))
    rate = top.totals["bytes"] / top.seconds
    assert top.seconds >= since_s
    assert abs(rate - 1000) * top.seconds <= 600_000 if since_s > 2 * HOUR else rate == 1000


def test_displayed_rates(fill: Callable[..., EmbeddedStore]) -> None:
    """They appear in the text table."""
    now_s = int(time.time())
    store = At(fill(plain_flows([now_s - 120], bytes=120_000)), now_s)
    *_, together = written(store, TopQuery(("src_port",), HOUR), Format.TABLE)
    assert together.split()[1:5] == ["120", "kB", "8.0", "kb/s"]


# --- sums beyond 64 bits ----------------------------------------------------------------------------------------

LARGEST = (1 << 64) - 1


@pytest.mark.parametrize("key", ["exporter", "src_port", "src"])
def test_sums_do_not_wrap(fill: Callable[..., EmbeddedStore], key: str) -> None:
    """Neither for an exporter that reports the 64-bit maximum, nor when rollups merge their parts."""
    now_s = int(time.time())
    broken = {"bytes": LARGEST, "packets": LARGEST, "sampling_rate": 0xFFFFFFFF}
    usual = {"bytes": 1500, "packets": 1, "sampling_rate": 1000}
    store = fill(*(plain_flows([now_s - HOUR] * 3, **kind) for kind in (broken, usual, broken)))
    for table in TABLES:
        store._execute(f"OPTIMIZE TABLE nettop.{table} FINAL")
    for order in ("bytes", "packets"):
        top = read_top(store, TopQuery((key,), 2 * HOUR, order))
        expected = {
            "bytes": 6 * LARGEST + 3 * 1500,
            "packets": 6 * LARGEST + 3,
            "estimated_bytes": 6 * LARGEST * 0xFFFFFFFF + 3 * 1500 * 1000,
            "estimated_packets": 6 * LARGEST * 0xFFFFFFFF + 3 * 1000,
            "flows": 9,
        }
        assert top.totals == expected
        assert [{name: row[name] for name in SUMS} for row in top.rows] == [expected]


# --- names of autonomous systems -------------------------------------------------------------------------------

NETWORKS = """network,asn,as_name
192.0.2.0/24,64500,"Example, Inc."
198.51.100.0/24,64501,bad\x1b[2J
203.0.113.0/24,64502,
"""


@pytest.mark.parametrize("has_names", [True, False])
def test_names_of_autonomous_systems(
    fill: Callable[..., EmbeddedStore], tmp_path: Path, *, has_names: bool
) -> None:
    """Beside the numbers, which remain the keys, also for those reported by exporters; unknown if no file has one."""
    now_s = int(time.time())
    numbers = [64500, 64501, 64502, 64503, 0]
    store = fill(plain_flows([now_s] * 5, src_as=numbers, dst_as=64500, bytes=[50, 40, 30, 20, 10]))
    file = tmp_path / "networks.csv"
    file.write_text(NETWORKS if has_names else "network,asn\n192.0.2.0/24,64500\n")
    files, spool = LookupFiles([file], [], None), Spool(tmp_path / "spool", 1 << 30)
    names, storing = AsNames(spool, files), Storing(spool, store)
    names.write()
    while storing.store_oldest():
        pass
    known = {64500: "Example, Inc.", 64501: "bad\x1b[2J"} if has_names else {}
    for key, shown in (("src_as", numbers), ("dst_as", [64500])):
        for since_s in (HOUR, DAY, 30 * DAY):
            query = TopQuery((key, "exporter"), since_s)
            top = read_top(store, query)
            assert [row[key] for row in top.rows] == shown
            assert dict(top.as_names) == {number: known[number] for number in shown if number in known}
        documents = [json.loads(line) for line in written(store, query, Format.JSONL)]
        assert [document[f"{key}_name"] for document in documents] == [known.get(number) for number in shown]
        assert list(documents[0]) == [key, f"{key}_name", "exporter", *SUMS]
    header, *lines = written(store, TopQuery(("src_as",), HOUR), Format.TABLE)
    assert header.split()[:2] == ["SRC_AS", "SRC_AS_NAME"]
    for line, number in zip(lines, numbers, strict=False):
        name = known.get(number, "–").replace("\x1b", "␛")
        assert line.split(None, 1)[1].startswith(name), line


def test_names_that_change(fill: Callable[..., EmbeddedStore], tmp_path: Path) -> None:
    """A changed file applies from then on, and is written once; its old contents are not written again."""
    now_s = int(time.time())
    store = fill(plain_flows([now_s], next_hop_as=64500))
    file = tmp_path / "networks.csv"
    file.write_text("network,asn,as_name\n192.0.2.0/24,64500,Before\n")
    files, spool = LookupFiles([file], [], None), Spool(tmp_path / "spool", 1 << 30)
    names, storing = AsNames(spool, files), Storing(spool, store)
    for text in ("Before", "After"):
        file.write_text(f"network,asn,as_name\n192.0.2.0/24,64500,{text}\n")
        os.utime(file, (now_s, now_s + len(text)))
        files.check()
        names.write()
        names.write()
        assert len(spool.waiting()) == 1
        while storing.store_oldest():
            pass
        assert read_top(store, TopQuery(("next_hop_as",), HOUR)).as_names == {64500: text}
    assert set(AS_KEYS) == {key for key in KEYS if key.endswith("_as")}


def test_more_names_than_a_query_may_name(fill: Callable[..., EmbeddedStore], tmp_path: Path) -> None:
    """With very many rows, each has its name."""
    count = 20_000
    store = fill(plain_flows([int(time.time())] * count, src_as=np.arange(1, count + 1) + (1 << 31)))
    file = tmp_path / "networks.csv"
    lines = (f"10.{at >> 8}.{at & 255}.0/24,{at + 1 + (1 << 31)},name {at}" for at in range(count))
    file.write_text("\n".join(("network,asn,as_name", *lines, "")))
    spool = Spool(tmp_path / "spool", 1 << 30)
    AsNames(spool, LookupFiles([file], [], None)).write()
    Storing(spool, store).store_oldest()
    top = read_top(store, TopQuery(("src_as",), HOUR, limit=count))
    assert len(top.as_names) == len(top.rows) == count
