# SPDX-License-Identifier: Apache-2.0
"""Flows in ClickHouse tables: every block once in each, exact sums, and read-only queries.

The engine is chDB; servers are small HTTP servers defined here, which fail on demand.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
import zstandard

from nettop.collector.columns import ADDRESS, Coded
from nettop.collector.decode.batch import INTERFACE_COUNTERS
from nettop.collector.spool import Block, Spool, Spooled, Storing, ledger_block
from nettop.collector.store import embedded
from nettop.collector.store.embedded import EmbeddedStore
from nettop.collector.store.native import Values, native_block
from nettop.collector.store.queries import QUERY_MAX, QueryLimits
from nettop.collector.store.schema import HOST_SHARE_MIN, TABLES, TALKERS_MAX, retention_of
from nettop.collector.store.server import ServerStore
from nettop.errors import NettopError, SourceFailed, UsageError
from tests.builders.flow_rows import (
    MIDNIGHT_MS,
    Row,
    flow_block,
    random_flows,
    rows_of,
)
from tests.collecting import until

pytest.importorskip("chdb")
pytest.importorskip("clickhouse_connect")

KEYS = (
    *("exporter", "in_if", "out_if", "side", "etype", "protocol"),
    *("src_as", "dst_as", "src_country", "dst_country", "service_port"),
)
SUMS = ("bytes", "packets", "estimated_bytes", "estimated_packets", "flows")
SECONDS = {"flows_1m": 60, "flows_5m": 300, "flows_1h": 3600}


# Flows, and what the tables should contain.


def summed(rows: list[Row], keys: tuple[str, ...], seconds: int) -> dict[tuple[Any, ...], list[int]]:
    """Sum up by time and keys."""
    sums: dict[tuple[Any, ...], list[int]] = {}
    for row in rows:
        start = row["received"] // 1000 // seconds * seconds
        total = sums.setdefault((start, *(row[key] for key in keys)), [0] * len(SUMS))
        for place, name in enumerate(SUMS):
            total[place] += row[name]
    return sums


def stored_sums(store: EmbeddedStore, table: str, keys: tuple[str, ...]) -> dict[tuple[Any, ...], list[int]]:
    """Return the sums by time and keys in a table."""
    addresses = ("exporter", "src", "dst")
    names = ", ".join(f"lower(hex({key}))" if key in addresses else key for key in keys)
    sums = ", ".join(f"sum({name})" for name in SUMS)
    answer = store.query(
        f"SELECT toUnixTimestamp(time), {names}, {sums} FROM {table} GROUP BY time, {', '.join(keys)}"
    )
    at = 1 + len(keys)
    return {tuple(row[:at]): [int(number) for number in row[at:]] for row in json.loads(answer)["data"]}


def flow_counts(store: EmbeddedStore) -> dict[str, int]:
    """Return how many flows each table counts."""
    counts = {"flows_raw": number(store, "SELECT count() FROM flows_raw")}
    for table in (*SECONDS, "talkers_1m"):
        counts[table] = number(store, f"SELECT sum(flows) FROM {table}")
    return counts


def number(store: EmbeddedStore, sql: str) -> int:
    return int(store.query(sql, "TSV"))


def all_of(count: int) -> dict[str, int]:
    return dict.fromkeys(("flows_raw", *SECONDS, "talkers_1m"), count)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "flows"


@pytest.fixture
def store(directory: Path) -> Iterator[EmbeddedStore]:
    store = EmbeddedStore(directory)
    yield store
    store.close()


# What is stored.


def test_tables_sum_up_the_flows(store: EmbeddedStore) -> None:
    rows = []
    for seed in range(3):
        flows = random_flows(seed, 1500)
        store.insert({"flows_raw": flow_block(flows)}, f"t{seed}")
        rows += rows_of(flows)
    for table, seconds in SECONDS.items():
        assert stored_sums(store, table, KEYS) == summed(rows, KEYS, seconds), table
    names = "hex(src), in_if, src_country, dst_network, side, bytes, toUnixTimestamp64Milli(received)"
    answer = json.loads(store.query(f"SELECT {names} FROM flows_raw"))["data"]
    read = Counter((src.lower(), *rest, int(size), int(ms)) for src, *rest, size, ms in answer)
    columns = ("src", "in_if", "src_country", "dst_network", "side", "bytes", "received")
    assert read == Counter(tuple(row[column] for column in columns) for row in rows)


def test_unknown_times_are_null(store: EmbeddedStore) -> None:
    flows = random_flows(0, 3)
    flows["start"] = np.array([MIDNIGHT_MS - 5000, 0, 0])
    flows["end"] = np.array([MIDNIGHT_MS, MIDNIGHT_MS, 0])
    store.insert({"flows_raw": flow_block(flows)}, "t")
    times = "toUnixTimestamp64Milli(start), toUnixTimestamp64Milli(end), dateDiff('second', start, end)"
    answer = store.query(f"SELECT {times} FROM flows_raw ORDER BY start, end", "TSV").decode()
    assert [line.split("\t") for line in answer.splitlines()] == [
        [str(MIDNIGHT_MS - 5000), str(MIDNIGHT_MS), "5"],
        ["\\N", str(MIDNIGHT_MS), "\\N"],
        ["\\N", "\\N", "\\N"],
    ]


def test_talkers_beyond_the_largest_are_counted_under_the_larger_host(store: EmbeddedStore) -> None:
    """A host is named if its shares of bytes, packets and flows together reach the minimum."""
    flows = random_flows(1, 6000)
    flows["received"] = np.full(6000, MIDNIGHT_MS)
    flows["sampling_rate"] = np.ones(6000, "u4")
    hosts = np.zeros((6000, 16), np.uint8)
    hosts[:, 14:] = (np.arange(6000) // 2 + 1).astype(">u2").view("u1").reshape(-1, 2)
    flows["src"] = hosts.view(ADDRESS).ravel()
    flows["dst"][::2] = hosts[::-2].copy().view(ADDRESS).ravel()
    store.insert({"flows_raw": flow_block(flows)}, "t")
    keys = ("exporter", "src", "dst")
    pairs = summed(rows_of(flows), keys, 60)
    measures = [SUMS.index(name) for name in ("estimated_bytes", "estimated_packets", "flows")]
    totals = np.sum(list(pairs.values()), axis=0)
    share_of: dict[tuple[int, str], float] = {}
    for pair, sums in pairs.items():
        for place in (2, 3):
            share = sum(sums[at] / totals[at] for at in measures)
            share_of[place, pair[place]] = share_of.get((place, pair[place]), 0) + share
    largest = set(sorted(pairs, key=lambda pair: pairs[pair][measures[0]])[-TALKERS_MAX:])
    expected: dict[tuple[Any, ...], list[int]] = {}
    for pair, sums in pairs.items():
        time_and_exporter, (source, destination) = pair[:2], pair[2:]
        shares = share_of[2, source], share_of[3, destination]
        if pair not in largest:
            is_named = max(shares) >= HOST_SHARE_MIN
            source = source if is_named and shares[0] >= shares[1] else "0" * 32
            destination = destination if is_named and shares[0] < shares[1] else "0" * 32
        key = (*time_and_exporter, source, destination)
        expected[key] = [a + b for a, b in zip(sums, expected.get(key, [0] * len(SUMS)), strict=True)]
    kinds = {(int(source, 16) > 0, int(destination, 16) > 0) for *_, source, destination in expected}
    assert len(kinds) == 4
    assert stored_sums(store, "talkers_1m", keys) == expected


def test_counters_and_the_ledger_are_stored(store: EmbeddedStore) -> None:
    counters = np.zeros(2, INTERFACE_COUNTERS)
    counters["received"], counters["if_index"], counters["in_bytes"] = MIDNIGHT_MS, [1, 2], [2**64 - 1, 5]
    columns = {name: np.ascontiguousarray(counters[name]) for name in INTERFACE_COUNTERS.names or ()}
    store.insert({"interface_counters": native_block(TABLES["interface_counters"].types, columns)}, "t")
    spooled = Spooled(f"{MIDNIGHT_MS}000000-0", {"records_received": 7, "waiting": -2}, {})
    store.insert({"ledger": ledger_block([spooled])}, "u")
    answer = store.query("SELECT if_index, in_bytes FROM interface_counters ORDER BY if_index", "TSV")
    assert answer == b"1\t18446744073709551615\n2\t5\n"
    answer = store.query("SELECT token, counters, toUnixTimestamp64Milli(time) FROM ledger")
    assert json.loads(answer)["data"] == [[spooled.token, spooled.ledger, MIDNIGHT_MS]]


def test_a_damaged_block_is_an_error_of_the_store(store: EmbeddedStore) -> None:
    with pytest.raises(SourceFailed, match=r"the store in .* failed"):
        store.insert({"flows_raw": flow_block(random_flows(1, 10))[:-1]}, "t")
    assert flow_counts(store) == all_of(0)
    with pytest.raises(ValueError, match="cannot insert"):
        store.insert({"flows_raw": b""}, "t', readonly = '1")


# Every block once.


def test_a_block_is_stored_once_in_all_tables(directory: Path) -> None:
    """A repetition of the last block, also by another process; the same rows with another token are other rows."""
    first, second = (flow_block(random_flows(seed, 300)) for seed in (1, 2))
    store = EmbeddedStore(directory)
    for token, block in (("a", first), ("a", first), ("b", first), ("c", second), ("c", second)):
        store.insert({"flows_raw": block}, token)
    assert flow_counts(store) == all_of(900)
    store.close()
    store = EmbeddedStore(directory)
    store.insert({"flows_raw": second}, "c")
    assert flow_counts(store) == all_of(900)
    store.close()


@pytest.mark.parametrize("lost", ["confirmed", "part"])
def test_an_insert_that_was_not_completed_is_repeated(directory: Path, lost: str) -> None:
    """The process ended before it noted the insert as complete, with or without all of its parts."""
    store = EmbeddedStore(directory)
    store.insert(file(1, 300), "a")
    before = (directory / "confirmed").read_bytes()
    store.insert(file(2, 300), "b")
    store.close()
    (directory / "confirmed").write_bytes(before)
    if lost == "part":
        # Each insert fills two partitions.
        shutil.rmtree(max(directory.glob("store/*/*/2*_4_4_0"), key=lambda part: part.stat().st_mtime_ns))
    store = EmbeddedStore(directory)
    assert (flow_counts(store), in_ledger(store)) == (all_of(300), 300)
    store.insert(file(2, 300), "b")
    assert (flow_counts(store), in_ledger(store)) == (all_of(600), 600)
    store.close()


# Failures: a block is in all tables or in none, and it is known which.


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Yield a file system of its own, to which nothing else writes."""
    if os.geteuid() != 0:
        pytest.skip("mounts file systems, which takes root")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ("mount", "-t", "tmpfs", "-o", "size=48m,mode=755", "none", str(disk))
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounts file systems, which takes root")
    yield disk
    subprocess.run(("umount", "--lazy", disk), check=True)


def fill(disk: Path, left: int) -> Path:
    """Write a file that leaves this many bytes free."""
    ballast, free = disk / "ballast", os.statvfs(disk)
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - left)
    return ballast


def in_ledger(store: EmbeddedStore) -> int:
    return number(store, "SELECT sum(counters['rows']) FROM ledger")


def file(seed: int, rows: int) -> dict[str, bytes]:
    """Return the contents of a spool file."""
    ledger = Spooled(f"{MIDNIGHT_MS}00000{seed}-0", {"rows": rows}, {})
    return {"flows_raw": flow_block(random_flows(seed, rows)), "ledger": ledger_block([ledger])}


def fails(store: EmbeddedStore, what: str) -> None:
    """Check that the store rejects a file for this reason, and has nothing of it."""
    before, ledger_before = flow_counts(store), in_ledger(store)
    with pytest.raises(SourceFailed, match=what):
        store.insert(file(7, 300), "again")
    assert (flow_counts(store), in_ledger(store)) == (before, ledger_before)


def is_stored_once(store: EmbeddedStore, directory: Path) -> None:
    """Check that after a failure it is stored as usual, also by another process."""
    rows, ledger = flow_counts(store)["flows_raw"] + 300, in_ledger(store) + 300
    for _ in range(2):
        store.insert(file(7, 300), "again")
        assert (flow_counts(store), in_ledger(store)) == (all_of(rows), ledger)
    store.close()
    store = EmbeddedStore(directory)
    store.insert(file(7, 300), "again")
    assert (flow_counts(store), in_ledger(store)) == (all_of(rows), ledger)
    store.close()


@pytest.mark.parametrize("left", [0, 1 << 20, 7 << 20])
def test_a_full_disk(disk: Path, left: int) -> None:
    """Blocks wait, queries are answered, also after a restart; storing continues once there is space."""
    directory = disk / "flows"
    store = EmbeddedStore(directory)
    store.insert({"flows_raw": flow_block(random_flows(1, 300))}, "a")
    ballast = fill(disk, left)
    fails(store, "not enough disk space for a block")
    store.close()
    store = EmbeddedStore(directory)
    fails(store, "not enough disk space for a block")
    ballast.unlink()
    is_stored_once(store, directory)


def test_a_disk_that_others_fill_meanwhile(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine itself runs out of space, for the rows or for any of the sums."""
    directory = disk / "flows"
    store = EmbeddedStore(directory)
    store.insert({"flows_raw": flow_block(random_flows(1, 300))}, "a")
    with monkeypatch.context() as patch:
        patch.setattr(EmbeddedStore, "_check_space", lambda *_: None)
        for left in range(0, 3 << 20, 1 << 18):
            ballast = fill(disk, left)
            try:
                fails(store, "not enough space|refused to write")
            finally:
                ballast.unlink()
            if left > 1 << 20:
                break
    is_stored_once(store, directory)


def test_a_disk_that_is_read_only(disk: Path) -> None:
    """Storing continues once the disk is writable again."""
    directory = disk / "flows"
    store = EmbeddedStore(directory)
    subprocess.run(("mount", "--bind", disk, disk), check=True)
    try:
        subprocess.run(("mount", "-o", "remount,bind,ro", disk), check=True)
        fails(store, "Read-only file system")
    finally:
        subprocess.run(("umount", disk), check=True)
    is_stored_once(store, directory)


class Limited:
    """A session whose statements cannot write beyond a file length; chDB itself does not report that."""

    def __init__(self, session: Any, length: int) -> None:
        self._session, self._length = session, length

    def query(self, *words: str) -> Any:
        resource.setrlimit(resource.RLIMIT_FSIZE, (self._length, resource.RLIM_INFINITY))
        try:
            return self._session.query(*words)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def close(self) -> None:
        self._session.close()


@pytest.mark.parametrize("length", [0, 1000, 5000])
def test_writes_that_the_disk_refuses(store: EmbeddedStore, directory: Path, length: int) -> None:
    """All of them, or those of the largest files; afterwards nothing of the block remains."""
    store.insert({"flows_raw": flow_block(random_flows(1, 3000))}, "a")
    store._session = Limited(store._session, length)
    fails(store, "the disk refused to write")
    is_stored_once(store, directory)


def test_a_merge_that_the_disk_refuses(store: EmbeddedStore) -> None:
    """Its source parts are back."""
    store._execute("SYSTEM STOP MERGES")
    for token in range(3):
        store.insert({"flows_raw": flow_block(random_flows(token, 300))}, f"{token}")
    store._execute("SYSTEM START MERGES")
    session = store._session
    store._session = Limited(session, 0)
    store._execute("OPTIMIZE TABLE nettop.flows_1m FINAL")
    store._session = session
    with pytest.raises(SourceFailed, match="the disk refused to write"):
        store.check()
    store.check()
    assert flow_counts(store) == all_of(900)


def test_too_little_memory(store: EmbeddedStore, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it runs out."""
    store.insert({"flows_raw": flow_block(random_flows(1, 300))}, "a")
    with monkeypatch.context() as patch:
        patch.setitem(embedded._SETTINGS, "max_memory_usage", 1000)
        fails(store, "memory limit exceeded")
        for megabytes in range(1, 100, 3):
            patch.setitem(embedded._SETTINGS, "max_memory_usage", megabytes << 20)
            try:
                store.insert(file(7, 300), "again")
                break
            except SourceFailed:
                assert flow_counts(store) == all_of(300)
    assert flow_counts(store) == all_of(600)
    store.close()


@pytest.mark.parametrize(
    "table",
    [
        "flows_raw",
        "ledger",
        *(pytest.param(name, marks=pytest.mark.thorough) for name in (*SECONDS, "talkers_1m")),
    ],
)
def test_too_many_parts(store: EmbeddedStore, directory: Path, table: str) -> None:
    """In any table: blocks already in other tables are removed, even if merged."""
    for token in range(2):
        store.insert(file(token, 300), f"{token}")
    store._execute(f"ALTER TABLE nettop.{table} MODIFY SETTING parts_to_throw_insert = 1")
    fails(store, "Too many parts")
    store._execute(f"ALTER TABLE nettop.{table} RESET SETTING parts_to_throw_insert")
    is_stored_once(store, directory)


def test_the_ledger_of_a_disk_that_becomes_full(disk: Path) -> None:
    """Rows, sums and the ledger agree while it is full, and once there is space nothing is missing."""
    spool, store = Spool(disk / "spool", 1 << 30), EmbeddedStore(disk / "flows")
    block = flow_block(random_flows(1, 6000))
    ballast, storing, put = fill(disk, 28 << 20), Storing(spool, store), 0
    is_full = False
    while not is_full:
        assert spool.put({"flows_raw": Block(block, 6000)}, {"rows": 6000})
        put += 1
        try:
            assert storing.store_oldest()
        except SourceFailed:
            is_full = True
    stored = storing.stored["flows_raw"]
    assert 0 < stored < 6000 * put
    assert (flow_counts(store), in_ledger(store)) == (all_of(stored), stored)
    ballast.unlink()
    while storing.store_oldest():
        pass
    assert (flow_counts(store), in_ledger(store)) == (all_of(6000 * put), 6000 * put)
    store.close()


@pytest.mark.thorough
def test_a_process_that_is_killed_at_any_moment(directory: Path) -> None:
    """Its successors store what is missing, each block once."""
    spool = Spool(directory / "spool", 1 << 30)
    for seed in range(6):
        spool.put({"flows_raw": Block(flow_block(random_flows(seed, 2000)), 2000)}, {"rows": 2000})
    child = (
        "import sys; from pathlib import Path; from nettop.collector.spool import Spool, Storing\n"
        "from nettop.collector.store.embedded import EmbeddedStore\n"
        "path = Path(sys.argv[1])\n"
        "storing = Storing(Spool(path / 'spool', 1 << 30), EmbeddedStore(path / 'flows'))\n"
        "while storing.store_oldest(): pass"
    )
    random = np.random.default_rng(3)
    while waiting := len(spool.waiting()):
        process = subprocess.Popen([sys.executable, "-c", child, str(directory)])
        rest = waiting - int(random.integers(1, 3))
        until(
            lambda rest=rest, process=process: len(spool.waiting()) <= rest or process.poll() is not None,
            "some are stored",
        )
        process.kill()
        process.wait()
    store = EmbeddedStore(directory / "flows")
    assert flow_counts(store) == all_of(12_000)
    assert in_ledger(store) == 12_000
    store.close()


# The directory.


def test_the_error_names_a_removed_store(store: EmbeddedStore, directory: Path) -> None:
    """The error does not blame the spool, which keeps its blocks."""
    store.insert({"flows_raw": flow_block(random_flows(1, 10))}, "1")
    shutil.rmtree(directory / "store")
    with pytest.raises(SourceFailed, match=f"the store in {directory} failed"):
        store.insert({"flows_raw": flow_block(random_flows(2, 10))}, "2")


def test_a_second_process_is_refused_by_the_name_of_the_first(store: EmbeddedStore, directory: Path) -> None:
    child = (
        "import os, sys; from pathlib import Path; from nettop.errors import NettopError\n"
        "from nettop.collector.store.embedded import EmbeddedStore\n"
        "try: EmbeddedStore(Path(sys.argv[1]))\n"
        "except NettopError as error: print(error.exit_code, error.what, '|', error.remedy)"
    )
    run = subprocess.run(
        [sys.executable, "-c", child, str(directory)], capture_output=True, text=True, check=True
    )
    assert "are in use by process " in run.stdout
    assert "| stop it, or query the flows through it" in run.stdout


def test_a_stray_configuration_is_not_read(directory: Path, tmp_path: Path) -> None:
    (tmp_path / "config.xml").write_text("<clickhouse><users_config>nowhere.xml</users_config>")
    child = (
        "import sys; from pathlib import Path; from nettop.collector.store.embedded import EmbeddedStore\n"
        "store = EmbeddedStore(Path(sys.argv[1]))\n"
        "print(store.query('SELECT currentDatabase()', 'TSV'), Path.cwd())\n"
        "store.close()"
    )
    run = subprocess.run(
        [sys.executable, "-c", child, str(directory)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert run.stdout == f"b'nettop\\n' {tmp_path}\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts file systems, which takes root")
@pytest.mark.parametrize("hidden", ["/sys", "/sys/fs/cgroup"])
def test_nothing_is_written_where_the_host_is_hidden(directory: Path, hidden: str) -> None:
    """As in a network namespace without /sys: it would be a stack trace of the engine."""
    child = (
        "import sys; from pathlib import Path; from nettop.collector.store.embedded import EmbeddedStore\n"
        "EmbeddedStore(Path(sys.argv[1])).close()"
    )
    hiding = 'mount -t tmpfs none "$1"; shift; exec "$@"'
    run = subprocess.run(
        ["unshare", "-m", "sh", "-c", hiding, "sh", hidden, sys.executable, "-c", child, str(directory)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (run.stdout, run.stderr) == ("", "")


@pytest.mark.parametrize("name", ["a?b", "a&b"])
def test_directories_with_special_characters_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"without \? and &|cannot be stored in"):
        EmbeddedStore(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="Not a directory"):
        EmbeddedStore(tmp_path / "file" / "flows")


def test_the_retention_changes_and_a_newer_schema_is_refused(directory: Path) -> None:
    EmbeddedStore(directory).close()
    store = EmbeddedStore(directory, retention_of({"flows_1m": 3 * 86_400}))
    seconds = "extract(engine_full, 'toIntervalSecond.([0-9]+)')"
    answer = store.query(f"SELECT name, {seconds} FROM system.tables WHERE engine LIKE '%MergeTree'", "TSV")
    kept = dict(line.split("\t") for line in answer.decode().splitlines())
    assert kept == {name: f"{seconds}" for name, seconds in retention_of({"flows_1m": 3 * 86_400}).items()}
    store._execute("ALTER TABLE nettop.flows_raw MODIFY COMMENT 'nettop schema 99'")
    store.close()
    with pytest.raises(UsageError, match="schema 99, but this nettop supports"):
        EmbeddedStore(directory)
    # It has released the directory.
    with pytest.raises(UsageError, match="schema 99, but this nettop supports"):
        EmbeddedStore(directory)


# Queries.

READING = (
    *"""
        SELECT 1
        select 1;
        (SELECT 1) UNION ALL SELECT 2
        SELECT 1 INTERSECT SELECT 1
        SHOW TABLES
        SHOW COLUMNS FROM flows_1m
        DESCRIBE flows_raw
        describe table nettop.flows_raw;
        SHOW CREATE TABLE flows_1m
        EXPLAIN SELECT count() FROM flows_raw
        EXPLAIN indexes = 1 SELECT * FROM flows_1m WHERE time > now() - 60
        WITH top AS (SELECT src, sum(bytes) AS a FROM flows_raw GROUP BY src ORDER BY a LIMIT 3) SELECT * FROM top
        SELECT toStartOfInterval(received, INTERVAL 9 SECOND) AS a, sumIf(bytes, protocol = 6) FROM flows_raw GROUP BY a
        SELECT quantile(0.9)(bytes), count(DISTINCT src), CASE WHEN max(in_if) = 1 THEN 'a' ELSE 'b' END FROM flows_raw
        SELECT * APPLY(max) FROM (SELECT bytes, packets FROM flows_raw)
        SELECT arrayMap(x -> x + 1, [bytes]), bytes::Float64, src IN (SELECT dst FROM talkers_1m) FROM flows_raw LIMIT 1
        SELECT row_number() OVER (PARTITION BY src ORDER BY bytes) FROM flows_raw LIMIT 1 BY src
        SELECT a.bytes FROM flows_raw AS a ANY LEFT JOIN flows_1m AS b ON a.exporter = b.exporter
        SELECT IPv6NumToString(src), formatReadableSize(bytes), MACNumToString(src_mac) FROM flows_raw
        SELECT number FROM numbers(3) WHERE number IN (1, 2)
        SELECT * FROM view(SELECT 1)
        SELECT count() FROM system.parts WHERE database = currentDatabase()
        SELECT system.tables.name FROM system.tables
        SELECT table_name FROM information_schema.tables
        SELECT 'select * from file(''/etc/passwd'')'
    """.strip().splitlines(),
    " SELECT 1 -- one\n",
)
HOSTILE = (
    # Statements other than queries; several; files, hosts and programs anywhere; other queries; settings and outputs.
    *"""
        INSERT INTO flows_1m SELECT * FROM flows_1m
        INSERT INTO FUNCTION file('{path}', 'TSV') SELECT 1
        ALTER TABLE flows_raw DELETE WHERE 1
        DROP TABLE flows_raw
        CREATE TABLE x (a Int8) ENGINE = Memory
        SYSTEM FLUSH LOGS
        SET readonly = 0
        USE default
        KILL QUERY WHERE 1
        GRANT ALL ON *.* TO default
        EXECUTE AS default SELECT 1
        BACKUP TABLE flows_raw TO File('{path}')
        SHOW PROCESSLIST
        SHOW CREATE TABLE default.x
        EXPLAIN AST DROP TABLE flows_raw
        EXPLAIN INSERT INTO flows_1m SELECT * FROM flows_1m
        SELECT 1; DROP TABLE flows_raw
        SELECT 1;;SELECT 2
        SELECT /* '; */ 1; DROP TABLE flows_raw --'
        DESCRIBE flows_raw; DROP TABLE flows_raw
        SELECT * FROM file('{path}')
        FROM FILE('{path}') SELECT *
        SELECT * FROM `file`('{path}')
        SELECT 1 UNION ALL SELECT * FROM file('{path}')
        WITH x AS (SELECT * FROM file('{path}')) SELECT * FROM x
        SELECT (SELECT * FROM file('{path}') LIMIT 1)
        SELECT 1 IN (SELECT * FROM file('{path}'))
        SELECT * FROM view(SELECT * FROM file('{path}'))
        SELECT 1 FROM flows_raw AS a JOIN file('{path}') AS b ON 1 = 1
        EXPLAIN SELECT * FROM file('{path}')
        DESCRIBE file('{path}')
        DESCRIBE TABLE (SELECT * FROM file('{path}'))
        SELECT file('{path}')
        SELECT FILE('{path}')
        WITH file('{path}') AS x SELECT x
        SELECT 1 ORDER BY file('{path}')
        SELECT * APPLY(file) FROM (SELECT '{path}')
        SELECT * APPLY(x -> file(x)) FROM (SELECT '{path}')
        SELECT * REPLACE(file(a) AS a) FROM (SELECT '{path}' AS a)
        SELECT 1 LIMIT length(file('{path}'))
        SELECT * FROM '{path}'
        SELECT * FROM `{path}`
        SELECT * FROM default.`{path}`
        SELECT '1' IN default.`{path}`
        SELECT joinGet('default.{path}', 'a', 1)
        SELECT * FROM merge('default', '.*')
        SELECT * FROM url('http://127.0.0.1/')
        SELECT * FROM remote('127.0.0.1', system.one)
        SELECT * FROM executable('id', 'TSV', 'a String')
        SELECT * FROM loop(file('{path}'))
        SELECT dictGet('x', 'a', 1)
        SELECT aiGenerate('x')
        SELECT addressToLine(1)
        SELECT * FROM system.processes
        SELECT * FROM SYSTEM.processes
        SELECT 1 IN system.stack_trace
        SELECT * FROM (SELECT * FROM system.`stack_trace`)
        EXPLAIN SELECT * FROM system.errors
        SELECT 1 SETTINGS readonly = 0
        SELECT * FROM (SELECT 1 SETTINGS max_execution_time = 0)
        SELECT 1 FORMAT CSV
        SELECT 1 INTO OUTFILE '{path}.out'
        SELECT 1 INTO OUTFILE '{path}.out' AND STDOUT FORMAT CSV
        EXPLAIN SELECT 1 INTO OUTFILE '{path}.out'
        SELECT {x:String}
    """.strip().splitlines(),
    "CREATE DICTIONARY x (a Int8) PRIMARY KEY a SOURCE(EXECUTABLE(COMMAND 'id' FORMAT TSV)) LAYOUT(FLAT()) LIFETIME(1)",
    "",
    "SELECT 1 -- x\n; DROP TABLE flows_raw",
    "SELECT " + "(" * 5000 + "1" + ")" * 5000,
    "SELECT '" + "x" * QUERY_MAX + "'",
    "SELECT 1\0",
    "SELECT '\udcff'",
)


def test_queries_that_read_are_answered(store: EmbeddedStore) -> None:
    store.insert({"flows_raw": flow_block(random_flows(1, 300))}, "t")
    for sql in READING:
        assert store.query(sql, "TSV"), sql
    assert store.query("SELECT 1 AS x", "JSONEachRow") == b'{"x":1}\n'
    with pytest.raises(UsageError, match="unknown format 'Template'"):
        store.query("SELECT 1", "Template")


def test_queries_that_do_not_only_read_are_refused(store: EmbeddedStore, tmp_path: Path) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("root\n")
    store.insert({"flows_raw": flow_block(random_flows(1, 300))}, "t")
    assert [sql for sql in HOSTILE if not is_refused(store, sql.replace("{path}", str(secret)))] == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["flows", "secret.csv"]
    assert flow_counts(store) == all_of(300)


def is_refused(store: EmbeddedStore, sql: str) -> bool:
    try:
        store.query(sql, "TSV")
    except UsageError:
        return True
    return False


def test_refusals_state_the_cause(store: EmbeddedStore) -> None:
    for sql, what in {
        "SELECT * FROM url('x')": "a query may not use the table function url",
        "SELECT 1 IN default.`/etc/passwd`": "a query may not use the database default",
        "SELECT * FROM default.`/etc/passwd`": "a query may not use the database default",
        "DROP TABLE flows_raw": "a query may not use this kind of statement",
        "GRANT ALL ON *.* TO x": "a query may not use this kind of statement",
        "SELECT 1 SETTINGS max_threads = 1": "a query may not use SETTINGS",
        "SELECT nothing FROM flows_raw": "the query failed: Unknown expression identifier `nothing`",
        "SELECT 1 +": "the query cannot be parsed: Syntax error",
    }.items():
        with pytest.raises(UsageError) as caught:
            store.query(sql)
        assert caught.value.what.startswith(what)
        assert caught.value.remedy


@pytest.mark.parametrize(
    ("sql", "limits", "what"),
    [
        (
            "SELECT count() FROM system.numbers WHERE sipHash64(number) = 1",
            QueryLimits(seconds=1),
            "took longer than 1 s",
        ),
        (
            "SELECT groupArray(number) FROM numbers(100000000)",
            QueryLimits(600, memory_bytes=100 << 20),
            "needed more than 104857600 bytes of memory",
        ),
        (
            "SELECT number FROM numbers(1000000)",
            QueryLimits(600, answer_bytes=1 << 20),
            "returned more than 1048576 bytes",
        ),
    ],
)
def test_queries_beyond_a_limit_are_stopped(
    directory: Path, sql: str, limits: QueryLimits, what: str
) -> None:
    store = EmbeddedStore(directory, limits=limits)
    with pytest.raises(UsageError, match=f"the query {what}"):
        store.query(sql)
    store.close()


def test_concurrent_queries_and_inserts(store: EmbeddedStore) -> None:
    failures: list[NettopError] = []
    begun = threading.Barrier(3)

    def repeat(sql: str) -> None:
        begun.wait()
        try:
            for _ in range(5):
                store.query(sql)
        except NettopError as error:
            failures.append(error)

    threads = [
        threading.Thread(target=repeat, args=(sql,))
        for sql in ("SELECT sum(bytes) FROM flows_raw", "SELECT 1")
    ]
    for thread in threads:
        thread.start()
    begun.wait()
    for token in range(5):
        store.insert({"flows_raw": flow_block(random_flows(token, 100))}, f"{token}")
    for thread in threads:
        thread.join()
    assert failures == []
    assert flow_counts(store) == all_of(500)


# Servers.


class Cluster:
    """State shared by the servers of a cluster: blocks by token. `answers` applies to the next inserts, in order."""

    def __init__(self) -> None:
        self.blocks: dict[str, tuple[str, bytes]] = {}
        self.statements: list[str] = []
        self.version = "25.8.2.1"
        self.settings: list[dict[str, str]] = []

    def answer(self, sql: str, settings: dict[str, str], content: bytes) -> bytes:
        if sql.startswith("INSERT"):
            self.settings.append(settings)
            block = zstandard.ZstdDecompressor().decompressobj().decompress(content)
            self.blocks.setdefault(settings["insert_deduplication_token"], (sql.split()[2], block))
            return b""
        if sql.startswith("SELECT version()"):
            return f"{self.version}\tUTC\n".encode()
        if sql.startswith("EXPLAIN AST"):
            return b"SelectWithUnionQuery (children 1)\n" if "SELECT" in sql.upper()[11:] else b"DropQuery\n"
        if "system.settings" in sql:
            return self.known_settings()
        if sql.startswith("SELECT 1 AS check"):
            return b""
        self.statements.append(sql)
        self.settings.append(settings)
        return b"42\n" if sql.startswith("SELECT 42") else b""

    @staticmethod
    def known_settings() -> bytes:
        names = (
            *(
                "insert_deduplication_token",
                "deduplicate_blocks_in_dependent_materialized_views",
                "optimize_on_insert",
            ),
            *("insert_deduplicate", "async_insert", "distributed_foreground_insert", "readonly"),
            *("max_execution_time", "max_memory_usage", "max_result_bytes", "distributed_ddl_task_timeout"),
        )
        types = {"name": "String", "value": "String", "readonly": "UInt8"}
        columns: dict[str, Values] = {
            "name": Coded.of(names),
            "value": Coded.of("" for _ in names),
            "readonly": np.zeros(len(names), "u1"),
        }
        return native_block(types, columns)


class Server(ThreadingHTTPServer):
    """A node of a cluster. `inserts` and `queries` say what happens to the next ones.

    "lost" stores the block and closes the connection without an answer, "refused" closes it before; a number is a
    ClickHouse error code. "in the header" and "in the body" return status 200 with an error there.
    """

    daemon_threads = True

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.cluster = cluster
        self.inserts: list[str] = []
        self.queries: list[str] = []
        self.calls = 0
        self.thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://user:secret@127.0.0.1:{self.server_port}"

    def end(self) -> None:
        self.shutdown()
        self.thread.join()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        settings = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        sql = settings.pop("query", "") or content.decode()
        word = ""
        if sql.startswith("INSERT"):
            self.server.calls += 1
            word = self.server.inserts.pop(0) if self.server.inserts else ""
        elif sql.startswith("EXPLAIN AST") and self.server.queries:
            word = self.server.queries.pop(0)
        if word == "refused":
            return
        if word.isdecimal() or word.startswith("in the"):
            code = word if word.isdecimal() else "241"
            error = f"Code: {code}. DB::Exception: No luck. (NO_LUCK)\n".encode()
            self.reply(500 if code == word else 200, error, "" if word == "in the body" else code)
            return
        answer = self.server.cluster.answer(sql, settings, content)
        if word != "lost":
            self.reply(200, answer)

    def reply(self, status: int, content: bytes, code: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        if code:
            self.send_header("X-ClickHouse-Exception-Code", code)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        pass


class Clock:
    """A clock advanced by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def servers(cluster: Cluster) -> Iterator[list[Server]]:
    servers = [Server(cluster) for _ in range(2)]
    yield servers
    for server in servers:
        server.end()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def stores(servers: list[Server], clock: Clock) -> ServerStore:
    return ServerStore([server.url for server in servers], "two", clock=clock, jitter=lambda: 1.0)


def test_servers_take_blocks_in_turn(cluster: Cluster, servers: list[Server], clock: Clock) -> None:
    store = stores(servers, clock)
    for token in range(6):
        store.insert({"flows_raw": b"block"}, f"{token}")
    assert [server.calls for server in servers] == [3, 3]
    assert cluster.blocks == {f"{token}-flows_raw": ("nettop.flows_raw", b"block") for token in range(6)}
    assert len([sql for sql in cluster.statements if "ON CLUSTER `two`" in sql]) == 21
    settings = {
        "deduplicate_blocks_in_dependent_materialized_views": "1",
        "insert_deduplicate": "1",
        "async_insert": "0",
        "distributed_foreground_insert": "1",
        "wait_end_of_query": "1",
    }
    assert settings.items() <= cluster.settings[-1].items()
    store.close()


@pytest.mark.parametrize("failure", ["lost", "refused", "279", "in the header", "in the body"])
def test_a_block_goes_to_the_next_server_under_the_same_name(
    cluster: Cluster, servers: list[Server], clock: Clock, failure: str
) -> None:
    for server in servers:
        # Twice, as the driver itself retries on a closed connection.
        server.inserts = [failure, failure]
    store = stores(servers, clock)
    what = "does not answer" if failure in ("lost", "refused") else "failed: No luck"
    with pytest.raises(SourceFailed, match=what):
        store.insert({"flows_raw": b"block"}, "t")
    clock.now += 1000
    for server in servers:
        server.inserts = []
    store.insert({"flows_raw": b"block"}, "t")
    assert cluster.blocks == {"t-flows_raw": ("nettop.flows_raw", b"block")}
    store.close()


def test_a_failing_server_is_avoided_with_backoff(
    cluster: Cluster, servers: list[Server], clock: Clock
) -> None:
    store = stores(servers, clock)
    bad, good = servers
    bad.inserts = ["279"] * 100
    waits, before = [], clock.now
    for token in range(200):
        calls = bad.calls
        store.insert({"flows_raw": b"block"}, f"{token}")
        if bad.calls > calls:
            waits.append(clock.now - before)
            before = clock.now
        clock.now += 1
    # In strict rotation, every second request would go to the other one.
    assert waits == [0, 2, 2, 4, 8, 16, 32, 60, 60]
    assert len(cluster.blocks) == 200
    assert good.calls == 200
    bad.inserts = []
    clock.now += 60
    for token in range(200, 204):
        store.insert({"flows_raw": b"block"}, f"{token}")
    assert bad.calls == len(waits) + 2
    store.close()


def test_a_cluster_that_is_down_is_tried_one_server_at_a_time(cluster: Cluster, clock: Clock) -> None:
    servers = [Server(cluster) for _ in range(2)]
    store = stores(servers, clock)
    for server in servers:
        server.end()
    for _ in range(2):
        with pytest.raises(SourceFailed, match="does not answer: Connection refused") as caught:
            store.insert({"flows_raw": b"block"}, "t")
        assert "secret" not in caught.value.what


def test_server_errors_have_a_remedy(cluster: Cluster, servers: list[Server]) -> None:
    server = servers[0]
    store = ServerStore([server.url])
    store.prepare()
    for code, what in {
        "516": "rejected the user or password",
        "497": "denied access: No luck",
        "252": "failed: No luck",
    }.items():
        server.inserts = [code]
        with pytest.raises(NettopError, match=f"^http://127.0.0.1:{server.server_port} {what}") as caught:
            store.insert({"flows_raw": b"block"}, "t")
        assert isinstance(caught.value, SourceFailed) == (code == "252")
        assert caught.value.remedy
    store.close()
    cluster.version = "24.7.9.1"
    with pytest.raises(UsageError, match=r"is ClickHouse 24\.7\.9\.1, too old for flows"):
        ServerStore([server.url]).prepare()
    with pytest.raises(
        SourceFailed, match=r"^http://nowhere\.invalid:8123 does not answer: unknown host name"
    ):
        ServerStore(["http://nowhere.invalid:8123"]).prepare()


@pytest.mark.parametrize(
    ("urls", "what"),
    [
        (["127.0.0.1:8123"], "is not the URL of a ClickHouse server"),
        (["ftp://host"], "is not the URL of a ClickHouse server"),
        (["http://"], "is not the URL of a ClickHouse server"),
        (["http://a", "http://b"], "2 servers given without a cluster name"),
        ([], "0 servers given"),
    ],
)
def test_urls_that_cannot_be_used_are_refused(urls: list[str], what: str) -> None:
    with pytest.raises(UsageError, match=what):
        ServerStore(urls)


def test_servers_answer_queries_that_only_read(cluster: Cluster, servers: list[Server]) -> None:
    store = ServerStore([servers[0].url], limits=QueryLimits(7))
    assert store.query("SELECT 42;", "TSV") == b"42\n"
    assert cluster.statements == ["SELECT 42\n FORMAT TSV"]
    assert {"readonly": "1", "max_execution_time": "7", "database": "nettop"}.items() <= cluster.settings[
        -1
    ].items()
    with pytest.raises(UsageError, match="this kind of statement"):
        store.query("DROP TABLE flows_raw")
    assert len(cluster.statements) == 1
    store.close()


def test_a_query_is_not_wrong_because_a_server_is_down(servers: list[Server], clock: Clock) -> None:
    store = stores(servers, clock)
    servers[1].queries = ["279"]
    assert store.query("SELECT 42", "TSV") == b"42\n"
    for server in servers:
        server.queries = ["279"]
    clock.now += 1000
    with pytest.raises(SourceFailed, match="failed: No luck"):
        store.query("SELECT 42")
    servers[0].queries = servers[1].queries = ["47"]
    clock.now += 1000
    with pytest.raises(UsageError, match="the query failed: No luck"):
        store.query("SELECT 42")
    store.close()
