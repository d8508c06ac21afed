# SPDX-License-Identifier: Apache-2.0
"""Top talkers: sums by any column, from any table, with totals, and how they are displayed."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nettop.collector.decode.sflow import PROTOCOL_VERSION as SFLOW
from nettop.collector.decode.templates import IPFIX, NETFLOW_9
from nettop.collector.inputs import MIRRORED
from nettop.collector.protobuf import PRODUCED
from nettop.collector.reader import Reader
from nettop.collector.top import KEYS, SUMS, Top, TopQuery, checked_keys, read_top
from nettop.errors import UsageError
from nettop.output.flow_queries import write_answer, write_top
from nettop.settings import Format

pytest.importorskip("chdb")

from nettop.collector.columns import Coded
from nettop.collector.store.embedded import EmbeddedStore
from tests.builders.flow_rows import flow_block, random_flows, rows_of

COUNT = 3000
HOUR, DAY = 3600, 86_400


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    """Return flows of the last minute, one by one."""
    return rows_of(_flows())


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedStore]:
    """Return a store of these flows."""
    store = EmbeddedStore(tmp_path_factory.mktemp("flows"))
    store.insert({"flows_raw": flow_block(_flows())}, "t")
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
        (("src", "exporter"), DAY, "flows_raw"),
        (("src_port",), 30 * DAY, "flows_raw"),
        (("src_network", "in_if_name"), HOUR, "flows_raw"),
    ],
)
def test_sums_are_those_of_the_flows(
    store: EmbeddedStore, rows: list[dict[str, Any]], keys: tuple[str, ...], since_s: int, table: str
) -> None:
    """In whichever table they are read, the rows are the largest, and the totals cover all flows."""
    for order, name in (("bytes", "estimated_bytes"), ("packets", "estimated_packets"), ("flows", "flows")):
        query = TopQuery(keys, since_s, order, 5)
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
    """Each has readable values."""
    for key in KEYS:
        top = read_top(store, TopQuery((key,), HOUR, "flows", COUNT))
        assert sum(row["flows"] for row in top.rows) == COUNT, key


def test_columns_that_do_not_exist() -> None:
    """The error suggests the nearest ones."""
    assert checked_keys(["src", "dst", "src"]) == ("src", "dst")
    for word, near in (("scr", "src"), ("quantity", "choose from"), ("services_port", "service_port")):
        with pytest.raises(UsageError) as refused:
            checked_keys([word])
        assert near in refused.value.remedy


def written(store: Reader, query: TopQuery, form: Format) -> list[str]:
    """Return what is written, line by line."""
    stdout = io.StringIO()
    write_top(stdout, read_top(store, query), query, form)
    return stdout.getvalue().splitlines()


def test_a_table_shows_the_remainder(store: EmbeddedStore, rows: list[dict[str, Any]]) -> None:
    """After the rows come the sum of all others, and the total."""
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


def test_unknown_texts(store: EmbeddedStore) -> None:
    """An empty text is shown as unknown, and a name cannot control the terminal."""
    lines = written(store, TopQuery(("in_if_name",), HOUR, "flows", 2), Format.TABLE)
    assert any(line.startswith("–") for line in lines)
    assert not any("\x1b" in line for line in lines)


def test_formats_for_programs(store: EmbeddedStore) -> None:
    """CSV and JSON Lines have the same values, and only rows."""
    query = TopQuery(("exporter", "protocol"), HOUR, "bytes", 3)
    header, *lines = written(store, query, Format.CSV)
    assert header.split(",") == ["exporter", "protocol", *SUMS]
    documents = [json.loads(line) for line in written(store, query, Format.JSONL)]
    assert [[str(value) for value in document.values()] for document in documents] == [
        line.split(",") for line in lines
    ]


@pytest.mark.parametrize("form", list(Format))
def test_answers_of_queries(store: EmbeddedStore, form: Format) -> None:
    """In each format; the table escapes terminal control characters."""
    stdout = io.StringIO()
    write_answer(stdout, store, "SELECT in_if_name, count() FROM flows_raw GROUP BY 1 ORDER BY 1", form)
    text = stdout.getvalue()
    assert str(COUNT // 2) in text
    assert ("\x1b" in text) == (form is Format.CSV)
    with pytest.raises(UsageError):
        write_answer(stdout, store, "SELECT nothing", form)


def test_a_time_without_flows(store: EmbeddedStore) -> None:
    """There are no rows, and the sum is empty."""

    class Later:
        """The store at a time when all flows are older than the period queried."""

        def query(self, sql: str, form: str) -> bytes:
            return store.query(sql.replace("now()", "now() + 86400"), form)

    query = TopQuery(("src",), HOUR)
    top = read_top(Later(), query)
    assert (top.rows, top.totals) == ([], dict.fromkeys(SUMS, 0))
    stdout = io.StringIO()
    write_top(stdout, top, query, Format.TABLE)
    assert stdout.getvalue().splitlines()[-1].split() == ["(all)", "0", "B", "0", "b/s", "0", "0", "–"]


# --- values -----------------------------------------------------------------------------------------------------


def test_protocol_versions_have_names() -> None:
    """For each version that flows may have; programs get the number."""
    words = {
        5: "NetFlow 5",
        NETFLOW_9: "NetFlow 9",
        IPFIX: "IPFIX",
        SFLOW: "sFlow 5",
        201: "conntrack",  # earlier releases stored them
        202: "NFLOG",
        MIRRORED: "mirrored port",
        PRODUCED: "producer",
        77: "77",
    }
    query = TopQuery(("protocol_version",), HOUR)
    sums = dict.fromkeys(SUMS, 1)
    top = Top("flows_raw", [{"protocol_version": number, **sums} for number in words], sums, 1.0, {})
    stdout = io.StringIO()
    write_top(stdout, top, query, Format.TABLE)
    lines = stdout.getvalue().splitlines()[1:]
    assert [line.split("1 B")[0].strip() for line in lines[: len(words)]] == list(words.values())
    stdout = io.StringIO()
    write_top(stdout, top, query, Format.CSV)
    assert [int(line.split(",")[0]) for line in stdout.getvalue().splitlines()[1:]] == list(words)


# --- formats ----------------------------------------------------------------------------------------------------

ODD = """
SELECT * FROM (
    SELECT 'tab\\there' AS a, 'esc\\x1b[2Jü' AS b, 1 AS c UNION ALL SELECT 'next\\u0085line', '\\u202eleft', 2
) ORDER BY c
"""


class Kept:
    """A store that keeps its last answer, as JSON contains the elapsed time."""

    def __init__(self, store: Reader) -> None:
        self._store = store
        self.answer = b""

    def query(self, sql: str, form: str) -> bytes:
        """Query as in Reader."""
        self.answer = self._store.query(sql, form)
        return self.answer


class Stream(io.TextIOWrapper):
    """A replacement for standard output, with an encoding that lacks letters; isatty() returns `is_terminal`."""

    is_terminal = False

    def isatty(self) -> bool:
        """Return `is_terminal`."""
        return self.is_terminal


def output(path: Path, reader: Reader, sql: str, form: Format, *, is_terminal: bool = False) -> bytes:
    """Return the bytes written for the answer to a query."""
    with Stream(path.open("wb"), "ascii") as stream:
        stream.is_terminal = is_terminal
        write_answer(stream, reader, sql, form)
    return path.read_bytes()


@pytest.mark.parametrize(
    "named", ["TSV", "JSON", "CSVWithNames", "Vertical", "Native", "Parquet", "RowBinary"]
)
def test_formats_that_a_query_names(store: EmbeddedStore, tmp_path: Path, named: str) -> None:
    """A program gets the engine's output byte for byte, whatever the default format."""
    kept = Kept(store)
    for form in Format:
        for ending in (f" FORMAT {named}", f"\nformat {named} ;\n"):
            written = output(tmp_path / "out", kept, ODD + ending, form)
            assert written == kept.answer
            assert named == "JSON" or written == store.query(ODD, named)


@pytest.mark.parametrize("form", [*Format, "TSV", "JSON", "Vertical", "RowBinary"])
def test_nothing_controls_a_terminal(store: EmbeddedStore, tmp_path: Path, form: str) -> None:
    """In any format, control characters are escaped; newlines and tabs between cells remain."""
    named = "" if form in list(Format) else f" FORMAT {form}"
    shown = Format(form) if not named else Format.TABLE
    text = output(tmp_path / "out", store, ODD + named, shown, is_terminal=True)
    allowed = {"\n"} if form is Format.TABLE else {"\n", "\t"}
    assert {chr(code) for code in text if code < 32} <= allowed
    assert not {0x7F, *range(0x80, 0xA0)} & set(text)


def test_rows_for_programs_have_no_encoding_but_utf_8(tmp_path: Path) -> None:
    """Interface names are complete in any locale; on a terminal they are escaped."""
    sums = dict.fromkeys(SUMS, 1)
    top = Top("flows_raw", [{"in_if_name": "Zürich\x1b[2J\u202e", **sums}], sums, 1.0, {})
    query = TopQuery(("in_if_name",), HOUR)
    for form in (Format.CSV, Format.JSONL):
        for is_terminal in (False, True):
            path = tmp_path / "out"
            with Stream(path.open("wb"), "utf-8" if is_terminal else "ascii") as stream:
                stream.is_terminal = is_terminal
                write_top(stream, top, query, form)
            text = path.read_bytes().decode()
            if form is Format.CSV and not is_terminal:
                assert "Zürich\x1b[2J\u202e" in text
            else:
                assert not {"\x1b", "\u202e"} & set(text)
