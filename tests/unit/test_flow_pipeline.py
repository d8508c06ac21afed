# SPDX-License-Identifier: Apache-2.0
"""The pipeline from datagrams to blocks: their contents, their ledgers, and the state that survives a restart."""

from __future__ import annotations

import errno
import os
import struct
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nettop.collector import pipeline as pipeline_module
from nettop.collector import saved_numbers as kept_numbers
from nettop.collector.decode import kept
from nettop.collector.decode.sequences import Counting
from nettop.collector.decode.templates import IPFIX, NETFLOW_9
from nettop.collector.enrichment.enrich import FlowSide
from nettop.collector.enrichment.lookups import LookupFiles
from nettop.collector.enrichment.networks import Intervals, parsed_networks
from nettop.collector.exporters import SAVED_NS
from nettop.collector.kafka import Topic
from nettop.collector.pipeline import Columns, Pipeline, WorkerOutput
from nettop.collector.spool import DROPPED, Spool
from nettop.errors import NettopError
from nettop.snapshots.arrays import Mask
from tests.builders.exports import DECLARED, NETFLOW_5, SFLOW, sent
from tests.builders.flow_messages import PLAIN, Sent, a_set, batch, message, options_set, plain, template_set
from tests.builders.native_reader import Reader

from .flow_oracle import VARIABLE
from .test_flow_exporters import netflow5, numbered, sflow

LARGE = 1 << 30
DATA = {version: message(version, a_set(300, plain(5)), sequence=2) for version in (NETFLOW_9, IPFIX)}
POOL = [
    *sent(b"\0\1rubbish", b"\0\5", NETFLOW_5, SFLOW),
    *(message(version, declared) for version, declared in DECLARED.items()),
    *DATA.values(),
    message(IPFIX, a_set(999, b"lost"), domain=8),
]


class Run:
    """A pipeline in a directory, with its own clock, recording reports and blocks."""

    def __init__(
        self,
        directory: Path,
        number: int = 0,
        *,
        most_bytes: int = LARGE,
        files: LookupFiles | None = None,
        **how: Any,
    ) -> None:
        self.now = 100.0
        self.reported: list[NettopError] = []
        self.spool = Spool(directory / "spool", LARGE)
        to = WorkerOutput(number, directory, most_bytes, files or LookupFiles([], [], None), **how)
        self.pipeline = Pipeline(to, self.reported.append, lambda: self.now)

    def add(self, *datagrams: Sent, at_s: int = 0) -> None:
        """Add datagrams in one batch."""
        some = batch(list(datagrams))
        some.received_ns[:] += at_s * 1_000_000_000
        self.pipeline.add(some)

    def write(self) -> None:
        """Write a block."""
        self.pipeline.write_block()

    def lost(self) -> list[tuple[int, int, int, int]]:
        """Return each exporter's losses, restarts, unchecked datagrams and counting."""
        table = self.pipeline.exporters.table(self.pipeline.decoder)
        return [tuple(row) for row in table[["lost", "restarts", "unchecked", "counting"]].tolist()]

    def taken(self) -> tuple[dict[str, list[dict[str, Any]]], Counter[str]]:
        """Remove all blocks; return their rows by table, and the sum of their ledgers."""
        rows: dict[str, list[dict[str, Any]]] = {}
        ledger = Counter[str]()
        for token in self.spool.waiting():
            spooled = self.spool.read(token)
            ledger.update(spooled.ledger)
            for table, block in spooled.blocks.items():
                columns = {name: values for name, (_, values) in Reader(block.content).block().items()}
                some = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
                assert len(some) == block.rows
                rows.setdefault(table, []).extend(some)
            self.spool.remove(token)
        return rows, ledger


def test_flows_and_counters_are_in_blocks(tmp_path: Path) -> None:
    """A block has the flows of all datagrams since the last one, interface counters, and the ledger."""
    run = Run(tmp_path)
    run.add(*sent(b"\0\1rubbish", NETFLOW_5, SFLOW))
    run.add(message(NETFLOW_9, DECLARED[NETFLOW_9], a_set(300, plain(11))))
    assert run.pipeline.pending == 5
    run.write()
    assert run.pipeline.pending == 0
    rows, ledger = run.taken()
    assert sorted(row["bytes"] for row in rows["flows_raw"]) == [11, 84, 700, 1500, 1500]
    assert len(rows["interface_counters"]) == 1
    assert ledger == run.pipeline.ledger()
    assert {name: ledger[name] for name in ("datagrams", "decoded", "unknown_version", "rows")} == {
        "datagrams": 4,
        "decoded": 3,
        "unknown_version": 1,
        "rows": 5,
    }
    assert run.pipeline.spooled == {"flows_raw": 5, "interface_counters": 1}
    run.write()
    assert run.taken() == ({}, Counter())
    run.add(DATA[NETFLOW_9])
    run.write()
    rows, ledger = run.taken()
    assert [row["bytes"] for row in rows["flows_raw"]] == [5]
    assert ledger == {"datagrams": 1, "decoded": 1, "records": 1, "rows": 1}


def test_routers_behind_one_address_keep_their_interface_names(tmp_path: Path) -> None:
    """By port, also for flows that arrive together, that waited for their template, or after a restart."""
    named = options_set(IPFIX, 256, [(0, 10, 4)], [(0, 82, VARIABLE)])
    flows = template_set(IPFIX, 300, [*PLAIN, (0, 10, 4)]), a_set(300, plain(1) + struct.pack("!I", 5))
    names = {1001: b"wan-A", 1002: b"wan-B"}
    run = Run(tmp_path)
    for port, name in names.items():
        options = message(IPFIX, named, a_set(256, struct.pack("!IB", 5, len(name)) + name))
        run.add(replace(options, port=port))
    run.pipeline.finish()
    for which in (Run(tmp_path), Run(tmp_path)):
        data = [replace(message(IPFIX, flows[1]), port=port) for port in names]
        declared = [replace(message(IPFIX, flows[0]), port=port) for port in names]
        which.add(*data, *declared, *data)
        which.pipeline.finish()
        rows, _ = which.taken()
        assert Counter(row["in_if_name"] for row in rows["flows_raw"]) == {"wan-A": 2, "wan-B": 2}


def test_datagrams_of_other_senders_are_refused(tmp_path: Path) -> None:
    """They are counted, and nothing else is known of them."""
    other = bytes(10) + b"\xff\xff\xc6\x33\x64\x01"
    ranges = parsed_networks(["192.0.2.0/28", "2001:db8::1"])
    run = Run(tmp_path, allowed=Intervals.of(ranges, np.zeros(len(ranges), np.int32)))
    mine = message(NETFLOW_9, DECLARED[NETFLOW_9], a_set(300, plain(11)))
    run.add(*sent(NETFLOW_5, sender=other), mine, *sent(b"rubbish", mine.data, sender=other))
    run.write()
    rows, ledger = run.taken()
    assert [row["bytes"] for row in rows["flows_raw"]] == [11]
    assert (ledger["datagrams"], ledger["refused"]) == (1, 3)
    assert len(run.pipeline.exporters.table(run.pipeline.decoder)) == 1


def test_flows_are_enriched(tmp_path: Path) -> None:
    """From files about addresses and interfaces, and from exporters for interfaces missing in the files."""
    networks, interfaces = tmp_path / "networks.csv", tmp_path / "interfaces.csv"
    networks.write_text("network,asn,as_name,country,name\n10.0.0.0/8,64512,Ten,DE,ten\n")
    interfaces.write_text("exporter,if_index,name\n192.0.2.1,1,wan\n")
    run = Run(tmp_path, files=LookupFiles([networks], [interfaces], parsed_networks(["10.0.0.0/8"])))
    named = options_set(IPFIX, 256, [(0, 10, 4)], [(0, 82, VARIABLE)])
    run.add(message(IPFIX, named, a_set(256, b"\0\0\0\3\3lan")), *sent(NETFLOW_5))
    run.write()
    first, _ = run.taken()
    assert [(row["src_country"], row["dst_network"], row["side"]) for row in first["flows_raw"]] == [
        ("DE", "ten", FlowSide.INTERNAL)
    ] * 2
    assert sorted(row["src_as"] for row in first["flows_raw"]) == [64512, 65001]
    assert {row["in_if"]: row["in_if_name"] for row in first["flows_raw"]} == {1: "wan", 3: ""}
    run.now += 60
    run.write()  # exporters' declarations are used from now on
    run.add(*sent(NETFLOW_5))
    run.write()
    later, _ = run.taken()
    assert {row["in_if"]: row["in_if_name"] for row in later["flows_raw"]} == {1: "wan", 3: "lan"}


def test_filtered_flows_are_counted(tmp_path: Path) -> None:
    """Filtered flows are in no block, but in the ledger; a block without rows is not written."""

    def is_large(columns: Columns) -> Mask:
        sizes = columns["bytes"]
        assert isinstance(sizes, np.ndarray)
        large: Mask = sizes > 100
        return large

    run = Run(tmp_path, wanted=is_large)
    run.add(*sent(NETFLOW_5))
    run.write()
    rows, ledger = run.taken()
    assert [row["bytes"] for row in rows["flows_raw"]] == [700]
    assert (ledger["rows"], ledger["filtered"]) == (2, 1)
    run.add(message(NETFLOW_9, DECLARED[NETFLOW_9], a_set(300, plain(11))))
    run.write()
    rows, ledger = run.taken()
    assert "flows_raw" not in rows
    assert (ledger["rows"], ledger["filtered"]) == (1, 1)


def test_flows_dropped_by_the_spool_are_counted(tmp_path: Path) -> None:
    """The drop is reported, and counted in a later block's ledger."""
    run = Run(tmp_path, most_bytes=1)
    run.add(*sent(NETFLOW_5, SFLOW))
    run.write()
    dropped = {f"flows_raw{DROPPED}": 4, f"interface_counters{DROPPED}": 1}
    assert run.pipeline.spooled == dropped
    assert run.taken() == ({}, Counter())
    assert "the spool is full (1 bytes)" in run.reported[0].what
    run.add(*sent(b"\0\1rubbish"))
    run.write()  # a ledger on its own is always accepted
    _, ledger = run.taken()
    assert ledger == run.pipeline.ledger() + Counter(dropped)


def test_a_block_is_due(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After one second, or with many flows."""
    monkeypatch.setattr(pipeline_module, "BLOCK_ROWS", 4)
    run = Run(tmp_path)
    assert run.pipeline.due_s == 1.0
    run.now += 0.75
    assert run.pipeline.due_s == 0.25
    run.now += 0.75
    assert run.pipeline.due_s == 0.0
    run.write()
    run.add(*sent(NETFLOW_5))
    assert run.pipeline.due_s == 1.0
    run.add(*sent(NETFLOW_5))
    assert run.pipeline.due_s == 0.0
    run.write()
    assert run.pipeline.due_s == 1.0


@pytest.mark.parametrize("version", [NETFLOW_9, IPFIX])
@pytest.mark.parametrize("is_clean", [True, False])
def test_a_restart_remembers_templates(tmp_path: Path, version: int, is_clean: bool) -> None:
    """Also if the process is killed some seconds after they arrived."""
    run = Run(tmp_path)
    run.add(message(version, DECLARED[version]))
    if is_clean:
        run.pipeline.finish()
    else:
        run.now += 60
        run.write()
    again = Run(tmp_path)
    again.add(DATA[version])
    again.write()
    rows, _ = again.taken()
    assert [row["bytes"] for row in rows["flows_raw"]] == [5]


def test_templates_that_cannot_be_read_are_reported(tmp_path: Path) -> None:
    """The pipeline continues without them."""
    (tmp_path / "templates-0").write_bytes(b"rubbish")
    run = Run(tmp_path)
    assert [failure.what for failure in run.reported] == [
        f"ignoring flow templates in {tmp_path}/templates-0: not a file written by nettop"
    ]
    run.add(*sent(NETFLOW_5))
    assert run.pipeline.pending == 2


def test_templates_that_cannot_be_saved_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pipeline continues."""
    run = Run(tmp_path)
    run.add(message(IPFIX, DECLARED[IPFIX], a_set(300, plain(11))))

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as broken:
        broken.setattr(kept, "write_file", fail)
        run.pipeline.finish()
    assert "no space left on device" in run.reported[0].what
    rows, _ = run.taken()
    assert [row["bytes"] for row in rows["flows_raw"]] == [11]


def test_a_spool_that_cannot_be_written_is_reported_in_the_same_words(tmp_path: Path) -> None:
    """Whatever name the file would have had."""
    run = Run(tmp_path)
    (tmp_path / "spool").rmdir()
    (tmp_path / "spool").touch()
    for _ in range(2):
        run.add(*sent(NETFLOW_5))
        run.write()
    assert [failure.what for failure in run.reported] == ["flows are dropped: Not a directory"] * 2
    assert run.pipeline.failure is not None
    assert run.pipeline.failure.what == run.reported[-1].what
    (tmp_path / "spool").unlink()
    run.add(*sent(NETFLOW_5))
    run.write()
    assert run.pipeline.failure is None


# --- lost exports across a restart ----------------------------------------------------------------------------

SERIES = {
    # Each one's last datagram accounts for 10 flows, or one datagram.
    "NetFlow 5": ([netflow5(at, 10) for at in range(0, 400, 10)], 10, Counting.FLOWS),
    "NetFlow 9": (numbered(*range(40)), 1, Counting.DATAGRAMS),
    "IPFIX": (numbered(*range(0, 400, 10), version=IPFIX), 10, Counting.RECORDS),
    "IPFIX, over the wrap": (
        numbered(*range(2**32 - 150, 2**32 + 250, 10), version=IPFIX),
        10,
        Counting.RECORDS,
    ),
    "sFlow": ([sflow(at) for at in range(40)], 1, Counting.DATAGRAMS),
}


@pytest.mark.parametrize("is_killed", [False, True])
@pytest.mark.parametrize("name", SERIES)
def test_losses_while_nobody_receives(tmp_path: Path, name: str, *, is_killed: bool) -> None:
    """The next process detects it from the first datagram on: data after the last block is lost if the process is
    killed, and kept if it exits.
    """
    sent, units, counting = SERIES[name]
    run = Run(tmp_path)
    run.add(*sent[:10])
    run.add(*sent[10:20])
    run.write()
    run.add(*sent[20:24])
    if not is_killed:
        run.pipeline.finish()
    again = Run(tmp_path)
    again.add(*sent[30:32])
    in_memory = 4 if is_killed else 0
    rows = again.lost()
    assert sum(row[0] for row in rows) == units * (6 + in_memory)
    assert {row[1:] for row in rows} == {(0, 0, counting)}
    # It is killed before it has written anything, and then once more.
    third = Run(tmp_path)
    third.add(*sent[32:33])
    third.write()
    assert sum(row[0] for row in third.lost()) == units * (8 + in_memory)
    fourth = Run(tmp_path)
    fourth.add(*sent[33:])
    assert sum(row[0] for row in fourth.lost()) == 0


def test_silent_exporters_are_remembered(tmp_path: Path) -> None:
    """Across further restarts, and if another process takes over."""
    run = Run(tmp_path, 0)
    run.add(*numbered(0, 1, 2))
    run.pipeline.finish()
    for at in range(3):
        again = Run(tmp_path, at % 2)
        again.add(sflow(at))
        again.pipeline.finish()
    other = Run(tmp_path, 2)
    other.add(*numbered(9), at_s=1)
    assert other.lost() == [(6, 0, 0, Counting.DATAGRAMS)]
    other.pipeline.finish()
    # The newest state wins.
    first = Run(tmp_path, 0)
    first.add(*numbered(12), at_s=2)
    assert first.lost() == [(2, 0, 0, Counting.DATAGRAMS)]


def test_an_exporter_that_restarts_meanwhile(tmp_path: Path) -> None:
    """A restart is reported; losses are unknown, so none are counted."""
    run = Run(tmp_path)
    run.add(*numbered(*range(5000, 5010)))
    run.pipeline.finish()
    again = Run(tmp_path)
    again.add(*numbered(3, 4))
    assert again.lost() == [(0, 1, 0, Counting.DATAGRAMS)]


def another_boot(folder: Path) -> Path:
    """Write the boot ID of another start of the kernel."""
    path = folder / "boot_id"
    path.write_text("another\n")
    return path


@pytest.mark.parametrize("how", ["a day", "a crash of the host", "rubbish", "cut off", "nothing"])
def test_outdated_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Losses are then unknown."""
    file = tmp_path / "sequences-0"
    run = Run(tmp_path)
    run.add(*numbered(*range(0, 100, 10), version=IPFIX))
    run.write()
    late = 0
    if how == "a day":
        late = SAVED_NS // 10**9
    elif how == "a crash of the host":
        monkeypatch.setattr(kept_numbers, "_BOOT_ID", another_boot(tmp_path))
    elif how == "rubbish":
        file.write_bytes(b"rubbish\n" + file.read_bytes())
    elif how == "cut off":
        file.write_bytes(file.read_bytes()[:-1])
    else:
        file.write_bytes(b"")
    again = Run(tmp_path)
    for at in (400, 410, 440):
        again.add(*numbered(at, version=IPFIX), at_s=late)
    unchecked = int(how in ("a day", "a crash of the host"))
    assert again.lost() == [(20, 0, unchecked, Counting.RECORDS)]
    assert again.reported == []


@pytest.mark.parametrize("kafka", [None, Topic("127.0.0.1:1", "flows")])
def test_numbers_outlive_the_host_if_it_is_stopped_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kafka: Topic | None
) -> None:
    """The state saved on exit is synced to disk, also with the flows that no Kafka broker has accepted by then."""
    if kafka:
        pytest.importorskip("confluent_kafka")
        monkeypatch.setattr("nettop.collector.kafka.END_S", 0.0)
    run = Run(tmp_path, kafka=kafka)
    run.add(*numbered(0, 1, 2))
    run.pipeline.finish()
    monkeypatch.setattr(kept_numbers, "_BOOT_ID", another_boot(tmp_path))
    again = Run(tmp_path)
    again.add(*numbered(9))
    assert again.lost() == [(6, 0, 0, Counting.DATAGRAMS)]


def test_a_long_silence_of_a_fast_exporter(tmp_path: Path) -> None:
    """What it sends in that time is lost, rather than mistaken for a restart."""
    run = Run(tmp_path)
    per_s, silent_s = 100, 80_000
    for second in range(20):
        run.add(*(sflow(second * per_s + at) for at in range(per_s)), at_s=second)
    run.pipeline.finish()
    for at_s, expected in ((silent_s, (per_s * (silent_s - 20), 0)), (20, (0, 1))):
        again = Run(tmp_path)
        again.add(sflow(per_s * silent_s), at_s=at_s)
        assert again.lost()[0][:2] == expected


def test_numbers_that_cannot_be_kept_are_reported(tmp_path: Path) -> None:
    """The pipeline continues."""
    (tmp_path / "sequences-0.new").mkdir()
    run = Run(tmp_path)
    run.add(*numbered(0, 1, 2))
    run.write()
    assert "cannot save sequence numbers" in run.reported[0].what
    rows, _ = run.taken()
    assert len(rows["flows_raw"]) == 30


@settings(max_examples=50)
@given(st.lists(st.lists(st.sampled_from(POOL), max_size=4), max_size=6), st.sets(st.integers(0, 5)))
def test_ledgers_add_up(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[Sent]], written_after: set[int]
) -> None:
    """For any input and any block boundaries, ledgers are complete and rows match them."""
    run = Run(tmp_path_factory.mktemp("flows"))
    for number, datagrams in enumerate(batches):
        run.add(*datagrams)
        if number in written_after:
            run.write()
    run.pipeline.finish()
    rows, ledger = run.taken()
    assert ledger == +run.pipeline.ledger()
    assert ledger["rows"] == len(rows.get("flows_raw", []))
    assert ledger["interface_counters"] == len(rows.get("interface_counters", []))
    assert ledger["datagrams"] == ledger["decoded"] + ledger["unknown_version"] + ledger["bad_header"]
    assert ledger["held"] == ledger["released"] + ledger["forgotten"]
    assert ledger["datagrams"] == sum(map(len, batches))
