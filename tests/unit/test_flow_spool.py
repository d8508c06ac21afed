# SPDX-License-Identifier: Apache-2.0
"""Blocks between collecting and storing: nothing is lost, duplicated or uncounted, wherever a process or disk fails."""

from __future__ import annotations

import errno
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from nettop.collector import files
from nettop.collector import spool as spool_module
from nettop.collector.collector import Collector
from nettop.collector.enrichment.lookups import LookupFiles
from nettop.collector.pipeline import WorkerOutput
from nettop.collector.spool import BROKEN_BLOCKS, Block, Spool, Storing
from nettop.errors import NettopError, SourceFailed, UsageError
from tests.builders.native_reader import Reader
from tests.collecting import until

LARGE = 1 << 30
FLOWS, COUNTERS = "flows_raw", "interface_counters"
RECEIVED, DROPPED = "records_received", "flows_raw_dropped_by_spool"


class CrashError(Exception):
    """The process ends here."""


class Store:
    """A store of blocks by token and table that fails before or after the inserts with these numbers."""

    def __init__(self) -> None:
        self.blocks: dict[str, bytes] = {}
        self.calls = self.checks = 0
        self.damage = None
        self.batch_s = 0.0
        self.before_query: Callable[[], None] = lambda: None
        self.fails_before: set[int] = set()
        self.fails_after: set[int] = set()

    def insert(self, blocks: Mapping[str, bytes], token: str) -> None:
        for table, block in blocks.items():
            self.calls += 1
            if self.calls in self.fails_before:
                raise SourceFailed("no answer")
            # The engine recognizes repeated blocks by their token only if the content is the same.
            assert self.blocks.setdefault(f"{token}-{table}", block) == block
            if self.calls in self.fails_after:
                raise SourceFailed("no answer, but stored")

    def check(self) -> None:
        self.checks += 1

    def query(self, sql: str, form: str = "") -> bytes:
        raise NotImplementedError

    def close(self) -> None:
        pass

    def contents(self, table: str) -> list[bytes]:
        """Return the blocks of a table, ordered by token."""
        return [block for token, block in sorted(self.blocks.items()) if token.endswith(f"-{table}")]

    def ledgers(self) -> dict[str, dict[str, int]]:
        """Return the ledgers of all files by token, each of which is there once."""
        ledgers: dict[str, dict[str, int]] = {}
        for block in self.contents("ledger"):
            columns = Reader(block).block()
            for token, counters in zip(columns["token"][1], columns["counters"][1], strict=True):
                assert token not in ledgers
                ledgers[token] = counters
        return ledgers

    def ledger(self) -> Counter[str]:
        """Return the sum of all ledgers."""
        return sum(map(Counter, self.ledgers().values()), Counter())


class Faults:
    """A wrapper around the functions of `os` that write files; the call with this number fails."""

    NAMES = ("open", "fdopen", "fsync", "close", "rename")

    def __init__(self, monkeypatch: pytest.MonkeyPatch | None = None) -> None:
        self.calls, self.at = 0, 0
        self.error: Exception = CrashError()
        if monkeypatch is not None:
            monkeypatch.setattr(spool_module, "os", self)
            monkeypatch.setattr(files, "os", self)

    def __getattr__(self, name: str) -> Any:
        function = getattr(os, name)
        if name not in self.NAMES:
            return function

        def called(*arguments: Any) -> Any:
            self.calls += 1
            if self.calls == self.at:
                if name == "fdopen":
                    # Part of it was written.
                    os.write(arguments[0], b"nettop")
                if name in ("close", "fdopen"):
                    os.close(arguments[0])
                raise self.error
            return function(*arguments)

        return called


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    return Faults(monkeypatch)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "spool"


def block(text: str, rows: int = 1) -> Block:
    return Block(text.encode() * 20, rows)


def suffixes(directory: Path) -> list[str]:
    """Return the suffixes of all files but those that name batches."""
    return sorted(path.suffix for path in directory.iterdir() if path.name not in ("batch", "stored"))


# Writing and reading.


def test_a_file_is_read_as_it_was_written(directory: Path) -> None:
    spool = Spool(directory, LARGE)
    blocks = {FLOWS: Block(bytes(100_000), 7), COUNTERS: Block(b"", 0)}
    token = spool.put(blocks, {RECEIVED: 7, "datagrams": 0})
    assert token is not None
    assert spool.waiting() == [token]
    spooled = Spool(directory, LARGE).read(token)
    assert (spooled.token, spooled.blocks, spooled.broken) == (token, blocks, "")
    assert spooled.ledger == {RECEIVED: 7, "datagrams": 0}
    assert spooled.time_ms == int(token[:19]) // 1_000_000
    assert spool.waiting_bytes() < 1000
    spool.remove(token)
    spool.remove(token)
    assert (spool.waiting(), spool.waiting_bytes()) == ([], 0)


def test_files_come_in_the_order_of_writing_also_when_the_clock_is_set_back(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([1_800_000_000_000_000_000, 1_800_000_000_000_000_000, 1_700_000_000_000_000_000, 5, 6])
    monkeypatch.setattr("time.time_ns", lambda: next(times))
    spool, other = Spool(directory, LARGE), Spool(directory, LARGE, worker=1)
    tokens = [spool.put({}, {}), other.put({}, {}), spool.put({}, {})]
    tokens += [Spool(directory, LARGE).put({}, {}) for _ in range(2)]
    assert spool.waiting() == tokens
    assert len(set(tokens)) == 5


def test_processes_write_to_the_same_directory(directory: Path) -> None:
    child = (
        "import sys; from pathlib import Path; from nettop.collector.spool import Block, Spool\n"
        "spool = Spool(Path(sys.argv[1]), 1 << 30, int(sys.argv[2]))\n"
        "for number in range(20): spool.put({'flows_raw': Block(sys.argv[2].encode(), 1)}, {'number': number})"
    )
    children = [
        subprocess.Popen([sys.executable, "-c", child, str(directory), str(worker)]) for worker in range(3)
    ]
    assert [process.wait() for process in children] == [0, 0, 0]
    spool = Spool(directory, LARGE)
    numbers: dict[bytes, list[int]] = {}
    for token in spool.waiting():
        spooled = spool.read(token)
        numbers.setdefault(spooled.blocks[FLOWS].content, []).append(spooled.ledger["number"])
    assert numbers == {worker: list(range(20)) for worker in (b"0", b"1", b"2")}


def test_a_directory_that_cannot_be_created_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="Not a directory"):
        Spool(tmp_path / "file" / "spool", LARGE)


# What does not fit.


def test_a_directory_that_was_removed_is_made_again(directory: Path) -> None:
    """Its contents are lost; nothing waits, and new blocks are kept."""
    spool = Spool(directory, LARGE)
    spool.put({FLOWS: Block(b"gone", 1)}, {RECEIVED: 1})
    shutil.rmtree(directory)
    assert (spool.waiting(), spool.waiting_bytes()) == ([], 0)
    token = spool.put({FLOWS: Block(b"kept", 1)}, {RECEIVED: 1})
    assert token is not None
    assert spool.waiting() == [token]
    assert spool.read(token).blocks == {FLOWS: Block(b"kept", 1)}


def test_blocks_beyond_the_bound_are_dropped_and_counted_in_the_next_file(directory: Path) -> None:
    spool = Spool(directory, 400)
    first = spool.put({FLOWS: block("a")}, {RECEIVED: 1})
    assert first is not None
    noise = Block(os.urandom(400), 5)
    assert spool.put({FLOWS: noise, COUNTERS: Block(b"", 2)}, {RECEIVED: 5, "datagrams": 3}) is None
    assert spool.put({FLOWS: noise}, {RECEIVED: 5, "datagrams": 4}) is None
    assert "the spool is full (400 bytes)" in str(spool.failure)
    assert spool.waiting() == [first]
    spool.remove(first)
    last = spool.put({FLOWS: block("b")}, {RECEIVED: 1})
    assert last is not None
    assert spool.failure is None
    assert spool.read(last).ledger == {
        RECEIVED: 11,
        "datagrams": 7,
        DROPPED: 10,
        "interface_counters_dropped_by_spool": 2,
    }
    again = spool.put({}, {"datagrams": 1})
    assert again is not None
    assert spool.read(again).ledger == {"datagrams": 1}


def test_a_disk_that_refuses_any_step_drops_the_block_or_keeps_it_whole(
    directory: Path, faults: Faults
) -> None:
    spool = Spool(directory, LARGE)
    faults.error = OSError(errno.ENOSPC, "full")
    kept = dropped = 0
    for step in range(1, 50):
        faults.calls, faults.at = 0, step
        if spool.put({FLOWS: block(f"{step}")}, {RECEIVED: 1}) is None:
            dropped += 1
            assert spool.failure is faults.error
        else:
            kept += 1
        assert len(spool.waiting()) == kept
        assert suffixes(directory) == [".block"] * kept
        if faults.calls < step:
            break
    else:
        raise AssertionError("there is always one more step")
    assert (kept, dropped) == (4, 4), "of the directory: open, fsync, close; and once without a failure"
    spooled = [spool.read(token) for token in spool.waiting()]
    total: Counter[str] = Counter()
    for batch in spooled:
        total.update(batch.ledger)
    assert total == {RECEIVED: kept + dropped, DROPPED: dropped}


# Crashes.


def test_a_crash_at_any_step_leaves_a_whole_file_or_none(directory: Path, faults: Faults) -> None:
    kept = 0
    for step in range(1, 50):
        spool = Spool(directory, LARGE)
        faults.calls, faults.at = 0, step
        try:
            spool.put({FLOWS: block(f"{step}")}, {RECEIVED: 1})
        except CrashError:
            faults.at = 0
        spool = Spool(directory, LARGE)
        spool.recover()
        assert not [suffix for suffix in suffixes(directory) if suffix == ".tmp"]
        kept = len(spool.waiting())
        assert {spool.read(token).broken for token in spool.waiting()} <= {""}
        if faults.calls < step:
            break
    assert kept == 4, "the last one, and those whose directory was not synced"


# Damage.


def damaged(directory: Path, damage: Callable[[bytes], bytes]) -> Spool:
    """Return a spool whose only file, of 3 flows, was damaged."""
    spool = Spool(directory, LARGE)
    token = spool.put({FLOWS: block("abc", 3), COUNTERS: block("d", 2)}, {RECEIVED: 3})
    path = directory / f"{token}.block"
    path.write_bytes(damage(path.read_bytes()))
    return spool


def test_every_changed_byte_and_every_cut_is_noticed(directory: Path) -> None:
    spool = Spool(directory, LARGE)
    token = spool.put({FLOWS: block("abc", 3)}, {RECEIVED: 3})
    assert token is not None
    path = directory / f"{token}.block"
    whole = path.read_bytes()
    ledgers = set()
    for at in range(len(whole)):
        for damage in (whole[:at], whole[:at] + bytes([whole[at] ^ 0x40]) + whole[at + 1 :]):
            path.write_bytes(damage)
            spooled = spool.read(token)
            assert spooled.broken
            assert not spooled.blocks
            ledgers.add(tuple(sorted(spooled.ledger.items())))
    assert ledgers == {((BROKEN_BLOCKS, 1),), ((BROKEN_BLOCKS, 1), (DROPPED, 3), (RECEIVED, 3))}


def test_a_broken_file_is_set_aside_and_its_rows_are_counted_as_dropped(directory: Path) -> None:
    spool, store = damaged(directory, lambda content: content[:-1]), Store()
    reports: list[NettopError] = []
    storing = Storing(spool, store, reports.append)
    assert storing.store_oldest()
    assert not storing.store_oldest()
    assert suffixes(directory) == [".broken"]
    assert [error.what.partition(": ")[2] for error in reports] == ["its blocks are damaged"]
    assert store.ledger() == {
        RECEIVED: 3,
        DROPPED: 3,
        BROKEN_BLOCKS: 1,
        "interface_counters_dropped_by_spool": 2,
    }
    assert not store.contents(FLOWS)
    assert storing.stored == {DROPPED: 3, "interface_counters_dropped_by_spool": 2}


# Storing.


def filled(directory: Path, count: int) -> Spool:
    spool = Spool(directory, LARGE)
    for number in range(count):
        spool.put({FLOWS: block(f"f{number}"), COUNTERS: block(f"c{number}")}, {RECEIVED: 1})
    return spool


def store_all(storing: Storing) -> None:
    while storing.store_oldest():
        pass


def test_blocks_are_stored_in_order_the_ledger_last(directory: Path) -> None:
    spool, store = filled(directory, 3), Store()
    tokens = spool.waiting()
    storing = Storing(spool, store)
    assert [storing.store_oldest() for _ in range(3)] == [True, True, False]
    # Without a file that names a batch, an earlier nettop may have stored the first one alone.
    assert list(store.blocks) == [
        f"{token}-{table}" for token in tokens[:2] for table in (FLOWS, COUNTERS, "ledger")
    ]
    assert store.blocks[f"{tokens[1]}-{FLOWS}"] == block("f1").content + block("f2").content
    rows = Reader(store.blocks[f"{tokens[1]}-ledger"]).block()
    assert rows == {
        "time": ("DateTime64(3)", [int(token[:19]) // 1_000_000 for token in tokens[1:]]),
        "token": ("String", tokens[1:]),
        "counters": ("Map(String, Int64)", [{RECEIVED: 1}] * 2),
    }


@pytest.mark.parametrize(("bytes_max", "files_max"), [(1, 1000), (1 << 20, 2)])
def test_batches_are_bounded(
    directory: Path, monkeypatch: pytest.MonkeyPatch, bytes_max: int, files_max: int
) -> None:
    """A batch has a maximum number of files, and ends with the file that reaches the size."""
    monkeypatch.setattr(spool_module, "BATCH_BYTES", bytes_max)
    monkeypatch.setattr(spool_module, "_BATCH_FILES_MAX", files_max)
    store = Store()
    store_all(Storing(filled(directory, 7), store))
    counts = [len(Reader(content).block()["token"][1]) for content in store.contents("ledger")]
    assert counts == ([1] * 7 if bytes_max == 1 else [1, 2, 2, 2])


@pytest.mark.parametrize("removed", [None, 0, 1, 2])
def test_a_batch_is_the_same_after_a_crash(directory: Path, removed: int | None) -> None:
    """Files that come meanwhile do not join it, and after some of its files were removed it is not stored again."""
    store_all(Storing(filled(directory, 1), Store()))
    spool, store = filled(directory, 3), Store()
    tokens = spool.waiting()
    name, batch = spool.next_batch()
    store.insert({FLOWS: b"".join(message.blocks[FLOWS].content for message in batch)}, name)
    if removed is not None:
        spool.note_stored()
        for token in tokens[:removed]:
            spool.remove(token)
    filled(directory, 2)
    again, rest = Spool(directory, LARGE).next_batch()
    assert (again, [message.token for message in rest]) == (
        (name, tokens) if removed is None else ("", tokens[removed:])
    )
    storing = Storing(Spool(directory, LARGE), store)
    store_all(storing)
    assert len(store.contents(FLOWS)) == 2
    assert storing.stored[FLOWS] == (5 - (removed or 0)) * block("").rows


def test_the_spool_drains_to_a_server_while_its_own_disk_is_full(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a file that names a batch, files are stored one by one."""
    store_all(Storing(filled(directory, 1), Store()))
    spool, store = filled(directory, 3), Store()
    tokens = spool.waiting()

    def full(*_: object, **__: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(spool_module, "write_file", full)
    store_all(Storing(spool, store))
    assert list(store.ledgers()) == tokens
    assert len(store.contents(FLOWS)) == 3


def test_a_store_is_checked_while_nothing_is_to_be_stored(directory: Path) -> None:
    spool, store = filled(directory, 1), Store()
    storing = Storing(spool, store)
    assert (storing.store_oldest(), store.checks) == (True, 0)
    assert (storing.store_oldest(), store.checks) == (False, 1)


def test_earlier_files_are_counted_separately(directory: Path) -> None:
    spool, store = filled(directory, 2), Store()
    storing = Storing(spool, store, earlier=spool.waiting())
    filled(directory, 3)
    store_all(storing)
    rows = block("f0").rows
    assert (storing.stored_earlier[FLOWS], storing.stored[FLOWS]) == (2 * rows, 3 * rows)


def test_a_file_that_could_not_be_removed_is_stored_once(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool, store = filled(directory, 1), Store()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: os.unlink("/nowhere"))
        with pytest.raises(SourceFailed, match="cannot read the spool"):
            Storing(spool, store).store_oldest()
    assert Storing(spool, store).store_oldest()
    assert store.contents(FLOWS) == [block("f0").content]
    assert len(store.blocks) == 3


class Times:
    """A fake event to wait on: records the timeouts, and is set after a number of them."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.waits: list[float] = []

    def is_set(self) -> bool:
        return len(self.waits) >= self.count

    def wait(self, timeout: float) -> bool:
        self.waits.append(timeout)
        return self.is_set()


def test_a_failing_store_is_tried_again_less_and_less_often(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store()
    reports: list[NettopError] = []
    store.fails_before = set(range(1, 11))
    storing = Storing(filled(directory, 1), store, reports.append)
    storing._stopping = times = Times(10)  # type: ignore[assignment]
    monkeypatch.setattr(spool_module, "_RANDOM", Chance(iter([0.5] * 10)))
    storing.run()
    assert times.waits == [0.75 * delay for delay in (0.5, 1, 2, 4, 8, 16, 30, 30, 30, 30)]
    assert storing.failure is reports[-1]
    assert len(reports) == 10


class Chance(random.Random):
    """A source of these numbers."""

    def __init__(self, numbers: Iterator[float]) -> None:
        super().__init__()
        self.random = numbers.__next__  # type: ignore[method-assign]


def test_the_wait_begins_anew_after_a_success_and_varies_by_chance(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store()
    store.fails_before = {1, 2, 6}
    monkeypatch.setattr(spool_module, "_RANDOM", Chance(iter([0.0, 1.0, 0.0])))
    storing = Storing(filled(directory, 2), store)
    storing._stopping = times = Times(3)  # type: ignore[assignment]
    storing.run()
    assert times.waits == [0.25, 1.0, 0.25]
    assert storing.failure is not None


def test_failures_that_differ_in_sizes_only_are_reported_once(directory: Path) -> None:
    reports: list[NettopError] = []
    own = WorkerOutput(0, directory, LARGE, LookupFiles([], [], None))
    collector = Collector(Spool(directory, LARGE), (), Store(), [], own, report=reports.append)
    storing = collector.storing
    for what in ("no 3.81 MiB for part 7_1", "no 1 MiB for part 8_2", "no answer", "no answer"):
        storing._report(SourceFailed(what))
    assert [error.what for error in reports] == ["no 3.81 MiB for part 7_1", "no answer"]


@pytest.fixture
def running(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Spool, Store, Storing]]:
    """Run Storing in a thread that never polls for new files."""
    monkeypatch.setattr(spool_module, "_IDLE_S", 100.0)
    monkeypatch.setattr(spool_module, "BATCH_S", 0.0)
    spool, store = Spool(directory, LARGE), Store()
    storing = Storing(spool, store)
    thread = threading.Thread(target=storing.run)
    thread.start()
    yield spool, store, storing
    storing.stop()
    thread.join(60)
    assert not thread.is_alive()


def test_a_new_block_ends_the_wait_of_the_thread(running: tuple[Spool, Store, Storing]) -> None:
    spool, store, storing = running
    stored = threading.Event()
    insert = store.insert

    def noted(blocks: Mapping[str, bytes], token: str) -> None:
        insert(blocks, token)
        stored.set()

    store.insert = noted  # type: ignore[method-assign]
    for number in range(3):
        stored.clear()
        spool.put({FLOWS: block(f"{number}")}, {})
        storing.wake()
        assert stored.wait(60)
    assert store.contents(FLOWS) == [block(f"{number}").content for number in range(3)]


def test_small_files_wait_to_be_stored_together(
    running: tuple[Spool, Store, Storing], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Store them some time after the last insert, before a query, once they are enough for a batch, or at the end."""
    spool, store, storing = running
    store.batch_s = 3600.0

    def put(count: int) -> None:
        for _ in range(count):
            spool.put({FLOWS: Block(os.urandom(100), 1)}, {RECEIVED: 1})
        storing.wake()

    put(1)
    store.before_query()
    until(lambda: storing.stored[FLOWS] == 1 and not storing._is_due(), "a query has the first one stored")
    put(3)
    assert not storing._is_due()
    monkeypatch.setattr(spool_module, "_WAITING_BYTES", spool.waiting_bytes() + 1)
    put(1)
    until(lambda: storing.stored[FLOWS] == 5, "four are enough")
    monkeypatch.setattr(spool_module, "_WAITING_BYTES", LARGE)
    until(lambda: not storing._is_due(), "the insert has ended")
    put(2)
    store.before_query()
    assert storing.stored[FLOWS] == 7
    monkeypatch.setattr(spool_module, "BATCH_S", 3600.0)
    put(2)
    store.before_query()
    assert storing.stored[FLOWS] == 7, "the last insert was a moment ago"
    storing.finish()
    until(lambda: storing.stored[FLOWS] == 9, "all are stored at the end")
    assert len(store.contents(FLOWS)) == 4


def test_a_query_does_not_wait_for_a_store_that_fails(running: tuple[Spool, Store, Storing]) -> None:
    spool, store, storing = running
    store.batch_s = 3600.0
    store.fails_before = {1, 2}
    spool.put({FLOWS: block("0")}, {})
    store.before_query()
    assert storing.failure or storing.stored[FLOWS]
    until(lambda: storing.stored[FLOWS] == 1, "it is stored later")


def test_a_query_does_not_wait_if_no_thread_stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before storing has begun, and once it has ended, a query answers from what is stored."""
    spool, store = Spool(tmp_path, LARGE), Store()
    storing = Storing(spool, store)
    monkeypatch.setattr(threading.Condition, "wait_for", pytest.fail)
    spool.put({FLOWS: block("0")}, {})
    store.before_query()
    storing.finish()
    storing.run()
    store.before_query()
    assert storing.stored[FLOWS] == 1


# All together.


class Machine(RuleBasedStateMachine):
    """Puts, a failing disk, crashes, damage and a failing store, in any order: everything put is accounted for."""

    def __init__(self) -> None:
        super().__init__()
        self.temporary = tempfile.TemporaryDirectory()
        self.directory = Path(self.temporary.name)
        self.patch = pytest.MonkeyPatch()
        self.faults = Faults(self.patch)
        self.store = Store()
        self.spool = Spool(self.directory, 2000)
        self.put_rows = self.lost_rows = self.carried_rows = 0
        self.number = 0

    def teardown(self) -> None:
        self.patch.undo()
        self.temporary.cleanup()

    def content(self, rows: int, size: int) -> Block:
        self.number += 1
        return Block(f"<{self.number}:{rows}>".encode() + os.urandom(size).hex().encode(), rows)

    @rule(
        rows=st.integers(1, 9), size=st.sampled_from([10, 900]), fault=st.sampled_from([0, 0, 0, 1, 2, 3, 5])
    )
    def put(self, rows: int, size: int, fault: int) -> None:
        self.faults.calls, self.faults.at, self.faults.error = 0, fault, OSError(errno.ENOSPC, "full")
        self.put_rows += rows
        if self.spool.put({FLOWS: self.content(rows, size)}, {RECEIVED: rows}) is None:
            self.carried_rows += rows
        else:
            self.carried_rows = 0
        self.faults.at = 0

    @rule(rows=st.integers(1, 9), step=st.integers(1, 9))
    def crash(self, rows: int, step: int) -> None:
        before = set(self.spool.waiting())
        self.faults.calls, self.faults.at, self.faults.error = 0, step, CrashError()
        self.put_rows += rows
        try:
            token = self.spool.put({FLOWS: self.content(rows, 10)}, {RECEIVED: rows})
            survives = token is not None
        except CrashError:
            survives = set(self.spool.waiting()) != before
        self.faults.at = 0
        if not survives:
            # What was only in memory is lost, like data received but not yet put.
            self.lost_rows += self.carried_rows + rows
        self.carried_rows = 0
        self.spool = Spool(self.directory, 2000)
        self.spool.recover()

    @rule(fails=st.sets(st.integers(1, 6)), after=st.booleans(), count=st.integers(1, 3))
    def store_some(self, fails: set[int], after: bool, count: int) -> None:
        failing = {self.store.calls + call for call in fails}
        self.store.fails_before, self.store.fails_after = (set(), failing) if after else (failing, set())
        storing = Storing(self.spool, self.store)
        for _ in range(count):
            try:
                storing.store_oldest()
            except SourceFailed:
                storing = Storing(Spool(self.directory, 2000), self.store)

    @precondition(lambda self: self.spool.waiting())
    @rule()
    def damage(self) -> None:
        token = self.spool.waiting()[-1]
        # The rest of a partly stored file would be both stored and dropped.
        if not parts_of(self.spool.read(token).blocks) & parts_of(self.store.blocks):
            path = self.directory / f"{token}.block"
            path.write_bytes(path.read_bytes()[:-1])

    @invariant()
    def everything_is_accounted_for(self) -> None:
        ledgers, total = self.store.ledgers(), self.store.ledger()
        waiting: set[tuple[int, int]] = set()
        for token in self.spool.waiting():
            if token not in ledgers:
                spooled = self.spool.read(token)
                total.update(spooled.ledger)
                waiting |= parts_of(spooled.blocks)
        stored = parts_of(self.store.blocks) - waiting
        assert total[RECEIVED] + self.carried_rows + self.lost_rows == self.put_rows
        assert total[RECEIVED] == sum(rows for _, rows in stored | waiting) + total[DROPPED]
        assert ".tmp" not in suffixes(self.directory)


def parts_of(blocks: Mapping[str, bytes | Block]) -> set[tuple[int, int]]:
    """Return the machine's blocks among these, each with its number and rows. None is there twice."""
    contents = [content if isinstance(content, bytes) else content.content for content in blocks.values()]
    parts = [match for content in contents for match in re.findall(rb"<(\d+):(\d)>", content)]
    assert len(parts) == len(set(parts))
    return {(int(number), int(rows)) for number, rows in parts}


TestMachine = Machine.TestCase
